"""From Z-matrix rows to the vector q: blocks, periods, domains, and the indices by which tensors are assembled."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.coordinates.beads import BeadPlan
from openmm_cgflow.coordinates.zmatrix import Row
from openmm_cgflow.storage.typed import read_as

__all__ = ["Coordinate", "Layout", "build_layout"]

SLOW, BEAD, ROTOR, ATOM = range(4)
TWO_PI = 2 * math.pi
_LESS = 1e-6
_SCALES = {"bond": 0.003, "angle": 0.06, "improper": 0.1, "torsion": 0.15, "planar": 0.08, "slow": 1.0, "rotor": 0.3}


@dataclass
class Coordinate:
    """One entry of q.

    Attributes:
        name: for people.
        block: 0 slow, 1 bead, 2 rotor, 3 atom.
        reference: value at the input positions, nm or rad.
        period: 2 pi, 2 pi / 3 (symmetric rotors) or 0 (not circular).
        low, high: the open interval outside of which a value is another isomer, or nothing.
        scale: rough thermal width, nm or rad.
        middle: of the window of width 2 pi (or the period) into which torsions are wrapped.
        torsion: measured as a torsion, so that it is wrapped.
    """

    name: str
    block: int
    reference: float
    period: float = 0.0
    low: float = field(default=-math.inf, metadata={"finite": False})
    high: float = field(default=math.inf, metadata={"finite": False})
    scale: float = 0.1
    middle: float = 0.0
    torsion: bool = False


@dataclass
class Layout:
    """Everything that `InternalCoordinates` computes with, as plain numbers.

    Slots are indices into the vector `[q | constants | 0]`. Rows are counted in placement order.

    Attributes:
        order: atom of each row.
        refs: rows of the three references, from row 3 on.
        levels: how many rows can be placed at once, level after level, from row 3 on.
        bond_slots, angle_slots, torsion_slots: where rows 1.., 2.., 3.. find their own value.
        primary_slots: slot of the torsion to add (row 3 on).
        mean_slots: two slots, a third of whose sum is subtracted from the torsion (symmetric rotors; row 3 on).
        siblings: row of the primary sibling (row 3 on; the row itself where there is none).
        linear: rows in planar coordinates.
        triples: the three rows of each symmetric rotor.
        coordinates: the entries of q.
        constants: constrained bond lengths, nm.
        beads: atom indices of the beads.
        slow_torsions: the four atoms of each slow torsion.
    """

    order: list[int]
    refs: list[list[int]]
    levels: list[int]
    bond_slots: list[int]
    angle_slots: list[int]
    torsion_slots: list[int]
    primary_slots: list[int]
    mean_slots: list[list[int]]
    siblings: list[int]
    linear: list[int]
    triples: list[list[int]]
    coordinates: list[Coordinate]
    constants: list[float]
    beads: list[int]
    slow_torsions: list[list[int]] = field(default_factory=list)

    @property
    def turning_bonds(self) -> set[tuple[int, int]]:
        """The bonds (`bond_key`), or pseudo-bonds, about which a coordinate turns round the whole circle."""
        turning = {slot for slot, c in enumerate(self.coordinates) if c.torsion and c.period > 0}
        rows = zip(self.torsion_slots, self.refs, strict=True)
        return {bond_key(self.order[refs[0]], self.order[refs[1]]) for slot, refs in rows if slot in turning}

    def to_dict(self) -> dict[str, Any]:
        """As lists, numbers and strings (infinities as None), for JSON."""
        out = asdict(self)
        for entry in out["coordinates"]:
            for key in ("low", "high"):
                if math.isinf(entry[key]):
                    entry[key] = None
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Layout":
        """The inverse of `to_dict`.

        Raises:
            ModelFileError: for values that are not a layout's.
        """
        entries = read_as(list[dict[str, Any]], values.get("coordinates"), "coordinates.coordinates")
        unbounded = {"low": -math.inf, "high": math.inf}
        entries = [{k: unbounded.get(k, v) if v is None else v for k, v in entry.items()} for entry in entries]
        return read_as(cls, {**values, "coordinates": entries}, "coordinates")


def build_layout(
    molecule: Molecule,
    plan: BeadPlan,
    rows: list[Row],
    centres: set[int],
    fixed: Mapping[tuple[int, int], float],
    relaxed: np.ndarray,
) -> "Layout":
    """The layout of a Z-matrix.

    Arguments:
        molecule: the graph and the input positions.
        plan: beads and names.
        rows: from `build_zmatrix`.
        centres: centres of symmetric rotors.
        fixed: constrained bond lengths by `bond_key`, nm.
        relaxed: `(atoms, 3)` nm, the minimum next to the input: the windows of stiff torsions are around it, and it
            says which centres are pyramids, which an input that is not relaxed may not.
    """
    return _LayoutBuilder(molecule, plan, rows, centres, fixed, relaxed).build()


class _LayoutBuilder:
    def __init__(
        self,
        molecule: Molecule,
        plan: BeadPlan,
        rows: list[Row],
        centres: set[int],
        fixed: Mapping[tuple[int, int], float],
        relaxed: np.ndarray,
    ) -> None:
        self.molecule, self.plan, self.fixed = molecule, plan, fixed
        self.relaxed = replace(molecule, positions=relaxed)
        depth: dict[int, int] = {}
        for row in rows:
            depth[row.atom] = 0 if row.kind == "seed" else 1 + max(depth[j] for j in row.refs)
        self.built = rows
        self.rows = sorted(rows, key=lambda row: depth[row.atom])
        self.levels = [sum(depth[row.atom] == level for row in rows) for level in range(1, max(depth.values()) + 1)]
        self.rank = {row.atom: k for k, row in enumerate(self.rows)}
        self.rotors = self._symmetric_rotors(centres)
        self.entries: list[tuple[Coordinate, tuple[int, str]]] = []
        self.constants: dict[tuple[int, str], float] = {}
        self.slow: dict[int, list[int]] = {}

    def _symmetric_rotors(self, centres: set[int]) -> dict[int, list[int]]:
        """Primary atom -> its two siblings, for soft torsions of three equivalent leaves that are no beads."""
        found = {}
        for row in self.rows:
            if row.kind == "torsion" and row.soft and not row.bead and row.refs[0] in centres:
                siblings = [r.atom for r in self.rows if r.primary == row.atom and not r.linear]
                if len(siblings) == 2 and all(len(self.molecule.neighbours[i]) == 1 for i in (row.atom, *siblings)):
                    found[row.atom] = siblings
        return found

    def build(self) -> "Layout":
        for row in self.built:
            self._add_row(row)
        slow = sorted(self.slow, key=lambda atom: bond_key(*self.slow[atom][1:3]))
        place = {atom: k for k, atom in enumerate(slow)}
        ordered = sorted(
            self.entries, key=lambda entry: (entry[0].block, place[entry[1][0]] if entry[0].block == SLOW else 0)
        )
        slots = {key: k for k, (_, key) in enumerate(ordered)}
        for key in self.constants:
            slots[key] = len(slots)
        zero = len(slots)
        later = self.rows[3:]
        mean = {}
        for first, (second, third) in self.rotors.items():
            for atom in (first, second, third):
                mean[atom] = [slots[second, "third"], slots[third, "third"]]
        return Layout(
            order=[row.atom for row in self.rows],
            refs=[[self.rank[j] for j in row.refs] for row in later],
            levels=self.levels,
            bond_slots=[slots[row.atom, "first"] for row in self.rows[1:]],
            angle_slots=[slots[row.atom, "second"] for row in self.rows[2:]],
            torsion_slots=[slots[row.atom, "third"] for row in later],
            primary_slots=[slots[row.primary, "third"] if row.primary >= 0 else zero for row in later],
            mean_slots=[mean.get(row.atom, [zero, zero]) for row in later],
            siblings=[self.rank[row.primary if row.primary >= 0 else row.atom] for row in later],
            linear=[self.rank[row.atom] for row in later if row.linear],
            triples=[[self.rank[i] for i in (first, *others)] for first, others in self.rotors.items()],
            coordinates=[coordinate for coordinate, _ in ordered],
            constants=list(self.constants.values()),
            beads=list(self.plan.beads),
            slow_torsions=[self.slow[atom] for atom in slow],
        )

    def _add_row(self, row: Row) -> None:
        if len(row.refs) >= 1:
            self._add_bond(row)
        if len(row.refs) >= 2:
            self._add_angle(row)
        if len(row.refs) == 3:
            self._add_torsion(row)

    def _add(self, row: Row, part: str, coordinate: Coordinate) -> None:
        self.entries.append((coordinate, (row.atom, part)))

    def _label(self, kind: str, row: Row, count: int) -> str:
        return f"{kind} " + " ".join(self.molecule.label(i) for i in (row.atom, *row.refs[:count]))

    def _add_bond(self, row: Row) -> None:
        x, b = self.molecule.positions, row.refs[0]
        key = bond_key(row.atom, b)
        if key in self.fixed:
            self.constants[row.atom, "first"] = self.fixed[key]
            return
        length = float(np.linalg.norm(x[row.atom] - x[b]))
        scale = _SCALES["bond"] if self.molecule.bonded(row.atom, b) else 0.01
        block = BEAD if row.bead else ATOM
        self._add(row, "first", Coordinate(self._label("bond", row, 1), block, length, low=0.0, scale=scale))

    def _add_angle(self, row: Row) -> None:
        block = BEAD if row.bead else ATOM
        value = self.molecule.angle(row.atom, row.refs[0], row.refs[1])
        if row.linear:
            value = (math.pi - value) * math.cos(self._measured(row))
            coordinate = self._planar("planar a", row, value, block)
        else:
            name = self._label("angle", row, 2)
            coordinate = Coordinate(name, block, value, low=0.0, high=math.pi, scale=_SCALES["angle"])
        self._add(row, "second", coordinate)

    def _planar(self, kind: str, row: Row, value: float, block: int) -> Coordinate:
        return Coordinate(self._label(kind, row, 3), block, value, low=-math.pi, high=math.pi, scale=_SCALES["planar"])

    def _measured(self, row: Row) -> float:
        """The torsion of the row in the input, without subtracting its sibling's."""
        return self.molecule.torsion(row.atom, *row.refs)

    def _add_torsion(self, row: Row) -> None:
        stiff = BEAD if row.bead else ATOM
        value = self._measured(row)
        if row.linear:
            bend = math.pi - self.molecule.angle(row.atom, row.refs[0], row.refs[1])
            coordinate = self._planar("planar b", row, bend * math.sin(value), stiff)
        elif row.atom in self.rotors:
            coordinate = self._rotor(row)
        elif row.soft:
            coordinate = self._soft(row, value)
        elif row.kind == "improper":
            coordinate = self._improper(row, stiff)
        else:
            about = row.closes or bond_key(row.refs[0], row.refs[1])
            ring = about in self.molecule.ring_bonds
            width = math.pi if ring or not self.molecule.bonded(*about) else math.pi / 2
            name = self._label("torsion", row, 3)
            coordinate = self._around(name, stiff, row, self._settled(row), width, _SCALES["torsion"])
        self._add(row, "third", coordinate)

    def _soft(self, row: Row, value: float) -> Coordinate:
        atoms = [row.atom, *row.refs]
        name = self._label("torsion", row, 3)
        b, c, d = row.refs
        if row.kind == "torsion" and self.plan.wanted.get((b, c)) == (row.atom, d):
            name = self.plan.names[bond_key(b, c)]
        if row.primary >= 0:
            value, atoms[3] = self._difference(row), row.primary
        kind = "slow" if row.bead else "rotor"
        if row.bead:
            self.slow[row.atom] = atoms if atoms[1] < atoms[2] else atoms[::-1]
        return Coordinate(name, SLOW if row.bead else ROTOR, value, period=TWO_PI, scale=_SCALES[kind], torsion=True)

    def _rotor(self, row: Row) -> Coordinate:
        """The mean angle of three equivalent leaves; its window is centred on the minimum of the torsion energy."""
        first = self._measured(row)
        others = [self._difference(self.rows[self.rank[i]]) for i in self.rotors[row.atom]]
        value = _wrapped(first + sum(others) / 3)
        name = f"rotor {self.molecule.label(row.refs[0])}"
        lowest = self.plan.lowest.get(bond_key(row.refs[0], row.refs[1]), 0.0)
        # a little less than the whole way: an input just on top of the barrier is within its own window all the same
        middle = value + (1 - _LESS) * _wrapped(3 * lowest) / 3
        return Coordinate(name, ROTOR, value, period=TWO_PI / 3, scale=_SCALES["rotor"], middle=middle, torsion=True)

    def _difference(self, row: Row, molecule: Molecule | None = None) -> float:
        molecule = molecule or self.molecule
        value = molecule.torsion(row.atom, *row.refs)
        if row.primary >= 0:
            first = self.rows[self.rank[row.primary]]
            value = _wrapped(value - molecule.torsion(first.atom, *first.refs))
        return value

    def _settled(self, row: Row) -> float:
        """The value at the minimum, to ten degrees: two minimisations give the same layout."""
        return math.radians(10 * round(math.degrees(self._difference(row, self.relaxed)) / 10))

    def _improper(self, row: Row, block: int) -> Coordinate:
        settled = self._settled(row)
        name, width, scale = self._label("improper", row, 3), math.pi / 2, _SCALES["improper"]
        if self._pyramidal(row.refs[0], settled):
            settled = math.copysign(width, settled)
        return self._around(name, block, row, settled, width, scale)

    def _around(self, name: str, block: int, row: Row, middle: float, width: float, scale: float) -> Coordinate:
        """A stiff torsion in a window; its reference is the input's value, or the minimum's where that is outside."""
        value, relaxed = (
            middle + _wrapped(self._difference(row, molecule) - middle) for molecule in (self.molecule, self.relaxed)
        )
        reference = value if abs(value - middle) < width else relaxed
        low, high = middle - width, middle + width
        return Coordinate(name, block, reference, low=low, high=high, scale=scale, middle=middle, torsion=True)

    def _pyramidal(self, centre: int, value: float) -> bool:
        """Whether the side on which the atom lies is a matter of chirality: centres that are clearly not planar.

        Of a value to ten degrees. Outside of a ring of three, impropers of four neighbours reach 146 degrees.
        """
        limit = 155 if len(self.molecule.neighbours[centre]) >= 4 else 135
        return math.radians(25) < abs(value) < math.radians(limit)


def _wrapped(angle: float) -> float:
    return angle - TWO_PI * math.floor((angle + math.pi) / TWO_PI)
