"""A GROMACS topology with every pair written out, so that nothing is left to a reader's guess.

GROMACS' rules (reference manual, "Molecule definition", "Pair interactions"): atoms that at most `nrexcl` bonds join do
not interact, nor do those in [ exclusions ]; each line of [ pairs ] adds a Coulomb term, scaled by fudgeQQ, and a
Lennard-Jones term from the line, from [ pairtypes ], or, with gen-pairs, from the atom types, scaled by fudgeLJ.
Readers follow them in part: OpenMM's makes pairs of its own with gen-pairs, parmed does not know [ exclusions ].
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openmm_cgflow.chemistry.elements import original_masses
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.gromacs_dihedrals import PARAMETERS as DIHEDRAL_PARAMETERS
from openmm_cgflow.inputs.gromacs_dihedrals import DihedralTypes
from openmm_cgflow.inputs.gromacs_lines import Line, read_lines
from openmm_cgflow.inputs.gromacs_types import atom_type, with_element
from openmm_cgflow.inputs.pairs import pair_energy, pairs_within

__all__ = ["GromacsTopology"]

TABLES = ("bondtypes", "angletypes", "cmaptypes", "constrainttypes")
BONDED = {
    "bonds": (2, ("1", "2")),
    "angles": (3, ("1", "2", "5")),
    "dihedrals": (4, ("1", "2", "3", "4", "5", "9")),
    "cmap": (5, ("1",)),
    "pairs": (2, ("1",)),
    "constraints": (2, ("1", "2")),
}
"""Sections whose lines hold so many atoms and then one of these functions."""
PARAMETERS = {
    ("bonds", "1"): 2,
    ("bonds", "2"): 2,
    ("angles", "1"): 2,
    ("angles", "2"): 2,
    ("angles", "5"): 4,
    **{("dihedrals", function): count for function, count in DIHEDRAL_PARAMETERS.items()},
}
"""How many parameters each function takes, in the line or else from a type."""
KNOWN = {"atoms", "exclusions", "settles", *BONDED}
WITHOUT_ENERGY = {"system", "implicit_genborn_params"}
Lennard = tuple[float, float]
"""c6 (kJ/mol nm^6) and c12 (kJ/mol nm^12)."""


@dataclass
class _MoleculeType:
    name: str
    nrexcl: int
    lines: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))


class GromacsTopology:
    """The molecules of a GROMACS topology, and what their nonbonded terms must come to.

    Arguments:
        path: a .top file.

    Raises:
        InvalidInputError: what no reader here understands, with the line: sections such as [ pairs_nb ], restraints,
            virtual sites or polarization, other functions, `nrexcl` below 3, pairs that are not excluded.

    Attributes:
        rule: the combination rule: 1, 2 or 3.
        causes: parts of the file that parmed reads otherwise, as their names in the file.
        constrained: atoms that [ constraints ] of function 1 or [ settles ] join, counted through all molecules.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = read_lines(path)
        self.types: dict[str, list[str]] = {}
        self.pair_types: dict[frozenset[str], list[str]] = {}
        self.mixed: dict[frozenset[str], list[str]] = {}
        self.dihedral_types = DihedralTypes()
        self.molecule_types: dict[str, _MoleculeType] = {}
        self.molecules: list[tuple[_MoleculeType, int]] = []
        self.tables: list[Line] = []
        self.causes: set[str] = set()
        self.constrained: list[tuple[int, int]] = []
        self._sort()
        if not self.molecules:
            raise InvalidInputError(f"{path}: there is no molecule in [ molecules ]")
        self._write_out()

    def _sort(self) -> None:
        current: _MoleculeType | None = None
        defaults: Line | None = None
        unknown: list[tuple[_MoleculeType | None, Line]] = []
        for line in self.lines:
            section, fields = line.section, line.fields
            if section == "defaults":
                if defaults is not None and defaults.fields != fields:
                    raise InvalidInputError(f"{line.where}: a second [ defaults ]; include one force field")
                defaults = line
            elif section == "atomtypes":
                self.types[fields[0]] = atom_type(line)
            elif section == "pairtypes":
                _check_function(line, 2, ("1",))
                self.pair_types[frozenset(fields[:2])] = _parameters(line, 3)
            elif section == "nonbond_params":
                _check_function(line, 2, ("1",))
                self.mixed[frozenset(fields[:2])] = _parameters(line, 3)
            elif section == "dihedraltypes":
                self.dihedral_types.add(line)
            elif section in TABLES:
                self.tables.append(line)
            elif section == "moleculetype":
                if fields[0].lower() in map(str.lower, self.molecule_types):
                    raise InvalidInputError(f"{line.where}: a second [ moleculetype ] {fields[0]}; name it once")
                current = _MoleculeType(fields[0], _integer(line, 1))
                self.molecule_types[fields[0]] = current
            elif section == "molecules":
                self._add_molecules(line)
            elif section in KNOWN and current is not None:
                current.lines[section].append(line)
            elif section not in WITHOUT_ENERGY:
                unknown.append((current if section != "intermolecular_interactions" else None, line))
        used = [molecule for molecule, _ in self.molecules]
        for owner, line in unknown:
            if owner is None or owner in used:
                raise InvalidInputError(
                    f"{line.where}: the section [ {line.section} ] is not read, and leaving it out would change the "
                    "energy. Remove it if the molecule does not need it, or give a SYSTEM.xml with a PDB file"
                )
        self._set_defaults(defaults)

    def _set_defaults(self, line: Line | None) -> None:
        if line is None:
            raise InvalidInputError(f"{self.path}: there is no [ defaults ]; include the force field's forcefield.itp")
        fields = [*line.fields, *("1", "2", "no", "1.0", "1.0")[len(line.fields) :]]
        if fields[0] != "1" or fields[1] not in ("1", "2", "3"):
            raise InvalidInputError(
                f"{line.where}: nonbonded function {fields[0]} with combination rule {fields[1]} is not read; function "
                "1 (Lennard-Jones) with rules 1, 2 or 3 is. Give a SYSTEM.xml with a PDB file"
            )
        self.rule, self.generate = int(fields[1]), fields[2].lower() == "yes"
        self.fudge_lj, self.fudge_qq = float(fields[3]), float(fields[4])
        if self.rule == 1:
            self.causes.add("combination rule 1")

    def _add_molecules(self, line: Line) -> None:
        name, count = line.fields[0], _integer(line, 1)
        known = {key.lower(): key for key in self.molecule_types}
        if name.lower() not in known:
            raise InvalidInputError(f"{line.where}: there is no [ moleculetype ] {name}")
        if count > 0:
            self.molecules.append((self.molecule_types[known[name.lower()]], count))

    def _write_out(self) -> None:
        """Charges, Lennard-Jones matrices and pairs of all molecules together, and the same as text for a reader."""
        names: list[str] = []
        charges: list[float] = []
        pairs: list[tuple[int, int, Lennard]] = []
        silent: set[tuple[int, int]] = set()
        text: dict[str, list[str]] = {}
        for molecule, count in self.molecules:
            own = [_Atom.of(line, self.types) for line in molecule.lines["atoms"]]
            for number, line in enumerate(molecule.lines["atoms"], start=1):
                if _integer(line, 0) != number:
                    raise InvalidInputError(
                        f"{line.where}: atom {line.fields[0]} of [ moleculetype ] {molecule.name} stands at place "
                        f"{number}: number the atoms of each molecule 1, 2, 3, ... in their order"
                    )
            for line in (line for section in BONDED for line in molecule.lines[section]):
                _check_line(line, len(own))
            real = set(_bonds(molecule))
            own_bonds = sorted(real | set(_constrained_bonds(molecule)))
            excluded = self._excluded(molecule, len(own), own_bonds)
            own_pairs = self._pairs(molecule, own, excluded)
            text[molecule.name] = self._molecule_text(molecule, excluded, own_pairs)
            for _ in range(count):
                first = len(names)
                names += [atom.type for atom in own]
                charges += [atom.charge for atom in own]
                self.constrained += [(first + i, first + j) for i, j in own_bonds if (i, j) not in real]
                silent |= {(first + i, first + j) for i, j in excluded}
                pairs += [(first + i, first + j, self._lennard(p)) for (i, j), p in own_pairs.items()]
        for cause, there in (
            ("[ exclusions ]", any(m.lines["exclusions"] for m, _ in self.molecules)),
            ("[ pairtypes ] beside a column of bonded types", self._bonded_types(names) and bool(self.pair_types)),
            ("nrexcl above 3", any(m.nrexcl > 3 for m, _ in self.molecules)),
            ("[ nonbond_params ]", any(key <= set(names) for key in self.mixed)),
        ):
            if there:
                self.causes.add(cause)
        self._tabulate(names, np.array(charges), silent, pairs)
        self.text = self._text(text)
        self.n_atoms = len(names)

    def _bonded_types(self, names: list[str]) -> bool:
        return any(self.types[name][1] != name for name in names)

    def _excluded(self, molecule: _MoleculeType, n_atoms: int, bonds: list[tuple[int, int]]) -> set[tuple[int, int]]:
        if molecule.nrexcl < 3:
            raise InvalidInputError(
                f"{self.path}: [ moleculetype ] {molecule.name} has nrexcl {molecule.nrexcl}; atoms three bonds apart "
                "then interact fully beside their [ pairs ], which is not read. Use nrexcl 3, or give a SYSTEM.xml"
            )
        excluded = set(pairs_within(n_atoms, bonds, molecule.nrexcl))
        for line in molecule.lines["exclusions"]:
            first, *others = (_integer(line, k) - 1 for k in range(len(line.fields)))
            excluded |= {(min(first, other), max(first, other)) for other in others if other != first}
        return excluded

    def _pairs(
        self, molecule: _MoleculeType, atoms: list["_Atom"], excluded: set[tuple[int, int]]
    ) -> dict[tuple[int, int], list[str]]:
        """The pairs of one molecule, with their two parameters as the combination rule has them."""
        pairs: dict[tuple[int, int], list[str]] = {}
        for line in molecule.lines["pairs"]:
            i, j = _first_two(line)
            if (i, j) in pairs or (i, j) not in excluded:
                why = "stands there twice" if (i, j) in pairs else "is not excluded, so both interact twice"
                raise InvalidInputError(
                    f"{line.where}: the pair {i + 1} {j + 1} of [ pairs ] {why}, which is not read. Remove the line "
                    "if it is a mistake, or give a SYSTEM.xml with a PDB file"
                )
            pairs[i, j] = _parameters(line, 3) if len(line.fields) > 3 else self._pair_type(line, atoms[i], atoms[j])
        return pairs

    def _masses(self, molecule: _MoleculeType) -> Iterator[tuple[Line, float]]:
        """The lines of a molecule's atoms, with their masses in Da before they were repartitioned."""
        lines = molecule.lines["atoms"]
        masses = [_number(line.fields[7] if len(line.fields) > 7 else self.types[line.fields[1]][3]) for line in lines]
        bonds = {*_bonds(molecule), *_constrained_bonds(molecule)}
        return zip(lines, original_masses(masses, bonds), strict=True)

    def _pair_type(self, line: Line, first: "_Atom", second: "_Atom") -> list[str]:
        key = frozenset((first.type, second.type))
        if key in self.pair_types:
            return self.pair_types[key]
        if not self.generate:
            raise InvalidInputError(
                f"{line.where}: gen-pairs is no, and [ pairtypes ] lacks {first.type} {second.type}: add them there"
            )
        a, b = (float(p) for p in self._combined(first.type, second.type))
        return [repr(a * self.fudge_lj if self.rule == 1 else a), repr(b * self.fudge_lj)]

    def _combined(self, first: str, second: str) -> list[str]:
        """The two parameters of a pair of atom types, as the combination rule has them."""
        key = frozenset((first, second))
        if key in self.mixed:
            return self.mixed[key]
        (v1, w1), (v2, w2) = ([float(p) for p in self.types[t][6:8]] for t in (first, second))
        v = 0.5 * (v1 + v2) if self.rule == 2 else np.sqrt(v1 * v2)
        return [repr(float(v)), repr(float(np.sqrt(w1 * w2)))]

    def _lennard(self, parameters: list[str]) -> Lennard:
        v, w = (float(p) for p in parameters)
        return (v, w) if self.rule == 1 else (4 * w * v**6, 4 * w * v**12)

    def _tabulate(
        self, names: list[str], charges: np.ndarray, silent: set, pairs: list[tuple[int, int, Lennard]]
    ) -> None:
        kinds = {name: k for k, name in enumerate(dict.fromkeys(names))}
        table = np.array([[self._lennard(self._combined(a, b)) for b in kinds] for a in kinds])
        index = [kinds[name] for name in names]
        self._c6, self._c12 = np.moveaxis(table[np.ix_(index, index)], -1, 0).copy()
        self._products = np.outer(charges, charges)
        for i, j in silent:
            self._products[i, j] = self._c6[i, j] = self._c12[i, j] = 0.0
        for i, j, (c6, c12) in pairs:
            self._products[i, j] = self.fudge_qq * charges[i] * charges[j]
            self._c6[i, j], self._c12[i, j] = c6, c12

    def nonbonded_energy(self, positions: np.ndarray) -> float:
        """Coulomb and Lennard-Jones energy by GROMACS' rules, kJ/mol, of positions `(atoms, 3)` in nm."""
        return pair_energy(positions, self._products, self._c6, self._c12)

    def plain_text(self) -> str:
        """The file as it stands, after the preprocessor, but for masses, by which readers tell elements."""
        masses = {line.where: mass for molecule, _ in self.molecules for line, mass in self._masses(molecule)}
        text, section = [], ""
        for line in self.lines:
            if line.section != section or section == "moleculetype":
                section = line.section
                text.append(f"[ {section} ]")
            mass = [f"{masses[line.where]:.6f}"] if line.where in masses else line.fields[7:8]
            text.append(" ".join([*line.fields[:7], *(mass if len(line.fields) > 7 else []), *line.fields[8:]]))
        return "\n".join([*text, ""])

    def _molecule_text(
        self, molecule: _MoleculeType, excluded: set[tuple[int, int]], pairs: dict[tuple[int, int], list[str]]
    ) -> list[str]:
        text = ["[ moleculetype ]", f"{molecule.name} {molecule.nrexcl}"]
        bonded = [self.types[line.fields[1]][1] for line in molecule.lines["atoms"]]
        for section in ("atoms", *BONDED, "settles"):
            lines = molecule.lines[section]
            if section == "dihedrals":
                text += [
                    f"[ {section} ]",
                    *(new for line in lines for new in self.dihedral_types.written_out(line, bonded)),
                ]
            elif section != "pairs":
                text += [f"[ {section} ]", *(" ".join(line.fields) for line in lines)]
        text += ["[ exclusions ]", *(f"{i + 1} {j + 1}" for i, j in sorted(excluded))]
        return [*text, "[ pairs ]", *(f"{i + 1} {j + 1} 1 {v} {w}" for (i, j), (v, w) in pairs.items())]

    def _text(self, molecules: dict[str, list[str]]) -> str:
        text = ["[ defaults ]", f"1 {self.rule} no {self.fudge_lj!r} {self.fudge_qq!r}", "[ atomtypes ]"]
        masses = {line.fields[1]: mass for molecule, _ in self.molecules for line, mass in self._masses(molecule)}
        text += [" ".join(with_element(fields, masses)) for fields in self.types.values()]
        if self.mixed:
            text.append("[ nonbond_params ]")
            text += [" ".join([*_two(key), "1", *parameters]) for key, parameters in self.mixed.items()]
        for line in self.tables:
            text += [f"[ {line.section} ]", " ".join(line.fields)]
        for lines in molecules.values():
            text += lines
        text += ["[ system ]", "molecule", "[ molecules ]"]
        text += [f"{molecule.name} {count}" for molecule, count in self.molecules]
        return "\n".join([*text, ""])


