"""Axes of rotation: acyclic bonds (or linear chains of bonds) with the four atoms that name their torsion."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from openmm_cgflow.chemistry.barriers import GRID, STIFF_BARRIER, TURNING_BARRIER
from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.chemistry.turning import OtherForm

__all__ = ["Axis", "find_axes"]

_SIDE_CHAINS = {
    "chi1": ["N CA CB CG", "N CA CB CG1", "N CA CB SG", "N CA CB OG", "N CA CB OG1"],
    "chi2": [
        "CA CB CG CD",
        "CA CB CG CD1",
        "CA CB CG1 CD1",
        "CA CB CG1 CD",
        "CA CB CG OD1",
        "CA CB CG ND1",
        "CA CB CG SD",
    ],
    "chi3": ["CB CG CD NE", "CB CG CD CE", "CB CG CD OE1", "CB CG SD CE"],
    "chi4": ["CG CD NE CZ", "CG CD CE NZ"],
    "chi5": ["CD NE CZ NH1"],
}


@dataclass
class Axis:
    """A rotatable (or stiff) acyclic bond.

    Attributes:
        atoms: the torsion `(w, x, y, z)`; the axis runs from x to y.
        chain: x, the linear centres between (usually none), y.
        name: such as `ALA2:phi`, or `LIG1:C1-C2-C3-C4`.
        profile: torsion energy around it on `GRID`, kJ/mol.
        symmetric: one of its ends is a symmetric rotor such as CH3.
        others: forms that it has beside the input's, the one with the lowest barrier first; only looked for where the
            torsion terms look stiff.
    """

    atoms: tuple[int, int, int, int]
    chain: list[int]
    name: str
    profile: np.ndarray
    symmetric: bool
    others: list[OtherForm] = field(default_factory=list)

    @property
    def soft(self) -> bool:
        """Whether the torsion turns at thermal energies: by its terms, or with everything else minimised."""
        by_terms = float(np.ptp(self.profile)) <= STIFF_BARRIER
        return by_terms or any(form.barrier <= TURNING_BARRIER for form in self.others)

    @property
    def kept_from(self) -> OtherForm | None:
        """The lowest form that is left out, as the torsion is stiff; mirror images apart."""
        others = [form for form in self.others if not form.mirror]
        return None if self.soft else min(others, key=lambda form: form.energy, default=None)

    @property
    def lowest(self) -> float:
        """The rotation from the input structure to the lowest torsion energy, rad."""
        return float(GRID[np.argmin(self.profile)])

    @property
    def ends(self) -> list[tuple[int, int]]:
        """The bonds at its two ends, each as (end, its neighbour on the chain)."""
        return [(self.chain[0], self.chain[1]), (self.chain[-1], self.chain[-2])]


def find_axes(
    molecule: Molecule,
    profiles: dict[tuple[int, int], np.ndarray],
    centres: set[int],
    among: Collection[int] | None = None,
) -> list[Axis]:
    """Every axis of the molecule whose torsion can be defined, stiff ones included.

    Arguments:
        molecule: the graph.
        profiles: torsion energies, from `torsion_profiles`.
        centres: symmetric centres, from `symmetric_centres`.
        among: only torsions of which all atoms are in this set (default: all atoms).
    """
    found = []
    for x, y in sorted(profiles):
        chain = _chain(molecule, x, y)
        if chain is None:
            continue
        allowed = set(range(molecule.n_atoms) if among is None else among)
        left = [i for i in molecule.neighbours[chain[0]] if i != chain[1] and i in allowed]
        right = [i for i in molecule.neighbours[chain[-1]] if i != chain[-2] and i in allowed]
        if not left or not right or not allowed.issuperset(chain):
            continue
        profile = np.sum([profiles[bond_key(i, j)] for i, j in pairwise(chain)], axis=0)
        atoms, name = _named(molecule, left, chain, right)
        found.append(Axis(atoms, chain, name, profile, chain[0] in centres or chain[-1] in centres))
    return found


def _chain(molecule: Molecule, x: int, y: int) -> list[int] | None:
    """The axis through the bond x-y, or None where it has no torsion or another of its bonds stands for it."""
    chain = [x, y]
    while molecule.is_linear_centre(chain[-1]):
        chain.append(next(i for i in molecule.neighbours[chain[-1]] if i != chain[-2]))
    while molecule.is_linear_centre(chain[0]):
        chain.insert(0, next(i for i in molecule.neighbours[chain[0]] if i != chain[1]))
    if min(len(molecule.neighbours[chain[0]]), len(molecule.neighbours[chain[-1]])) < 2:
        return None
    if (x, y) != min(bond_key(i, j) for i, j in pairwise(chain)):
        return None
    return chain


def _rank(molecule: Molecule, atom: int, centre: int) -> tuple:
    """Heavier first, then heavier further neighbours, then the lower index."""
    further = sorted((molecule.numbers[i] for i in molecule.neighbours[atom] if i != centre), reverse=True)
    return (-molecule.numbers[atom], [-n for n in further], atom)


def _named(
    molecule: Molecule, left: list[int], chain: list[int], right: list[int]
) -> tuple[tuple[int, int, int, int], str]:
    """The four atoms and the name: the standard torsion where there is one, else the heaviest ends."""
    if len(chain) == 2:
        for ends, x, y, others in ((left, chain[0], chain[1], right), (right, chain[1], chain[0], left)):
            for w in ends:
                for z in others:
                    name = _standard_name(molecule, w, x, y, z)
                    if name:
                        return (w, x, y, z), f"{molecule.residues[_owner(molecule, name, x, y)]}:{name}"
    w = min(left, key=lambda i: _rank(molecule, i, chain[0]))
    z = min(right, key=lambda i: _rank(molecule, i, chain[-1]))
    atoms = (w, chain[0], chain[-1], z)
    return atoms, f"{molecule.residues[chain[0]]}:" + "-".join(molecule.names[i] for i in atoms)


def _owner(molecule: Molecule, name: str, x: int, y: int) -> int:
    """The atom whose residue a standard torsion belongs to: omega to that of the carbonyl carbon, as in mdtraj."""
    return x if name == "omega" or molecule.residue_index[x] == molecule.residue_index[y] else y


def _standard_name(molecule: Molecule, w: int, x: int, y: int, z: int) -> str | None:
    """The IUPAC name, if any; CHARMM's caps are CAY, CY and NT, CAT, in their neighbours' residues."""
    names = tuple(molecule.names[i] for i in (w, x, y, z))
    residue = [molecule.residue_index[i] for i in (w, x, y, z)]
    before = names[0] == "CY" or (names[0] == "C" and residue[0] != residue[1])
    after = names[3] == "NT" or (names[3] == "N" and residue[3] != residue[2])
    if before and names[1:] == ("N", "CA", "C") and len(set(residue[1:])) == 1:
        return "phi"
    if names[:3] == ("N", "CA", "C") and after and len(set(residue[:3])) == 1:
        return "psi"
    peptide = names[1:3] in (("CY", "N"), ("C", "NT")) or (names[1:3] == ("C", "N") and residue[1] != residue[2])
    carbons = ("CA", "CH3", "C", "CAT", "CAY")
    if peptide and names[0] in carbons and names[3] in carbons:
        return "omega"
    if len(set(residue)) == 1:
        text = " ".join(names)
        return next((chi for chi, patterns in _SIDE_CHAINS.items() if text in patterns), None)
    return None
