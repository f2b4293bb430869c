"""Which rings flip: puckers that the System lets exchange at thermal energies, such as the two of proline."""

from collections.abc import Collection

import numpy as np
import openmm

from openmm_cgflow.chemistry.driven import Driven, torsion_angles
from openmm_cgflow.chemistry.forms import fours_of, same_isomer, smallest_rings
from openmm_cgflow.chemistry.molecule import Molecule, bond_key

__all__ = ["flipped_forms", "flipping_bonds", "puckered_rings", "ring_flip"]

WITHIN = 25.0
"""kJ/mol: a flipped ring whose energy is higher by more is left out."""

_TURNED = np.deg2rad(20.0)  # torsions that change by less stay stiff
_LARGEST = 8  # atoms; larger rings are no puckers but loops


def puckered_rings(molecule: Molecule) -> list[list[int]]:
    """The rings that may flip: of at most eight atoms, with a bond between two atoms of four neighbours."""
    return [ring for ring in smallest_rings(molecule) if len(ring) <= _LARGEST and _saturated(molecule, ring)]


def ring_flip(molecule: Molecule, driven: Driven, x: np.ndarray, energy: float, ring: list[int]
              ) -> set[tuple[int, int]]:  # fmt: skip
    """The bonds (`bond_key`) of a ring whose torsion has another value in its flipped form; none if it has no such.

    The ring is driven to the opposite of its torsions and minimised. The form counts if it is another one, not much
    higher in energy, and the same isomer.

    Arguments:
        molecule: the graph.
        driven: can pull the torsions of the ring.
        x: `(atoms, 3)` nm, the minimum next to the input.
        energy: its energy, kJ/mol.
        ring: its atoms, in the order of its bonds.
    """
    fours = fours_of(ring)
    angles = torsion_angles(x, fours)
    flipped, its_energy = _flipped(driven, x, fours)
    if its_energy - energy >= WITHIN or not same_isomer(molecule, x, flipped):
        return set()
    change = (torsion_angles(flipped, fours) - angles + np.pi) % (2 * np.pi) - np.pi
    return {bond_key(*fours[k][1:3]) for k in np.flatnonzero(np.abs(change) > _TURNED)}


def flipped_forms(molecule: Molecule, system: openmm.System) -> list[np.ndarray]:
    """Minima `(atoms, 3)`, nm, of the same isomer to which its rings are driven, each alone and all together.

    Arguments:
        molecule: the graph, and a structure.
        system: its energies.
    """
    rings = [fours_of(ring) for ring in puckered_rings(molecule)]
    if not rings:
        return []
    driven = Driven(system, (atoms for fours in rings for atoms in fours))
    start, energy = driven.minimised(molecule.positions)
    forms = []
    together = [[atoms for fours in rings for atoms in fours]] if len(rings) > 1 else []
    for fours in [*rings, *together]:
        flipped, its_energy = _flipped(driven, start, fours)
        if its_energy - energy < WITHIN and same_isomer(molecule, start, flipped):
            forms.append(flipped)
    return forms


def _flipped(driven: Driven, x: np.ndarray, fours: list[tuple[int, ...]]) -> tuple[np.ndarray, float]:
    """The minimum to which torsions are driven that are pulled to the opposite of their values, and its energy."""
    angles = torsion_angles(x, fours)
    pulled, _ = driven.minimised(x, dict(zip(fours, (-angles).tolist(), strict=True)), 10.0, 300)
    return driven.minimised(pulled)


def flipping_bonds(flips: list[set[tuple[int, int]]], beads: Collection[int] = ()) -> set[tuple[int, int]]:
    """Ring bonds that are soft by the flips of their rings (`ring_flip`).

    Bonds between two beads are left out where the ring has others: its pucker is then no slow variable.
    """
    found: set[tuple[int, int]] = set()
    for bonds in flips:
        found |= {bond for bond in bonds if not set(bond) <= set(beads)} or bonds
    return found


def _saturated(molecule: Molecule, ring: list[int]) -> bool:
    near = molecule.neighbours
    return any(len(near[ring[k - 1]]) == 4 and len(near[ring[k]]) == 4 for k in range(len(ring)))
