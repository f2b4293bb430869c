"""Which rings flip: puckers that the System lets exchange at thermal energies, such as the two of proline."""

from collections.abc import Collection

import numpy as np
import openmm

from openmm_cgflow.chemistry.driven import Driven, torsion_angles
from openmm_cgflow.chemistry.forms import fours_of, same_isomer, smallest_rings
from openmm_cgflow.chemistry.molecule import Molecule, bond_key

__all__ = ["flipping_bonds"]

WITHIN = 25.0
"""kJ/mol: a flipped ring whose energy is higher by more is left out."""

_TURNED = np.deg2rad(20.0)  # torsions that change by less stay stiff
_LARGEST = 8  # atoms; larger rings are no puckers but loops


def flipping_bonds(molecule: Molecule, system: openmm.System, beads: Collection[int] = ()) -> set[tuple[int, int]]:
    """Ring bonds (`bond_key`) whose torsion has another value in a flipped form of the ring.

    Bonds between two beads are left out where the ring has others: its pucker is then no slow variable.

    Each ring with a bond between two atoms of four neighbours is driven to the opposite of its torsions and minimised.
    The form counts if it is another one, not much higher in energy, and the same isomer.
    """
    rings = [ring for ring in smallest_rings(molecule) if len(ring) <= _LARGEST and _saturated(molecule, ring)]
    if not rings:
        return set()
    driven = Driven(system, (atoms for ring in rings for atoms in fours_of(ring)))
    plain, energy = driven.minimised(molecule.positions)
    found: set[tuple[int, int]] = set()
    for ring in rings:
        angles = torsion_angles(plain, fours_of(ring))
        flipped, its_energy = _turned(driven, plain, ring, -angles)
        if its_energy - energy < WITHIN and same_isomer(molecule, plain, flipped):
            change = (torsion_angles(flipped, fours_of(ring)) - angles + np.pi) % (2 * np.pi) - np.pi
            bonds = {bond_key(*fours_of(ring)[k][1:3]) for k in np.flatnonzero(np.abs(change) > _TURNED)}
            found |= {bond for bond in bonds if not set(bond) <= set(beads)} or bonds
    return found


def _turned(driven: Driven, x: np.ndarray, ring: list[int], wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """The minimum reached from `x` after the ring was pulled to the wanted torsions, and its energy."""
    pulled, _ = driven.minimised(x, dict(zip(fours_of(ring), wanted.tolist(), strict=True)), 10.0, 300)
    return driven.minimised(pulled)


def _saturated(molecule: Molecule, ring: list[int]) -> bool:
    near = molecule.neighbours
    return any(len(near[ring[k - 1]]) == 4 and len(near[ring[k]]) == 4 for k in range(len(ring)))
