"""Bonds, angles and torsions of a Z-matrix, row by row, and the positions that they are of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from openmm_cgflow.coordinates.geometry import cos_of_square, cross, dot, length, sinc_of_square
from openmm_cgflow.coordinates.layout import Layout

__all__ = ["ZMatrixGeometry"]


class ZMatrixGeometry(torch.nn.Module):
    """Positions from the rows of a Z-matrix, and rows from positions.

    Rows are in the order of placing, `(rows, batch)`: bonds from row 1 on, nm; angles from row 2 on and torsions from
    row 3 on, rad. Linear rows have two planar coordinates instead, `(pi - angle) (cos torsion, sin torsion)`.

    Arguments:
        layout: its order, references, levels and linear rows count.
    """

    _order: Tensor
    _inverse_order: Tensor
    _bonded_to: Tensor
    _angle_with: Tensor
    _torsion_with: Tensor
    _is_linear: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        n, refs = len(layout.order), layout.refs
        self._linear = bool(layout.linear)
        self._keep("_order", layout.order)
        self._keep("_inverse_order", sorted(range(n), key=lambda k: layout.order[k]))
        self._keep("_bonded_to", [0, 0, *(row[0] for row in refs)])
        self._keep("_angle_with", [1, *(row[1] for row in refs)])
        self._keep("_torsion_with", [row[2] for row in refs])
        self._keep("_is_linear", [[k + 3 in layout.linear] for k in range(n - 3)], torch.bool)
        start, self._levels = 0, []
        for level, count in enumerate(layout.levels):
            placed = refs[start : start + count]
            self._keep(f"_refs{level}", [row[k] for k in range(3) for row in placed])
            self._levels.append((start, count))
            start += count

    def _keep(self, name: str, values: Sequence, dtype: torch.dtype = torch.int64) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def place(self, bonds: Tensor, angles: Tensor, torsions: Tensor) -> Tensor:
        """Positions `(batch, atoms, 3)`, nm, in the gauge: a transposed view, the batch is last in memory."""
        local = self._local(bonds, angles, torsions)
        x = self._seed_positions(bonds, angles)
        for level, (start, count) in enumerate(self._levels):
            x = torch.cat([x, self._place(x, getattr(self, f"_refs{level}"), count, local[:, start : start + count])])
        return x.index_select(0, self._inverse_order).permute(2, 0, 1)

    def log_measure(self, bonds: Tensor, angles: Tensor, torsions: Tensor) -> Tensor:
        """`log |det dx/d(rows)|` `(batch,)`: `prod r^2 sin(angle)`, rigid motion removed."""
        sine = torch.sin(angles)
        if self._linear:
            a, b = angles[1:], torsions
            sine = torch.cat([sine[:1], torch.where(self._is_linear, sinc_of_square(a * a + b * b), sine[1:])])
        return 2 * bonds.abs().log().sum(0) + sine.abs().log().sum(0)

    def _local(self, bonds: Tensor, angles: Tensor, torsions: Tensor) -> Tensor:
        """Positions in the frames of the references, `(3, rows, batch)`."""
        reach, a, b = bonds[2:], angles[1:], torsions
        along, around = -torch.cos(a), torch.sin(a)
        y, z = around * torch.cos(b), around * torch.sin(b)
        if self._linear:
            square = a * a + b * b
            sinc = sinc_of_square(square)
            along = torch.where(self._is_linear, cos_of_square(square), along)
            y, z = torch.where(self._is_linear, sinc * a, y), torch.where(self._is_linear, sinc * b, z)
        return torch.stack([reach * along, reach * y, reach * z])

    def _seed_positions(self, bonds: Tensor, angles: Tensor) -> Tensor:
        zero = torch.zeros_like(bonds[0])
        first = torch.stack([zero, zero, zero])
        second = torch.stack([bonds[0], zero, zero])
        third = torch.stack([bonds[1] * torch.cos(angles[0]), bonds[1] * torch.sin(angles[0]), zero])
        return torch.stack([first, second, third])

    @staticmethod
    def _place(x: Tensor, refs: Tensor, count: int, local: Tensor) -> Tensor:
        """Atoms of one level: `(count, 3, batch)`."""
        b, c, d = x.index_select(0, refs).split(count)
        bc = b - c
        along = bc / length(bc).unsqueeze(1)
        normal = cross(along, d - c)
        normal = normal / length(normal).unsqueeze(1)
        side = cross(normal, along)
        return b + local[0].unsqueeze(1) * along + local[1].unsqueeze(1) * side + local[2].unsqueeze(1) * normal

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bonds, angles and torsions of `x (batch, atoms, 3)`, and `(batch,)` the same as `log_measure` of them."""
        placed = x.permute(1, 2, 0).index_select(0, self._order).contiguous()
        b = placed.index_select(0, self._bonded_to)
        c = placed.index_select(0, self._angle_with)
        d = placed.index_select(0, self._torsion_with)
        b1 = b - placed[1:]
        bonds = length(b1)
        b1, b2 = b1[1:], c - b[1:]
        n1 = cross(b1, b2)
        height, advance = length(n1), dot(b1, b2)
        angles = torch.atan2(height, -advance)
        n1, b1, b2 = n1[1:], b1[1:], b2[1:]
        n2 = cross(b2, d - c[1:])
        torsions = torch.atan2(length(b2) * dot(b1, n2), dot(n1, n2))
        sine = torch.sin(angles)
        if self._linear:
            bend = torch.atan2(height, advance)[1:]
            sine = torch.cat([sine[:1], torch.where(self._is_linear, sinc_of_square(bend * bend), sine[1:])])
            planar = bend * torch.cos(torsions), bend * torch.sin(torsions)
            angles = torch.cat([angles[:1], torch.where(self._is_linear, planar[0], angles[1:])])
            torsions = torch.where(self._is_linear, planar[1], torsions)
        return bonds, angles, torsions, 2 * bonds.log().sum(0) + sine.log().sum(0)
