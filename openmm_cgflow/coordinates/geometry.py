"""Vector algebra in torch for positions `(rows, 3, batch)`: the batch is last in memory, which makes autograd fast."""

import math

import torch
from torch import Tensor

__all__ = ["cos_of_square", "cross", "dot", "length", "sinc_of_square", "wrap"]

_TINY = 1e-30  # keeps the derivative of a square root finite at 0


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return angle - 2 * math.pi * torch.floor((angle + math.pi) * (0.5 / math.pi))


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product along dimension 1; on CPUs three times as fast as torch.linalg.cross for this layout."""
    a0, a1, a2 = a.unbind(1)
    b0, b1, b2 = b.unbind(1)
    return torch.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], 1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product along dimension 1, `(rows, batch)`."""
    return (a * b).sum(1)


def length(a: Tensor) -> Tensor:
    """Length along dimension 1, `(rows, batch)`; on CPUs much faster than torch.linalg.vector_norm for this layout."""
    return (dot(a, a) + _TINY).sqrt()


def sinc_of_square(square: Tensor) -> Tensor:
    """sin(rho) / rho as a smooth function of rho^2 (series near 0, so that second derivatives exist there)."""
    small, root = _branches(square)
    return torch.where(small, _series(square, (6, 20, 42, 72, 110, 156)), torch.sin(root) / root)


def cos_of_square(square: Tensor) -> Tensor:
    """cos(rho) as a smooth function of rho^2."""
    small, root = _branches(square)
    return torch.where(small, _series(square, (2, 12, 30, 56, 90, 132)), torch.cos(root))


def _branches(square: Tensor) -> tuple[Tensor, Tensor]:
    small = square < 0.25
    safe = torch.where(small, torch.ones_like(square), square)
    return small, safe.sqrt()


def _series(square: Tensor, divisors: tuple[int, ...]) -> Tensor:
    """1 - s/d1 (1 - s/d2 (1 - ...))."""
    value = torch.ones_like(square)
    for divisor in reversed(divisors):
        value = 1 - square / divisor * value
    return value
