"""Bridges: two atoms that are no beads between two beads, such as the C and N of a peptide between its C-alphas."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openmm_cgflow.chemistry.molecule import Molecule

__all__ = ["Bridge", "find_bridges"]


@dataclass(frozen=True)
class Bridge:
    """Two beads that are joined by two atoms which are none.

    Attributes:
        atoms: `(a, x, y, b)` in the order of the bonds; x is the one to be placed first.
        beside: another bead that is bonded to x, if there is one: the two hold x, whatever b does.
    """

    atoms: tuple[int, int, int, int]
    beside: int | None


def find_bridges(molecule: Molecule, beads: Sequence[int]) -> list[Bridge]:
    """Every bridge between beads that no shorter way and no chain of bonded beads joins, in the order of its beads.

    Linear ones (a triple bond) are left out: nothing turns there. Of the two atoms the one comes first that more beads
    hold, else the one that is further from the line between the beads, whose rotation about it is better defined.
    """
    inside, found, part = set(beads), [], _parts(molecule, beads)
    apart = {bead: molecule.distances_from(bead) for bead in beads}
    for bond in molecule.bonds():
        if inside & set(bond):
            continue
        left, right = ([i for i in molecule.neighbours[atom] if i in inside] for atom in bond)
        for ends in ((a, b) for a in left for b in right if part[a] != part[b] and apart[a][b] == 3):
            ways = ((ends[0], bond[0], bond[1], ends[1]), (ends[1], bond[1], bond[0], ends[0]))
            held = {bond[0]: left, bond[1]: right}
            a, x, y, b = max(ways, key=lambda way: (len(held[way[1]]), _lever(molecule, way), -way[0]))
            straight = molecule.collinear(a, x, b) or molecule.is_linear_centre(x) or molecule.is_linear_centre(y)
            if not straight:
                beside = next((i for i in held[x] if i != a), None)
                found.append(Bridge((a, x, y, b), beside))
    return sorted(found, key=lambda bridge: (bridge.beside is None, sorted((bridge.atoms[0], bridge.atoms[3]))))


def _parts(molecule: Molecule, beads: Sequence[int]) -> dict[int, int]:
    """For each bead one that it hangs together with by bonds among beads."""
    part: dict[int, int] = {}
    for bead in beads:
        queue = [] if bead in part else [bead]
        while queue:
            i = queue.pop()
            part[i] = bead
            queue += [j for j in molecule.neighbours[i] if j in beads and j not in part]
    return part


def _lever(molecule: Molecule, way: tuple[int, int, int, int]) -> float:
    """The distance of the second atom from the line between the beads, nm."""
    a, x, _, b = way
    line, r = molecule.positions[b] - molecule.positions[a], molecule.positions[x] - molecule.positions[a]
    return float(np.linalg.norm(np.cross(line, r)) / np.linalg.norm(line))
