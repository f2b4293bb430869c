"""Inverse temperatures on the way to the target's own: the paper's adaptive rule, and a geometric schedule.

A schedule is a recipe and never changes; where a training is on it, is a `Level` that belongs to the training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import InvalidInputError, TrainingError

__all__ = ["AdaptiveTempering", "GeometricTempering", "Level", "Tempering"]

_SHRINK = 0.6


@dataclass(frozen=True)
class Level:
    """Where a training is on its way down in temperature.

    Attributes:
        beta: inverse temperature relative to the target's own: 1 is the end.
        number: how many steps led here.
        log_z: running estimate of the log partition function at beta, up to that at the start; None before the first.
    """

    beta: float
    number: int = 0
    log_z: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.beta <= 1 and self.number >= 0):
            raise ValueError(f"a level of beta {self.beta}, number {self.number}")


class Tempering(Protocol):
    """A rule for the next inverse temperature.

    Attributes:
        beta: where to start.
        steps: training steps at each inverse temperature.
    """

    @property
    def beta(self) -> float:
        """Where to start."""

    @property
    def steps(self) -> int:
        """Training steps at each inverse temperature."""

    def advance(self, level: Level, u: Tensor, log_density: Tensor) -> Level:
        """The next level, from reduced energies and log-densities `(n,)` of samples at this one."""


def _check(schedule: Any, whole: Sequence[str], numbers: Mapping[str, float]) -> None:  # noqa: ANN401
    """See that a schedule can be, and make plain numbers of numpy's, which cannot be stored.

    Arguments:
        schedule: changed in place.
        whole: names of whole numbers, at least 1.
        numbers: names of other numbers, with the largest that they may be; 0 is the least of `floor` alone.
    """
    kind = type(schedule).__name__
    for name in whole:
        object.__setattr__(schedule, name, whole_number(getattr(schedule, name), f"{kind}: {name}"))
    for name, largest in numbers.items():
        value = getattr(schedule, name)
        known = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
        if not known or not 0 <= value <= largest or (value == 0 and name != "floor"):
            limit = "" if largest == math.inf else f" and at most {largest:g}"
            least = "0 or more" if name == "floor" else "above 0"
            raise InvalidInputError(f"{kind}: {name} is {value!r}; give a number {least}{limit}.")
        object.__setattr__(schedule, name, float(value))


@dataclass(frozen=True)
class AdaptiveTempering:
    """The largest step for which the divergence to the next temperature is a given share of the present one.

    `(dlogZ + db <u>) / KL(beta) <= delta`, with `KL = logZ + beta <u> + <log q>` (arXiv 2504.20940, 2002.10148). As
    published, the better the flow the smaller the step: one that fits hardly moves on. `floor` stands for a smaller
    divergence; 0 is the published rule.

    Attributes:
        beta: where to start.
        delta: largest increase of the divergence relative to its present value.
        largest: largest step of beta.
        steps: training steps at each beta.
        floor: smallest divergence that a step is measured by.
    """

    beta: float = 1e-2
    delta: float = 0.2
    largest: float = 0.05
    steps: int = 50
    floor: float = 0.5

    def __post_init__(self) -> None:
        _check(self, ("steps",), {"beta": 1.0, "delta": math.inf, "largest": 1.0, "floor": math.inf})

    def advance(self, level: Level, u: Tensor, log_density: Tensor) -> Level:
        """The next level, from reduced energies and log-densities `(n,)` of samples at this one."""
        finite = torch.isfinite(u) & torch.isfinite(log_density)
        if not bool(finite.any()):
            raise TrainingError(f"all {len(u)} samples have infinite or NaN energies: begin with a larger beta.")
        u, log_density = u[finite].double(), log_density[finite].double()
        beta, log_w = level.beta, -level.beta * u - log_density
        log_z = level.log_z
        if log_z is None:
            log_z = torch.logsumexp(log_w, 0).item() - math.log(log_w.numel())
        log_w = torch.log_softmax(log_w, 0)
        divergence = max(log_z + beta * u.mean().item() + log_density.mean().item(), self.floor, 1e-6)
        step = min(self.largest, 1 - beta)
        change = torch.logsumexp(log_w - step * u, 0).item()
        while (change + step * u.mean().item()) / divergence > self.delta and step > 1e-6:
            step *= _SHRINK
            change = torch.logsumexp(log_w - step * u, 0).item()
        return Level(min(beta + step, 1.0), level.number + 1, log_z + change)


@dataclass(frozen=True)
class GeometricTempering:
    """A fixed number of temperatures, each the same factor below the one before.

    Attributes:
        beta: where to start.
        levels: number of steps to 1.
        steps: training steps at each beta.

    Example:
        >>> schedule, level, nothing = GeometricTempering(beta=0.25, levels=2), Level(0.25), torch.zeros(0)
        >>> for _ in range(3):
        ...     level = schedule.advance(level, nothing, nothing)
        ...     level.beta
        0.5
        1.0
        1.0
    """

    beta: float = 1e-2
    levels: int = 40
    steps: int = 50

    def __post_init__(self) -> None:
        _check(self, ("levels", "steps"), {"beta": 1.0})

    def advance(self, level: Level, u: Tensor, log_density: Tensor) -> Level:
        """The next level; samples are not looked at."""
        number = min(level.number + 1, self.levels)
        return replace(level, beta=self.beta ** (1 - number / self.levels), number=number)
