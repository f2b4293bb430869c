"""Torch as the package expects it, whatever the user's process has set."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["plain_torch", "with_plain_torch"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_AUTOCAST = ("cpu", "cuda")


class _Single:
    """Single precision as the default of the process, until the last of its threads that wants it leaves."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_default_dtype(self.before)


_single = _Single()


@contextmanager
def with_plain_torch() -> Iterator[None]:
    """New tensors are of single precision and on the CPU, nothing is cast or made for inference alone; then as before.

    Potentials of other packages set the default precision of the whole process, and scripts autocast or a device.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.empty(0).device.type != "cpu":  # get_default_device fails where a default was taken back
            stack.enter_context(torch.device("cpu"))
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_single)
        yield


def plain_torch(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that works in `with_plain_torch`: for what users call, and asks torch for tensors.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> plain_torch(torch.ones)(1).dtype, torch.ones(1).dtype
        (torch.float32, torch.float64)
        >>> torch.set_default_dtype(torch.float32)
    """

    @wraps(function)
    def plain(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with with_plain_torch():
            return function(*args, **kwargs)

    return plain
