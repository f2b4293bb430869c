"""The Z-matrix: in which order atoms are placed, and relative to which placed atoms."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from openmm_cgflow.chemistry.molecule import LINEAR, Molecule, bond_key
from openmm_cgflow.coordinates.beads import BeadPlan
from openmm_cgflow.coordinates.bridges import Bridge, find_bridges
from openmm_cgflow.errors import InvalidInputError

__all__ = ["Row", "build_zmatrix"]


@dataclass
class Row:
    """How one atom is placed.

    Attributes:
        atom: the atom.
        refs: up to three placed atoms: bond to the first, angle with the second, torsion with the third.
        kind: "seed" (no torsion), "torsion" (turns about a bond, the primary one there) or "improper"
            (relative to another
            atom on the same centre).
        primary: for impropers that share the references of a placed sibling: that sibling, whose torsion is
            added. Else -1.
        linear: the angle is near pi in the input: described by planar coordinates.
        soft: the torsion turns freely, or nothing limits it because it is no torsion of bonded atoms.
        bead: the atom is a bead.
        closes: the second atom of a bridge: its torsion is about no bond, but stands for that about this one.
    """

    atom: int
    refs: tuple[int, ...]
    kind: str
    primary: int = -1
    linear: bool = False
    soft: bool = False
    bead: bool = False
    closes: tuple[int, int] | None = None


def build_zmatrix(molecule: Molecule, plan: BeadPlan, centres: set[int]) -> list[Row]:
    """Rows in an order in which references come before the atoms that need them: beads first, hydrogens last.

    The first three atoms are chosen in the middle of the beads, so that the tree of references is shallow. After the
    beads come the atoms that bridge them. Each axis gets one torsion, that of the first atom placed about it; its
    siblings are placed relative to it.
    """
    builder = _Builder(molecule, plan)
    builder.seed(centres)
    builder.grow(plan.adjacency, lambda _: True)
    for bridge in find_bridges(molecule, plan.beads):
        builder.span(bridge)
    bonds = dict(enumerate(molecule.neighbours))
    builder.grow(bonds, lambda i: len(molecule.neighbours[i]) > 1)
    builder.grow(bonds, lambda i: molecule.numbers[i] > 1)
    builder.grow(bonds, lambda _: True)
    return builder.rows


class _Builder:
    def __init__(self, molecule: Molecule, plan: BeadPlan) -> None:
        self.molecule = molecule
        self.plan = plan
        self.beads = set(plan.beads)
        self.rows: list[Row] = []
        self.depth: dict[int, int] = {}
        self.parent: dict[int, int] = {}
        self.first: dict[int, Row] = {}
        self.pseudo: dict[int, int] = {}
        self.across: dict[int, int] = {}  # an atom of a bridge: the bead on its other side

    # ---- the first three atoms

    def seed(self, centres: set[int]) -> None:
        """Place the first three atoms: a centre, its neighbour (the axis) and another neighbour."""
        near = self.plan.adjacency if self.beads else dict(enumerate(self.molecule.neighbours))
        centre, axis, third = min(self._triples(near, centres))[-1]
        for row in (Row(centre, (), "seed"), Row(axis, (centre,), "seed"), Row(third, (centre, axis), "seed")):
            self._add(row, depth=0)
        self.parent.update({centre: axis, axis: centre, third: centre})
        for i in (centre, axis, third):
            self._note_pseudo(i)

    def _triples(self, near: dict[int, list[int]], centres: set[int]) -> Iterable[tuple]:
        molecule = self.molecule
        for j in near:
            reach = _eccentricity(near, j)
            ends = sorted(near[j], key=lambda i: (-molecule.numbers[i], -len(molecule.neighbours[i]), i))
            for a, axis in enumerate(ends):
                for third in ends[a + 1 :]:
                    if not self._in_line(axis, j, third):
                        light = sum(molecule.numbers[i] == 1 for i in (axis, j, third))
                        yield light, j in centres, reach, a, j, (j, axis, third)
        if all(self._in_line(i, j, k) for j in near for i in near[j] for k in near[j] if i != k):
            raise InvalidInputError(
                f"the beads {[molecule.label(i) for i in self.plan.beads]} lie on one line; add or choose other beads"
            )

    # ---- all others

    def grow(self, near: dict[int, list[int]], wanted: Callable[[int], bool]) -> None:
        """Place the wanted atoms that can be reached over `near` from those placed already, in breadth-first order."""
        queue = deque(row.atom for row in self.rows)
        while queue:
            b = queue.popleft()
            if b not in near:
                continue
            for i in sorted(
                (i for i in near[b] if i not in self.depth and wanted(i)), key=lambda i: self._priority(i, b)
            ):
                self._place(i, b)
                queue.append(i)

    def span(self, bridge: Bridge) -> None:
        """Place the two atoms of a bridge `a-x-y-b`: x about the line between the beads, y by a triangle with b and x.

        The rotation of x is that of the whole bridge. The bond x-y depends on stiff coordinates alone, those of the
        triangle b, y, x; the torsion of y about b-x stands for that about x-y, and is soft only if that is.
        """
        a, x, y, b = bridge.atoms
        if x not in self.depth:
            self._place_bridge(self._first_of_bridge(bridge), a)
        self.across[x], self.across[y] = b, a
        if y not in self.depth:
            key = bond_key(x, y)
            self._place_bridge(Row(y, (b, x, a), "torsion", soft=key in self.plan.soft, closes=key), b)

    def _first_of_bridge(self, bridge: Bridge) -> Row:
        a, x, _, b = bridge.atoms
        if bridge.beside is not None:
            return Row(x, (a, bridge.beside, self._near_line(a, bridge.beside)), "torsion", soft=True)
        for other in self.molecule.neighbours[a]:  # the other half of a ring
            if self.across.get(other) == b and {bond_key(a, x), bond_key(a, other)} <= self.molecule.ring_bonds:
                return Row(x, (a, b, other), "torsion", soft=bond_key(a, x) in self.plan.soft, closes=bond_key(a, x))
        return Row(x, (a, b, self._near_line(a, b)), "torsion", soft=True)

    def _near_line(self, a: int, b: int) -> int:
        """The reference of a rotation about the line a-b: the bead with the fewest bonds to both, not in line."""
        near, far = self.molecule.distances_from(a), self.molecule.distances_from(b)
        others = [i for i in self.beads if i not in (a, b)]
        good = [i for i in others if not self.molecule.collinear(a, b, i)]
        return min(good or others, key=lambda i: (near[i] + far[i], self.depth[i], i))

    def _place_bridge(self, row: Row, bead: int) -> None:
        self._add(row, 1 + max(self.depth[j] for j in row.refs))
        self.parent[row.atom] = bead
        if bead in self.pseudo:  # what else is bonded to the bead is placed relative to this atom
            del self.pseudo[bead]
            self.parent[bead] = row.atom
            self.first.pop(bead, None)

    def _priority(self, i: int, b: int) -> tuple:
        """First the atom of the named torsion; linear ones last; heavy before light."""
        molecule, c = self.molecule, self.parent[b]
        named = self.plan.wanted.get((b, c), (-1, -1))[0]
        return i != named, self._in_line(i, b, c), -molecule.numbers[i], -len(molecule.neighbours[i]), i

    def _place(self, i: int, b: int) -> None:
        molecule = self.molecule
        if b in self.pseudo and molecule.bonded(i, b):
            row = self._place_on_pseudo(i, b)
        elif self._in_line(i, b, self.parent[b]) and molecule.angle(i, b, self.parent[b]) > LINEAR:
            row = self._place_linear(i, b)
        elif b in self.first:
            row = Row(i, self.first[b].refs, "improper", primary=self.first[b].atom)
        else:
            row = self._place_first(i, b)
        self._add(row, 1 + max(self.depth[j] for j in row.refs))
        self.parent[i] = b
        self._note_pseudo(i)

    def _place_linear(self, i: int, b: int) -> Row:
        c = self.parent[b]
        third = self.first[b].atom if b in self.first else self._third(b, c)
        return Row(i, (b, c, third), "improper", linear=True)

    def _place_first(self, i: int, b: int) -> Row:
        c = self.parent[b]
        anchor = self._anchor(i, b, c)
        if anchor is not None:
            return Row(i, (b, c, anchor), "improper")
        soft = bond_key(b, c) in self.plan.soft or not self.molecule.bonded(b, c)
        row = Row(i, (b, c, self._third(b, c)), "torsion", soft=soft)
        self.first[b] = row
        return row

    def _place_on_pseudo(self, i: int, b: int) -> Row:
        """The first two bonded atoms on a bead that only pseudo-bonds held so far: they orient its surroundings."""
        c = self.pseudo[b]
        real = next((j for j in self.molecule.neighbours[b] if j in self.depth), None)
        if real is None:
            return Row(i, (b, c, self._third(b, c)), "torsion", soft=True)
        del self.pseudo[b]
        self.parent[b] = real
        self.first.pop(b, None)
        if self.molecule.angle(i, b, real) > LINEAR:  # its torsion would be the direction of a bend: any
            third = self._third(b, real) if self.molecule.collinear(b, real, c) else c
            return Row(i, (b, real, third), "improper", linear=True)
        row = Row(i, (b, real, c), "torsion", soft=bond_key(b, real) in self.plan.soft)
        self.first[b] = row
        return row

    def _anchor(self, i: int, b: int, c: int) -> int | None:
        """A placed neighbour of b, other than c, relative to which i has a stiff improper."""
        placed = [j for j in self.molecule.neighbours[b] if j in self.depth and j not in (i, c)]
        good = [j for j in placed if not self._in_line(b, c, j) and not self._in_line(j, b, c)]
        return min(good, key=lambda j: self.depth[j]) if good else None

    def _third(self, b: int, c: int) -> int:
        """The reference of a torsion about b-c: the named one, else the nearest placed atom beyond c, not in line."""
        named = self.plan.wanted.get((b, c), (-1, -1))[1]
        if named in self.depth and not self._in_line(b, c, named):
            return named
        layer, seen = [c], {b, c}
        while layer:
            beyond = [j for i in layer for j in self._near(i) if j in self.depth and j not in seen]
            good = [j for j in beyond if not self._in_line(b, c, j)]
            if good:
                return min(good, key=lambda j: (self.depth[j], -self.molecule.numbers[j], j))
            seen.update(beyond)
            layer = beyond
        others = [j for j in self.depth if j not in (b, c)]
        good = [j for j in others if not self._in_line(b, c, j)]
        if good:
            return min(good, key=lambda j: (self.depth[j], j))
        # a long linear chain: what turns about it does so freely, so that any origin of the torsion is as good
        return max(others, key=lambda j: np.sin(self.molecule.angle(b, c, j)))

    def _in_line(self, i: int, j: int, k: int) -> bool:
        """Whether the atoms are always nearly in line; over pseudo-bonds they may only happen to be so in the input."""
        for a, b in ((i, j), (j, k)):
            if b in self.plan.adjacency.get(a, []) and not self.molecule.bonded(a, b):
                return False
        return self.molecule.collinear(i, j, k)

    def _near(self, i: int) -> list[int]:
        return [*self.molecule.neighbours[i], *self.plan.adjacency.get(i, [])]

    def _add(self, row: Row, depth: int) -> None:
        row.bead = row.atom in self.beads
        row.soft = row.soft or not (row.closes or self._chemical(row))
        self.rows.append(row)
        self.depth[row.atom] = depth

    def _chemical(self, row: Row) -> bool:
        """Whether the torsion is about a true bond and between true neighbours, so that chemistry limits its range."""
        if row.kind == "seed" or row.linear:
            return True
        bonded, (b, c, d) = self.molecule.bonded, row.refs
        if row.kind == "improper":
            return bonded(row.atom, b) and bonded(b, c) and bonded(b, row.primary if row.primary >= 0 else d)
        return bonded(row.atom, b) and bonded(b, c) and (bonded(c, d) or self.molecule.is_linear_centre(c))

    def _note_pseudo(self, i: int) -> None:
        if not self.molecule.bonded(i, self.parent[i]):
            self.pseudo[i] = self.parent[i]


def _eccentricity(near: dict[int, list[int]], start: int) -> int:
    distance, queue = {start: 0}, deque([start])
    while queue:
        i = queue.popleft()
        for j in near[i]:
            if j not in distance:
                distance[j] = distance[i] + 1
                queue.append(j)
    return max(distance.values())
