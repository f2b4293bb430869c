"""Whether a torsion turns: it is led round the circle, minimised at each step, and freed where another form may be."""

from dataclasses import dataclass

import numpy as np

from openmm_cgflow.chemistry.driven import Driven, torsion_angles
from openmm_cgflow.chemistry.forms import Fingerprint, same_isomer
from openmm_cgflow.chemistry.molecule import Molecule

__all__ = ["WITHIN", "OtherForm", "other_forms"]

WITHIN = 25.0
"""kJ/mol: a form that is higher than the input's by more is left out."""

_STEPS = 24  # of a turn
_APART = np.deg2rad(40.0)  # forms whose torsions differ by less are one
_SAME_ENERGY, _SAME_DISTANCES = 0.2, 0.01  # kJ/mol and nm, within which two forms are the same up to equivalent atoms
_TOLERANCE, _ITERATIONS = 20.0, 40  # of the minimisations on the way


@dataclass(frozen=True)
class OtherForm:
    """A form that a torsion has beside that of the input.

    Attributes:
        energy: above the input's, both minimised, kJ/mol.
        barrier: between the two on the easier way round, above the higher of them, kJ/mol.
        positions: `(atoms, 3)` nm.
        mirror: it is the mirror image of the input's form, or that with equivalent atoms exchanged.
    """

    energy: float
    barrier: float
    positions: np.ndarray
    mirror: bool


def other_forms(molecule: Molecule, driven: Driven, start: np.ndarray, energy: float, atoms: tuple[int, int, int, int]
                ) -> list[OtherForm]:  # fmt: skip
    """The forms within reach that turning a torsion gives, those with the lowest barrier first.

    Arguments:
        molecule: the graph.
        driven: can pull this torsion.
        start: `(atoms, 3)` nm, the minimum next to the input.
        energy: its energy, kJ/mol.
        atoms: the torsion.
    """
    first = float(torsion_angles(start, [atoms])[0])
    fingerprint = Fingerprint(molecule)
    named = _alike(molecule, fingerprint, atoms)
    x, path, structures = start, [energy], [start]
    for k in range(1, _STEPS):
        wanted = first + 2 * np.pi * k / _STEPS
        x, its_energy = driven.minimised(x, {atoms: wanted}, _TOLERANCE, _ITERATIONS)
        path.append(its_energy)
        structures.append(x)
    values = np.array(path)
    found: list[tuple[int, np.ndarray, float]] = []
    for k in _minima(values):
        form, its_energy = driven.minimised(structures[k])
        known = [float(torsion_angles(y, [atoms])[0]) for y in (start, *(other for _, other, _ in found))]
        turned = torsion_angles(form, named)
        if its_energy - energy < WITHIN and min(_circle(a - b) for a in turned for b in known) > _APART:
            found.append((k, form, its_energy))
    forms = []
    for k, form, its_energy in found:
        if same_isomer(molecule, start, form):
            apart = fingerprint.distance(start, form[None])[0]
            mirror = abs(its_energy - energy) < _SAME_ENERGY and bool(apart < _SAME_DISTANCES)
            forms.append(OtherForm(its_energy - energy, _barrier(values, k, its_energy), form, mirror))
    return sorted(forms, key=lambda form: form.barrier)


def _alike(
    molecule: Molecule, fingerprint: Fingerprint, atoms: tuple[int, int, int, int]
) -> list[tuple[int, int, int, int]]:
    """The torsion by each choice of equivalent ends on planar centres: half a turn makes these change places."""
    w, x, y, z = atoms

    def ends(centre: int, end: int) -> list[int]:
        near = molecule.neighbours[centre]
        alike = [i for i in near if fingerprint.classes[i] == fingerprint.classes[end] and i not in (x, y)]
        return alike if len(near) == 3 else [end]

    return [(i, x, y, j) for i in ends(x, w) for j in ends(y, z)]


def _circle(angle: float) -> float:
    return abs((angle + np.pi) % (2 * np.pi) - np.pi)


def _minima(values: np.ndarray) -> list[int]:
    """Where values on the circle are no higher than their neighbours, the first one (the input) left out."""
    low = (values <= np.roll(values, 1)) & (values < np.roll(values, -1))
    return [int(k) for k in np.flatnonzero(low) if k != 0]


def _barrier(values: np.ndarray, k: int, energy: float) -> float:
    """The lower one of the two walls between the first value and the `k`-th, above the higher end."""
    ways = [values[: k + 1], np.append(values[k:], values[0])]
    return min(_top(way) for way in ways) - max(float(values[0]), energy)


def _top(way: np.ndarray) -> float:
    """The highest point of a path, by a parabola through the highest value and its neighbours."""
    k = int(way.argmax())
    if not 0 < k < len(way) - 1:
        return float(way[k])
    before, here, after = way[k - 1 : k + 2]
    slope, bend = (after - before) / 2, before - 2 * here + after
    return float(here - slope**2 / (2 * bend)) if bend < 0 else float(here)
