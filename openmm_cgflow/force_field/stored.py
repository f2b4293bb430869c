"""What a file of a force field holds, and how it is checked before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.beads import HEAVIEST
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.forcematching import (
    BeadNetwork,
    ChainNetwork,
    SchNet,
    SchNetSettings,
    Student,
    StudentSettings,
    bead_types,
)
from openmm_cgflow.storage import Allowance, StoredTopology, check_fit, fill, read_as, topology_from_json
from openmm_cgflow.units import KB

__all__ = ["Fitted", "StoredForceField", "positions_in", "student_in"]

_HOTTEST, _FURTHEST = 1e6, 1e4  # K, nm


@dataclass
class Fitted:
    """How a student was fitted.

    Attributes:
        force_error: rms over held-out points, in units of 1 / sd of each coordinate.
        energy_error: the same of energies, kT.
        points: at which the teacher was asked.
        steps: of the optimizer.
        seed: of everything random.
        seconds: that it took.
    """

    force_error: float
    energy_error: float
    points: int
    steps: int
    seed: int
    seconds: float


@dataclass
class _Known:
    """What a `SchNet` was trained on.

    Attributes:
        types: of beads.
        kinds: of stiff coordinates.
    """

    types: list[str]
    kinds: list[str]

    def __post_init__(self) -> None:
        for names in (self.types, self.kinds):
            if len(set(names)) < len(names):
                raise ModelFileError("the description has a type of beads, or a kind of bonds or angles, twice")


@dataclass
class StoredForceField:
    """What a file says beside its tensors."""

    temperature: float
    student: dict[str, Any]
    topology: StoredTopology
    masses: list[float]
    constraints: list[tuple[int, int, float]]
    coordinates: dict[str, Any] = field(metadata={"finite": False})
    fitted: Fitted
    kind: Literal["mlp", "schnet"] = "mlp"
    knows: _Known | None = None

    def __post_init__(self) -> None:
        if (self.kind == "schnet") != (self.knows is not None):
            raise ModelFileError(f"the description says what a network knows, or not, and its kind is {self.kind!r}")
        if not 0 < self.temperature < _HOTTEST:
            raise ModelFileError(f"the description has the temperature {self.temperature:g} K")
        if not all(0 < mass < HEAVIEST for mass in self.masses):
            raise ModelFileError("the description has a mass that is not positive, or huge")
        n = len(self.masses)
        if not all(0 <= i < j < n and 0 < distance < _FURTHEST for i, j, distance in self.constraints):
            raise ModelFileError(f"the description has a constraint that is none between {n} beads")


def positions_in(tensors: Mapping[str, Tensor], n: int) -> np.ndarray:
    """The structure of a file's `n` beads, `(n, 3)`, nm.

    Raises:
        ModelFileError: if it is missing, or cannot be one.
    """
    positions = tensors.get("positions")
    if positions is None or positions.dtype != torch.float64 or positions.shape != (n, 3):
        raise ModelFileError("the tensor 'positions' is missing, or not (beads, 3) in double precision")
    if not bool((positions.abs() < _FURTHEST).all()):
        raise ModelFileError("the tensor 'positions' holds NaN, infinite or huge values")
    return positions.numpy()


def student_in(stored: StoredForceField, tensors: Mapping[str, Tensor]) -> Student:
    """The student of a file: sizes first, and what is made is no larger than what is there.

    Raises:
        ModelFileError: if it does not fit.
    """
    for name in tensors:
        if name != "positions" and not name.startswith("student."):
            raise ModelFileError(f"the tensor {name[:80]!r} is unknown")
    coordinates = InternalCoordinates.from_state(stored.coordinates)
    if coordinates.n_atoms != len(stored.masses):
        raise ModelFileError(f"it has {len(stored.masses)} masses for coordinates of {coordinates.n_atoms} beads")
    values = sum(t.numel() for t in tensors.values())
    make = _bead_network if stored.knows is None else _chain_network
    with Allowance(8 * values + 100_000, 40 * len(tensors) + 4_000):
        student = make(stored, coordinates, tensors)
    check_fit(tensors, student, "student")
    fill(student, tensors, "student")
    _check_units(student.network if isinstance(student, ChainNetwork) else student)
    student.requires_grad_(False)
    if not bool(torch.isfinite(student(torch.as_tensor(positions_in(tensors, len(stored.masses)))))):
        raise ModelFileError("the student's energy is not finite at the positions")
    return student


def _bead_network(stored: StoredForceField, coordinates: InternalCoordinates, tensors: Mapping[str, Tensor]) -> Student:
    settings = read_as(StudentSettings, stored.student, "the description.student")
    n_features = tensors["student.mean"].numel() if "student.mean" in tensors else 0
    if n_features != BeadNetwork.count_features(coordinates) or settings.layers > len(tensors):
        raise ModelFileError("it declares another network than it holds")
    return BeadNetwork(coordinates, KB * stored.temperature, settings)


def _chain_network(
    stored: StoredForceField, coordinates: InternalCoordinates, tensors: Mapping[str, Tensor]
) -> Student:
    assert stored.knows is not None
    settings = read_as(SchNetSettings, stored.student, "the description.student")
    if settings.layers > len(tensors):
        raise ModelFileError("it declares another network than it holds")
    network = SchNet(stored.knows.types, stored.knows.kinds, settings)
    types = bead_types(topology_from_json(stored.topology))
    return ChainNetwork(coordinates, KB * stored.temperature, types, network)


def _check_units(owner: BeadNetwork | SchNet) -> None:
    """Refuse units, springs or ranges that are not positive, or that nothing can be between."""
    positive = [owner.stiffness, owner.closest if isinstance(owner, SchNet) else owner.scale]
    if not all(bool((one > 0).all()) for one in positive) or not bool((owner.low < owner.high).all()):
        raise ModelFileError("the student's units, springs or ranges are not positive")
