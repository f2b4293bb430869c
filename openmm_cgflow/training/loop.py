"""The loop of a training: budget, optimizer, running average, report, checkpoint. It knows no flow."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from openmm_cgflow.compute import Parallel
from openmm_cgflow.storage import fill, read_as
from openmm_cgflow.training.budget import Budget, Spent
from openmm_cgflow.training.reporter import Metrics, Reporter

__all__ = ["Loop", "Stage"]

_log = logging.getLogger("openmm_cgflow")

_LARGEST_NORM = 20.0  # of a gradient
_FREE = 256  # rows of a step without energies
_LEAST = 0.2  # of what is left of the budget: for a stage whose share of it is gone


class Stage(Protocol):
    """A part of a training, with its own state."""

    @property
    def following(self) -> str | None:
        """Name of the stage after it; None for one that goes on until the budget is spent."""

    def run(self, loop: "Loop") -> None:
        """Work until the stage is done; Spent may pass through."""

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: `params`, and the `factor` by which they learn faster than others."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and what JSON can hold, nested as need be."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` gave."""


class Loop:
    """Goes through stages; a training that was ended goes on with the stage in which it was.

    Arguments:
        module: what is trained, in place.
        stages: by name.
        stage: name of the first one.
        decay: of the running average of the parameters, which is what is left in the module at the end.
        probe: called at the beginning of a call, to see how long energies take.

    Attributes:
        average: a copy of the module with the averaged parameters.
        history: rows of all calls.
        seconds, evaluations: what all calls took, but the one that is running.
        call: what the last call had spent, seconds and evaluations, if it was ended early; else None.
        budget: of the call that is running.
        parallel: over which its work is spread.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Mapping[str, Stage],
        stage: str,
        decay: float,
        probe: Callable[["Loop"], None] = lambda loop: None,
    ) -> None:
        self.module, self.stages, self.stage, self.decay, self._probe = module, stages, stage, decay, probe
        self.average = copy.deepcopy(module)
        self._pairs = [[*self.average.parameters()], [*module.parameters()]]  # finding them takes as long as a layer
        self.optimizer: torch.optim.Optimizer | None = None
        self.history: list[Metrics] = []
        self.seconds, self.evaluations = 0.0, 0
        self.call: tuple[float, int] | None = None
        self.running = False
        self.budget = Budget()
        self.parallel = Parallel(1)
        self._reporter: Reporter | None = None
        self._save: Callable[..., None] = lambda force=False: None

    def run(self, budget: Budget, parallel: Parallel, reporter: Reporter, save: Callable[..., None]) -> None:
        """Go through the stages that are left, until the budget is spent or somebody asks for an end.

        Whatever happens, the module has a valid state afterwards.

        Arguments:
            budget: what it may cost.
            parallel: over which work is spread.
            reporter: is told the figures.
            save: called often, and with `force=True` at the end of each stage.
        """
        self.budget, self.parallel, self._reporter, self._save = budget, parallel, reporter, save
        self.seconds, self.evaluations = self.seconds - budget.seconds_before, self.evaluations - budget.used
        self.running = True
        try:
            self._probe(self)
            while True:
                stage = self.stages[self.stage]
                stage.run(self)
                if stage.following is None:
                    break
                self.enter(stage.following)
                self.save(force=True)
            self._end(early=budget.ended())
        except Spent:
            self._end(early=budget.ended())
        except BaseException:
            self._end(early=True)
            raise

    def _end(self, early: bool) -> None:
        if self.stages[self.stage].following is None:
            self.module.load_state_dict(self.average.state_dict())
        else:  # what was learned stays; the stage is done again
            self.optimizer = None
            self.average.load_state_dict(self.module.state_dict())
        self.call = (self.budget.elapsed, self.budget.used) if early else None
        (self.seconds, self.evaluations), self.running = self.totals(), False

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        self.stage, self.optimizer = stage, None
        self.average.load_state_dict(self.module.state_dict())

    def totals(self) -> tuple[float, int]:
        """Seconds and evaluations of all calls."""
        if not self.running:
            return self.seconds, self.evaluations
        return self.seconds + self.budget.elapsed, self.evaluations + self.budget.used

    def save(self, force: bool = False) -> None:
        """Write a checkpoint, if it is time or `force`."""
        self._save(force)

    def tell(self, doing: str) -> None:
        """Say what goes on, where that takes longer than a step."""
        _log.debug("%s", doing)
        if self._reporter is not None:
            self._reporter.tell(doing, self.budget.fraction)

    def report(self, stage: str, dropped: int = 0, **figures: Any) -> None:  # noqa: ANN401
        """Add a row to the history."""
        row = Metrics(stage, *self.totals(), dropped=dropped, **figures)
        self.history.append(row)
        if self._reporter is not None:
            self._reporter.add(row, self.budget.fraction)

    def progress(self, end: float) -> Callable[[float], float]:
        """How far a stage is that begins now, and ends after its steps or at a share of the budget: 0 to 1.

        Arguments:
            end: the share, of which the stage gets a little in any case.

        Returns:
            of the share of its steps that are done; raises Spent when somebody asked for an end, for then the stage is
            not done.
        """
        start = self.budget.fraction
        length = max(end - start, _LEAST * (1 - start), 1e-9)

        def at(steps: float) -> float:
            if self.budget.ended():
                raise Spent
            return max(steps, (self.budget.fraction - start) / length)

        return at

    def rows(self, most: int, part: float = 0.01) -> int:
        """Rows of the next batch of energies, at most a part of the budget.

        Raises:
            Spent: if there is nothing left.
        """
        n = self.budget.rows(most, part)
        if not n:
            raise Spent
        return n

    def free_rows(self, most: int) -> int:
        """Rows of the next step that needs no energies: not so few where these are dear."""
        self.budget.check()
        return max(min(most, _FREE), self.budget.rows(most))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """A batch of energies is evaluated meanwhile: the size of later ones depends on how long it takes."""
        used, began = self.budget.used, self.budget.clock()
        yield
        if self.budget.used > used:
            self.budget.took(self.budget.used - used, self.budget.clock() - began)

    def step(
        self, rate: float, loss: Callable[..., Tensor | tuple[Tensor, ...]], *rows: Tensor
    ) -> tuple[float, list[Tensor]]:
        """One step of the optimizer; returns the loss, NaN for a step that was left out, and what it kept."""
        optimizer = self.optimizer or self.make_optimizer()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with self.timed():
            value, gradients, kept = self.parallel.gradients(loss, parameters, *rows)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, _LARGEST_NORM)
        if not (math.isfinite(value) and bool(torch.isfinite(norm))):
            return math.nan, kept
        optimizer.step()
        # fused Adam changes parameters without counting it: what was made of them before must be known to be old
        torch.autograd.graph.increment_version(parameters)
        return value, kept

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer of what the stage trains."""
        groups = [g | {"params": [p for p in g["params"] if p.requires_grad]} for g in self.stages[self.stage].groups()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        return self.optimizer

    def regroup(self) -> None:
        """Let the optimizer's groups learn as fast as the stage says by now."""
        if self.optimizer is not None:
            for group, now in zip(self.optimizer.param_groups, self.stages[self.stage].groups(), strict=True):
                group["factor"] = now["factor"]

    @torch.no_grad()
    def update_average(self) -> None:
        """Let the average follow the parameters."""
        get_ema_multi_avg_fn(self.decay)(*self._pairs, 0)

    def state_dict(self, whole: bool = True) -> dict[str, Any]:
        """Tensors and what JSON can hold, nested.

        Arguments:
            whole: all that an interrupted training needs to go on; else what one needs that goes on from its end, apart
                from the module.
        """
        seconds, evaluations = self.totals()
        state: dict[str, Any] = {"stage": self.stage, "seconds": seconds, "evaluations": evaluations}
        state["stages"] = {name: stage.state_dict() for name, stage in self.stages.items()}
        if whole:
            state["call"] = (self.budget.elapsed, self.budget.used) if self.running else self.call
            state["module"], state["average"] = self.module.state_dict(), self.average.state_dict()
            moments = {} if self.optimizer is None else self.optimizer.state_dict()["state"]
            state["optimizer"] = {str(k): dict(v) for k, v in moments.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` gave."""
        if state["stage"] not in self.stages:
            raise ValueError(f"no stage of a training is named {state['stage']!r}")
        self.stage = state["stage"]
        self.seconds = read_as(float, state["seconds"], "seconds")
        self.evaluations = read_as(int, state["evaluations"], "evaluations")
        for name, stage in self.stages.items():
            stage.load_state_dict(state["stages"][name])
        self.optimizer = None
        self.call = read_as(tuple[float, int] | None, state.get("call"), "call")
        if min(self.seconds, self.evaluations, *(self.call or ())) < 0:
            raise ValueError("negative seconds or evaluations")
        if "module" in state:
            fill(self.module, state["module"])
        fill(self.average, state.get("average", self.module.state_dict()))
        if state.get("optimizer"):
            optimizer = self.make_optimizer()
            groups = optimizer.state_dict()["param_groups"]
            moments = {int(k): v for k, v in state["optimizer"].items()}
            _check_moments(moments, [p for group in optimizer.param_groups for p in group["params"]])
            optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _check_moments(moments: dict[int, Any], parameters: list[nn.Parameter]) -> None:
    """See that they are Adam's, and of these parameters."""
    for k, values in moments.items():
        if not 0 <= k < len(parameters) or set(values) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the optimizer's state {k} is not one of this training")
        shapes = {"step": torch.Size([]), "exp_avg": parameters[k].shape, "exp_avg_sq": parameters[k].shape}
        for name, shape in shapes.items():
            if values[name].shape != shape:
                raise ValueError(
                    f"the optimizer's {name} {k} has shape {tuple(values[name].shape)}, not {tuple(shape)}"
                )
            if not torch.isfinite(values[name]).all():
                raise ValueError(f"the optimizer's {name} {k} is not finite")
        if values["step"] < 0 or (values["exp_avg_sq"] < 0).any():
            raise ValueError(f"the optimizer's state {k} has negative numbers where there can be none")
