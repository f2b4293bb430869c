"""The device on which a flow, its coordinates and its energies are, and random numbers that do not depend on it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.compute.graphs import Graphs
from openmm_cgflow.compute.parallel import Parallel
from openmm_cgflow.counts import seed_number
from openmm_cgflow.errors import InvalidInputError, TrainingError

__all__ = ["Compute", "Device", "choose", "seeded"]

Device = str | torch.device
"""A device as torch names it: `"cpu"`, `"cuda"`, `"cuda:1"`."""


@dataclass(frozen=True)
class Compute:
    """Where a flow lives and works.

    Attributes:
        device: of flow, coordinates and energies, and of all that is computed with them.
    """

    device: torch.device

    @classmethod
    def on(cls, device: Device | None = None) -> "Compute":
        """A device by its name; by default the GPU where there is one, else the CPU.

        Raises:
            InvalidInputError: there is no such device, or it cannot compute in double precision.

        Example:
            >>> Compute.on("cpu").device
            device(type='cpu')
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            one = torch.ones(1, dtype=torch.float64, device=device)
            (one + one).item()  # what a device without values, such as "meta", cannot do
            return cls(one.device)  # with its index
        # torch's errors for a build without CUDA, a kind of device without tensors or without double precision, one of
        # another package, an unknown name, and no name at all
        except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]
            raise InvalidInputError(
                f'device is {str(device)!r}, which cannot be used here ({reason}); give "cpu", or "cuda" where there '
                "is a GPU and a torch built for it"
            ) from error

    def parallel(self, recorded: bool = False) -> Parallel:
        """Threads on a CPU, one stream on a GPU.

        Arguments:
            recorded: whether a GPU may record what is done again and again.
        """
        return Parallel(device=self.device, graphs=Graphs() if recorded and self.device.type == "cuda" else None)

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array as a tensor here."""
        return torch.as_tensor(values).to(self.device)


def choose(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` indices drawn by `weights`, with replacement; on the CPU, with which a GPU may be indexed.

    Raises:
        TrainingError: if no weight is above zero, or one is NaN: then no energy was finite.
    """
    weights = weights.cpu()
    if not 0 < float(weights.sum()) < math.inf:
        raise TrainingError(
            f"every energy of {len(weights):,} structures is infinite or NaN; check the System, and the forces in it "
            "that call a program."
        )
    return torch.multinomial(weights, n, replacement=True, generator=generator)


def seeded(seed: int | None = None) -> torch.Generator:
    """A generator on the CPU: what it gives is moved to where it is needed, so that one seed gives one result anywhere.

    Arguments:
        seed: of its numbers; drawn from torch's global generator if None.

    Raises:
        InvalidInputError: the seed is no integer, or negative.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**31, (1,))) if seed is None else seed_number(seed))
