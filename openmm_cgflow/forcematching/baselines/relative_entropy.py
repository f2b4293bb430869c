"""Relative entropy minimisation: the student whose own distribution makes the frames likeliest, by reweighting."""

import copy
import math
import time
from dataclasses import dataclass

import torch
from openmm import unit
from torch import Tensor, nn

from openmm_cgflow.compute import Parallel, plain_torch, seeded
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.forcematching.baselines.members import (
    Matched,
    MatchSettings,
    batch_of,
    fit_members,
    student_of_members,
)
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.fitting import checked_frames, fit_beads
from openmm_cgflow.forcematching.density.likelihood import Fitted
from openmm_cgflow.forcematching.density.teacher import Teacher
from openmm_cgflow.forcematching.frames.bead_model import BeadModel
from openmm_cgflow.forcematching.students.bead_network import BeadNetwork
from openmm_cgflow.forcematching.students.descent import descend
from openmm_cgflow.units import KB, PositionsLike, in_kelvin

__all__ = ["EntropySettings", "fit_relative_entropy"]

_BROAD = FitSettings(members=1, steps=0, couplings=0)  # uniform torsions, bonds and angles of the closed form
_DRIFT = 0.7  # ESS over n of what has changed since the points were weighed, below which they are drawn again
_LONGEST = 100  # steps after which they are drawn again anyway: the network must not learn where they lie
_FEWEST = 30  # effective points


@dataclass(frozen=True)
class EntropySettings(MatchSettings):
    """How relative entropy is minimised.

    Attributes:
        points: of the proposal, which are weighed for the model's own mean.

    Example:
        >>> EntropySettings(points=5_000).points
        5000
    """

    rate: float = 3e-3
    points: int = 10_000


@plain_torch
def fit_relative_entropy(
    frames: PositionsLike,
    model: BeadModel,
    temperature: unit.Quantity | float,
    proposal: Teacher | None = None,
    settings: EntropySettings | None = None,
    seed: int = 0,
) -> Matched:
    """A student whose Boltzmann distribution has the least relative entropy from the frames; no forces are needed.

    The gradient is the mean of `dU/dtheta` over the frames less its mean over the model. The latter is taken over
    points of a proposal, weighed by `exp(-U) |det dx/dq| / q`, instead of a simulation for each step; they are drawn
    anew when the weights have changed much. As in `fit_forces`, the student is the mean of four networks, each fitted
    to four fifths of the frames and stopped early by the others.

    Arguments:
        frames: of the beads, or of the atoms that they were chosen from, what `BeadModel.read` takes.
        model: the beads.
        temperature: of the frames, K or a Quantity.
        proposal: a density of the coordinates that reaches wherever the student may be; it decides the noise, not the
            result. By default torsions are uniform, and bonds and angles those of a linear regression on the torsions,
            which serves for one or two torsions; with more give a `fit_beads(...).density`.
        settings: budgets and sizes.
        seed: of points, splits, start weights and batches.

    Returns:
        the student; its losses are minus the mean log-density of frames, per nm^(3 beads - 6).

    Raises:
        InvalidInputError: too few frames, NaN, or coordinates that do not change.
        MismatchError: frames of other beads.
        TrainingError: if hardly a point of the proposal counts.

    Source: Shell 2008 (doi:10.1063/1.2992060); reweighting in place of simulations: Carmichael and Shell 2012
    (doi:10.1021/jp2114994).

    Example:
        student = fit_relative_entropy("md.xtc", model, 300).student
    """
    began, settings = time.perf_counter(), settings or EntropySettings()
    if not isinstance(settings, EntropySettings):
        raise InvalidInputError(
            f"fit_relative_entropy: settings is a {type(settings).__name__}; give EntropySettings(...)"
        )
    x, coordinates, q = checked_frames(frames, model)
    student = student_of_members(coordinates, KB * in_kelvin(temperature), q, settings)
    if proposal is None:
        proposal = fit_beads(x, model, settings=_BROAD, seed=seed).density
    if isinstance(proposal, nn.Module):
        proposal = copy.deepcopy(proposal).cpu().double().requires_grad_(False)
    fixed = _Points(student, proposal, settings.points, seeded(seed))
    with torch.no_grad():
        seen, beside = (t.float() for t in student.seen(q, torch.as_tensor(x)))

    def fit(network: nn.Sequential, mine: Tensor, others: Tensor, generator: torch.Generator) -> Fitted:
        points = _Points(student, proposal, settings.points, generator)
        points.weigh(network)
        learned = seen[mine]

        def loss() -> Tensor:
            if points.spent():
                points.draw()
                points.weigh(network)
            batch = batch_of(len(mine), settings.batch, generator)
            return network(learned[batch]).mean() + points.log_z_changed(network, settings.batch)

        @torch.no_grad()
        def judge() -> float:
            return float((network(seen[others]).squeeze(1) + beside[others]).mean()) + fixed.log_z(network)

        ended = descend(network, loss, settings.rate, settings.decay, settings.steps, judge)
        if not math.isfinite(ended.loss):
            raise TrainingError(
                f"of {settings.points:,} points of the proposal fewer than {_FEWEST} count by their weights; give more "
                "points, or a proposal that is nearer to the frames, for instance fit_beads(frames, model).density"
            )
        return ended

    with Parallel():  # one thread in each operation, so that sums have one order
        ended = fit_members(student, len(x), settings, seed, fit)
    return Matched(student, ended, len(x), time.perf_counter() - began)


