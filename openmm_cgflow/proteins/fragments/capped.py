"""Residues with caps, such as Ace-Leu-Nme, built from nothing: their Topology, System and one structure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError

__all__ = ["FRAGMENTS", "Capped", "Fragment", "build_capped", "fragment_named"]

_SIDE_CHAINS: dict[str, str] = {
    "ALA": "",
    "ARG": "CG CB CA N -65|CD CG CB CA 180|NE CD CG CB 180|CZ NE CD CG 180 124|NH1 CZ NE CD 0 120|NH2 CZ NE CD 180 120",
    "ASN": "CG CB CA N -65|OD1 CG CB CA -20 121|ND2 CG CB CA 160 117",
    "ASP": "CG CB CA N -65|OD1 CG CB CA -20 118|OD2 CG CB CA 160 118",
    "CYS": "SG CB CA N -65 114",
    "GLN": "CG CB CA N -65|CD CG CB CA 180|OE1 CD CG CB -20 121|NE2 CD CG CB 160 117",
    "GLU": "CG CB CA N -65|CD CG CB CA 180|OE1 CD CG CB -20 118|OE2 CD CG CB 160 118",
    "GLY": "",
    "HIS": "CG CB CA N -65|ND1 CG CB CA -75 122|CD2 CG CB CA 105 131|CE1 ND1 CG CB 180 108|NE2 CD2 CG CB 180 108",
    "ILE": "CG1 CB CA N -60|CG2 CB CA N 175|CD1 CG1 CB CA 170",
    "LEU": "CG CB CA N -65|CD1 CG CB CA 65|CD2 CG CB CA -175",
    "LYS": "CG CB CA N -65|CD CG CB CA 180|CE CD CG CB 180|NZ CE CD CG 180",
    "MET": "CG CB CA N -65|SD CG CB CA 180|CE SD CG CB 180 100",
    "PHE": "CG CB CA N -65|CD1 CG CB CA 90 121|CD2 CG CB CA -90 121|CE1 CD1 CG CB 180 121|CE2 CD2 CG CB 180 121"
    "|CZ CE1 CD1 CG 0 120",
    "PRO": "CG CB CA N -25 104|CD CG CB CA 35 104",
    "SER": "OG CB CA N -65",
    "THR": "OG1 CB CA N 60|CG2 CB CA N -62",
    "TRP": "CG CB CA N -65 114|CD1 CG CB CA 95 127|CD2 CG CB CA -85 127|NE1 CD1 CG CB 180 110|CE2 CD2 CG CB 180 107"
    "|CE3 CD2 CG CB 0 134|CZ2 CE2 CD2 CG 180 122|CZ3 CE3 CD2 CG 180 119|CH2 CZ2 CE2 CD2 0 117",
    "TYR": "CG CB CA N -65|CD1 CG CB CA 90 121|CD2 CG CB CA -90 121|CE1 CD1 CG CB 180 121|CE2 CD2 CG CB 180 121"
    "|CZ CE1 CD1 CG 0 120|OH CZ CE1 CD1 180 120",
    "VAL": "CG1 CB CA N 65|CG2 CB CA N -172",
}
"""Heavy atoms beyond CB: name, three placed atoms, torsion and (unless 112) angle, degrees, to be minimised."""

_RING_BONDS = {
    "HIS": [("CE1", "NE2")],
    "PHE": [("CE2", "CZ")],
    "PRO": [("CD", "N")],
    "TRP": [("NE1", "CE2"), ("CZ3", "CH2")],
    "TYR": [("CE2", "CZ")],
}
_FORMS = {"HID": "HIS", "HIE": "HIS", "HIP": "HIS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "CYX": "CYS"}
"""Protonation variants that `Modeller.addHydrogens` knows by name."""

_WITH_VARIANTS = {"HIS", "ASP", "GLU", "LYS", "CYS"}
_WHOLE = {"ALA": "ALAD"}
_LENGTHS = {"CC": 0.152, "CN": 0.142, "CO": 0.136, "CS": 0.181}  # nm
_D_FORMS = {
    *("DAL", "DAR", "DSG", "DAS", "DCY", "DGN", "DGL", "DHI", "DIL", "DLE"),
    *("DLY", "MED", "DPN", "DPR", "DSN", "DTH", "DTR", "DTY", "DVA"),
}


@dataclass(frozen=True)
class Fragment:
    """A residue with what stands for its neighbours.

    Attributes:
        name: such as `LEU`, `HIP`, `ALA-PRO` (before a proline), `N-ALA` and `C-ALA` (charged ends).
        variant: the residue, by the name of its template.
        before, after: what it is bonded to: `ACE` or nothing (a charged end); `NME`, `PRO` (and Nme after it), nothing.
    """

    name: str
    variant: str
    before: str | None = "ACE"
    after: str | None = "NME"

    @property
    def residue(self) -> str:
        """The name of the amino acid, whatever its protons."""
        return _FORMS.get(self.variant, self.variant)


@dataclass(frozen=True)
class Capped:
    """A fragment as a molecule.

    Attributes:
        topology: names as in the PDB.
        system: of the force field, without cutoff or constraints.
        positions: `(atoms, 3)` nm, near a minimum.
        middle: index of the residue in the Topology.
    """

    topology: app.Topology
    system: openmm.System
    positions: np.ndarray
    middle: int

    def atom(self, name: str, shift: int = 0) -> int | None:
        """Index of an atom of the residue, or of the one `shift` places after it; None where there is none."""
        for atom in self.topology.atoms():
            if atom.residue.index == self.middle + shift and atom.name == name:
                return atom.index
        return None


def _all() -> list[Fragment]:
    plain = [name for name in _SIDE_CHAINS if name != "HIS"]
    found = [Fragment(name, name) for name in sorted([*plain, *_FORMS])]
    found += [Fragment(f"{name}-PRO", name, after="PRO") for name in ("ALA", "GLY")]
    found += [Fragment(f"N-{name}", name, before=None) for name in ("ALA", "GLY", "PRO")]
    return found + [Fragment(f"C-{name}", name, after=None) for name in ("ALA", "GLY", "PRO")]


FRAGMENTS: dict[str, Fragment] = {fragment.name: fragment for fragment in _all()}
"""All that a library is made of: every residue and protonation variant, residues before proline, charged ends."""


def fragment_named(name: str) -> Fragment:
    """One of `FRAGMENTS`.

    Raises:
        InvalidInputError: there is none of this name.
    """
    if name in FRAGMENTS:
        return FRAGMENTS[name]
    if name in _D_FORMS:
        raise InvalidInputError(f"{name} is a D-amino acid; fragments are L-amino acids: leave it out")
    raise InvalidInputError(f"there is no fragment {name!r}; there are {', '.join(FRAGMENTS)}")


def build_capped(fragment: Fragment, forcefield: app.ForceField) -> Capped:
    """A fragment in a force field.

    Arguments:
        fragment: one of `FRAGMENTS`.
        forcefield: of any names, for OpenMM finds templates by bonds: Amber's and CHARMM's alike.

    Raises:
        InvalidInputError: the force field lacks the residue; its message is told.

    Example:
        forcefield = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
        capped = build_capped(fragment_named("LEU"), forcefield)
        flow = CGFlow(capped.topology, capped.system, capped.positions)
    """
    heavy = _Builder()
    middle = heavy.chain(fragment)
    if fragment.variant == "CYX":
        heavy.disulfide(fragment)
    modeller = app.Modeller(heavy.topology(), np.array(heavy.x) * unit.nanometer)
    variants = [_variant(fragment, residue) for residue in modeller.topology.residues()]
    modeller.addHydrogens(variants=variants)
    topology, x = modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))
    try:
        system = forcefield.createSystem(topology)
    except Exception as first:  # a plain one, where two templates fit
        topology, middle = _caps_merged(topology), 0
        system = _patched(forcefield, topology, fragment, first)
    return Capped(topology, system, _relaxed(system, x), middle)


def _patched(forcefield: app.ForceField, topology: app.Topology, fragment: Fragment, first: Exception) -> openmm.System:
    """The System of merged residues; that of alanine dipeptide is in CHARMM36 as a whole, too."""
    for templates in ({}, {r: _WHOLE[r.name] for r in topology.residues() if r.name in _WHOLE}):
        try:
            return forcefield.createSystem(topology, residueTemplates=templates)
        except Exception as error:
            reason = error
    raise InvalidInputError(f"the force field cannot make {fragment.name}: {first}; {reason}") from first


def _variant(fragment: Fragment, residue: app.topology.Residue) -> str | None:
    return fragment.variant if residue.name in _WITH_VARIANTS and residue.name == fragment.residue else None


def _relaxed(system: openmm.System, x: np.ndarray) -> np.ndarray:
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(x)
    openmm.LocalEnergyMinimizer.minimize(context, 20.0, 300)
    return np.array(context.getState(positions=True).getPositions().value_in_unit(unit.nanometer))


class _Builder:
    """Heavy atoms, placed one after the other."""

    def __init__(self) -> None:
        self.names: list[tuple[int, str]] = []
        self.residues: list[tuple[str, int]] = []
        self.x: list[np.ndarray] = []
        self.bonds: list[tuple[int, int]] = []
        self.index: dict[tuple[int, str], int] = {}

    def chain(self, fragment: Fragment) -> int:
        """One chain of the fragment's residues; gives the place of the middle one."""
        number = self.residues[-1][1] + 1 if self.residues else 0
        sequence = [*([fragment.before] if fragment.before else []), fragment.residue]
        sequence += ["PRO", "NME"] if fragment.after == "PRO" else [fragment.after] if fragment.after else []
        start = len(self.residues)
        self.residues += [(name, number) for name in sequence]
        before: tuple[tuple[int, str], ...] = ()
        for k, name in enumerate(sequence, start):
            before = self._residue(k, name, before, last=k == len(self.residues) - 1)
        return start + (fragment.before is not None)

    def _residue(self, k: int, name: str, before: tuple[tuple[int, str], ...], last: bool) -> tuple:
        if name == "ACE":
            self._seed(k, ["CH3", "C"])
            return ((k, "C"), (k, "CH3"))
        if not before:
            self._seed(k, ["N", "CA", "C"])
        else:
            c, ca = before[:2]
            beyond = before[2] if len(before) > 2 else None
            self._put((k, "N"), c, ca, beyond, 140.0, 117.0, 0.1335)
            if (c[0], "O") not in self.index:
                self._put((c[0], "O"), c, ca, (k, "N"), 180.0, 121.0, 0.123)
            self._put((k, "C" if name == "NME" else "CA"), (k, "N"), c, ca, 180.0, 122.0, 0.1449)
            if name == "NME":
                return ()
            self._put((k, "C"), (k, "CA"), (k, "N"), c, -70.0 if name == "PRO" else -80.0, 110.0, 0.1525)
        if name != "GLY":
            self._put((k, "CB"), (k, "CA"), (k, "N"), (k, "C"), -123.0, 110.0, 0.153)
        self._side_chain(k, name)
        if last:
            self._put((k, "O"), (k, "C"), (k, "CA"), (k, "N"), -40.0, 118.0, 0.125)
            self._put((k, "OXT"), (k, "C"), (k, "CA"), (k, "N"), 140.0, 118.0, 0.125)
        return ((k, "C"), (k, "CA"), (k, "N"))

    def _side_chain(self, k: int, name: str) -> None:
        for row in filter(None, _SIDE_CHAINS[name].split("|")):
            atom, b, c, d, torsion, *angle = row.split()
            degrees = float(angle[0]) if angle else 112.0
            self._put((k, atom), (k, b), (k, c), (k, d), float(torsion), degrees, _LENGTHS["C" + _other(atom, b)])
        self.bonds += [(self.index[k, i], self.index[k, j]) for i, j in _RING_BONDS.get(name, [])]

    def disulfide(self, fragment: Fragment) -> None:
        """A second chain of the same, bonded by a disulfide to the first, which is alone so far."""
        first = _Builder()
        middle = first.chain(fragment)
        moved = np.array(first.x)
        sg, cb, ca = (first.index[middle, name] for name in ("SG", "CB", "CA"))
        own = [self.x[self.index[middle, name]] for name in ("SG", "CB", "CA")]
        their_sg = _place(own[0], own[1], own[2], 80.0, 104.0, 0.204)
        their_cb = _place(their_sg, own[0], own[1], 90.0, 104.0, 0.181)
        their_ca = _place(their_cb, their_sg, own[0], 180.0, 114.0, 0.153)
        turned = _superposed(moved, moved[[sg, cb, ca]], np.array([their_sg, their_cb, their_ca]))
        shift, residues, number = len(self.x), len(self.residues), self.residues[-1][1] + 1
        self.residues += [(name, number) for name, _ in first.residues]
        for atom, (residue, name) in enumerate(first.names):
            self.index[residue + residues, name] = shift + atom
            self.names.append((residue + residues, name))
            self.x.append(turned[atom])
        self.bonds += [(i + shift, j + shift) for i, j in first.bonds]
        self.bonds.append((self.index[middle, "SG"], sg + shift))

    def _seed(self, k: int, names: Sequence[str]) -> None:
        places = [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.143, 0.0]]
        for i, name in enumerate(names):
            self._new((k, name), np.array(places[i]), None if i == 0 else (k, names[i - 1]))

    def _put(
        self,
        atom: tuple[int, str],
        b: tuple[int, str],
        c: tuple[int, str],
        d: tuple[int, str] | None,
        torsion: float,
        angle: float,
        length: float,
    ) -> None:
        at = self.x[self.index[b]], self.x[self.index[c]]
        third = self.x[self.index[d]] if d is not None else at[1] + np.array([0.0, 0.1, 0.03])
        self._new(atom, _place(*at, third, torsion, angle, length), b)

    def _new(self, atom: tuple[int, str], x: np.ndarray, bonded_to: tuple[int, str] | None) -> None:
        self.index[atom] = len(self.x)
        if bonded_to is not None:
            self.bonds.append((self.index[bonded_to], self.index[atom]))
        self.names.append(atom)
        self.x.append(x)

    def topology(self) -> app.Topology:
        """The heavy atoms; their order, residue by residue, is made that of the positions too."""
        made = app.Topology()
        chains: dict[int, app.topology.Chain] = {}
        residues = []
        for k, (name, chain) in enumerate(self.residues):
            if chain not in chains:
                chains[chain] = made.addChain()
            residues.append(made.addResidue(name, chains[chain], str(k + 1)))
        order = sorted(range(len(self.x)), key=lambda i: self.names[i][0])
        atoms = {}
        for i in order:
            residue, name = self.names[i]
            atoms[i] = made.addAtom(name, app.element.get_by_symbol(name[0]), residues[residue])
        for i, j in self.bonds:
            made.addBond(atoms[i], atoms[j])
        self.x = [self.x[i] for i in order]
        return made


