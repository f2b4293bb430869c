"""What a student is to learn at the points of its teacher, and how far off it is there: one form for each student."""

import copy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from openmm_cgflow.compute import CHUNK, Parallel
from openmm_cgflow.errors import TrainingError
from openmm_cgflow.forcematching.density.teacher import cartesian_gradients
from openmm_cgflow.forcematching.students.bead_network import BeadNetwork
from openmm_cgflow.forcematching.students.chain_network import ChainNetwork
from openmm_cgflow.forcematching.students.schnet import SchNet

__all__ = [
    "Features",
    "Labelled",
    "Lesson",
    "Student",
    "energy_and_gradient",
    "features_at",
    "lesson",
    "most_points",
    "units",
]

Student = BeadNetwork | ChainNetwork

_SOFT_UNIT = 0.3  # rad, in which gradients by slow torsions are compared
_MOST_VALUES = 400_000_000  # that a lesson keeps


@dataclass(frozen=True)
class Labelled:
    """What a teacher says at some points.

    Attributes:
        q: `(n, dof)`.
        energy: `(n,)`, kT.
        gradient: `(n, dof)`, kT per nm or rad.
        held_out: the share of them, the last ones, that are for checking alone.
    """

    q: Tensor
    energy: Tensor
    gradient: Tensor
    held_out: float

    def __post_init__(self) -> None:
        fine = torch.isfinite(self.energy) & torch.isfinite(self.gradient).all(1)
        if not bool(fine.all()):
            raise TrainingError(
                f"the teacher's density is not finite at {int((~fine).sum()):,} of {len(self.q):,} points; train it "
                "again."
            )

    @property
    def n_train(self) -> int:
        """How many are to be learned."""
        return len(self.q) - round(self.held_out * len(self.q))


