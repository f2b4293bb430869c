"""Batch-last building blocks: gathering rows, scattering rows, and terms that carry their own gradient.

Inside `TorchPotential` a batch of positions is `(atoms, 3, batch)`, contiguous, so that every operation runs along the
batch and picking atoms copies whole rows. The backward of picking rows is a sum over rows, done here as one product
with a small 0/1 (or -1/0/1) matrix: several times faster than `index_add` for the sizes of single molecules.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["RowIndex", "gather", "local_energy", "scatter"]

_DENSE_ENTRIES = 4_000_000


class RowIndex(torch.nn.Module):
    """Rows to take from a table of `size` rows: `plus`, or the difference `plus` - `minus`.

    Attributes:
        plus: Row numbers (rows,).
        minus: Row numbers (rows,) to subtract, or None.
        matrix: (size, rows) with the 0, 1 and -1 of the transposed operation, or None where it would be too large.
    """

    plus: Tensor
    minus: Tensor | None
    matrix: Tensor | None

    def __init__(self, size: int, plus: Tensor, minus: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.size = size
        rows = plus.numel()
        matrix = None
        if size * rows <= _DENSE_ENTRIES:
            matrix = torch.zeros(size, rows, dtype=dtype)
            columns = torch.arange(rows)
            matrix[plus, columns] += 1
            if minus is not None:
                matrix[minus, columns] -= 1
        self.register_buffer("plus", plus, persistent=False)
        self.register_buffer("minus", minus, persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)

    def take(self, x: Tensor) -> Tensor:
        """Rows of `x` (size, ..., batch) -> (rows, ..., batch)."""
        taken = x.index_select(0, self.plus)
        return taken if self.minus is None else taken - x.index_select(0, self.minus)

    def put(self, y: Tensor) -> Tensor:
        """The transpose of `take`: sums (rows, ..., batch) into (size, ..., batch)."""
        if self.matrix is not None:
            return (self.matrix @ y.reshape(y.shape[0], -1)).reshape(self.size, *y.shape[1:])
        total = y.new_zeros(self.size, *y.shape[1:]).index_add(0, self.plus, y)
        return total if self.minus is None else total.index_add(0, self.minus, -y)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: RowIndex) -> Tensor:  # noqa: ANN401
        ctx.index = index
        return index.take(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.index.put(upstream), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, index: RowIndex) -> Tensor:  # noqa: ANN401
        ctx.index = index
        return index.put(y)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.index.take(upstream), None


def gather(x: Tensor, index: RowIndex) -> Tensor:
    """Take rows of `x` (size, ..., batch): (rows, ..., batch)."""
    return _Gather.apply(x, index)


def scatter(y: Tensor, index: RowIndex) -> Tensor:
    """Sum rows of `y` (rows, ..., batch) into (size, ..., batch)."""
    return _Scatter.apply(y, index)


class _Local(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:  # noqa: ANN401
        with torch.enable_grad():
            leaves = [v.detach().requires_grad_(True) for v in inputs]
            out = function(*leaves)
            gradients = torch.autograd.grad(out.sum(), leaves, allow_unused=True) if out.requires_grad else None
        ctx.gradients = gradients if gradients is not None else [None] * len(inputs)
        return out.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grads: list[Tensor | None] = [None]
        for g in ctx.gradients:
            if g is None:
                grads.append(None)
                continue
            shape = (upstream.shape[0],) + (1,) * (g.dim() - 2) + (upstream.shape[-1],)
            grads.append(g * upstream.reshape(shape))
        return tuple(grads)


def local_energy(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Evaluate a row-wise function and its gradient at once, keeping only the gradients.

    Arguments:
        function: Maps tensors (rows, ..., batch) to (rows, batch); row k depends on row k of the inputs only.
        inputs: The tensors to differentiate in.

    Returns:
        (rows, batch), differentiable once in the inputs.
    """
    if not torch.is_grad_enabled() or not any(v.requires_grad for v in inputs):
        return function(*inputs)
    return _Local.apply(function, *inputs)
