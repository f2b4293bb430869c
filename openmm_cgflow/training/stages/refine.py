"""Everything: the stiff densities by their divergence on fresh samples, the soft ones by all kept samples."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from openmm_cgflow.storage import read_as
from openmm_cgflow.training.broad import Defended
from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.objectives import negative_log_likelihood, negative_log_soft, stiff_divergence
from openmm_cgflow.training.task import BUFFER, Task

__all__ = ["Refine"]

_FRAMES = 0.25  # weight of the likelihood of a simulation's frames


class Refine:
    """Goes on until the budget is spent. Called again it goes on as if all had been planned from the beginning.

    Arguments:
        task: what is trained.

    Attributes:
        entered: seconds and evaluations of the training when it first came here; None if it has not yet.
    """

    following = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self.entered: tuple[float, int] | None = None

    def groups(self) -> list[dict[str, Any]]:
        """All of the flow."""
        task = self.task
        soft = {"params": task.soft_parameters(), "factor": task.settings.soft_factor}
        return [{"params": task.stiff_parameters(), "factor": 1.0}, soft]

    def run(self, loop: Loop) -> None:
        """Steps on fresh samples, which make the next buffer."""
        settings, replay, budget = self.task.settings, self.task.replay, loop.budget
        progress = self._progress(loop)
        if not replay.buffers and budget.fraction < 1:
            self.task.draw_buffer(loop, settings.buffer)
        while wanted := budget.rows(settings.buffer, BUFFER):
            pool = replay.pool()
            losses: list[float] = []
            kept: list[list[Tensor]] = []
            while wanted > 0 and (n := budget.rows(settings.batch)):
                done = progress()
                rows = replay.rows(*pool, n, settings.blurred * (1 - done))
                value, drawn = self._step(loop, self.task.rate(2, done), n, rows)
                losses.append(value)
                kept.append(drawn)
                loop.update_average()
                wanted -= n
            if kept:
                figures = replay.keep(*(torch.cat(part) for part in zip(*kept, strict=True)))
                loop.report("refine", replay.dropped, loss=sum(losses) / len(losses), **figures)
                loop.save()

    def _progress(self, loop: Loop) -> Callable[[], float]:
        """How far the refinement is, 0 to 1, with that of earlier calls."""
        totals, budget = loop.totals(), loop.budget
        self.entered = self.entered or totals
        spent = [0.0]  # in earlier calls, in units of the budget of this one
        if budget.seconds is not None:
            spent.append((totals[0] - self.entered[0]) / budget.seconds)
        if budget.evaluations is not None:
            spent.append((totals[1] - self.entered[1]) / budget.evaluations)
        before, start = max(spent), budget.fraction
        return lambda: min(1.0, (before + budget.fraction - start) / max(before + 1 - start, 1e-9))

    def _step(self, loop: Loop, rate: float, n: int, rows: Tensor) -> tuple[float, list[Tensor]]:
        """A step with `n` fresh samples; what is kept of these goes into the next buffer."""
        task, frames = self.task, self.task.frames
        noise = task.flow.draw_noise(n, task.generator)
        chosen = torch.randint(1 if frames is None else len(frames), (n,), generator=task.generator)
        return task.step(loop, rate, self.loss, noise, rows, chosen)

    def loss(self, noise: Tensor, rows: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        """What is minimised, `()`; then fresh samples and their log-weights, of all and of the flow's own.

        Arguments:
            noise: of the fresh samples.
            rows: kept ones, `(n, dof)`.
            chosen: indices `(n,)` of the simulation's frames, if there are any.
        """
        task, frames = self.task, self.task.frames
        # with weights as if all were the flow's own: nearly those of the stiff variables at given slow ones
        defended = self.defended(noise)
        given = None if defended is None else defended.given
        divergence, q, log_weights, log_prob_soft = stiff_divergence(
            task.flow, task.target, noise, given, task.settings.least_path_ess
        )
        total = divergence + negative_log_soft(task.flow, rows)
        if frames is not None:
            total = total + _FRAMES * negative_log_likelihood(task.flow, frames[chosen], frames[chosen])
        if defended is None:
            return total, q, log_weights, log_weights
        log_ratio = self.log_ratio(defended, q, log_prob_soft)
        return total, q, log_weights - log_ratio, torch.where(defended.own, log_weights, torch.nan)

    def defended(self, noise: Tensor) -> Defended | None:
        """Soft variables, a share of them from the broad density of the start, so that rare regions are learned too.

        Nothing where there is no such density.
        """
        broad, share = self.task.broad, self.task.settings.defended
        return broad.draw(self.task.flow, noise, share) if broad is not None and share else None

    def log_ratio(self, defended: Defended, q: Tensor, log_prob_soft: Tensor) -> Tensor:
        """The log of the density that soft variables are from over the flow's own, `(batch,)`.

        Arguments:
            defended: how they were drawn.
            q: samples `(batch, dof)`.
            log_prob_soft: the flow's log-density `(batch,)` of their soft variables.
        """
        share, broad = self.task.settings.defended, self.task.broad
        assert broad is not None
        difference = defended.difference + broad.difference(self.task.flow, q, log_prob_soft - defended.given.log_prob)
        return torch.logaddexp(torch.full_like(difference, math.log1p(-share)), math.log(share) + difference)

    def state_dict(self) -> dict[str, Any]:
        """Where it began."""
        return {"entered": self.entered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set where it began."""
        self.entered = read_as(tuple[float, int] | None, state["entered"], "entered")
