"""Flows of plain vectors: the same densities and the same training, for a potential without a molecule."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from openmm_cgflow.compute import Compute, Device, plain_torch
from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.counts import seed_number
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import Potential
from openmm_cgflow.storage import read_as, read_file, reading, write_file
from openmm_cgflow.trainable import Trainable
from openmm_cgflow.trained.stored import StoredVectors, check_network
from openmm_cgflow.units import KB, PositionsLike, in_nm

__all__ = ["VectorFlow"]


class VectorFlow(Trainable[LinearCoordinates]):
    """A normalizing flow with slow and fast variables for `exp(-U(x))` of vectors `x`, energies in units of kT.

    The slow variables are entries of the vectors that you name, or components of these along directions that `train`
    finds. The Laplace start finds those that tell the minima of the potential apart. While tempering
    (`TrainSettings(tempering=...)`) the directions are trained with everything else, from a random start: towards those
    given which the fast variables are as nearly normal as can be, with a mean that depends on the slow ones linearly.

    Arguments:
        potential: of `(batch, dim)`, in units of kT, such as `potentials.DoubleWell()`. It is copied.
        slow: number of slow variables to be found, whose density may have many modes; or the indices of the entries of
            the vectors that are slow.
        width: half the extent of the region that holds the modes.
        settings: sizes of the networks.
        seed: of everything random; with `settings`, theirs is that of masks and start weights.
        device: where flow and energies live and work; by default the GPU where there is one, else the CPU.

    Raises:
        InvalidInputError: for an impossible choice of slow variables, a width that is not positive, or something else
            than a potential or settings.

    Source: Stupp and Koutsourelakis, arXiv 2504.20940.

    Example:
        >>> from openmm_cgflow.potentials import DoubleWell
        >>> flow = VectorFlow(DoubleWell(), slow=1, width=2.0)
        >>> flow.sample(100, seed=0).positions.shape
        (100, 2)
    """

    @plain_torch
    def __init__(
        self,
        potential: Potential,
        slow: int | Sequence[int],
        width: float = 1.0,
        settings: FlowSettings | None = None,
        seed: int = 0,
        device: Device | None = None,
    ) -> None:
        seed = seed_number(seed)
        if not isinstance(potential, Potential):
            raise InvalidInputError(f"VectorFlow: potential is a {type(potential).__name__}; give a Potential.")
        if not isinstance(settings, FlowSettings | None):
            raise InvalidInputError(f"VectorFlow: settings is a {type(settings).__name__}; give a FlowSettings.")
        coordinates = LinearCoordinates(potential.n_atoms, slow, width, seed)
        super().__init__(copy.deepcopy(potential), coordinates, 1 / KB, settings or FlowSettings(seed=seed), device)
        self.seed = seed

    def _described(self) -> list[Any]:
        values = {name: t.tolist() for name, t in self.potential.state_dict().items()}
        x = self.coordinates.width * torch.sin(torch.arange(3.0 * self.coordinates.dof)).reshape(3, -1)
        with torch.no_grad():  # for what is no tensor of the potential
            energies = copy.deepcopy(self.potential).energy(self.compute.tensor(x.numpy())).tolist()
        return [type(self.potential).__name__, values, [f"{energy:.3g}" for energy in energies], self._layout()]

    def _layout(self) -> dict[str, Any]:
        return {"dim": self.coordinates.dof, "slow": self.coordinates.slow, "width": self.coordinates.width}

    def _read(self, positions: PositionsLike) -> np.ndarray:
        dim, x = self.coordinates.dof, in_nm(positions)
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != dim:
            raise MismatchError(f"positions have shape {x.shape}, but this model is of vectors: give (n, {dim}).")
        wrong = np.flatnonzero(~np.isfinite(x).all(1))
        if len(wrong):
            raise InvalidInputError(
                f"{len(wrong)} of {len(x)} vectors hold NaN or infinite values, the first is {wrong[0]}; remove them."
            )
        return x

    @plain_torch
    def save(self, path: str | Path) -> None:
        """Write everything but the potential to one file.

        Raises:
            ModelFileError: if it cannot be written; an older file there stays.
        """
        write_file(path, "vector model", self._tensors(), self._header() | {"layout": self._layout()})

    @classmethod
    @plain_torch
    def load(cls, path: str | Path, potential: Potential, device: Device | None = None) -> Self:
        """Read a model that `save` wrote, for the potential that it was trained on.

        Arguments:
            path: of the file.
            potential: of vectors of the same length.
            device: where they are to work; by default the GPU where there is one.

        Raises:
            ModelFileError: for a missing, damaged, foreign or newer file.
            MismatchError: for a potential of vectors of another length.
        """
        device = Compute.on(device).device
        with reading(path, "vector model"):
            tensors, header = read_file(path, "vector model")
            stored = read_as(StoredVectors, header, "the description")
        layout = stored.layout
        if potential.n_atoms != layout.dim:
            raise MismatchError(
                f"{path} is of vectors of length {layout.dim}, but the potential is of {potential.n_atoms}."
            )
        with reading(path, "vector model"):
            coordinates = LinearCoordinates(layout.dim, layout.slow, layout.width)
            check_network(tensors, coordinates, stored.settings)
            self = cls(potential, layout.slow, layout.width, stored.settings, device=device)
            self._restore(tensors, header)
        return self
