"""What the terms of a force field share: one table of difference vectors, computed once for all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.potentials.terms.ops import RowIndex, gather

__all__ = ["DifferenceTable", "Frame", "Term", "all_pairs", "norm"]


_TINY = 1e-30  # nm: a length to divide by


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d: Tensor) -> Tensor:  # noqa: ANN401
        x, y, z = d.unbind(1)
        length = torch.sqrt(x * x + y * y + z * z)
        ctx.save_for_backward(d, length)
        return length

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ANN401
        d, length = ctx.saved_tensors
        return (upstream / length.clamp(min=_TINY)).unsqueeze(1) * d


def norm(d: Tensor) -> Tensor:
    """Lengths of vectors (rows, 3, batch): (rows, batch). The derivative of a length of zero is zero, as in OpenMM."""
    return _Norm.apply(d)


def all_pairs(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices i < j of every pair of atoms, each (n (n-1) / 2,)."""
    first, second = np.triu_indices(n_atoms, 1)
    return first, second


class DifferenceTable:
    """Collects the vectors x[plus] - x[minus] that terms ask for; equal requests share one slot."""

    def __init__(self) -> None:
        self._slots: dict[bytes, int] = {}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, plus: Sequence[int] | np.ndarray, minus: Sequence[int] | np.ndarray) -> int:
        """Ask for the vectors from atoms `minus` to atoms `plus`; returns the slot to find them in."""
        p, m = np.asarray(plus, dtype=np.int64), np.asarray(minus, dtype=np.int64)
        key = p.tobytes() + b"|" + m.tobytes()
        if key not in self._slots:
            self._slots[key] = len(self._rows)
            self._rows.append((p, m))
        return self._slots[key]

    @property
    def sizes(self) -> list[int]:
        """Number of rows in each slot."""
        return [len(p) for p, _ in self._rows]

    def index(self, n_atoms: int, dtype: torch.dtype) -> RowIndex:
        """One gather for all the slots, one after the other."""
        plus = np.concatenate([p for p, _ in self._rows]) if self._rows else np.zeros(0, dtype=np.int64)
        minus = np.concatenate([m for _, m in self._rows]) if self._rows else np.zeros(0, dtype=np.int64)
        return RowIndex(n_atoms, torch.from_numpy(plus), torch.from_numpy(minus), dtype)


class Frame:
    """A batch of positions with the difference vectors that terms asked for.

    Attributes:
        x: Positions (atoms, 3, batch).
    """

    def __init__(self, x: Tensor, index: RowIndex, sizes: list[int]) -> None:
        self.x = x
        self._vectors = gather(x, index).split(sizes) if sizes else ()
        self._distances: dict[int, Tensor] = {}

    def vectors(self, slot: int) -> Tensor:
        """Difference vectors (rows, 3, batch) of a slot."""
        return self._vectors[slot]

    def distances(self, slot: int) -> Tensor:
        """Their lengths (rows, batch), computed once."""
        if slot not in self._distances:
            self._distances[slot] = norm(self._vectors[slot])
        return self._distances[slot]


class Term(torch.nn.Module):
    """One part of the energy: maps a Frame to (batch,) in kJ/mol. Parameters are buffers of shape (rows, 1).

    Attributes:
        constant: What is to be added to every energy, in kJ/mol; it is kept out of single precision.
    """

    constant: float = 0.0

    def column(self, name: str, values: Sequence[float] | np.ndarray, dtype: torch.dtype) -> None:
        """Register parameters, one a row, as a buffer (rows, 1)."""
        data = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(dtype).reshape(-1, 1)
        self.register_buffer(name, data, persistent=False)

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,) in kJ/mol, without the constant."""
        raise NotImplementedError
