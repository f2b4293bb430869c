"""The molecule as a graph: what the Z-matrix is built from."""

from collections import deque
from dataclasses import dataclass

import numpy as np

__all__ = ["LINEAR", "Molecule", "bond_key"]

LINEAR = np.deg2rad(165.0)
"""rad: angles above it are treated as linear."""


def bond_key(i: int, j: int) -> tuple[int, int]:
    """The same key for i-j and j-i."""
    return (i, j) if i < j else (j, i)


@dataclass
class Molecule:
    """One connected molecule.

    Attributes:
        neighbours: bonded atoms of each atom, ascending.
        numbers: atomic number of each atom (for atoms without an element: 0 if lighter than 1.5 Da, else the mass).
        names: atom names.
        residues: the label `NAMEid` (such as `ALA2`) of each atom's residue.
        residue_index: index of each atom's residue in the topology.
        positions: `(atoms, 3)`, nm.
    """

    neighbours: list[list[int]]
    numbers: list[int]
    names: list[str]
    residues: list[str]
    residue_index: list[int]
    positions: np.ndarray

    def __post_init__(self) -> None:
        self.ring_bonds = self._find_ring_bonds()

    @property
    def n_atoms(self) -> int:
        """How many atoms."""
        return len(self.neighbours)

    def label(self, atom: int) -> str:
        """How an atom is called in messages and names, such as `ALA2:CA`."""
        return f"{self.residues[atom]}:{self.names[atom]}"

    def bonds(self) -> list[tuple[int, int]]:
        """All bonds `(i, j)` with `i < j`."""
        return [(i, j) for i, near in enumerate(self.neighbours) for j in near if i < j]

    def bonded(self, i: int, j: int) -> bool:
        """Whether there is a bond between i and j."""
        return j in self.neighbours[i]

    def angle(self, i: int, j: int, k: int) -> float:
        """The angle i-j-k in the input positions, rad."""
        u, v = self.positions[i] - self.positions[j], self.positions[k] - self.positions[j]
        return float(np.arctan2(np.linalg.norm(np.cross(u, v)), np.dot(u, v)))

    def torsion(self, i: int, j: int, k: int, m: int) -> float:
        """The torsion i-j-k-m in the input positions, rad, IUPAC sign, in [-pi, pi]."""
        x = self.positions
        b1, b2, b3 = x[j] - x[i], x[k] - x[j], x[m] - x[k]
        n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
        return float(np.arctan2(np.linalg.norm(b2) * np.dot(b1, n2), np.dot(n1, n2)))

    def collinear(self, i: int, j: int, k: int) -> bool:
        """Whether the three atoms are too close to one line to define a plane."""
        angle = self.angle(i, j, k)
        return angle > LINEAR or angle < np.pi - LINEAR

    def linear_centres(self) -> set[int]:
        """The atoms of which `is_linear_centre` is true."""
        return {atom for atom in range(self.n_atoms) if self.is_linear_centre(atom)}

    def is_linear_centre(self, atom: int) -> bool:
        """Whether the atom has exactly two neighbours, opposite one another."""
        near = self.neighbours[atom]
        return len(near) == 2 and self.angle(near[0], atom, near[1]) > LINEAR

    def distances_from(self, source: int) -> list[int]:
        """Number of bonds from the source to each atom (-1: not connected)."""
        distance = [-1] * self.n_atoms
        distance[source] = 0
        queue = deque([source])
        while queue:
            i = queue.popleft()
            for j in self.neighbours[i]:
                if distance[j] < 0:
                    distance[j] = distance[i] + 1
                    queue.append(j)
        return distance

    def shortest_path(self, sources: set[int], targets: set[int]) -> list[int]:
        """The atoms on a shortest path from any of the sources to the nearest of the targets, both ends included."""
        previous = {i: i for i in sorted(sources)}
        queue = deque(previous)
        while queue:
            i = queue.popleft()
            if i in targets:
                break
            for j in self.neighbours[i]:
                if j not in previous:
                    previous[j] = i
                    queue.append(j)
        path = [i]
        while previous[path[-1]] != path[-1]:
            path.append(previous[path[-1]])
        return path[::-1]

    def fragments(self) -> list[list[int]]:
        """The connected components, as lists of atoms."""
        seen: set[int] = set()
        found = []
        for atom in range(self.n_atoms):
            if atom not in seen:
                part = [i for i, d in enumerate(self.distances_from(atom)) if d >= 0]
                seen.update(part)
                found.append(part)
        return found

    def _find_ring_bonds(self) -> set[tuple[int, int]]:
        """Bonds that are in a ring: those that are no bridges (Tarjan's low-link rule, without recursion)."""
        order, low = [-1] * self.n_atoms, [0] * self.n_atoms
        bridges, count = set(), 0
        for root in range(self.n_atoms):
            if order[root] >= 0:
                continue
            order[root] = low[root] = count
            count += 1
            stack = [(root, -1, iter(self.neighbours[root]))]
            while stack:
                i, parent, todo = stack[-1]
                for j in todo:
                    if order[j] < 0:
                        order[j] = low[j] = count
                        count += 1
                        stack.append((j, i, iter(self.neighbours[j])))
                        break
                    if j != parent:
                        low[i] = min(low[i], order[j])
                else:
                    stack.pop()
                    if parent >= 0:
                        low[parent] = min(low[parent], low[i])
                        if low[i] > order[parent]:
                            bridges.add(bond_key(parent, i))
        return set(self.bonds()) - bridges
