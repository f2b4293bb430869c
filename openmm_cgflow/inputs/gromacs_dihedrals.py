"""Which type of [ dihedraltypes ] a dihedral of a GROMACS topology has."""

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.gromacs_lines import Line

__all__ = ["DihedralTypes"]

PARAMETERS = {"1": 3, "2": 2, "3": 6, "4": 3, "5": 4, "9": 3}
"""How many parameters each function takes."""
SAME = {"9": "1"}
"""Functions with the same formula, whose types serve both."""
ANY = "X"


class DihedralTypes:
    """The types, in the order of the file.

    GROMACS takes the first of the types that match in the most atoms without wildcards; for function 9 the terms that
    follow it with the same atoms belong to it. OpenMM and parmed choose otherwise among wildcards.
    """

    def __init__(self) -> None:
        self._types: list[tuple[tuple[str, ...], str, list[str]]] = []

    def add(self, line: Line) -> None:
        """Take a line of [ dihedraltypes ]. Two atoms alone are the inner ones, of function 2 the outer ones."""
        fields = line.fields
        if len(fields) > 2 and fields[2] in PARAMETERS and len(fields[2]) == 1:
            (first, second), rest = fields[:2], fields[2:]
            atoms: tuple[str, ...] = (first, ANY, ANY, second) if fields[2] == "2" else (ANY, first, second, ANY)
        else:
            atoms, rest = tuple(fields[:4]), fields[4:]
        if not rest or rest[0] not in PARAMETERS:
            raise InvalidInputError(
                f"{line.where}: function {rest[0] if rest else '(none)'} of [ dihedraltypes ] is not read; "
                f"{', '.join(PARAMETERS)} are. Give a SYSTEM.xml with a PDB file"
            )
        count = PARAMETERS[rest[0]]
        if len(rest) <= count:
            raise InvalidInputError(f"{line.where}: {' '.join(fields)} lacks a parameter")
        self._types.append((atoms, SAME.get(rest[0], rest[0]), rest[1 : 1 + count]))

    def written_out(self, line: Line, bonded: list[str]) -> list[str]:
        """A line of [ dihedrals ] as lines with their parameters in them.

        Arguments:
            line: the line.
            bonded: bonded types of all atoms of the molecule.

        Raises:
            InvalidInputError: if no type matches.
        """
        atoms, function, given = line.fields[:4], line.fields[4], line.fields[5:]
        if given:
            return [" ".join(line.fields)]
        kinds = tuple(bonded[int(atom) - 1] for atom in atoms)
        best, place = -1, -1
        for k, (types, its_function, _) in enumerate(self._types):
            if its_function == SAME.get(function, function):
                exact = max(_exact(types, kinds), _exact(types, kinds[::-1]))
                if exact > best:
                    best, place = exact, k
        if place < 0:
            raise InvalidInputError(
                f"{line.where}: the dihedral {' '.join(atoms)} has no parameters, and [ dihedraltypes ] lacks "
                f"{' '.join(kinds)} of function {function}"
            )
        chosen = [self._types[place]]
        if function == "9":
            for following in self._types[place + 1 :]:
                if following[:2] != chosen[0][:2]:
                    break
                chosen.append(following)
        return [" ".join([*atoms, function, *parameters]) for _, _, parameters in chosen]


def _exact(types: tuple[str, ...], kinds: tuple[str, ...]) -> int:
    """How many atoms match without a wildcard; -1 if some do not match."""
    if any(a not in (ANY, b) for a, b in zip(types, kinds, strict=True)):
        return -1
    return sum(a == b for a, b in zip(types, kinds, strict=True))
