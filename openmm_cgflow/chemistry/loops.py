"""Other forms of large rings, which no single torsion leads to: their torsions are pulled in turn and minimised."""

from collections.abc import Callable

import numpy as np
import openmm

from openmm_cgflow.chemistry.driven import Driven, torsion_angles
from openmm_cgflow.chemistry.forms import Fingerprint, fours_of, same_isomer, smallest_rings
from openmm_cgflow.chemistry.molecule import Molecule

__all__ = ["loop_forms"]

WITHIN = 25.0
"""kJ/mol: a form that is higher than the lowest by more is left out."""

_SMALLEST = 7  # atoms: the forms of smaller rings are puckers
_MOVES = np.deg2rad([-120.0, 120.0])  # by which each torsion is turned, beside its mirror image
_TRIALS = 120  # at most


def loop_forms(molecule: Molecule, system: openmm.System, over: Callable[[], bool] = lambda: False) -> list[np.ndarray]:
    """Minima `(atoms, 3)`, nm, of the same isomer with other forms of rings of seven atoms and more, the lowest first.

    Each torsion of such a ring is pulled to the mirror image of its value and by a third of a turn both ways, all of
    the ring's together to their mirror images; then everything is minimised. The lowest form that was found and has not
    been a start itself is the next one. Forms up to mirror images and equivalent atoms are found once.

    Arguments:
        molecule: the graph, and a structure.
        system: its energies.
        over: whether to end before everything was tried.
    """
    rings = [ring for ring in smallest_rings(molecule) if len(ring) >= _SMALLEST]
    if not rings:
        return []
    driven = Driven(system, (atoms for ring in rings for atoms in fours_of(ring)))
    fingerprint, trials = Fingerprint(molecule), 0
    first, energy = driven.minimised(molecule.positions)
    found = [(energy, first, fingerprint(first[None])[0])]
    waiting = [(energy, first)]
    while waiting:
        waiting.sort(key=lambda entry: entry[0])
        _, start = waiting.pop(0)
        for pulled in _pulls(start, rings):
            if over() or (trials := trials + 1) > _TRIALS:
                waiting.clear()
                break
            x, energy = driven.minimised(driven.minimised(start, pulled, 10.0, 300)[0])
            one = fingerprint(x[None])[0]
            energies, _, prints = zip(*found, strict=True)
            known = fingerprint.among(one, energy, np.array(prints), np.array(energies))
            if not known and energy < found[0][0] + WITHIN and same_isomer(molecule, first, x):
                found.append((energy, x, one))
                waiting.append((energy, x))
    found.sort(key=lambda entry: entry[0])
    return [x for energy, x, _ in found if energy < found[0][0] + WITHIN]


def _pulls(x: np.ndarray, rings: list[list[int]]) -> list[dict[tuple[int, ...], float]]:
    """What to pull where: all torsions of a ring, then each alone."""
    pulls: list[dict[tuple[int, ...], float]] = []
    for ring in rings:
        fours = fours_of(ring)
        angles = torsion_angles(x, fours)
        pulls.append(dict(zip(fours, (-angles).tolist(), strict=True)))
        for atoms, angle in zip(fours, angles.tolist(), strict=True):
            pulls += [{atoms: wanted} for wanted in (-angle, *(angle + _MOVES).tolist())]
    return pulls
