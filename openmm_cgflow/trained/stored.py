"""What is in a model file, and whether all that it declares fits together: known before anything large is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.coverage import Coverage
from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.storage import (
    Allowance,
    StoredTopology,
    check_fit,
    system_from_xml,
    topology_from_json,
)
from openmm_cgflow.training.reporter import Metrics

__all__ = ["Molecule", "StoredFlow", "StoredModel", "StoredVectors", "check_network", "molecule_of"]

_FURTHEST = 1e4  # nm, from the origin
_HOTTEST = 1e6  # K


@dataclass
class StoredFlow:
    """What every model file says.

    Attributes:
        temperature: K.
        settings: sizes of the networks.
        seed: of everything random.
        history: rows of the training.
        seconds: that it took.
        training: what a training that goes on needs, beside tensors.
    """

    temperature: float
    settings: FlowSettings
    seed: int
    history: list[Metrics] = field(metadata={"finite": False})
    seconds: float
    training: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.temperature < _HOTTEST:
            raise ModelFileError(f"the description has the temperature {self.temperature:g} K")
        if self.seconds < 0 or any(row.evaluations < 0 for row in self.history):
            raise ModelFileError("the description has negative seconds or evaluations")


@dataclass
class StoredModel(StoredFlow):
    """What the file of a `CGFlow` says.

    Attributes:
        topology: the molecule.
        system: its System as OpenMM XML.
        coordinates: state of its internal coordinates.
        coverage: what its audit found, if there was one.
    """

    topology: StoredTopology
    system: str
    coordinates: dict[str, Any] = field(metadata={"finite": False})
    coverage: Coverage | None = None


@dataclass
class StoredLayout:
    """The arguments of `LinearCoordinates`."""

    dim: int
    slow: int | list[int]
    width: float


@dataclass
class StoredVectors(StoredFlow):
    """What the file of a `VectorFlow` says.

    Attributes:
        layout: of its vectors.
    """

    layout: StoredLayout


@dataclass
class Molecule:
    """What a `CGFlow` is built of.

    Attributes:
        topology: the molecule.
        system: its System.
        positions: `(atoms, 3)`, nm.
        coordinates: its internal coordinates.
    """

    topology: app.Topology
    system: openmm.System
    positions: np.ndarray
    coordinates: InternalCoordinates


def molecule_of(stored: StoredModel, tensors: Mapping[str, Tensor]) -> Molecule:
    """The molecule of a model file.

    Raises:
        ModelFileError: if topology, System, positions and coordinates are not of the same number of atoms, or damaged.
    """
    try:
        coordinates = InternalCoordinates.from_state(stored.coordinates)
    except InvalidInputError as error:
        raise ModelFileError(str(error)) from error
    positions = tensors.get("positions")
    if positions is None or positions.dtype != torch.float64 or positions.dim() != 2 or positions.shape[1] != 3:
        raise ModelFileError("the tensor 'positions' is missing, or not (atoms, 3) in double precision")
    if not bool((positions.abs() < _FURTHEST).all()):
        raise ModelFileError("the tensor 'positions' holds NaN, infinite or huge values")
    topology, system = topology_from_json(stored.topology), system_from_xml(stored.system)
    counts = {
        "the topology": topology.getNumAtoms(),
        "the System": system.getNumParticles(),
        "the positions": len(positions),
        "the coordinates": coordinates.n_atoms,
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{what} {n}" for what, n in counts.items())
        raise ModelFileError(f"its parts do not belong together; numbers of atoms: {listed}")
    return Molecule(topology, system, positions.numpy(), coordinates)


def check_network(
    tensors: Mapping[str, Tensor], coordinates: InternalCoordinates | LinearCoordinates, settings: FlowSettings
) -> None:
    """See that the networks that are declared are those whose tensors are there.

    Raises:
        ModelFileError: if a tensor is missing, too many, of another shape or type, or not finite.
    """
    for name, size in settings.as_dict().items():
        least = 0 if name.endswith("couplings") else 2 if name == "hidden" else 1
        if name != "seed" and size < least:
            raise ModelFileError(f"the settings have {name} = {size}; the least is {least}")
    values = sum(t.numel() for t in tensors.values())
    with Allowance(3 * values + 1_000_000, 40 * len(tensors) + 4_000):
        flow = JointFlow.build(
            coordinates.sizes, coordinates.reference, coordinates.scale, coordinates.period, settings
        )
    check_fit(tensors, flow, "flow")
    check_fit(tensors, coordinates, "coordinates")
    known = ("flow.", "coordinates.", "training/")
    for name in tensors:
        if name != "positions" and not name.startswith(known):
            raise ModelFileError(f"the tensor {name[:80]!r} is unknown")
