"""Parts of a batch in threads, one a core: for small tensors that beats threads inside each operation."""

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial, reduce
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from openmm_cgflow.compute.graphs import Graphs

__all__ = ["BATCH", "CHUNK", "Parallel", "available_cores"]

BATCH = 20_000
"""Rows that are drawn at a time: more take more memory and are no faster."""
CHUNK = 512
"""Rows that a thread gets at once."""
_LEAST = 16  # rows, below which a chunk is not halved where memory is short
_log = logging.getLogger("openmm_cgflow")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where `OMP_NUM_THREADS` says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


class Parallel:
    """A pool of threads over which batches are spread; while active, torch uses one thread for each operation.

    torch releases the interpreter in its operations, so that threads scale: 1.6 times on two cores for a gradient
    with 512 rows a thread, where two threads inside each operation gave nothing. A GPU is given one batch at a time.

    Batches are cut into the same parts, and results are added up in the same order, for any number of workers: it
    decides how long something takes, and never what comes out. They may come from the CPU, and go to the device first,
    whole. Where the memory of a GPU is too small for a part, parts are halved from then on, and a warning says so.

    Arguments:
        workers: number of threads; by default the available cores, at most 8, and one for a GPU.
        device: where the work is done.
        graphs: what a GPU records; None where nothing can be recorded.

    Attributes:
        rows: of a part, where they do not matter.
    """

    def __init__(
        self, workers: int | None = None, device: torch.device | None = None, graphs: Graphs | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        on_cpu = self.device.type == "cpu"
        self.workers = workers or (min(8, available_cores()) if on_cpu else 1)
        self.rows = CHUNK if on_cpu else BATCH  # a GPU takes as long for a few as for some thousand
        self._graphs = graphs
        self._most = BATCH
        self._pool = ThreadPoolExecutor(self.workers)

    def __enter__(self) -> "Parallel":
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads_before)
        self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[..., tuple[Tensor, ...]], *batches: Tensor, chunk: int | None = None
    ) -> tuple[Tensor, ...]:
        """`function` of row chunks of `batches`, without gradients, joined along the rows again.

        Arguments:
            function: takes as many tensors as there are batches and returns a tuple of tensors with the same rows.
            batches: tensors with equal numbers of rows.
            chunk: largest number of rows in one call; by default 512, and more on a GPU.
        """

        def part(*piece: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():  # each thread has its own gradient mode
                return function(*piece)

        results = self._each(self._recorded(function, part), batches, chunk or self.rows)
        return tuple(torch.cat(column) for column in zip(*results, strict=True))

    def gradients(
        self, loss: Callable[..., Tensor | tuple[Tensor, ...]], parameters: Sequence[nn.Parameter], *batches: Tensor
    ) -> tuple[float, list[Tensor], list[Tensor]]:
        """A mean over rows and its gradient, with the rows spread over the workers.

        Arguments:
            loss: mean over the rows of what it is given, a scalar; after it, what is to be kept of each row.
            parameters: what to differentiate with respect to; those not used get zeros.
            batches: tensors with equal numbers of rows.

        Returns:
            the loss, one gradient for each parameter, and what was kept of all rows.
        """
        rows = batches[0].shape[0]

        def part(*piece: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
            result = loss(*piece)
            value, *kept = (result,) if isinstance(result, Tensor) else result
            share = value * (piece[0].shape[0] / rows)
            gradients = torch.autograd.grad(share, parameters, allow_unused=True)
            filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
            return share.detach(), parameters_to_vector(filled), kept

        parts = self._each(self._recorded((loss, rows), part), batches, self.rows)
        total = reduce(torch.add, [gradient for _, gradient, _ in parts]).split([p.numel() for p in parameters])
        kept = [torch.cat(column) for column in zip(*[k for _, _, k in parts], strict=True)]
        value = float(sum(share for share, _, _ in parts))
        return value, [g.view_as(p) for g, p in zip(total, parameters, strict=True)], kept

    def _recorded(self, key: Hashable, part: Callable[..., Result]) -> Callable[..., Result]:
        """`part` by a CUDA graph, where there are some: the same for all parts that have the same key."""
        return part if self._graphs is None else partial(self._graphs, key, part)

    def forget(self) -> None:
        """How something is computed has changed: nothing that was recorded is used any more."""
        if self._graphs is not None:
            self._graphs.forget()

    def _each(self, function: Callable[..., Result], batches: Sequence[Tensor], chunk: int) -> list[Result]:
        """`function` of each chunk, in their order: on the CPU in a thread of the pool even where there is but one."""
        on_cpu = self.device.type == "cpu"
        over = self._pool.map if on_cpu else map
        batches = [batch.to(self.device) for batch in batches]
        while True:
            rows = min(chunk, self._most)
            pieces = list(zip(*[torch.split(batch, rows) for batch in batches], strict=True))
            try:
                with nullcontext() if on_cpu else self.device:  # where tensors are made as well
                    return list(over(lambda piece: function(*piece), pieces))
            except torch.OutOfMemoryError:
                largest = len(pieces[0][0])
                if largest <= _LEAST:
                    raise
                self._most = largest // 2
                where, now = self.device, self._most
                _log.warning("the memory of %s is too small for %d rows at once: going on with %d", where, largest, now)
                self.forget()
                torch.cuda.empty_cache()