class Lesson(Protocol):
    """Energies and gradients that are left for a network to learn beside the springs of its student."""

    @property
    def n_train(self) -> int:
        """How many points there are for learning, the first ones."""

    def errors(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of energies `(n,)`, kT, and of gradients, in a unit in which they are of that size, at some points."""

    def finish(self) -> tuple[Tensor, Tensor]:
        """Called when the network has learned: errors at the points that were held out, of gradients in `units`."""


def lesson(student: Student, network: nn.Module, labelled: Labelled, parallel: Parallel) -> Lesson:
    """What a student is to learn.

    Arguments:
        student: calibrated.
        network: a copy of its network, in single precision, which learns; that of several students may be one.
        labelled: what the teacher says.
        parallel: over which the preparation is spread.
    """
    if isinstance(student, BeadNetwork):
        return _OfFeatures(student, network, labelled)
    assert isinstance(network, SchNet)
    return _OfPositions(student, network, labelled, parallel)


def most_points(student: Student) -> int:
    """At how many points a lesson fits into memory."""
    dof, n = student.coordinates.dof, student.coordinates.n_atoms
    each = dof * student.n_features if isinstance(student, BeadNetwork) else 6 * n
    return _MOST_VALUES // each


def units(student: Student) -> Tensor:
    """In which gradients by each internal coordinate are compared, `(dof,)`: 0.3 rad, and standard deviations."""
    soft = torch.full((student.coordinates.sizes[0],), _SOFT_UNIT, dtype=torch.float64)
    return torch.cat([soft, student.stiffness**-0.5])


def _springs(student: Student, q: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the springs and its gradient by `q`."""
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        springs = student.springs(q)
        (pull,) = torch.autograd.grad(springs.sum(), q)
    return springs.detach(), pull


class Features(NamedTuple):
    """What a `BeadNetwork` sees at some points, and what its springs say there.

    Attributes:
        z: features `(n, n_features)` in units, single precision.
        slopes: their derivatives by `q`, `(n, dof, n_features)`, times the unit of each coordinate; single precision.
        springs: energy `(n,)`, kT.
        pull: its gradient `(n, dof)`, kT per nm or rad.
    """

    z: Tensor
    slopes: Tensor
    springs: Tensor
    pull: Tensor


def features_at(student: BeadNetwork, q: Tensor) -> Features:
    """Features and their derivatives at `q (n, dof)`, so that a step of learning has no geometry."""
    unit = units(student)

    def features(rows: Tensor) -> Tensor:
        return (student.features(rows, student.coordinates.to_cartesian(rows)[0]) - student.mean) / student.scale

    def at(rows: Tensor) -> tuple[Tensor, ...]:
        slopes, seen = [], rows
        for k in range(rows.shape[1]):
            direction = torch.zeros_like(rows)
            direction[:, k] = unit[k]
            seen, slope = torch.func.jvp(features, (rows,), (direction,))
            slopes.append(slope)
        springs, pull = _springs(student, rows)
        return seen.float(), torch.stack(slopes, 1).float(), springs, pull

    with torch.no_grad():  # not in threads: torch counts the levels of forward differentiation for all of them
        parts = [at(rows) for rows in q.split(CHUNK)]
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


def energy_and_gradient(network: nn.Module, z: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Energies `(n,)` of a network at features, and their gradients `(n, k)` by what the features' slopes are by."""
    z = z.detach().requires_grad_()
    energy = network(z).squeeze(1)
    (by_feature,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
    return energy, torch.bmm(slopes, by_feature.unsqueeze(2)).squeeze(2)


class _OfFeatures:
    """Of a `BeadNetwork`: features and their derivatives by `q` are computed once."""

    def __init__(self, student: BeadNetwork, network: nn.Module, labelled: Labelled) -> None:
        self.network, self.n_train = network, labelled.n_train
        self.z, self.slopes, springs, pull = features_at(student, labelled.q)
        left = (labelled.energy - springs).float()
        student.offset.fill_(float(left[: self.n_train].mean()))
        self.energy = left - float(student.offset)
        self.gradient = ((labelled.gradient - pull) * units(student)).float()

    def errors(self, index: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = energy_and_gradient(self.network, self.z[index], self.slopes[index])
        return energy - self.energy[index], gradient - self.gradient[index]

    def finish(self) -> tuple[Tensor, Tensor]:
        return self.errors(torch.arange(self.n_train, len(self.z)))


class _OfPositions:
    """Of a `ChainNetwork`: gradients by positions, each of which is a matter of the bead's neighbours.

    Energies are learned up to a constant, which is another one for each chain.
    """

    def __init__(self, student: ChainNetwork, network: SchNet, labelled: Labelled, parallel: Parallel) -> None:
        self.student, self.n_train, self.q = student, labelled.n_train, labelled.q
        springs, pull = parallel.map(lambda rows: _springs(student, rows), self.q)
        x, by_x = cartesian_gradients(student.coordinates, self.q, labelled.gradient - pull, parallel)
        left = labelled.energy - springs
        self.mean = left[: self.n_train].mean()
        self.x, self.energy, self.gradient = x.float(), (left - self.mean).float(), by_x.float()
        self.unit = float(self.gradient[: self.n_train].square().mean().sqrt())
        self.learning = student.on(student.coordinates, student.types)
        self.learning.coordinates = copy.deepcopy(student.coordinates)
        self.learning.network = network
        self.learning.float()

    def _off(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of energies, but for a constant, and of gradients in kT/nm."""
        x = self.x[index].requires_grad_()
        energy = self.learning.learned(self.learning.coordinates.to_internal(x)[0], x)
        (by_x,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy - self.energy[index], by_x - self.gradient[index]

    def errors(self, index: Tensor) -> tuple[Tensor, Tensor]:
        off, by_x = self._off(index)
        return off - off.mean(), by_x / self.unit

    def finish(self) -> tuple[Tensor, Tensor]:
        """Also sets the constant of the energy."""
        parts = [[column.detach() for column in self._off(rows)] for rows in torch.arange(len(self.x)).split(CHUNK)]
        off, by_x = (torch.cat(column).double() for column in zip(*parts, strict=True))
        constant = off[: self.n_train].mean()
        self.student.offset.copy_(self.mean - constant)
        q = self.q[self.n_train :].requires_grad_()
        (by_q,) = torch.autograd.grad(self.student.coordinates.to_cartesian(q)[0], q, by_x[self.n_train :])
        return off[self.n_train :] - constant, by_q * units(self.student)
