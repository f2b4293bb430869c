"""How much one call of `train` may cost: asked before each batch of energies, wherever these are wanted."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Budget", "Spent"]

_PART = 0.01  # of the budget: a batch
_BATCH_SECONDS = 1.0  # and takes about so long at most, if there is a limit of time
_SMALLEST = 64  # rows of a batch, unless fewer are wanted, or left
_WORTHWHILE = 16  # rows: what is left below that is not used


class Spent(BaseException):
    """The budget is spent, or somebody asked for an end: no error, so that `except Exception` lets it pass."""


@dataclass
class Budget:
    """Seconds, energy evaluations, or both, whichever ends first.

    Attributes:
        seconds: wall-clock time, or None for no limit.
        evaluations: single-configuration energies, or None for no limit.
        seconds_before: what of it was spent before this process went on with an interrupted call.
        used: evaluations that were spent, before as well.
        ended: whether somebody asked for an end.
        clock: seconds from any moment on.
        rate: rows a second of the latest batch, or None before there was one.

    Example:
        >>> budget = Budget(evaluations=50_000)
        >>> budget.rows(1024), budget.fraction
        (500, 0.0)
        >>> budget.spend(25_000)
        >>> budget.fraction
        0.5
    """

    seconds: float | None = None
    evaluations: int | None = None
    seconds_before: float = 0.0
    used: int = 0
    ended: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    rate: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of the call, with those of earlier processes."""
        return self.seconds_before + self.clock() - self._start

    @property
    def fraction(self) -> float:
        """How much is spent, 0 to 1; 1 when somebody asked for an end."""
        if self.ended():
            return 1.0
        spent = [0.0]
        if self.seconds is not None:
            spent.append(self.elapsed / self.seconds)
        if self.evaluations is not None:
            spent.append(self.used / self.evaluations)
        return min(1.0, max(spent))

    def spend(self, rows: int) -> None:
        """Count energies that are about to be evaluated; threads may do so at the same time.

        Raises:
            Spent: if the budget does not have them.
        """
        if self.fraction >= 1:
            raise Spent
        with self._lock:
            if self.evaluations is not None and self.used + rows > self.evaluations:
                raise Spent
            self.used += rows

    def check(self) -> None:
        """Raise Spent if the budget is spent."""
        if self.fraction >= 1:
            raise Spent

    def took(self, rows: int, seconds: float) -> None:
        """Remember how long a batch took, from which the size of the next one follows."""
        self.rate = rows / max(seconds, 1e-9)

    @property
    def total(self) -> float:
        """Evaluations that the whole budget gives, as far as is known: infinite before a batch was timed."""
        given = [math.inf]
        if self.evaluations is not None:
            given.append(float(self.evaluations))
        if self.seconds is not None and self.rate is not None:
            given.append(self.seconds * self.rate)
        return min(given)

    def rows(self, most: int, part: float = _PART) -> int:
        """Rows of the next batch: fewer than `most` where the budget is small or energies take long; 0 for the end.

        Arguments:
            most: wanted.
            part: of the budget that it may take.
        """
        limit = min(float(most), part * self.total)
        if self.seconds is not None and self.rate is not None:
            limit = min(limit, self.rate * _BATCH_SECONDS * part / _PART)
        n = max(int(limit), min(_SMALLEST, most))
        if self.evaluations is not None:
            n = min(n, self.evaluations - self.used)
        return n if n >= min(_WORTHWHILE, most) and self.fraction < 1 else 0
