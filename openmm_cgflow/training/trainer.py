"""Training from energies alone: Laplace start, then divergences and reweighted likelihoods of own samples."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.errors import TrainingError
from openmm_cgflow.flows import JointFlow, SoftVariables
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
from openmm_cgflow.training.replay import Replay
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.settings import TrainSettings
from openmm_cgflow.training.start import anneal_soft, separating_directions, soft_and_stiff
from openmm_cgflow.training.target import BoltzmannTarget
from openmm_cgflow.training.tempering import Tempering

__all__ = ["Trainer"]


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
        self.frames: Tensor | None = None
        self.broad: SoftVariables | None = None
        self.soft, self.stiff = soft_and_stiff(flow.sizes)
        self.replay = Replay(self.settings, self.soft, target.coordinates.span, self.generator)
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
        self.broad = copy.deepcopy(self.flow.bead_flow.slow)

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
                self.replay.blurred(q, self.settings.start_blur),
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
                self.replay.clear()  # of another temperature, or of another rotation
                figures = self.replay.keep(*self._draw_buffer(settings.tempering_buffer, schedule.beta))
            rows = () if settings.joint else (self.replay.rows(*self.replay.pool()),)
            noise = self.flow.draw_noise(settings.batch, self.generator)
            value, _ = self._step(settings.learning_rates[1], loss, noise, *rows)
        self.replay.clear()
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
                figures = self.replay.keep(*self._draw_buffer(settings.buffer))
                pool, rate = self.replay.pool(), self._rate(0, progress)
                losses = [
                    self._step(rate, lambda rows: negative_log_soft(self.flow, rows), self.replay.rows(*pool))[0]
                    for _ in range(settings.buffer_steps)
                ]
                self._report("soft", loss=sum(losses) / len(losses), **figures)

    def _refine(self) -> None:
        """Everything: the stiff densities by their divergence on fresh samples, the soft ones by all kept samples."""
        settings = self.settings
        start = self._fraction()
        if not self.replay.buffers and start < 1:
            self.replay.keep(*self._draw_buffer(settings.buffer))

        def loss(noise: Tensor, rows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
            slow, log_ratio, own = self._defended(noise)
            soft, latent = self.flow.sample_soft(noise, slow)
            # with weights as if all were the flow's own: nearly those of the stiff variables at given slow ones
            divergence, q, log_weights = stiff_divergence(self.flow, self.target, soft, latent, settings.least_path_ess)
            drawn = (q, log_weights - log_ratio, torch.where(own, log_weights, torch.nan))
            total = divergence + negative_log_soft(self.flow, rows)
            if self.frames is not None:
                total = total + 0.25 * negative_log_likelihood(self.flow, self.frames[frames], self.frames[frames])
            return total, *drawn

        while self._fraction() < 1:
            pool = self.replay.pool()
            losses: list[float] = []
            kept: list[list[Tensor]] = []
            while not kept or (self._fraction() < 1 and len(kept) * settings.batch < settings.buffer):
                noise = self.flow.draw_noise(settings.batch, self.generator)
                n_frames = 1 if self.frames is None else len(self.frames)
                frames = torch.randint(n_frames, (settings.batch,), generator=self.generator)
                progress = min(1.0, (self._fraction() - start) / max(1 - start, 1e-9))
                rows = self.replay.rows(*pool, settings.blurred * (1 - progress))
                value, drawn = self._step(self._rate(2, progress), loss, noise, rows, frames)
                losses.append(value)
                kept.append(drawn)
                self._average()
            figures = self.replay.keep(*(torch.cat(part) for part in zip(*kept, strict=True)))
            self._report("refine", loss=sum(losses) / len(losses), **figures)
            self.save()

    @torch.no_grad()
    def _defended(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slow variables, a share of them from the broad density of the start, so that rare regions are learned too.

        Returns:
            `(batch, n_slow)`; the log of the density that they are from over the flow's own, `(batch,)`; and whether
            they were drawn from the flow's own.
        """
        density, share = self.flow.bead_flow.slow, self.settings.defended
        slow = self.flow.bead_flow.sample_slow(noise[:, : 2 * density.n])
        own = torch.ones(len(noise), dtype=torch.bool)
        if self.broad is None or not share:
            return slow, torch.zeros(len(noise)), own
        n = round(share * len(noise))
        own[:n] = False
        slow[:n] = self.broad.sample(noise[:n, : 2 * density.n], noise[:n, :0])
        nothing = slow[:, :0]
        difference = self.broad.log_prob(slow, nothing) - density.log_prob(slow, nothing)
        return slow, torch.logaddexp(torch.full_like(difference, math.log1p(-share)), math.log(share) + difference), own

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
            self.replay.dropped += rows[0].shape[0]
        return value, kept

    @torch.no_grad()
    def _average(self) -> None:
        for mean, parameter in zip(self.average.parameters(), self.flow.parameters(), strict=True):
            mean.lerp_(parameter, 1 - self.settings.average)

    def _report(self, stage: str, **figures: float) -> None:
        row = Metrics(stage, self.budget.elapsed, self.target.evaluations, dropped=self.replay.dropped, **figures)
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
