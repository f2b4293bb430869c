"""The part of a layout that describes the beads alone."""

from openmm_cgflow.coordinates.layout import BEAD, Layout
from openmm_cgflow.errors import InvalidInputError

__all__ = ["bead_layout"]


def bead_layout(layout: Layout) -> Layout:
    """A layout over the beads only: its q is the slow and bead blocks, its atoms are indices into `layout.beads`.

    Raises:
        InvalidInputError: there are fewer than 4 beads.
    """
    if len(layout.beads) < 4:
        raise InvalidInputError(
            f"there are {len(layout.beads)} beads; coordinates of the beads alone need at least 4: name more beads"
        )
    index = {atom: k for k, atom in enumerate(layout.beads)}
    kept = [row for row, atom in enumerate(layout.order) if atom in index]
    rank = {row: k for k, row in enumerate(kept)}
    later = [row - 3 for row in kept[3:]]
    coordinates = [c for c in layout.coordinates if c.block <= BEAD]
    dof = len(layout.coordinates)
    fixed = sorted({slot for slot in (layout.bond_slots[row - 1] for row in kept[1:]) if slot >= dof})
    slots = {slot: slot for slot in range(len(coordinates))}
    slots.update({slot: len(coordinates) + k for k, slot in enumerate(fixed)})
    zero = len(slots)
    slots[dof + len(layout.constants)] = zero
    refs = [[rank[j] for j in layout.refs[row]] for row in later]
    depth = [0, 0, 0]
    for three in refs:
        depth.append(1 + max(depth[j] for j in three))
    return Layout(
        order=[index[layout.order[row]] for row in kept],
        refs=refs,
        levels=[depth.count(level) for level in range(1, max(depth) + 1)],
        bond_slots=[slots[layout.bond_slots[row - 1]] for row in kept[1:]],
        angle_slots=[slots[layout.angle_slots[row - 2]] for row in kept[2:]],
        torsion_slots=[slots[layout.torsion_slots[row]] for row in later],
        primary_slots=[slots[layout.primary_slots[row]] for row in later],
        mean_slots=[[zero, zero] for _ in later],
        siblings=[rank[layout.siblings[row]] for row in later],
        linear=[rank[row] for row in layout.linear if row in rank],
        triples=[],
        coordinates=coordinates,
        constants=[layout.constants[slot - dof] for slot in fixed],
        beads=list(range(len(kept))),
        slow_torsions=[[index[i] for i in torsion] for torsion in layout.slow_torsions],
    )
