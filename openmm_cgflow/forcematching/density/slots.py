"""Which beads each internal coordinate is of."""

from openmm_cgflow.coordinates import InternalCoordinates

__all__ = ["beads_of_coordinates"]


def beads_of_coordinates(coordinates: InternalCoordinates) -> list[tuple[int, ...]]:
    """The beads of each coordinate, in the order of q: two of a bond, three of an angle, four of a torsion.

    They are in the order in which they are joined, from the end with the lower number, whatever end was placed first.

    Arguments:
        coordinates: of the beads alone.
    """
    layout = coordinates.layout
    beads: list[tuple[int, ...]] = [()] * coordinates.dof
    refs = [[0], [0, 1], *layout.refs]
    for count, slots in ((1, layout.bond_slots), (2, layout.angle_slots), (3, layout.torsion_slots)):
        for row, slot in enumerate(slots, count):
            if slot < coordinates.dof:
                found = (layout.order[row], *(layout.order[ref] for ref in refs[row - 1][:count]))
                beads[slot] = min(found, found[::-1])
    return beads
