"""The trained flow of a molecule."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import mdtraj
import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.beads import Beads
from openmm_cgflow.chemistry.system_bonds import constraints_of
from openmm_cgflow.compute import Compute, Device, plain_torch
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.copies import copied_system, copied_topology
from openmm_cgflow.coverage import Coverage
from openmm_cgflow.door import structure_reader
from openmm_cgflow.errors import CGFlowError, InvalidInputError, ModelFileError
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import Potential, make_potential
from openmm_cgflow.storage import (
    check_storable,
    read_as,
    read_file,
    reading,
    system_to_xml,
    topology_to_json,
    write_file,
)
from openmm_cgflow.structures import CONSTRAINT_TOLERANCE
from openmm_cgflow.trained.base import Trained
from openmm_cgflow.trained.stored import Molecule, StoredModel, check_network, molecule_of
from openmm_cgflow.trajectory_files import read_pieces
from openmm_cgflow.units import PositionsLike

__all__ = ["TrainedFlow"]

FRAMES_AT_ONCE = 2000
"""Of a file that is read piece by piece."""

_log = logging.getLogger("openmm_cgflow")
_SHOWN = 3  # names in a message


class TrainedFlow(Trained[InternalCoordinates]):
    """A flow of one molecule.

    Arguments:
        molecule: what it is of; it is kept, not copied.
        kelvin: temperature, K.
        settings: sizes of the networks.
        device: where it lives and works; by default the GPU where there is one, else the CPU.
        potential: energies of the System, if they are there already.

    Attributes:
        coverage: what the last audit found; None before one.

    Example:
        TrainedFlow.load("model.cgflow").sample(1000)
    """

    coverage: Coverage | None = None

    @plain_torch
    def __init__(
        self,
        molecule: Molecule,
        kelvin: float,
        settings: FlowSettings,
        device: Device | None = None,
        potential: Potential | None = None,
    ) -> None:
        self._topology, self._system, self._positions = molecule.topology, molecule.system, molecule.positions
        self._structures = structure_reader(self._topology, self._system, self._positions)
        potential = potential or make_potential(self._system, self._positions, kelvin)
        super().__init__(potential, molecule.coordinates, kelvin, settings, device)

    @property
    def topology(self) -> app.Topology:
        """The molecule: a copy at each call; to change it does not change the flow."""
        return copied_topology(self._topology)

    @property
    def system(self) -> openmm.System:
        """The System that the flow is of: a copy at each call; forces added to it are not part of the flow."""
        return copied_system(self._system)

    @property
    def constraints(self) -> dict[tuple[int, int], float]:
        """Constrained distances, nm, by pairs of atoms."""
        return constraints_of(self._system)

    @property
    def positions(self) -> unit.Quantity:
        """The structure that the flow was made from, `(atoms, 3)`; a copy."""
        return self._positions.copy() * unit.nanometer

    @cached_property
    def beads(self) -> Beads:
        """The beads as a molecule of their own."""
        return Beads(self._topology, self._system, self._positions, self.coordinates)

    @property
    def slow_torsions(self) -> list[tuple[int, int, int, int]]:
        """Atom indices of the slow torsions."""
        return self.coordinates.slow_torsions

    def _read(self, positions: PositionsLike) -> np.ndarray:
        # a poor flow's samples may have open rings, but no atom is far from that on which it was placed
        return self._structures.read(positions, only=self.coordinates.placing_pairs)

    @plain_torch
    @torch.no_grad()
    def logDensity(self, positions: PositionsLike) -> np.ndarray:
        """Log-density of the flow at positions, per nm^(3 atoms - 6), rigid motion taken out.

        Under constraints it is the density on the surface where they hold, per nm^(3 atoms - 6 - constraints).
        Constrained distances may be off by 0.002 nm, as files with three decimals leave them.

        Arguments:
            positions: `(atoms, 3)` or `(n, atoms, 3)`, in any orientation: an mdtraj Trajectory (its atoms are put in
                order by their names, and made whole by its box), an OpenMM State, a Quantity, or numbers in nm; or a
                file that mdtraj reads, of any length, which is read piece by piece.

        Returns:
            `(n,)`; minus infinity for the other chirality, another isomer, or constraints that do not hold.

        Raises:
            MismatchError: for another molecule.
            InvalidInputError: for broken bonds, atoms on one another, NaN or another unit; frames are named.

        Example:
            flow.logDensity(samples.positions)
        """
        return self._by_pieces(positions, self._log_density_of)

    @plain_torch
    def slowVariables(self, positions: PositionsLike) -> np.ndarray:
        """The slow variables `(n, n_slow)` of positions, radians.

        Arguments:
            positions: as in `logDensity`; a file too.

        Raises:
            MismatchError: for another molecule.
            InvalidInputError: for broken bonds, atoms on one another, NaN or another unit; frames are named.

        Example:
            phi, psi = flow.slowVariables("md.xtc").T
        """
        return self._by_pieces(positions, super().slowVariables)

    def _by_pieces(self, positions: PositionsLike, of: Callable[[PositionsLike], np.ndarray]) -> np.ndarray:
        """A function of what was given; or of a file's frames, some thousand at a time.

        Raises:
            InvalidInputError: for a file that is not there, or has no frames.
        """
        if not isinstance(positions, str | Path):
            return of(positions)
        path, parts, seen = Path(positions), [], 0
        if not path.is_file():
            raise InvalidInputError(f"there is no file {path}")
        for piece in read_pieces(path, mdtraj.Topology.from_openmm(self._topology), FRAMES_AT_ONCE):
            try:
                parts.append(of(piece))
            except CGFlowError as error:
                raise type(error)(f"{path}, frames counted from number {seen} of the file on: {error}") from error
            seen += len(piece)
        if not parts:
            raise InvalidInputError(f"there are no frames in {path}")
        return np.concatenate(parts)

    def _log_density_of(self, positions: PositionsLike) -> np.ndarray:
        x = self._read(positions)
        log_density = self.log_density_at(x)
        self._say_if_outside(x)
        off = self._structures.off_constraints(x) > CONSTRAINT_TOLERANCE
        if off.any():
            first = int(off.argmax())
            _log.warning(
                "logDensity: constraints do not hold in %d of %d frames, which the flow never gives (frame %d: %s)",
                off.sum(),
                len(off),
                first,
                self._structures.worst_constraint(x[first]),
            )
        return np.where(off, -np.inf, log_density)

    def _say_if_outside(self, x: np.ndarray) -> None:
        """Warn of structures that the flow never gives."""
        q, _ = self.coordinates.to_internal(self.compute.tensor(x))
        outside = ~self.coordinates.in_domain(q)
        if not outside.any():
            return
        first = int(outside.nonzero()[0])
        beyond = ((q[first] <= self.coordinates.low.to(q)) | (q[first] >= self.coordinates.high.to(q))).tolist()
        names = [name for name, is_beyond in zip(self.coordinates.names, beyond, strict=True) if is_beyond]
        _log.warning(
            "logDensity: %s of %d frames are ones that the flow never gives: they are of the mirror image or another "
            "isomer than its structure, or hydrogens of one atom are in another order (frame %d: %s)",
            "all" if outside.all() else int(outside.sum()),
            len(q),
            first,
            ", ".join(names[:_SHOWN] or ["a straight angle"]) + (", ..." if len(names) > _SHOWN else ""),
        )

    @plain_torch
    def save(self, path: str | Path) -> None:
        """Write the model to one file that holds everything: flow, coordinates, System, topology, history.

        Raises:
            ModelFileError: if it cannot be written, or the System has a force that `load` would refuse; an older file
                there stays.
        """
        try:
            check_storable(self._system)
        except ModelFileError as error:
            raise ModelFileError(
                f"{path} is not written: {error} A checkpoint keeps what was learned, train(checkpoint=...): build the "
                "flow again from the System in your script, and train goes on from there."
            ) from error
        write_file(path, "model", *self._contents())

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is written: tensors, and the description."""
        header = {
            "topology": topology_to_json(self._topology),
            "system": system_to_xml(self._system),
            "coordinates": self.coordinates.state(),
            "coverage": None if self.coverage is None else asdict(self.coverage),
        }
        positions = torch.as_tensor(self._positions)
        return self._tensors() | {"positions": positions}, self._header() | header

    @classmethod
    @plain_torch
    def load(cls, path: str | Path, device: Device | None = None) -> Self:
        """Read a model that `save` wrote. Nothing in the file is run: forces that are programs are refused.

        Arguments:
            path: of the file.
            device: where the flow is to work, such as `"cpu"` or `"cuda"`; by default the GPU where there is one.

        Raises:
            ModelFileError: for a missing, damaged, foreign or newer file.
            InvalidInputError: for a device that is not there.
        """
        device = Compute.on(device).device  # before anything else, for it is no fault of the file
        with reading(path, "model"):
            tensors, header = read_file(path, "model")
            stored = read_as(StoredModel, header, "the description")
            molecule = molecule_of(stored, tensors)
            check_network(tensors, molecule.coordinates, stored.settings)
            self = cls.__new__(cls)  # what the constructor looks at is known of what comes from a file
            TrainedFlow.__init__(self, molecule, stored.temperature, stored.settings, device)
            self._restore(tensors, header)
            self.coverage = stored.coverage
        return self