@dataclass
class _Atom:
    type: str
    charge: float

    @classmethod
    def of(cls, line: Line, types: dict[str, list[str]]) -> "_Atom":
        if len(line.fields) < 5 or line.fields[1] not in types:
            raise InvalidInputError(f"{line.where}: the atom {' '.join(line.fields)} has no type of [ atomtypes ]")
        kind = line.fields[1]
        charge, *lennard = line.fields[6] if len(line.fields) > 6 else types[kind][4], *types[kind][6:8]
        for number, least in ((charge, -math.inf), *((number, 0.0) for number in lennard)):
            if not least <= _number(number) < math.inf:
                raise InvalidInputError(
                    f"{line.where}: the atom {' '.join(line.fields)} has the parameter {number} (charge {charge}, "
                    f"Lennard-Jones {' '.join(lennard)} of its type): give finite numbers, Lennard-Jones ones not "
                    "negative, or a SYSTEM.xml with a PDB file"
                )
        return cls(kind, float(charge))


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _bonds(molecule: _MoleculeType) -> list[tuple[int, int]]:
    return [_first_two(line) for line in molecule.lines["bonds"]]


def _constrained_bonds(molecule: _MoleculeType) -> list[tuple[int, int]]:
    """Constraints that stand for bonds: function 1 of [ constraints ], and [ settles ]."""
    pairs = [_first_two(line) for line in molecule.lines["constraints"] if line.fields[2:3] == ["1"]]
    for line in molecule.lines["settles"]:
        oxygen = _integer(line, 0) - 1
        pairs += [(oxygen, oxygen + 1), (oxygen, oxygen + 2)]
    return pairs


