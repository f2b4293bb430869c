"""How much a training may cost, and how far it has come."""

import time
from dataclasses import dataclass, field

__all__ = ["Budget"]


@dataclass
class Budget:
    """Seconds, energy evaluations, or both, whichever ends first.

    Attributes:
        seconds: wall-clock time, or None for no limit.
        evaluations: single-configuration energies, or None for no limit.
        seconds_before: what earlier sessions of a resumed training took.
        evaluations_before: what was evaluated before this training began.
    """

    seconds: float | None = None
    evaluations: int | None = None
    seconds_before: float = 0.0
    evaluations_before: int = 0
    _start: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self._start

    def fraction(self, evaluations: int) -> float:
        """How much of the budget is spent, 0 to 1."""
        spent = [0.0]
        if self.seconds is not None:
            spent.append(self.elapsed / self.seconds)
        if self.evaluations is not None:
            spent.append((evaluations - self.evaluations_before) / self.evaluations)
        return min(1.0, max(spent))
