"""Reweighted maximum likelihood of the soft densities alone, which is cheap and fixes most of the weights."""

from typing import Any

from torch import Tensor

from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.objectives import negative_log_soft
from openmm_cgflow.training.task import Task

__all__ = ["Soft"]


class Soft:
    """Trains the densities of the soft variables; there is no state but the flow's.

    Arguments:
        task: what is trained.
    """

    following = "refine"

    def __init__(self, task: Task) -> None:
        self.task = task

    def groups(self) -> list[dict[str, Any]]:
        """The soft densities."""
        return [{"params": self.task.soft_parameters(), "factor": 1.0}]

    def run(self, loop: Loop) -> None:
        """Buffer by buffer, until their number or the stage's share of the budget is reached."""
        task, settings = self.task, self.task.settings
        progress = loop.progress(settings.shares[1])
        for i in range(settings.soft_buffers if task.soft.numel() else 0):
            done = progress(i / settings.soft_buffers)
            if done >= 1:
                break
            figures = task.draw_buffer(loop, settings.buffer)
            pool, rate, n = task.replay.pool(), task.rate(0, done), loop.free_rows(settings.batch)
            losses = [
                task.step(loop, rate, self.loss, task.replay.rows(*pool, n))[0] for _ in range(settings.buffer_steps)
            ]
            loop.report("soft", task.replay.dropped, loss=sum(losses) / len(losses), **figures)

    def loss(self, rows: Tensor) -> Tensor:
        """What is minimised, `()`, of kept samples `(n, dof)`."""
        return negative_log_soft(self.task.flow, rows)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to set."""
