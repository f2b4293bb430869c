"""Fitting a student to its teacher: forces and energies of the exact density, at points that cover the torsions."""

import copy
import logging
import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from openmm_cgflow.compute import CHUNK, Parallel, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.forcematching.student import BeadNetwork, StudentSettings
from openmm_cgflow.forcematching.teacher import Teacher, labels, training_points

__all__ = ["DistilSettings", "Distilled", "distil"]

_log = logging.getLogger("openmm_cgflow")
_SOFT_UNIT = 0.3  # rad, in which gradients by slow torsions are compared
_MOST_VALUES = 400_000_000  # of the features' Jacobians, which are kept


@dataclass(frozen=True)
class DistilSettings:
    """How a student is fitted; budgets are in points and steps, so that one seed gives one result.

    Attributes:
        points: at which the teacher is asked.
        flat: share of them with uniform torsions.
        floor: how much less likely than the teacher's own samples these may be, kT.
        energies: weight of the energies beside that of the forces.
        steps: of AdamW, with a rate that falls to zero as a cosine.
        batch: points of each.
        rate: at the beginning.
        decay: weight decay of AdamW.
        held_out: share of the points that are for checking alone.
        student: size of the network.
        seed: of points, batches and start weights.

    Raises:
        InvalidInputError: for numbers that cannot be; by name.
    """

    points: int = 50_000
    flat: float = 1 / 3
    floor: float = 12.0
    energies: float = 0.3
    steps: int = 2_500
    batch: int = 512
    rate: float = 3e-3
    decay: float = 0.01
    held_out: float = 0.1
    student: StudentSettings = field(default_factory=StudentSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("points", 100), ("steps", 1), ("batch", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInputError(f"DistilSettings: {name} is {value!r}; give a whole number of at least {least}")
        for name, above, below in (
            ("flat", 0, 0.95),
            ("held_out", 0.01, 0.9),
            ("energies", 0, math.inf),
            ("floor", 0, math.inf),
            ("rate", 0, 1),
            ("decay", 0, math.inf),
        ):
            value = getattr(self, name)
            if not above <= value <= below:
                raise InvalidInputError(f"DistilSettings: {name} is {value!r}; give a number from {above} to {below}")


@dataclass(frozen=True)
class Distilled:
    """A fitted student and how well it follows its teacher.

    Attributes:
        student: the energy.
        force_error: rms of the error of the forces, in units of `1 / sd` of each coordinate (kT per 0.3 rad for slow
            torsions), over points that were held out.
        energy_error: the same of the energies, kT.
        points: at which the teacher was asked.
        seconds: that it took.
    """

    student: BeadNetwork
    force_error: float
    energy_error: float
    points: int
    seconds: float


@dataclass(frozen=True)
class _Targets:
    """What the network is to give, and where; in single precision.

    Attributes:
        z: features `(n, n_features)` in units.
        jacobian: their derivatives by `q`, `(n, dof, n_features)`, times the unit of each coordinate.
        energy: `(n,)`, kT.
        gradient: `(n, dof)`, kT per unit.
    """

    z: Tensor
    jacobian: Tensor
    energy: Tensor
    gradient: Tensor

    def rows(self, index: Tensor) -> "_Targets":
        return _Targets(self.z[index], self.jacobian[index], self.energy[index], self.gradient[index])


def distil(
    teacher: Teacher, coordinates: InternalCoordinates, kT: float, settings: DistilSettings | None = None
) -> Distilled:
    """A student that has the forces and energies of a teacher: a fast, smooth energy of bead positions.

    Two thirds of the points are drawn from the teacher, the others have uniform torsions. Labels are the gradients of
    `log q - log |det dx/dq|`, that is, forces in internal coordinates, and the energies themselves, which only an exact
    density has. The features' derivatives are computed once, so that a step costs a pass of the network alone.

    Arguments:
        teacher: a density of `q (n, dof)`, with `log_prob(q)` and `sample(n, generator)`, such as a `BeadFlow`; a
            module, which is copied.
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.
        settings: budgets and sizes.

    Returns:
        the student, with its errors at points that were held out.

    Raises:
        InvalidInputError: for settings that cannot be, or more points than fit into memory.
        TrainingError: if the teacher's density is not finite where it was drawn, or it draws other isomers alone.

    Source: Köhler et al., arXiv 2203.11167, whose students learn from forces at samples alone.

    Example:
        flow = cgf.CGFlow.load("model.cgflow")
        student = distil(flow.flow.bead_flow, flow.coordinates.bead_coordinates(), flow.target.kT).student
    """
    settings, start = settings or DistilSettings(), time.perf_counter()
    generator = seeded(settings.seed)
    coordinates = copy.deepcopy(coordinates).cpu()
    if isinstance(teacher, nn.Module):
        teacher = copy.deepcopy(teacher).cpu().double().requires_grad_(False)
    student = BeadNetwork(coordinates, kT, settings.student, settings.seed)
    most = _MOST_VALUES // (student.n_features * coordinates.dof)
    if settings.points > most:
        _log.info(
            "distil: at %d points instead of %d, whose derivatives would not fit into memory", most, settings.points
        )
        settings = replace(settings, points=max(most, 100))
    with Parallel() as parallel:  # one thread in each operation, so that sums have one order
        points = training_points(teacher, coordinates, settings.points, settings.flat, settings.floor, generator)
        student.calibrate(points.own, points.q)
        q = points.q[torch.randperm(len(points.q), generator=generator)]
        targets = _targets(student, q, *labels(teacher, coordinates, q, parallel))
        n_train = len(q) - round(settings.held_out * len(q))
        network = copy.deepcopy(student.network).float()
        student.offset.fill_(float(targets.energy[:n_train].mean()))
        targets = replace(targets, energy=targets.energy - float(student.offset))
        _fit(network, targets, n_train, settings, generator)
        student.network.load_state_dict(network.double().state_dict())
        with torch.enable_grad():
            off_energy, off_gradient = _errors(network.float(), targets.rows(torch.arange(n_train, len(q))), False)
    student.requires_grad_(False)
    force_error, energy_error = (float(off.detach().square().mean().sqrt()) for off in (off_gradient, off_energy))
    seconds = time.perf_counter() - start
    _log.info("student: forces off by %.3f, energies by %.3f kT, in %.0f s", force_error, energy_error, seconds)
    return Distilled(student, force_error, energy_error, len(q), seconds)


def _targets(student: BeadNetwork, q: Tensor, energy: Tensor, gradient: Tensor) -> _Targets:
    """What is left for the network to learn beside the springs."""
    fine = torch.isfinite(energy) & torch.isfinite(gradient).all(1)
    if not bool(fine.all()):
        raise TrainingError(
            f"the teacher's density is not finite at {int((~fine).sum()):,} of {len(q):,} points; train it again."
        )
    n_slow = student.coordinates.sizes[0]
    units = torch.cat([torch.full((n_slow,), _SOFT_UNIT, dtype=q.dtype), student.stiffness**-0.5])

    def features(rows: Tensor) -> Tensor:
        return (student.features(rows, student.coordinates.to_cartesian(rows)[0]) - student.mean) / student.scale

    def at(rows: Tensor) -> tuple[Tensor, ...]:
        slopes, seen = [], rows
        for k in range(rows.shape[1]):
            direction = torch.zeros_like(rows)
            direction[:, k] = units[k]
            seen, slope = torch.func.jvp(features, (rows,), (direction,))
            slopes.append(slope)
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            springs = student.springs(rows)
            (pull,) = torch.autograd.grad(springs.sum(), rows)
        return seen.float(), torch.stack(slopes, 1).float(), springs.detach(), pull

    with torch.no_grad():  # not in threads: torch counts the levels of forward differentiation for all of them together
        parts = [at(rows) for rows in q.split(CHUNK)]
    z, jacobian, springs, pull = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Targets(z, jacobian, (energy - springs).float(), ((gradient - pull) * units).float())


def _errors(network: nn.Module, targets: _Targets, learning: bool = True) -> tuple[Tensor, Tensor]:
    """Errors of energies `(n,)` and of gradients `(n, dof)`."""
    z = targets.z.detach().requires_grad_()
    energy = network(z).squeeze(1)
    (by_feature,) = torch.autograd.grad(energy.sum(), z, create_graph=learning)
    gradient = torch.bmm(targets.jacobian, by_feature.unsqueeze(2)).squeeze(2)
    return energy - targets.energy, gradient - targets.gradient


def _fit(
    network: nn.Module, targets: _Targets, n_train: int, settings: DistilSettings, generator: torch.Generator
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        batch = targets.rows(torch.randint(n_train, (settings.batch,), generator=generator))
        off_energy, off_gradient = _errors(network, batch)
        loss = off_gradient.square().mean() + settings.energies * off_energy.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
