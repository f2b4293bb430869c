"""The bonds of a Topology held against those of its System."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import networkx
import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.errors import InvalidInputError

__all__ = [
    "BondLength",
    "atomic_numbers",
    "bond_lengths",
    "bonds_of",
    "check_bonds",
    "constraints_of",
    "covalent_length",
    "measured_bonds",
]

# Covalent radii, nm (Cordero et al. 2008, doi:10.1039/b801115j), by atomic number; others: 0.15
_RADII = {
    **{1: 0.031, 3: 0.128, 4: 0.096, 5: 0.084, 6: 0.076, 7: 0.071, 8: 0.066, 9: 0.057, 11: 0.166, 12: 0.141},
    **{13: 0.121, 14: 0.111, 15: 0.107, 16: 0.105, 17: 0.102, 19: 0.203, 20: 0.176, 22: 0.160, 23: 0.153, 24: 0.139},
    **{25: 0.139, 26: 0.132, 27: 0.126, 28: 0.124, 29: 0.132, 30: 0.122, 31: 0.122, 32: 0.120, 33: 0.119, 34: 0.120},
    **{35: 0.120, 44: 0.146, 45: 0.142, 46: 0.139, 47: 0.145, 48: 0.144, 50: 0.139, 52: 0.138, 53: 0.139, 78: 0.136},
    **{79: 0.136, 80: 0.132},
}
_COVALENT = 1.25  # times the sum of the radii: a term at that length or less is a bond, not a 1-3 or 1-4 pair
_LOOSE = 1.4  # times the sum: without terms, a longer bond is none
_TIGHT = 1.1  # times the sum: without terms, atoms that are closer are bonded
_SOFT = 20_000.0  # kJ/mol/nm^2: a weaker spring between atoms that are far from one another pulls, and is no bond
_HOT = 12.5  # kJ/mol: kT at 1,500 K
_WIDTHS = 8.0
_SHOWN = 4
# forces that may hold bonds in a form that cannot be read
_OPAQUE = ("PythonForce", "TorchForce", "CustomCVForce", "CustomCompoundBondForce", "CustomCentroidBondForce", "Force")


@dataclass(frozen=True)
class BondLength:
    """What is expected of the length of a bond, nm.

    Attributes:
        expected: at rest.
        width: eight thermal widths at 1,500 K; 0 where its strength is not known.
    """

    expected: float
    width: float

    @property
    def stiff(self) -> bool:
        """Whether it is a bond between atoms, and no soft spring between beads."""
        return self.width < self.expected

    def slack(self, share: float) -> float:
        """By how much the bond may be off, nm: a share of its length, or its eight thermal widths if that is more."""
        return max(share * self.expected, self.width)


@dataclass(frozen=True)
class _Term:
    """A spring between two atoms: length in nm (None where the form is free) and strength in kJ/mol/nm^2."""

    length: float | None
    strength: float


def constraints_of(system: openmm.System) -> dict[tuple[int, int], float]:
    """Constrained distances of a System, nm, by pairs of atoms."""
    found = {}
    for k in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(k)
        found[bond_key(i, j)] = distance.value_in_unit(unit.nanometer)
    return found


def atomic_numbers(topology: app.Topology, system: openmm.System) -> list[int]:
    """The atomic number of each atom; of those without an element that of the nearest mass."""
    elements = [
        atom.element or app.Element.getByMass(system.getParticleMass(i).value_in_unit(unit.dalton))
        for i, atom in enumerate(topology.atoms())
    ]
    return [element.atomic_number if element is not None else 0 for element in elements]


def covalent_length(first: int, second: int) -> float:
    """The sum of the covalent radii of two elements, by atomic number, nm."""
    return _RADII.get(first, 0.15) + _RADII.get(second, 0.15)


def bond_lengths(
    bonds: Iterable[tuple[int, int]], system: openmm.System, numbers: list[int], x: np.ndarray | None
) -> dict[tuple[int, int], BondLength]:
    """What is expected of each bond: by its spring or constraint, else by a structure, else by the elements.

    Arguments:
        bonds: pairs of atoms.
        system: the System.
        numbers: atomic numbers.
        x: `(atoms, 3)`, nm, a sound structure; None if there is none yet.
    """
    terms = _terms(system)
    found = {}
    for i, j in bonds:
        springs = [term for term in terms.get(bond_key(i, j), []) if term.length]
        strength = sum(term.strength for term in springs)
        if springs:
            length = sum(term.strength * (term.length or 0.0) for term in springs) / strength
        elif x is not None:
            length = float(np.linalg.norm(x[i] - x[j]))
        else:
            length = covalent_length(numbers[i], numbers[j])
        width = _WIDTHS * (_HOT / strength) ** 0.5 if springs else 0.0
        found[bond_key(i, j)] = BondLength(length, width)
    return found


def measured_bonds(ours: set[tuple[int, int]], system: openmm.System, numbers: list[int]) -> set[tuple[int, int]]:
    """Bonds whose lengths show whether a structure is whole and in order, whatever the Topology has wrong.

    Arguments:
        ours: bonds of the Topology.
        system: the System.
        numbers: atomic numbers.
    """
    terms, theirs = _terms(system), bonds_of(system, numbers, None)
    return theirs | (ours & terms.keys() if terms and not _opaque(system) else ours)


def check_bonds(molecule: Molecule, system: openmm.System, numbers: list[int]) -> None:
    """Refuse bonds of a Topology that its System contradicts.

    The System's bonds are its springs and constraints at the length of a covalent bond; longer ones are 1-3 and 1-4
    pairs or restraints. Where it has none (machine-learned energies), distances decide.

    Arguments:
        molecule: the graph of the Topology, and positions.
        system: the System.
        numbers: atomic numbers.

    Raises:
        InvalidInputError: naming the bonds that are missing from the Topology, or in it by mistake.
    """
    ours, x = set(molecule.bonds()), molecule.positions
    theirs = bonds_of(system, numbers, x)
    joined = networkx.Graph(theirs)
    # a longer spring is a bond too (between coarse beads), unless it joins two neighbours of one atom
    springs = {
        (i, j)
        for i, j in _terms(system)
        if not (i in joined and j in joined and any(networkx.common_neighbors(joined, i, j)))
    }
    readable = bool(theirs) and not _opaque(system)

    def ratio(pair: tuple[int, int]) -> float:
        return float(np.linalg.norm(x[pair[0]] - x[pair[1]])) / covalent_length(numbers[pair[0]], numbers[pair[1]])

    unsupported = [pair for pair in sorted(ours - theirs - springs) if readable or ratio(pair) > _LOOSE]
    missing = sorted(theirs - ours)
    if not readable:
        held = {atom for pair in theirs for atom in pair}
        near = {pair for pair in combinations(range(len(numbers)), 2) if not held.issuperset(pair)}
        missing = sorted(set(missing) | {pair for pair in near - ours if ratio(pair) < _TIGHT})
    source = "the System" if theirs else "the distances between the atoms (the System has no terms of bonds)"
    fix = "give bonds='system' (--bonds system) to take the bonds from the System, or " if theirs else ""
    if missing:
        raise InvalidInputError(
            f"by {source}, {_listed(molecule, missing)} {_are(missing)} bonded, but not in the Topology "
            f"(lost CONECT records are a usual reason); {fix}add {_it(missing)} with topology.addBond"
        )
    if unsupported:
        raise InvalidInputError(
            f"{_listed(molecule, unsupported)} {_are(unsupported)} bonded in the Topology, but not by {source}; "
            f"{fix}take {_it(unsupported)} out of the Topology"
        )


def _are(pairs: list[tuple[int, int]]) -> str:
    return "is" if len(pairs) == 1 else "are"


def _it(pairs: list[tuple[int, int]]) -> str:
    return "it" if len(pairs) == 1 else "them"


def _listed(molecule: Molecule, pairs: list[tuple[int, int]]) -> str:
    x = molecule.positions
    named = [
        f"{molecule.label(i)}-{molecule.label(j)} ({np.linalg.norm(x[i] - x[j]):.3f} nm)" for i, j in pairs[:_SHOWN]
    ]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return ", ".join(named) + more


def bonds_of(system: openmm.System, numbers: list[int], x: np.ndarray | None) -> set[tuple[int, int]]:
    """Bonds of a System: pairs with a spring or constraint at the length of a covalent bond, and no weak pull.

    Arguments:
        system: the System.
        numbers: atomic numbers.
        x: `(atoms, 3)`, nm; tells bonds from 1-4 pairs where a force has no lengths. None leaves these out.
    """
    found = set()
    for (i, j), terms in _terms(system).items():
        covalent = covalent_length(numbers[i], numbers[j])
        now = np.inf if x is None else float(np.linalg.norm(x[i] - x[j]))
        near = now < _LOOSE * covalent
        lengths = [
            now if t.length is None else t.length for t in terms if t.length is None or t.strength > _SOFT or near
        ]
        if any(0.5 * covalent < length < _COVALENT * covalent for length in lengths):
            found.add((i, j))
    return found


def _terms(system: openmm.System) -> dict[tuple[int, int], list[_Term]]:
    """Springs and constraints by pairs of atoms."""
    found: dict[tuple[int, int], list[_Term]] = {}
    for pair, length in constraints_of(system).items():
        found.setdefault(pair, []).append(_Term(length, 1e8))
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, length, strength = force.getBondParameters(k)
                value = strength.value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
                if value > 0:
                    found.setdefault(bond_key(i, j), []).append(_Term(length.value_in_unit(unit.nanometer), value))
        elif isinstance(force, openmm.CustomBondForce):
            for k in range(force.getNumBonds()):
                i, j, _ = force.getBondParameters(k)
                found.setdefault(bond_key(i, j), []).append(_Term(None, 0.0))
    return found


def _opaque(system: openmm.System) -> bool:
    """Whether some force may hold bonds in a form that cannot be read."""
    return any(type(force).__name__ in _OPAQUE for force in system.getForces())
