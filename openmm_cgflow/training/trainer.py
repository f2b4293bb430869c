"""The training of a flow on a target: the loop, with the stages that a flow needs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from openmm_cgflow.compute import Parallel, seeded
from openmm_cgflow.flows import JointFlow
from openmm_cgflow.sampling import BoltzmannTarget
from openmm_cgflow.storage import fill, read_as
from openmm_cgflow.training.budget import Budget
from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.settings import TrainSettings
from openmm_cgflow.training.stages import Refine, Soft, Stage, Start, Temper
from openmm_cgflow.training.target import BudgetedTarget
from openmm_cgflow.training.task import Task

__all__ = ["Trainer"]


class Trainer:
    """Trains a flow on a target in stages; every one can be interrupted, and a new call goes on where it was.

    Arguments:
        flow: trained in place.
        target: what to sample.
        settings: how.
        seed: of everything random.
    """

    def __init__(
        self, flow: JointFlow, target: BoltzmannTarget, settings: TrainSettings | None = None, seed: int = 0
    ) -> None:
        settings = settings or TrainSettings()
        self.target = target
        self.task = Task(flow, target, settings, seeded(seed))
        self.temper, self.refine = Temper(self.task), Refine(self.task)
        stages: dict[str, Stage] = {"tempering": self.temper, "refine": self.refine}
        stages |= {"laplace": Start(self.task), "soft": Soft(self.task)}
        self.loop = Loop(flow, stages, _first(settings), settings.average, self.task.time_energies)

    @property
    def history(self) -> list[Metrics]:
        """Rows of all calls."""
        return self.loop.history

    def follow(self, settings: TrainSettings) -> None:
        """Go on with other settings, in the stage that was reached; a start that is not done yet begins anew."""
        if settings.tempering != self.task.settings.tempering:
            self.temper.level = None
        self._take(settings)
        if self.loop.stage in {"tempering", "laplace"} - {_first(settings)}:
            self.loop.enter(_first(settings))
        self.loop.regroup()

    def _take(self, settings: TrainSettings) -> None:
        self.task.follow(settings)
        self.loop.decay = settings.average

    def trained(self) -> None:
        """The flow was trained by an earlier version, which has left nothing but its history: refine it."""
        self.loop.enter("refine")
        before = [row for row in self.history if row.stage != "refine"]
        self.refine.entered = (before[-1].seconds, before[-1].evaluations) if before else (0.0, 0)

    def run(
        self,
        budget: Budget,
        parallel: Parallel,
        reporter: Reporter,
        save: Callable[..., None],
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Train until the budget is spent, or somebody asks for an end.

        Arguments:
            budget: of this call.
            parallel: over which work is spread.
            reporter: is told the figures.
            save: called often, and with `force=True` at the end of each stage.
            at_once: inside it, what cannot look at the budget is left when somebody asks for an end.
        """
        self.task.target = BudgetedTarget(self.target, budget, at_once)
        try:
            self.loop.run(budget, parallel, reporter, save)
        finally:
            self.task.target = self.target

    def state_dict(self, whole: bool = True) -> dict[str, Any]:
        """Tensors and what JSON can hold, nested.

        Arguments:
            whole: all that an interrupted training needs to go on, as a checkpoint holds it; else what goes into a
                model beside its flow, its coordinates and its history.
        """
        state = self.loop.state_dict(whole) | {"task": self.task.state_dict()}
        state["settings"] = self.task.settings.as_dict()
        if whole:
            state["coordinates"] = dict(self.target.coordinates.state_dict())
            state["history"] = [asdict(row) for row in self.history]
        return state

    def load_state_dict(self, state: dict[str, Any], settings: TrainSettings | None = None) -> None:
        """Set what `state_dict` gave, or go on from there with other settings.

        Raises:
            InvalidInputError: without settings, if the stored ones have a schedule of the user's own.
        """
        # of a schedule that is behind us nothing is needed any more
        given = settings if state["stage"] == "tempering" else settings or TrainSettings()
        try:
            stored = TrainSettings.from_dict(state["settings"], given)
        except ValueError:
            if settings is None:
                raise
            stored = settings
        self._take(stored)
        if "coordinates" in state:
            fill(self.target.coordinates, state["coordinates"])
            self.loop.history = read_as(list[Metrics], state["history"], "history", finite=False)
        self.loop.load_state_dict(state)
        self.task.load_state_dict(state["task"])
        if settings is not None:
            self.follow(settings)


def _first(settings: TrainSettings) -> str:
    return "laplace" if settings.tempering is None else "tempering"
