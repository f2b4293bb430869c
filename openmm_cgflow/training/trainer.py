"""Training from energies alone: Laplace start, then divergences and reweighted likelihoods of own samples."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.errors import TrainingError
from openmm_cgflow.flows import JointFlow
from openmm_cgflow.sampling import effective_sample_size, log_mean_exp, soften_log_weights
from openmm_cgflow.training.budget import Budget
from openmm_cgflow.training.laplace import LaplaceMixture, curvature_factor, laplace
from openmm_cgflow.training.objectives import (
    joint_reverse_kl,
    negative_log_likelihood,
    negative_log_soft,
    stiff_divergence,
    stiff_reverse_kl,
)
from openmm_cgflow.training.parallel import Parallel
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.start import anneal_soft, separating_directions
from openmm_cgflow.training.target import BoltzmannTarget
from openmm_cgflow.training.tempering import Tempering

__all__ = ["TrainSettings", "Trainer"]


@dataclass(frozen=True)
class TrainSettings:
    """How a flow is trained.

    Attributes:
        shares: of the budget, by which the fit and the training of the soft densities end at the latest.
        points: values of the soft variables at which the Laplace start is made.
        sweeps: moves by which these values are annealed.
        flattening: temperature to which they are annealed, relative to the target's own, so that barriers are covered.
        fit_steps: maximum-likelihood steps on the Laplace start.
        start_blur: width by which the soft variables of the start's points are spread out, in radians of their own
            period: what is learned from a thousand points in many dimensions must be smooth.
        batch: rows of a step.
        soft_buffers: buffers on which the soft densities are trained alone.
        buffer: own samples that are weighed together.
        buffer_steps: steps on each buffer while the soft densities are trained alone.
        kept: buffers that are learned from together, so that few effective samples are not learned by heart.
        blurred: share of the rows from which the soft densities learn with one variable spread out, so that they do
            not vanish where the flow was never seen; it falls to nothing during the refinement.
        blur: by how much, in radians of its own period.
        learning_rates: of the fit, the tempering and the refinement.
        soft_factor: by which the soft densities learn faster than the rest during the refinement.
        rotation_factor: by which the slow variables of vectors are learned faster than the rest.
        average: decay of the running average of the parameters that is returned.
        clip: share of the largest weights that is levelled before resampling.
        least_ess: weights are raised to a power below one until this share of them is effective.
        least_path_ess: the same where the stiff densities learn from the weights of a single batch.
        tempering: instead of the Laplace start, reverse KL at these inverse temperatures.
        joint: temper by the reverse KL of all variables, as the paper does; without, that of the stiff ones, while the
            soft densities learn by weights, which keeps the modes.
        tempering_buffer: own samples that are weighed together while tempering.
    """

    shares: tuple[float, float] = (0.35, 0.6)
    points: int = 512
    sweeps: int = 20
    flattening: float = 3.0
    fit_steps: int = 150
    start_blur: float = 0.4
    batch: int = 1024
    soft_buffers: int = 12
    buffer: int = 20_000
    buffer_steps: int = 12
    kept: int = 8
    blurred: float = 0.05
    blur: float = 0.7
    learning_rates: tuple[float, float, float] = (2e-3, 1e-3, 2e-3)
    soft_factor: float = 1.0
    rotation_factor: float = 5.0
    average: float = 0.97
    clip: float = 1e-3
    least_ess: float = 0.1
    least_path_ess: float = 0.3
    tempering: Tempering | None = None
    joint: bool = False
    tempering_buffer: int = 8192


class Trainer:
    """Trains a flow on a target in stages; every one can be interrupted and goes on where it was.

    Arguments:
        flow: trained in place.
        target: what to sample.
        settings: how.
        seed: of everything random.
    """

    def __init__(
        self, flow: JointFlow, target: BoltzmannTarget, settings: TrainSettings | None = None, seed: int = 0
    ) -> None:
        self.flow, self.target, self.settings = flow, target, settings or TrainSettings()
        self.generator = torch.Generator().manual_seed(seed)
        self.average = copy.deepcopy(flow)
        self.stage = "laplace" if self.settings.tempering is None else "tempering"
        self.dropped = 0
        self.frames: Tensor | None = None
        self.buffers: list[tuple[Tensor, Tensor]] = []
        n_slow, n_bead, n_rotor, _ = flow.sizes
        index = torch.arange(sum(flow.sizes))
        self.soft = torch.cat([index[:n_slow], index[n_slow + n_bead : n_slow + n_bead + n_rotor]])
        self.stiff = torch.cat([index[n_slow : n_slow + n_bead], index[n_slow + n_bead + n_rotor :]])
        self.optimizer: torch.optim.Optimizer | None = None

    # -- the stages -------------------------------------------------------------------------------------------------

    def run(
        self,
        budget: Budget,
        reporter: Reporter,
        parallel: Parallel,
        save: Callable[..., None],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Go through the stages that are left, until the budget is spent or somebody interrupts.

        Arguments:
            budget: what it may cost.
            reporter: is told the figures.
            parallel: over which work is spread.
            save: called often, and with `force=True` at the end of each stage.
            interrupted: whether to end now.
        """
        self.budget, self.reporter, self.parallel, self.save = budget, reporter, parallel, save
        self.interrupted = interrupted
        following = {
            "tempering": (self._temper, "refine"),
            "laplace": (self._start, "soft"),
            "soft": (self._fit_soft, "refine"),
        }
        while self.stage in following:
            work, next_stage = following[self.stage]
            work()
            if interrupted():  # what was learned stays; a resumed training does this stage again
                self.optimizer = None
                self.average.load_state_dict(self.flow.state_dict())
                return
            self._enter(next_stage)
        self._refine()
        self.flow.load_state_dict(self.average.state_dict())

    def _start(self) -> None:
        self._fit(self._laplace())

    def _enter(self, stage: str) -> None:
        self.stage, self.optimizer = stage, None
        self.average.load_state_dict(self.flow.state_dict())
        self.save(force=True)

    def _laplace(self) -> LaplaceMixture:
        settings, coordinates = self.settings, self.target.coordinates
        if isinstance(coordinates, LinearCoordinates) and coordinates.learned:
            coordinates.turn(separating_directions(self.target, settings.points, self.parallel, self.generator))
        scale = coordinates.scale.float()
        reference = coordinates.reference.float().unsqueeze(0)
        structure, factor = curvature_factor(self.target, reference, self.stiff, scale, self.parallel)
        points = self._spread(structure, settings.points)
        if self.soft.numel():
            points = anneal_soft(
                self.target,
                points,
                self.soft,
                self.stiff,
                factor,
                self.parallel,
                self.generator,
                settings.sweeps,
                settings.flattening,
            )
        mixture = laplace(self.target, points, self.stiff, factor, self.parallel)
        if not bool(torch.isfinite(mixture.log_partition).any()):
            raise TrainingError("every energy of the Laplace start is infinite or NaN; check the System.")
        self._report("laplace")
        return mixture

    def _spread(self, structure: Tensor, n: int) -> Tensor:
        """`n` copies of a structure with its soft variables on a low-discrepancy set; the first as it was."""
        points = structure.expand(n, -1).clone()
        if self.soft.numel():
            sobol = torch.quasirandom.SobolEngine(self.soft.numel(), scramble=True, seed=self._seed())
            span = self.target.coordinates.span[self.soft].float()
            points[1:, self.soft] += (sobol.draw(n - 1).to(points) - 0.5) * span
        return points

    def _seed(self) -> int:
        return int(torch.randint(2**31, (1,), generator=self.generator))

    def _fit(self, mixture: LaplaceMixture) -> None:
        """Maximum likelihood on samples of the Laplace start, its free energies flattened; no energies needed."""
        self._set_factors(mixture)
        weights = torch.isfinite(mixture.log_partition).float()
        start = self._fraction()
        for i in range(self.settings.fit_steps):
            progress = self._progress(i / self.settings.fit_steps, start, self.settings.shares[0])
            if progress >= 1:
                break
            chosen = torch.multinomial(weights, self.settings.batch, replacement=True, generator=self.generator)
            noise = torch.randn(chosen.numel(), self.stiff.numel(), generator=self.generator)
            (q,) = self.parallel.map(lambda *rows: (mixture.place(*rows),), chosen, noise)
            loss, _ = self._step(
                self._rate(0, progress),
                lambda rows, blurred: negative_log_likelihood(self.flow, rows, blurred, gaussian=True),
                q,
                self._blurred(q, self.settings.start_blur),
            )
            if (i + 1) % 50 == 0:
                self._report("fit", loss=loss)

    @torch.no_grad()
    def _set_factors(self, mixture: LaplaceMixture) -> None:
        """Start the Gaussian factors from the mean covariance of the start's points."""
        n_bead = self.flow.sizes[1]
        scale = self.target.coordinates.scale[self.stiff].float()
        covariance = mixture.factors @ mixture.factors.transpose(1, 2) / (scale[:, None] * scale)
        factor = torch.linalg.cholesky(covariance[torch.isfinite(mixture.log_partition)].mean(0))
        beads, atoms = self.flow.bead_flow.stiff, self.flow.atom_flow.stiff
        beads.set_factor(factor[:n_bead, :n_bead])
        atoms.set_factor(factor[n_bead:, n_bead:])
        n_features = self.flow.bead_flow.slow.n_features
        atoms.linear.weight[:, n_features : n_features + n_bead] = factor[n_bead:, :n_bead]

    def _temper(self) -> None:
        """Reverse KL while the temperature comes down, as in arXiv 2504.20940.

        The slow variables of vectors are found here, with the simplest fast density: a flexible one would do with any.
        """
        schedule = self.settings.tempering
        assert schedule is not None
        finding = any(p.requires_grad for p in self.target.coordinates.parameters())
        with _frozen(self.flow.nonlinear_parameters() if finding else []):
            arrived = False
            while not arrived and self._fraction() < 1:
                arrived = schedule.beta >= 1
                self._level(schedule)
                if not arrived:
                    with torch.no_grad():
                        q, log_prob = self.flow.sample(self.settings.batch, self.generator)
                        u, logdet = self.parallel.map(self.target.parts, q)
                    schedule.advance(u, log_prob - logdet)
                self.save()

    def _level(self, schedule: Tempering) -> None:
        """The steps at one temperature."""
        settings = self.settings

        def loss(noise: Tensor, *rows: Tensor) -> Tensor:
            if settings.joint:
                return joint_reverse_kl(self.flow, self.target, schedule.beta, noise)
            divergence = stiff_reverse_kl(self.flow, self.target, schedule.beta, noise)
            return divergence + negative_log_soft(self.flow, *rows)

        figures: dict[str, float] = {}
        for i in range(schedule.steps):
            if not settings.joint and i % settings.buffer_steps == 0:
                self.buffers = []  # of another temperature, or of another rotation
                figures = self._keep(*self._draw_buffer(settings.tempering_buffer, schedule.beta))
            rows = () if settings.joint else (self._rows(*self._pool()),)
            noise = self.flow.draw_noise(settings.batch, self.generator)
            value, _ = self._step(settings.learning_rates[1], loss, noise, *rows)
        self.buffers = []
        self._report("tempering", **(figures | {"loss": value, "beta": schedule.beta}))

    def _fit_soft(self) -> None:
        """Reweighted maximum likelihood of the soft densities alone, which is cheap and mends most of the weights."""
        settings = self.settings
        soft = self._soft_parameters()
        start = self._fraction()
        with _frozen([p for p in self._parameters() if not any(p is s for s in soft)]):
            for i in range(settings.soft_buffers if self.soft.numel() else 0):
                progress = self._progress(i / settings.soft_buffers, start, settings.shares[1])
                if progress >= 1:
                    break
                figures = self._keep(*self._draw_buffer(settings.buffer))
                pool, rate = self._pool(), self._rate(0, progress)
                losses = [
                    self._step(rate, lambda rows: negative_log_soft(self.flow, rows), self._rows(*pool))[0]
                    for _ in range(settings.buffer_steps)
                ]
                self._report("soft", loss=sum(losses) / len(losses), **figures)

    def _refine(self) -> None:
        """Everything: the stiff densities by their divergence on fresh samples, the soft ones by all kept samples."""
        settings = self.settings
        start = self._fraction()
        if not self.buffers and start < 1:
            self._keep(*self._draw_buffer(settings.buffer))

        def loss(noise: Tensor, rows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
            soft, latent = self.flow.sample_soft(noise)
            divergence, *drawn = stiff_divergence(self.flow, self.target, soft, latent, settings.least_path_ess)
            total = divergence + negative_log_soft(self.flow, rows)
            if self.frames is not None:
                total = total + 0.25 * negative_log_likelihood(self.flow, self.frames[frames], self.frames[frames])
            return total, *drawn

        while self._fraction() < 1:
            pool = self._pool()
            losses: list[float] = []
            kept: list[list[Tensor]] = []
            while not kept or (self._fraction() < 1 and len(kept) * settings.batch < settings.buffer):
                noise = self.flow.draw_noise(settings.batch, self.generator)
                n_frames = 1 if self.frames is None else len(self.frames)
                frames = torch.randint(n_frames, (settings.batch,), generator=self.generator)
                progress = min(1.0, (self._fraction() - start) / max(1 - start, 1e-9))
                value, drawn = self._step(
                    self._rate(2, progress), loss, noise, self._rows(*pool, settings.blurred * (1 - progress)), frames
                )
                losses.append(value)
                kept.append(drawn)
                self._average()
            figures = self._keep(*(torch.cat(part) for part in zip(*kept, strict=True)))
            self._report("refine", loss=sum(losses) / len(losses), **figures)
            self.save()

    def _keep(self, q: Tensor, log_weights: Tensor) -> dict[str, float]:
        """Keep own samples `(n, dof)` to learn from; returns the figures of their log-weights `(n,)`."""
        finite = torch.isfinite(log_weights)
        self.dropped += int((~finite).sum())
        if not bool(finite.any()):
            raise TrainingError(f"all {len(q)} samples have infinite or NaN energies: train again with another seed.")
        softened, power = soften_log_weights(log_weights, self.settings.least_ess, self.settings.clip)
        # adding up to the effective share, by which buffers of different quality are best joined
        weights = torch.softmax(softened, 0) * effective_sample_size(softened)
        self.buffers = [*self.buffers, (q, weights)][-self.settings.kept :]
        return {"ess": effective_sample_size(log_weights), "logZ": log_mean_exp(log_weights)[0], "beta": power}

    def _pool(self) -> tuple[Tensor, Tensor]:
        """All kept samples `(n, dof)` and their weights `(n,)`."""
        q, weights = zip(*self.buffers, strict=True)
        return torch.cat(q), torch.cat(weights)

    def _rows(self, q: Tensor, weights: Tensor, blurred: float | None = None) -> Tensor:
        """Samples `(batch, dof)` drawn by their weights, a share of them with a blurred soft variable."""
        chosen = torch.multinomial(weights, self.settings.batch, replacement=True, generator=self.generator)
        return self._blurred(q[chosen], self.settings.blur, self.settings.blurred if blurred is None else blurred)

    def _blurred(self, q: Tensor, width: float, share: float | None = None) -> Tensor:
        """Rows with normal noise on their soft variables: on all of them, or on one of them in a share of the rows."""
        n, noise = self.soft.numel(), torch.zeros(len(q), self.soft.numel())
        if n:
            noise = width / (2 * math.pi) * torch.randn(len(q), n, generator=self.generator)
            noise = noise * self.target.coordinates.span[self.soft].float()
        if n and share is not None:
            one = torch.nn.functional.one_hot(torch.randint(n, (len(q),), generator=self.generator), n)
            noise = noise * one * (torch.rand(len(q), 1, generator=self.generator) < share)
        return q.index_add(1, self.soft, noise.to(q))

    def _draw_buffer(self, n: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """`n` own samples `(n, dof)` and their log-weights `(n,)` at an inverse temperature."""

        def weigh(noise: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():  # each thread has its own gradient mode
                q, log_prob = self.flow.sample_from(noise)
                return q, -self.target.action(q, beta) - log_prob

        q, log_weights = self.parallel.map(weigh, self.flow.draw_noise(n, self.generator))
        return q, torch.where(torch.isfinite(log_weights), log_weights, -math.inf)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _fraction(self) -> float:
        return 1.0 if self.interrupted() else self.budget.fraction(self.target.evaluations)

    def _progress(self, steps: float, start: float, end: float) -> float:
        """How far a stage is that ends after its steps, or at a share of the budget: 0 to 1."""
        return max(steps, (self._fraction() - start) / max(end - start, 1e-9))

    def _rate(self, stage: int, progress: float) -> float:
        """Half a cosine from the stage's learning rate to a hundredth of it."""
        highest = self.settings.learning_rates[stage]
        return highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))))

    def _parameters(self) -> list[nn.Parameter]:
        """What is being trained: while tempering the rotation of vectors as well, on which everything else rests."""
        return [p for p in (*self.flow.parameters(), *self._rotation()) if p.requires_grad]

    def _rotation(self) -> list[nn.Parameter]:
        return list(self.target.coordinates.parameters()) if self.stage == "tempering" else []

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer over the flow's parameters that are being trained."""
        soft = [p for p in self._soft_parameters() if p.requires_grad]
        stiff = [p for p in self.flow.parameters() if p.requires_grad and not any(p is s for s in soft)]
        soft_factor = self.settings.soft_factor if self.stage == "refine" else 1.0
        groups = [{"params": stiff, "factor": 1.0}, {"params": soft, "factor": soft_factor}]
        groups.append({"params": self._rotation(), "factor": self.settings.rotation_factor})
        self.optimizer = torch.optim.Adam(groups, fused=True)
        return self.optimizer

    def _soft_parameters(self) -> list[nn.Parameter]:
        return [*self.flow.bead_flow.slow.parameters(), *self.flow.atom_flow.rotors.parameters()]

    def _step(
        self, rate: float, loss: Callable[..., Tensor | tuple[Tensor, ...]], *rows: Tensor
    ) -> tuple[float, list[Tensor]]:
        """One step of the optimizer; returns the loss, and what it kept of the rows."""
        parameters = self._parameters()
        optimizer = self.optimizer or self.make_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        value, gradients, kept = self.parallel.gradients(loss, parameters, *rows)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, 20.0)
        if math.isfinite(value) and bool(torch.isfinite(norm)):
            optimizer.step()
        else:
            self.dropped += rows[0].shape[0]
        return value, kept

    @torch.no_grad()
    def _average(self) -> None:
        for mean, parameter in zip(self.average.parameters(), self.flow.parameters(), strict=True):
            mean.lerp_(parameter, 1 - self.settings.average)

    def _report(self, stage: str, **figures: float) -> None:
        row = Metrics(stage, self.budget.elapsed, self.target.evaluations, dropped=self.dropped, **figures)
        self.reporter.add(row, self._fraction())


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that are not trained meanwhile."""
    held = list(parameters)
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