def _other(first: str, second: str) -> str:
    """The element of two that is not carbon, or carbon."""
    return next((name[0] for name in (first, second) if name[0] != "C"), "C")


def _place(b: np.ndarray, c: np.ndarray, d: np.ndarray, torsion: float, angle: float, length: float) -> np.ndarray:
    """A point at a distance (nm) from b, with an angle at b with c and a torsion with d, degrees."""
    along = (b - c) / np.linalg.norm(b - c)
    normal = np.cross(along, d - c)
    normal /= np.linalg.norm(normal)
    bend, turn = np.radians(angle), np.radians(torsion)
    across = np.cos(turn) * np.cross(normal, along) + np.sin(turn) * normal
    return b + length * (-np.cos(bend) * along + np.sin(bend) * across)


def _superposed(x: np.ndarray, points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """`x (n, 3)` moved as `points (k, 3)` have to be to lie on `onto (k, 3)` (Kabsch)."""
    u, _, v = np.linalg.svd((points - points.mean(0)).T @ (onto - onto.mean(0)))
    u[:, 2] *= np.sign(np.linalg.det(u @ v))
    return (x - points.mean(0)) @ u @ v + onto.mean(0)


def _caps_merged(topology: app.Topology) -> app.Topology:
    """The same atoms, the caps made part of their neighbours' residues, as CHARMM's patches want them."""
    merged, atoms = app.Topology(), {}
    for chain in topology.chains():
        residues, made = list(chain.residues()), merged.addChain()
        inner = [residue for residue in residues if residue.name not in ("ACE", "NME")]
        wholes = {residue.index: merged.addResidue(residue.name, made, residue.id) for residue in inner}
        for residue in residues:
            near = residue
            if residue.name in ("ACE", "NME"):
                near = inner[0] if residue.name == "ACE" else inner[-1]
            for atom in residue.atoms():
                name = atom.name if near is residue else {"ACE": "Y", "NME": "T"}[residue.name] + atom.name
                atoms[atom] = merged.addAtom(name, atom.element, wholes[near.index])
    for first, second in topology.bonds():
        merged.addBond(atoms[first], atoms[second])
    return merged
