"""Whether a layout from a file is one: its numbers are used as indices without looking at them again."""

from collections.abc import Sequence

from openmm_cgflow.coordinates.layout import ATOM, SLOW, TWO_PI, Coordinate, Layout
from openmm_cgflow.errors import ModelFileError

__all__ = ["check_layout"]

_FURTHEST = 1e4  # nm or rad


def check_layout(layout: Layout) -> None:
    """See that rows, slots and atoms are there, each where it has to be, and that numbers are possible.

    Raises:
        ModelFileError: if not; the message names the field.
    """
    n, dof, constants = len(layout.order), len(layout.coordinates), len(layout.constants)
    _require(n >= 4 and sorted(layout.order) == list(range(n)), "order")
    _require(dof == 3 * n - 6 - constants, "coordinates")
    for entry in layout.coordinates:
        _check_coordinate(entry)
    blocks = [entry.block for entry in layout.coordinates]
    _require(blocks == sorted(blocks), "coordinates")
    _require(all(0 < value < _FURTHEST for value in layout.constants), "constants")
    _check_rows(layout, n)
    _check_slots(layout, n, dof)
    _require(len(set(layout.beads)) == len(layout.beads) and _within(layout.beads, 0, n), "beads")
    slow = layout.slow_torsions
    _require(len(slow) == blocks.count(SLOW), "slow_torsions")
    _require(all(len(set(atoms)) == len(atoms) == 4 and _within(atoms, 0, n) for atoms in slow), "slow_torsions")


def _require(holds: bool, field: str) -> None:
    if not holds:
        raise ModelFileError(f"the stored internal coordinates contradict themselves in {field!r}")


def _within(numbers: Sequence[int], low: int, high: int) -> bool:
    return all(low <= number < high for number in numbers)


def _check_coordinate(entry: Coordinate) -> None:
    numbers = (entry.reference, entry.middle, entry.scale, entry.period)
    _require(all(abs(number) < _FURTHEST for number in numbers), "coordinates")
    _require(SLOW <= entry.block <= ATOM and entry.scale > 0, "coordinates")
    _require(entry.period == 0 or 0.01 < entry.period < TWO_PI + 0.01, "coordinates")
    _require(entry.low < entry.high, "coordinates")


def _check_rows(layout: Layout, n: int) -> None:
    """Each row is placed by three that are there before, and those of one level by rows of earlier levels."""
    later = n - 3
    _require(all(count > 0 for count in layout.levels) and sum(layout.levels) == later, "levels")
    _require(len(layout.refs) == later, "refs")
    start = 0
    for count in layout.levels:
        for refs in layout.refs[start : start + count]:
            _require(len(refs) == 3 and len(set(refs)) == 3 and _within(refs, 0, start + 3), "refs")
        start += count
    _require(len(layout.siblings) == later and _within(layout.siblings, 3, n), "siblings")
    _require(len(set(layout.linear)) == len(layout.linear) and _within(layout.linear, 3, n), "linear")
    leaves = [row for triple in layout.triples for row in triple]
    _require(all(len(triple) == 3 for triple in layout.triples), "triples")
    _require(len(set(leaves)) == len(leaves) and _within(leaves, 3, n), "triples")


def _check_slots(layout: Layout, n: int, dof: int) -> None:
    """Each entry of q and each constant has one place, and what is added to torsions is an entry of q, or nothing."""
    zero = dof + len(layout.constants)
    own = {"bond_slots": n - 1, "angle_slots": n - 2, "torsion_slots": n - 3}
    for name, count in own.items():
        _require(len(getattr(layout, name)) == count, name)
    everything = [*layout.bond_slots, *layout.angle_slots, *layout.torsion_slots]
    _require(sorted(everything) == list(range(zero)), "bond_slots")
    _require(_within([*layout.angle_slots, *layout.torsion_slots], 0, dof), "torsion_slots")
    added = [[slot] for slot in layout.primary_slots]
    for name, slots in (("primary_slots", added), ("mean_slots", layout.mean_slots)):
        width = 1 if name == "primary_slots" else 2
        _require(len(slots) == n - 3 and all(len(pair) == width for pair in slots), name)
        _require(all(slot == zero or 0 <= slot < dof for pair in slots for slot in pair), name)
    kinds = [layout.coordinates[slot].torsion for slot in layout.torsion_slots]
    planar = {row - 3 for row in layout.linear}
    _require(all(kind or k in planar for k, kind in enumerate(kinds)), "torsion_slots")
