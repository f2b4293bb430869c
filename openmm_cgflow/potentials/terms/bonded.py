"""Harmonic bonds and angles, and torsions as Fourier series in the torsion angle."""

from collections.abc import Sequence

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term
from openmm_cgflow.potentials.terms.ops import local_energy
from openmm_cgflow.potentials.terms.torsions import Series

__all__ = ["AngleTerm", "BondTerm", "FourierTorsionTerm", "angle", "cross", "dot", "torsion", "torsion_cos_sin"]

_TINY = 1e-30  # nm^4: keeps the derivative of a square root finite for exactly straight angles


def _bare(quantity: unit.Quantity) -> float:
    return quantity.value_in_unit_system(unit.md_unit_system)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of vectors (rows, 3, batch): (rows, batch)."""
    ax, ay, az = a.unbind(1)
    bx, by, bz = b.unbind(1)
    return ax * bx + ay * by + az * bz


def cross(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Components, each (rows, batch), of the cross products of vectors (rows, 3, batch)."""
    ax, ay, az = a.unbind(1)
    bx, by, bz = b.unbind(1)
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles in rad between vectors (rows, 3, batch), exact near 0 and pi as well: (rows, batch)."""
    cx, cy, cz = cross(a, b)
    return torch.atan2(torch.sqrt(cx * cx + cy * cy + cz * cz + _TINY), dot(a, b))


def _torsion_parts(b1: Tensor, b2: Tensor, b3: Tensor) -> tuple[Tensor, Tensor]:
    mx, my, mz = cross(b1, b2)
    nx, ny, nz = cross(b2, b3)
    x1, y1, z1 = b1.unbind(1)
    length = torch.sqrt(dot(b2, b2))
    return mx * nx + my * ny + mz * nz, length * (x1 * nx + y1 * ny + z1 * nz)


def torsion(b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    """Torsion angles (rows, batch) in rad, in (-pi, pi], of three successive bond vectors (rows, 3, batch)."""
    c, s = _torsion_parts(b1, b2, b3)
    return torch.atan2(s, c)


def torsion_cos_sin(b1: Tensor, b2: Tensor, b3: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (rows, batch) of the torsion angle, without computing the angle."""
    c, s = _torsion_parts(b1, b2, b3)
    scale = torch.rsqrt(c * c + s * s)
    return c * scale, s * scale


class BondTerm(Term):
    """Harmonic bonds, k/2 (r - r0)^2."""

    r0: Tensor
    half_k: Tensor

    def __init__(self, table: DifferenceTable, atoms: np.ndarray, r0: Sequence[float], k: Sequence[float],
                 dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__()
        self.slot = table.add(atoms[:, 0], atoms[:, 1])
        self.column("r0", r0, dtype)
        self.column("half_k", 0.5 * np.asarray(k), dtype)

    @classmethod
    def from_force(cls, force: openmm.HarmonicBondForce, table: DifferenceTable, dtype: torch.dtype) -> list[Term]:
        """The bonds of a force: one term, or none."""
        rows = [force.getBondParameters(i) for i in range(force.getNumBonds())]
        rows = [(i, j, r.value_in_unit(unit.nanometer), _bare(k)) for i, j, r, k in rows if _bare(k) != 0]
        if not rows:
            return []
        return [cls(table, np.array([r[:2] for r in rows]), [r[2] for r in rows], [r[3] for r in rows], dtype)]

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""
        x = frame.distances(self.slot) - self.r0
        return (self.half_k * x * x).sum(0)


class AngleTerm(Term):
    """Harmonic angles, k/2 (theta - theta0)^2."""

    theta0: Tensor
    half_k: Tensor

    def __init__(self, table: DifferenceTable, atoms: np.ndarray, theta0: Sequence[float], k: Sequence[float],
                 dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__()
        self.first = table.add(atoms[:, 0], atoms[:, 1])
        self.second = table.add(atoms[:, 2], atoms[:, 1])
        self.column("theta0", theta0, dtype)
        self.column("half_k", 0.5 * np.asarray(k), dtype)

    @classmethod
    def from_force(cls, force: openmm.HarmonicAngleForce, table: DifferenceTable, dtype: torch.dtype) -> list[Term]:
        """The angles of a force: one term, or none."""
        rows = [force.getAngleParameters(i) for i in range(force.getNumAngles())]
        rows = [(i, j, k, t.value_in_unit(unit.radian), _bare(c)) for i, j, k, t, c in rows if _bare(c) != 0]
        if not rows:
            return []
        return [cls(table, np.array([r[:3] for r in rows]), [r[3] for r in rows], [r[4] for r in rows], dtype)]

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""

        def energy(a: Tensor, b: Tensor) -> Tensor:
            x = angle(a, b) - self.theta0
            return self.half_k * x * x

        return local_energy(energy, frame.vectors(self.first), frame.vectors(self.second)).sum(0)


class FourierTorsionTerm(Term):
    """Torsions as sum_n a_n cos(n phi) + b_n sin(n phi): periodic and Ryckaert-Bellemans torsions, one row a quadruple.

    Cosines and sines of multiples come from the recurrence cos((n+1) phi) = cos(n phi) cos(phi) - sin(n phi) sin(phi),
    so no angle is computed.

    Arguments:
        table: Where to ask for the bond vectors.
        atoms: (rows, 4).
        cosine: a_n, (rows, n_max + 1); column 0 is the constant.
        sine: b_n, the same shape.
        dtype: Of the parameters.
    """

    def __init__(self, table: DifferenceTable, atoms: np.ndarray, cosine: np.ndarray, sine: np.ndarray,
                 dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__()
        self.slots = [table.add(atoms[:, k + 1], atoms[:, k]) for k in range(3)]
        self.constant = float(cosine[:, 0].sum())
        self.order = cosine.shape[1] - 1
        self.has_sine = [bool(np.any(np.abs(sine[:, n]) > 1e-12)) for n in range(self.order + 1)]
        self.has_cosine = [bool(np.any(cosine[:, n] != 0)) for n in range(self.order + 1)]
        for n in range(1, self.order + 1):
            self.column(f"a{n}", cosine[:, n], dtype)
            self.column(f"b{n}", sine[:, n], dtype)

    @classmethod
    def from_series(cls, series: Series, table: DifferenceTable, dtype: torch.dtype) -> list[Term]:
        """A term for a series, or none for an empty one."""
        return [cls(table, *series, dtype)] if len(series[0]) else []

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""

        def energy(b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
            c, s = torsion_cos_sin(b1, b2, b3)
            cn, sn = c, s
            total = torch.zeros_like(c)
            for n in range(1, self.order + 1):
                if n > 1:
                    cn, sn = cn * c - sn * s, sn * c + cn * s
                if self.has_cosine[n]:
                    total = total + getattr(self, f"a{n}") * cn
                if self.has_sine[n]:
                    total = total + getattr(self, f"b{n}") * sn
            return total

        return local_energy(energy, *(frame.vectors(slot) for slot in self.slots)).sum(0)
