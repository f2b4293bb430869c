"""Reverse KL while the temperature comes down, as in arXiv 2504.20940, instead of a Laplace start."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from openmm_cgflow.flows import StiffDensity
from openmm_cgflow.storage import read_as
from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.objectives import negative_log_soft, reverse_kl
from openmm_cgflow.training.task import Task
from openmm_cgflow.training.tempering import Level, Tempering

__all__ = ["Temper"]


class Temper:
    """Goes down in temperature by the schedule of the settings.

    The slow variables of vectors are found here, with the simplest fast density: a flexible one would do with any.

    Arguments:
        task: what is trained.

    Attributes:
        level: the inverse temperature that was reached; None before the first.
    """

    following = "refine"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.level: Level | None = None

    def groups(self) -> list[dict[str, Any]]:
        """Everything, and the rotation of vectors, on which all rests; the simplest fast density where one is found."""
        task = self.task
        rotation = [p for p in task.target.coordinates.parameters() if p.requires_grad]
        fixed = {id(p) for p in task.flow.nonlinear_parameters()} if rotation else set()
        return [
            {"params": [p for p in task.stiff_parameters() if id(p) not in fixed], "factor": 1.0},
            {"params": task.soft_parameters(), "factor": 1.0},
            {"params": rotation, "factor": task.settings.rotation_factor},
        ]

    def run(self, loop: Loop) -> None:
        """Level by level, until the target's own temperature is reached and learned."""
        schedule = self.task.settings.tempering
        assert schedule is not None
        level = self.level or Level(schedule.beta)
        while True:
            self._learn(loop, schedule, level)
            if level.beta >= 1:
                return
            self.level = level = schedule.advance(level, *self._samples(loop))
            loop.save()

    def _samples(self, loop: Loop) -> tuple[Tensor, Tensor]:
        """Reduced energies and log-densities of positions, `(n,)`, of own samples."""
        noise = self.task.flow.draw_noise(loop.rows(self.task.settings.batch), self.task.generator)
        drawn = self.task.draw(loop, noise)
        return torch.where(torch.isfinite(drawn.u), drawn.u, torch.inf), drawn.log_q - drawn.log_measure

    def _learn(self, loop: Loop, schedule: Tempering, level: Level) -> None:
        """The steps at one temperature."""
        task, settings = self.task, self.task.settings

        def loss(noise: Tensor, *rows: Tensor) -> Tensor:
            if settings.joint:
                return reverse_kl(task.flow, task.target, level.beta, noise)
            divergence = reverse_kl(task.flow, task.target, level.beta, noise, StiffDensity)
            return divergence + negative_log_soft(task.flow, *rows)

        figures: dict[str, float] = {}
        value = float("nan")
        for i in range(schedule.steps):
            if not settings.joint and i % settings.buffer_steps == 0:
                task.replay.clear()  # of another temperature, or of another rotation
                figures = task.draw_buffer(loop, settings.tempering_buffer, level.beta)
            n = loop.rows(settings.batch)
            rows = () if settings.joint else (task.replay.rows(*task.replay.pool(), n),)
            noise = task.flow.draw_noise(n, task.generator)
            value, _ = task.step(loop, settings.learning_rates[1], loss, noise, *rows)
        task.replay.clear()
        loop.report("tempering", task.replay.dropped, **(figures | {"loss": value, "beta": level.beta}))

    def state_dict(self) -> dict[str, Any]:
        """The level."""
        return {"level": None if self.level is None else asdict(self.level)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the level."""
        self.level = read_as(Level | None, state["level"], "level")
