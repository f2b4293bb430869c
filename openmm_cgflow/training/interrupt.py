"""Ctrl-C as a request to end, not as an accident."""

import logging
import signal
from typing import Any

__all__ = ["Interruptible"]

logger = logging.getLogger("openmm_cgflow")


class Interruptible:
    """While active, the first Ctrl-C only asks for an end; the second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Whether the end was asked for."""
        return self.asked

    def _ask(self, number: int, frame: Any) -> None:  # noqa: ANN401
        self.asked = True
        logger.warning("ending after this step and keeping what was learned; Ctrl-C again stops at once")
        signal.signal(signal.SIGINT, self._before)

    def __enter__(self) -> "Interruptible":
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
            self._active = True
        except ValueError:  # not in the main thread, where signals do not arrive
            self._active = False
        return self

    def __exit__(self, *error: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)
