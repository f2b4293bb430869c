"""Parts of a batch in threads, one a core: for small tensors that beats threads inside each operation."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor, nn

__all__ = ["Parallel", "available_cores"]


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where `OMP_NUM_THREADS` says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


class Parallel:
    """A pool of threads over which batches are spread; inside it torch uses one thread for each operation.

    torch releases the interpreter in its operations, so that threads scale: 1.6 times on two cores for a gradient
    with 512 rows a thread, where two threads inside each operation gave nothing. On a GPU one worker is right.

    Arguments:
        workers: number of threads; the available cores, at most 8, by default.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or min(8, available_cores())
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        self._threads_before = torch.get_num_threads()

    def __enter__(self) -> "Parallel":
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads_before)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[..., tuple[Tensor, ...]], *batches: Tensor, chunk: int = 1024
    ) -> tuple[Tensor, ...]:
        """`function` of row chunks of `batches`, joined along the rows again.

        Arguments:
            function: takes as many tensors as there are batches and returns a tuple of tensors with the same rows.
            batches: tensors with equal numbers of rows.
            chunk: largest number of rows in one call.
        """
        rows = batches[0].shape[0]
        size = max(1, min(chunk, -(-rows // self.workers)))
        pieces = list(zip(*[torch.split(batch, size) for batch in batches], strict=True))
        if self._pool is None or len(pieces) == 1:
            results = [function(*piece) for piece in pieces]
        else:
            results = list(self._pool.map(lambda piece: function(*piece), pieces))
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
        size = -(-rows // self.workers)
        pieces = list(zip(*[torch.split(batch, size) for batch in batches], strict=True))

        def part(piece: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
            result = loss(*piece)
            value, *kept = (result,) if isinstance(result, Tensor) else result
            share = value * (piece[0].shape[0] / rows)
            gradients = torch.autograd.grad(share, parameters, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            return share.detach(), tuple(filled), kept

        parts = [part(pieces[0])] if self._pool is None or len(pieces) == 1 else list(self._pool.map(part, pieces))
        total = [torch.stack(column).sum(0) for column in zip(*[g for _, g, _ in parts], strict=True)]
        kept = [torch.cat(column) for column in zip(*[k for _, _, k in parts], strict=True)]
        return float(sum(share for share, _, _ in parts)), total, kept
