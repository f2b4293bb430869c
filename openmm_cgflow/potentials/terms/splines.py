"""Cubic and bicubic splines as OpenMM's SplineFitter makes them: natural or periodic, on an even grid."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bicubic", "Cubic", "slopes"]


def slopes(values: np.ndarray, step: float, periodic: bool) -> np.ndarray:
    """First derivatives of the cubic spline through `values` (n, ...) along the first axis.

    A periodic spline repeats its first value as the last one; a natural one has no curvature at its ends.
    """
    n = len(values)
    flat = values.reshape(n, -1)
    if periodic:
        m = n - 1
        matrix = 4 * np.eye(m) + np.roll(np.eye(m), 1, 1) + np.roll(np.eye(m), -1, 1)
        right = 3 / step * (np.roll(flat[:m], -1, 0) - np.roll(flat[:m], 1, 0))
        inner = np.linalg.solve(matrix, right)
        return np.concatenate([inner, inner[:1]]).reshape(values.shape)
    matrix = 4 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    matrix[0, 0] = matrix[-1, -1] = 2
    right = np.empty_like(flat)
    right[1:-1] = 3 / step * (flat[2:] - flat[:-2])
    right[0], right[-1] = 3 / step * (flat[1] - flat[0]), 3 / step * (flat[-1] - flat[-2])
    return np.linalg.solve(matrix, right).reshape(values.shape)


# Rows turn (f0, f1, h f0', h f1') into the coefficients of 1, t, t^2, t^3.
_HERMITE = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]])


class _Grid:
    """Coefficients of one polynomial a cell, kept in every dtype and on every device that was asked for."""

    def __init__(self, coefficients: np.ndarray) -> None:
        self._coefficients = coefficients
        self._made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def on(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._made:
            self._made[key] = torch.tensor(self._coefficients, dtype=like.dtype, device=like.device)
        return self._made[key]


def _cell(x: Tensor, low: float, step: float, cells: int, periodic: bool) -> tuple[Tensor, Tensor]:
    scaled = (x - low) / step
    if periodic:
        scaled = scaled - cells * torch.floor(scaled.detach() / cells)
    number = scaled.detach().nan_to_num().floor().clamp(0, cells - 1)
    return number.long(), scaled - number


class Cubic:
    """A cubic spline through `values`, evenly spaced from `low` to `high`; 0 outside unless periodic."""

    def __init__(self, values: Sequence[float] | np.ndarray, low: float, high: float, periodic: bool) -> None:
        f = np.asarray(values, dtype=np.float64)
        self._low, self._high, self._cells, self._periodic = low, high, len(f) - 1, periodic
        self._step = (high - low) / self._cells
        d = self._step * slopes(f, self._step, periodic)
        self._grid = _Grid(_HERMITE @ np.stack([f[:-1], f[1:], d[:-1], d[1:]]))

    def __call__(self, x: Tensor) -> Tensor:
        """Values of the spline at `x` (any shape)."""
        number, t = _cell(x, self._low, self._step, self._cells, self._periodic)
        c0, c1, c2, c3 = self._grid.on(x)[:, number].unbind(0)
        result = c0 + t * (c1 + t * (c2 + t * c3))
        if self._periodic:
            return result
        return torch.where((x >= self._low) & (x <= self._high), result, torch.zeros_like(result))


class Bicubic:
    """Bicubic splines through grids `values` (maps, nx, ny), the first index along x; 0 outside unless periodic.

    Arguments:
        values: Grid values, with the last row and column repeating the first ones if periodic.
        x_range: Lowest and highest x.
        y_range: Lowest and highest y.
        periodic: Whether both directions are periodic.
    """

    def __init__(self, values: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float], periodic: bool
                 ) -> None:  # fmt: skip
        f = np.moveaxis(np.asarray(values, dtype=np.float64), 0, 2)
        self._ranges = (x_range, y_range)
        self._shape = (f.shape[0] - 1, f.shape[1] - 1)
        self._periodic = periodic
        hx, hy = ((high - low) / cells for (low, high), cells in zip(self._ranges, self._shape, strict=True))
        self._steps = (hx, hy)
        fx = hx * slopes(f, hx, periodic)
        fy = hy * np.swapaxes(slopes(np.swapaxes(f, 0, 1), hy, periodic), 0, 1)
        fxy = hy * np.swapaxes(slopes(np.swapaxes(fx, 0, 1), hy, periodic), 0, 1)

        def corners(g: np.ndarray) -> np.ndarray:
            return np.array([[g[:-1, :-1], g[:-1, 1:]], [g[1:, :-1], g[1:, 1:]]])

        block = np.concatenate(
            [np.concatenate([corners(f), corners(fy)], 1), np.concatenate([corners(fx), corners(fxy)], 1)], 0
        )
        coefficients = np.einsum("ia,jb,abxym->ijmxy", _HERMITE, _HERMITE, block)
        self._grid = _Grid(coefficients.reshape(16, -1))

    def __call__(self, x: Tensor, y: Tensor, number: Tensor | int = 0) -> Tensor:
        """Values of map `number` (broadcast against x) at `x`, `y`."""
        nx, ny = self._shape
        i, t = _cell(x, self._ranges[0][0], self._steps[0], nx, self._periodic)
        j, u = _cell(y, self._ranges[1][0], self._steps[1], ny, self._periodic)
        c = self._grid.on(x)[:, (number * nx + i) * ny + j].unbind(0)
        rows = [c[4 * k] + u * (c[4 * k + 1] + u * (c[4 * k + 2] + u * c[4 * k + 3])) for k in range(4)]
        result = rows[0] + t * (rows[1] + t * (rows[2] + t * rows[3]))
        if self._periodic:
            return result
        (x0, x1), (y0, y1) = self._ranges
        return torch.where((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1), result, torch.zeros_like(result))