class _Points:
    """Points of a proposal, by whose weights means over the model are taken.

    Arguments:
        student: of which the network is what changes.
        proposal: a density of `q`, in double precision.
        n: how many points.
        generator: of everything random.
    """

    def __init__(self, student: BeadNetwork, proposal: Teacher, n: int, generator: torch.Generator) -> None:
        self._student, self._proposal, self._n, self._generator = student, proposal, n, generator
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Draw all of them anew."""
        coordinates = self._student.coordinates
        q = self._proposal.sample(self._n, self._generator)[0]
        x, log_measure = coordinates.to_cartesian(q)
        z, beside = self._student.seen(q, x)
        log_weight = log_measure - beside - self._proposal.log_prob(q)
        outside = torch.full_like(log_weight, -math.inf)
        self._z, self._log_weight = z.float(), torch.where(coordinates.in_domain(q), log_weight, outside).float()

    @torch.no_grad()
    def weigh(self, network: nn.Sequential) -> None:
        """Let the weights be those of the network as it is."""
        self._energy, self._steps, self._kept = network(self._z).squeeze(1), 0, 1.0
        self._share = torch.softmax(self._log_weight - self._energy, 0)

    def spent(self) -> bool:
        """Whether the weights have changed too much since they were made."""
        return self._kept < _DRIFT or self._steps >= _LONGEST

    def log_z_changed(self, network: nn.Sequential, n: int) -> Tensor:
        """The change of log Z since `weigh`, by points that are drawn by their weights of then; differentiable."""
        index = torch.multinomial(self._share, n, replacement=True, generator=self._generator)
        change = self._energy[index] - network(self._z[index]).squeeze(1)
        share = torch.softmax(change.detach(), 0)
        self._kept, self._steps = float(1 / (share @ share)) / n, self._steps + 1
        return torch.logsumexp(change, 0) - math.log(n)

    @torch.no_grad()
    def log_z(self, network: nn.Sequential) -> float:
        """The log of the integral of `exp(-U)`, in nm; infinite where too few points say what it is."""
        log_weight = self._log_weight - network(self._z).squeeze(1)
        share = torch.softmax(log_weight, 0)
        if not float(share @ share) < 1 / _FEWEST:
            return math.inf
        return float(torch.logsumexp(log_weight, 0)) - math.log(self._n)
