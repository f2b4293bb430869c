"""Constrained bonds leave the coordinates; other constraints cannot be described."""

import openmm

from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.coordinates.zmatrix import Row
from openmm_cgflow.errors import InvalidInputError

__all__ = ["fixed_bonds"]


def fixed_bonds(molecule: Molecule, system: openmm.System, rows: list[Row]) -> dict[tuple[int, int], float]:
    """Lengths (nm) of the constrained bonds, by `bond_key`.

    Raises:
        InvalidInputError: a constraint that is no bond of the Z-matrix (an angle, a bond that closes a ring).
    """
    lengths = {bond_key(row.atom, row.refs[0]) for row in rows if row.refs}
    fixed = {}
    for k in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(k)
        key = bond_key(i, j)
        if key not in lengths:
            what = "a bond that closes a ring" if molecule.bonded(i, j) else "no bond"
            raise InvalidInputError(
                f"the constraint between {molecule.label(i)} and {molecule.label(j)} ({distance._value:g} nm) "
                f"is {what}, "
                "and not a coordinate here; create the System with constraints=None or HBonds"
            )
        fixed[key] = float(distance._value)
    return fixed