def _first_two(line: Line) -> tuple[int, int]:
    i, j = sorted(_integer(line, k) - 1 for k in range(2))
    return i, j


def _check_line(line: Line, n_atoms: int) -> None:
    """See that a line of a molecule has atoms that there are, a known function, and all of its parameters or none."""
    count, functions = BONDED[line.section]
    for k in range(count):
        if not 1 <= _integer(line, k) <= n_atoms:
            raise InvalidInputError(f"{line.where}: there is no atom {line.fields[k]}: the molecule has {n_atoms}")
    _check_function(line, count, functions)
    needed, given = PARAMETERS.get((line.section, line.fields[count]), 0), len(line.fields) - count - 1
    if 0 < given < needed:
        raise InvalidInputError(f"{line.where}: {' '.join(line.fields)} has {given} parameters of {needed}")


def _check_function(line: Line, n_atoms: int, functions: tuple[str, ...]) -> None:
    function = line.fields[n_atoms] if len(line.fields) > n_atoms else "(none)"
    if function not in functions:
        raise InvalidInputError(
            f"{line.where}: function {function} of [ {line.section} ] is not read; {', '.join(functions)} "
            f"{'is' if len(functions) == 1 else 'are'}. Give a SYSTEM.xml with a PDB file"
        )


def _parameters(line: Line, start: int) -> list[str]:
    """The two parameters that follow the function."""
    found = line.fields[start : start + 2]
    if len(found) < 2:
        raise InvalidInputError(f"{line.where}: {' '.join(line.fields)} lacks a parameter")
    return found


def _integer(line: Line, column: int) -> int:
    try:
        return int(line.fields[column])
    except (IndexError, ValueError) as error:
        raise InvalidInputError(
            f"{line.where}: {' '.join(line.fields)} has no number in column {column + 1}"
        ) from error


def _two(key: frozenset[str]) -> list[str]:
    names = sorted(key)
    return names if len(names) == 2 else names * 2
