"""Fitting a student to its teacher: forces and energies of the exact density, at points that cover the torsions."""

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.compute import Parallel, plain_torch, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.forcematching.density.teacher import Points, Teacher, labels, training_points
from openmm_cgflow.forcematching.students.bead_network import BeadNetwork, StudentSettings
from openmm_cgflow.forcematching.students.chain_network import ChainNetwork, calibrate, shared_network
from openmm_cgflow.forcematching.students.descent import descend
from openmm_cgflow.forcematching.students.lessons import Labelled, Lesson, Student, lesson, most_points
from openmm_cgflow.forcematching.students.schnet import SchNet, SchNetSettings

__all__ = ["Chain", "DistilSettings", "Distilled", "distil", "distil_many"]

_log = logging.getLogger("openmm_cgflow")
_RATE, _RATE_SCHNET = 3e-3, 1e-2


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
        rate: at the beginning; by default 3e-3, and 1e-2 of a `SchNet`.
        decay: weight decay of AdamW.
        held_out: share of the points that are for checking alone.
        student: which student it is, and its size: `StudentSettings` of a `BeadNetwork`, `SchNetSettings` of a
            `ChainNetwork`.
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
    rate: float | None = None
    decay: float = 0.01
    held_out: float = 0.1
    student: StudentSettings | SchNetSettings = field(default_factory=StudentSettings)
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
            if name == "rate" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not above <= value <= below:
                raise InvalidInputError(f"DistilSettings: {name} is {value!r}; give a number from {above} to {below}")
        if not isinstance(self.student, StudentSettings | SchNetSettings):
            raise InvalidInputError(
                f"DistilSettings: student is {self.student!r}; give StudentSettings(...) or SchNetSettings(...)"
            )


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

    student: Student
    force_error: float
    energy_error: float
    points: int
    seconds: float


class Chain(NamedTuple):
    """A teacher and the beads that it is of.

    Attributes:
        teacher: a density of `q (n, dof)`, with `log_prob(q)` and `sample(n, generator)`, such as a `BeadFlow`; a
            module, which is copied.
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        types: of the beads, as `bead_types` gives them; only a `SchNet` needs them.
    """

    teacher: Teacher
    coordinates: InternalCoordinates
    types: Sequence[str] | None = None


@plain_torch
def distil(
    teacher: Teacher,
    coordinates: InternalCoordinates,
    kT: float,
    settings: DistilSettings | None = None,
    types: Sequence[str] | None = None,
) -> Distilled:
    """A student that has the forces and energies of a teacher: a fast, smooth energy of bead positions.

    Two thirds of the points are drawn from the teacher, the others have uniform torsions. Labels are the gradients of
    `log q - log |det dx/dq|`, that is, forces in internal coordinates, and the energies themselves, which only an exact
    density has. A `BeadNetwork` learns forces in internal coordinates, whose derivatives are computed once, so that a
    step costs a pass of the network alone. A `ChainNetwork` learns forces on positions; where the beads are alpha
    carbons, its repulsion comes on top of the teacher's energy, and points count by `exp(-repulsion)`.

    Arguments:
        teacher: a density of `q (n, dof)`, with `log_prob(q)` and `sample(n, generator)`, such as a `BeadFlow`; a
            module, which is copied.
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.
        settings: budgets and sizes; which student it is depends on `settings.student`.
        types: of the beads, as `bead_types` gives them; only a `ChainNetwork` needs them.

    Returns:
        the student, with its errors at points that were held out.

    Raises:
        InvalidInputError: for settings that cannot be, more points than fit into memory, or no types.
        TrainingError: if the teacher's density is not finite where it was drawn, or it draws other isomers alone.

    Source: Köhler et al., arXiv 2203.11167, whose students learn from forces at samples alone.

    Example:
        flow = cgf.CGFlow.load("model.cgflow")
        student = distil(flow.flow.bead_flow, flow.coordinates.bead_coordinates(), flow.target.kT).student
    """
    return distil_many([Chain(teacher, coordinates, types)], kT, settings)[0]


