"""CUDA graphs: the thousands of small kernels of a function are recorded once, and started by one call after that.

A GPU spends most of a step of a flow waiting for Python to start the next kernel: 98 ms for 1024 rows of alanine
dipeptide on an H200, of which its kernels need 7.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["Graphs", "on_host"]

_EAGER = 2  # calls before a function is recorded: libraries set themselves up in the first ones
_KEPT = 16  # functions and shapes that are remembered
_log = logging.getLogger("openmm_cgflow")
_here = threading.local()
Result = TypeVar("Result")


def on_host(effect: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
    """Do what a function does beside computing tensors, such as counting: also whenever a graph of it is replayed.

    Arguments:
        effect: what is done.
        arguments: its arguments, the same each time.
    """
    recorded: list[Any] | None = getattr(_here, "effects", None)
    if recorded is None:
        effect(*arguments)
    else:  # the replay that follows does it
        recorded.append((effect, arguments))


class Graphs:
    """Functions that are called again and again with tensors of the same shapes, as CUDA graphs.

    The first calls of a function are plain ones. What cannot be recorded goes on in that way: a function that waits for
    the GPU, because what it does next depends on a number there.

    Arguments:
        record: makes a function of no arguments that repeats what it is given, and writes into the same results; CUDA's
            by default.
    """

    def __init__(self, record: "Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]] | None" = None) -> None:
        self._record = record or _cuda_graph
        self._known: dict[Hashable, int | _Recorded] = {}

    def forget(self) -> None:
        """Record all functions anew: something that they use is another object now."""
        self._known.clear()

    def __call__(self, key: Hashable, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """`function(*inputs)`.

        Arguments:
            key: equal for two functions that do the same, by the same objects.
            function: of tensors; returns tensors, nested in tuples and lists.
            inputs: on the GPU.
        """
        key = (key, *((x.shape, x.dtype) for x in inputs))
        known = self._known.pop(key, 0)
        if isinstance(known, int) and known == _EAGER:
            try:
                known = _Recorded(self._record, function, inputs)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                _log.info("no CUDA graph of %s (%s): going on without", key, str(error).split("\n", maxsplit=1)[0])
                known = _EAGER + 1
        self._known[key] = known + 1 if isinstance(known, int) and known < _EAGER else known
        while len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        result: Result = known.replay(inputs) if isinstance(known, _Recorded) else function(*inputs)
        return result


class _Recorded:
    """One function with inputs of certain shapes."""

    def __init__(self, record: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._effects: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        _here.effects = self._effects
        try:
            self._repeat, self._results = record(lambda: function(*self._inputs))
        finally:
            _here.effects = None

    def replay(self, inputs: Sequence[Tensor]) -> Any:  # noqa: ANN401
        """The function of other inputs."""
        for effect, arguments in self._effects:
            effect(*arguments)
        for ours, theirs in zip(self._inputs, inputs, strict=True):
            ours.copy_(theirs)
        self._repeat()
        return tree_map_only(Tensor, torch.clone, self._results)  # the next replay writes into the same memory


def _cuda_graph(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results
