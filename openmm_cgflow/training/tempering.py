"""Inverse temperatures on the way to the target's own: the paper's adaptive rule, and a geometric schedule."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["AdaptiveTempering", "GeometricTempering", "Tempering"]

_SHRINK = 0.6


class Tempering(Protocol):
    """A rule for the next inverse temperature, relative to the target's own: 1 is the end."""

    beta: float
    steps: int

    def advance(self, u: Tensor, log_density: Tensor) -> float:
        """The next inverse temperature, from reduced energies and log-densities `(n,)` of samples at this one."""
        ...


@dataclass
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
        log_z: running estimate of the log partition function at beta, up to that at the start.
    """

    beta: float = 1e-2
    delta: float = 0.2
    largest: float = 0.05
    steps: int = 50
    floor: float = 0.5
    log_z: float | None = field(default=None)

    def advance(self, u: Tensor, log_density: Tensor) -> float:
        """The next inverse temperature, from reduced energies and log-densities `(n,)` of samples at this one."""
        finite = torch.isfinite(u) & torch.isfinite(log_density)
        u, log_density = u[finite].double(), log_density[finite].double()
        log_w = -self.beta * u - log_density
        if self.log_z is None:
            self.log_z = (torch.logsumexp(log_w, 0) - torch.log(torch.tensor(float(log_w.numel())))).item()
        log_w = torch.log_softmax(log_w, 0)
        divergence = max(self.log_z + self.beta * u.mean().item() + log_density.mean().item(), self.floor, 1e-6)
        step = min(self.largest, 1 - self.beta)
        change = torch.logsumexp(log_w - step * u, 0).item()
        while (change + step * u.mean().item()) / divergence > self.delta and step > 1e-6:
            step *= _SHRINK
            change = torch.logsumexp(log_w - step * u, 0).item()
        self.beta = min(self.beta + step, 1.0)
        self.log_z += change
        return self.beta


@dataclass
class GeometricTempering:
    """A fixed number of temperatures, each the same factor below the one before.

    Attributes:
        beta: where to start.
        levels: number of steps to 1.
        steps: training steps at each beta.

    Example:
        >>> schedule = GeometricTempering(beta=0.25, levels=2)
        >>> nothing = torch.zeros(0)
        >>> [schedule.advance(nothing, nothing) for _ in range(3)]
        [0.5, 1.0, 1.0]
    """

    beta: float = 1e-2
    levels: int = 40
    steps: int = 50
    _level: int = field(default=0, init=False)
    _first: float = field(init=False)

    def __post_init__(self) -> None:
        self._first = self.beta

    def advance(self, u: Tensor, log_density: Tensor) -> float:
        """The next inverse temperature; samples are not looked at."""
        self._level = min(self._level + 1, self.levels)
        self.beta = self._first ** (1 - self._level / self.levels)
        return self.beta
