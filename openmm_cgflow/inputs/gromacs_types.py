"""Lines of [ atomtypes ]: which of their columns are there, and which element they are."""

from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.gromacs_lines import Line

__all__ = ["atom_type", "with_element"]

ELEMENT_MASS = 0.1  # Da: how far an atom type's mass may be off the element's


def atom_type(line: Line) -> list[str]:
    """Name, bonded type, atomic number, mass, charge, particle type, V and W, whichever columns are there.

    A missing bonded type is the name, a missing atomic number is empty.

    Raises:
        InvalidInputError: too few columns.
    """
    fields = line.fields

    def is_letter(k: int) -> bool:
        return len(fields) > k and len(fields[k]) == 1 and fields[k].isalpha()

    if is_letter(5):
        name, bonded, number, *rest = fields
    elif is_letter(4):
        by_name = fields[1][0].isalpha()
        name, bonded, number = fields[0], fields[1] if by_name else fields[0], "" if by_name else fields[1]
        rest = fields[2:]
    elif is_letter(3):
        name, bonded, number, rest = fields[0], fields[0], "", fields[1:]
    else:
        rest = []
    if len(rest) < 5:
        raise InvalidInputError(f"{line.where}: {' '.join(fields)} is no line of [ atomtypes ]")
    return [name, bonded, number, *rest[:5]]


def with_element(fields: list[str], masses: dict[str, float]) -> list[str]:
    """An atom type in eight columns. Without an atomic number its mass decides; OpenMM would go by the atom's name.

    Arguments:
        fields: what `atom_type` gave.
        masses: of atoms in molecules, by type, for types whose own mass is 0.
    """
    name, bonded, number, mass, charge, *rest = fields
    rest = [repr(float(charge)), *rest]  # OpenMM takes a charge of one character for the particle type
    heavy = float(mass) or masses.get(name, 0.0)
    if not number:
        element = app.Element.getByMass(heavy) if heavy > 0 else None
        if element is not None and abs(element.mass.value_in_unit(unit.dalton) - heavy) < ELEMENT_MASS:
            number = str(element.atomic_number)
    if not number:
        return [name, bonded, f"{heavy:.6f}", *rest]
    return [name, bonded, number, f"{heavy:.6f}", *rest]
