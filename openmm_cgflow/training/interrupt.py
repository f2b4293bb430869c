"""Ctrl-C as a request to end, not as an accident."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from openmm_cgflow.training.budget import Spent

__all__ = ["Interruptible"]

_log = logging.getLogger("openmm_cgflow")


class Interruptible:
    """While active, the first Ctrl-C only asks for an end; the second one stops at once.

    One that becomes active inside another shares its request. The handler of the signal is left as it was found.

    Example:
        >>> with Interruptible() as outer, Interruptible() as inner:
        ...     signal.raise_signal(signal.SIGINT)
        ...     outer(), inner()
        (True, True)
    """

    _active: ClassVar["Interruptible | None"] = None

    def __init__(self) -> None:
        self._asked = False
        self._at_once = False
        self._outer: Interruptible | None = None
        self._before: Any = None
        self._installed = False

    def __call__(self) -> bool:
        """Whether the end was asked for."""
        return self._outer() if self._outer is not None else self._asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done meanwhile cannot ask whether to end: it is left by raising Spent.

        Raises:
            Spent: when the end is asked for.
        """
        root = self
        while root._outer is not None:
            root = root._outer
        root._at_once = True
        try:
            yield
        finally:
            root._at_once = False

    def _ask(self, number: int, frame: Any) -> None:  # noqa: ANN401
        self._asked = True
        _log.warning("ending after this step and keeping what was learned; Ctrl-C again stops at once")
        self._give_back()
        if self._at_once:
            raise Spent

    def _give_back(self) -> None:
        if self._installed:
            # None: a handler that was not set from Python, which cannot be set from there either
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)
            self._installed = False

    def __enter__(self) -> "Interruptible":
        self._asked, self._outer = False, Interruptible._active
        if self._outer is None:
            try:
                self._before = signal.signal(signal.SIGINT, self._ask)
                self._installed = True
                Interruptible._active = self
            except ValueError:  # not in the main thread, where signals do not arrive
                pass
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()
        if Interruptible._active is self:
            Interruptible._active = None