@plain_torch
def distil_many(chains: Sequence[Chain], kT: float, settings: DistilSettings | None = None) -> list[Distilled]:
    """Students of several teachers, of different sequences, that share one network: a transferable force field.

    Steps go from one chain to the next. `student.on` makes the energy of another chain of beads that are known.

    Arguments:
        chains: teachers and their beads.
        kT: thermal energy, kJ/mol.
        settings: as for `distil`; `points` are those of each chain, `steps` those of all. More than one chain needs
            `student=SchNetSettings()`.

    Returns:
        a student for each chain, as `distil` gives it.

    Raises:
        InvalidInputError: as of `distil`; for several chains and another student, or none.
        TrainingError: as of `distil`.

    Example:
        chains = [Chain(fit.density, fit.coordinates, bead_types(fit.model.topology)) for fit in fits]
        students = [found.student for found in distil_many(chains, 2.494, DistilSettings(student=SchNetSettings()))]
    """
    settings, start = settings or DistilSettings(), time.perf_counter()
    if not isinstance(settings, DistilSettings):
        raise InvalidInputError(f"settings is a {type(settings).__name__}; give DistilSettings(...)")
    generator = seeded(settings.seed)
    chains = [_in_double(chain) for chain in chains]
    students = _students(chains, kT, settings)
    with Parallel() as parallel:  # one thread in each operation, so that sums have one order
        points = [_points(chain, student, settings, generator) for chain, student in zip(chains, students, strict=True)]
        _calibrate(students, points)
        network = copy.deepcopy(students[0].network).float()
        lessons = []
        for chain, student, its in zip(chains, students, points, strict=True):
            q = its.q[torch.randperm(len(its.q), generator=generator)]
            labelled = Labelled(q, *labels(chain.teacher, chain.coordinates, q, parallel), settings.held_out)
            lessons.append(lesson(student, network, labelled, parallel))
        _fit(network, lessons, settings, generator)
        with torch.no_grad():
            for own, learned in zip(students[0].network.parameters(), network.parameters(), strict=True):
                own.copy_(learned)
        errors = [_errors(one) for one in lessons]
    seconds = time.perf_counter() - start
    found = []
    for student, its, (force_error, energy_error) in zip(students, points, errors, strict=True):
        student.requires_grad_(False)
        _log.info("student: forces off by %.3f, energies by %.3f kT, in %.0f s", force_error, energy_error, seconds)
        found.append(Distilled(student, force_error, energy_error, len(its.q), seconds))
    return found


def _in_double(chain: Chain) -> Chain:
    """A copy of teacher and coordinates on the CPU, in double precision."""
    teacher = chain.teacher
    if isinstance(teacher, nn.Module):
        teacher = copy.deepcopy(teacher).cpu().double().requires_grad_(False)
    return chain._replace(teacher=teacher, coordinates=copy.deepcopy(chain.coordinates).cpu())


def _students(chains: Sequence[Chain], kT: float, settings: DistilSettings) -> list[Student]:
    """Students that have not learned yet."""
    if not chains:
        raise InvalidInputError("distil_many: there is no chain; give at least one")
    if isinstance(settings.student, StudentSettings):
        if len(chains) > 1:
            raise InvalidInputError(
                f"a BeadNetwork is of one molecule, but there are {len(chains)} chains; give "
                "DistilSettings(student=SchNetSettings()), whose network is for all of them"
            )
        return [BeadNetwork(chains[0].coordinates, kT, settings.student, settings.seed)]
    typed = [(chain.coordinates, chain.types) for chain in chains if chain.types is not None]
    if len(typed) < len(chains):
        raise InvalidInputError("a SchNet needs the types of the beads; give types=bead_types(topology)")
    network = shared_network(typed, settings.student, settings.seed)
    return [ChainNetwork(coordinates, kT, types, network) for coordinates, types in typed]


def _points(chain: Chain, student: Student, settings: DistilSettings, generator: torch.Generator) -> Points:
    """Where a student learns: all points, or as many as its lesson can keep, without those that its prior forbids."""
    most = most_points(student)
    if settings.points > most:
        _log.info(
            "distil: at %d points instead of %d, whose derivatives would not fit into memory", most, settings.points
        )
    n = min(settings.points, max(most, 100))
    points = training_points(chain.teacher, chain.coordinates, n, settings.flat, settings.floor, generator)
    return points if isinstance(student, BeadNetwork) else student.thinned(points, generator)


def _calibrate(students: Sequence[Student], points: Sequence[Points]) -> None:
    """Springs, units and ranges of students that have not learned yet."""
    chains = [student for student in students if isinstance(student, ChainNetwork)]
    if chains:
        calibrate(chains, points)
    for student, its in zip(students, points, strict=True):
        if isinstance(student, BeadNetwork):
            student.calibrate(its.own, its.q)


def _fit(network: nn.Module, lessons: Sequence[Lesson], settings: DistilSettings, generator: torch.Generator) -> None:
    usual = _RATE_SCHNET if isinstance(network, SchNet) else _RATE
    rate = usual if settings.rate is None else settings.rate
    turns = cycle(lessons)

    def loss() -> Tensor:
        one = next(turns)
        off_energy, off_gradient = one.errors(torch.randint(one.n_train, (settings.batch,), generator=generator))
        return off_gradient.square().mean() + settings.energies * off_energy.square().mean()

    descend(network, loss, rate, settings.decay, settings.steps)


def _errors(one: Lesson) -> tuple[float, float]:
    """Root mean square errors of forces and energies at the points that were held out."""
    with torch.enable_grad():
        off_energy, off_gradient = one.finish()
    return float(off_gradient.detach().square().mean().sqrt()), float(off_energy.detach().square().mean().sqrt())
