"""Torsion forces as Fourier series: sum_n a_n cos(n phi) + b_n sin(n phi) for each distinct quadruple of atoms."""

from collections.abc import Iterable

import numpy as np
import openmm
from openmm import unit

__all__ = ["Series", "periodic_series", "ryckaert_bellemans_series"]

Series = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atoms (rows, 4), a (rows, n_max + 1), b (rows, n_max + 1)."""


def _collect(entries: Iterable[tuple[tuple[int, ...], np.ndarray, np.ndarray]]) -> Series:
    total: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    order = 0
    listed = list(entries)
    for _, a, _ in listed:
        order = max(order, len(a) - 1)
    for atoms, a, b in listed:
        # phi(i,j,k,l) = phi(l,k,j,i), so a quadruple and its reverse are one row.
        key = min(atoms, atoms[::-1])
        sums = total.setdefault(key, (np.zeros(order + 1), np.zeros(order + 1)))
        sums[0][: len(a)] += a
        sums[1][: len(b)] += b
    atoms_array = np.array(list(total), dtype=np.int64).reshape(-1, 4)
    cosine = np.array([a for a, _ in total.values()]).reshape(len(total), order + 1)
    sine = np.array([b for _, b in total.values()]).reshape(len(total), order + 1)
    return atoms_array, cosine, sine


def periodic_series(force: openmm.PeriodicTorsionForce) -> Series:
    """Series of k (1 + cos(n phi - phase)); terms of zero k are dropped."""

    def entries() -> Iterable[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
        for row in range(force.getNumTorsions()):
            *atoms, n, phase, k = force.getTorsionParameters(row)
            strength = k.value_in_unit(unit.kilojoule_per_mole)
            if strength == 0:
                continue
            delta = phase.value_in_unit(unit.radian)
            a, b = np.zeros(n + 1), np.zeros(n + 1)
            a[0] = strength
            a[n] += strength * np.cos(delta)
            b[n] += strength * np.sin(delta)
            yield tuple(atoms), a, b

    return _collect(entries())


def ryckaert_bellemans_series(force: openmm.RBTorsionForce) -> Series:
    """sum_n C_n cos(psi)^n with psi = phi - pi, as a series in phi."""

    def entries() -> Iterable[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
        for row in range(force.getNumTorsions()):
            *atoms, c0, c1, c2, c3, c4, c5 = force.getTorsionParameters(row)
            powers = [
                c.value_in_unit(unit.kilojoule_per_mole) * (-1.0) ** n for n, c in enumerate((c0, c1, c2, c3, c4, c5))
            ]
            a = np.polynomial.chebyshev.poly2cheb(powers)  # cos(phi)^n in terms of cos(n phi) = T_n(cos(phi))
            yield tuple(atoms), a, np.zeros(len(a))

    return _collect(entries())
