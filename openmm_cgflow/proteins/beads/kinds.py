"""What the beads of a protein stand for: atoms, or weighted means of atoms, by kind and by name.

Martini's are centres of mass as martinize2 has them: hydrogens on aliphatic carbons do not count. Martini 3's
phenylalanine has atoms that are shared by two beads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.proteins.chain.residues import OTHER_NAMES, PUBLIC_NAMES, VARIANTS
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.chain.trace import near_cysteines
from openmm_cgflow.proteins.placing.layout import ProteinLayout

__all__ = [
    "ATOMS",
    "BEAD_KINDS",
    "TOLERANCE",
    "BeadKind",
    "BeadMapping",
    "bead_names",
    "bead_order",
    "beads_in",
    "bridged_cysteines",
    "checked_kind",
    "first_beads",
    "kind_of_names",
    "public_name",
    "rough_trace",
]

BeadKind = Literal["ca", "n-ca-c", "backbone", "martini2", "martini3", "com"]
BEAD_KINDS = get_args(BeadKind)

ATOMS: dict[str, tuple[str, ...]] = {"ca": ("CA",), "n-ca-c": ("N", "CA", "C"), "backbone": ("N", "CA", "C", "O")}
"""Beads that are atoms, of each residue in this order."""

TOLERANCE = 0.001
"""nm, within which beads are kept by relaxing."""

_BB = "N H H2 H3 CA C O OXT"
_SAME = {  # in Martini 2 and 3
    **{"CYS": ["CB SG"], "VAL": ["CB CG1 CG2"], "LEU": ["CB CG CD1 CD2"], "ILE": ["CB CG1 CG2 CD1"]},
    **{"MET": ["CB CG SD CE"], "PRO": ["CB CG CD"], "ASN": ["CB CG OD1 ND2 HD21 HD22"]},
    **{"GLN": ["CB CG CD OE1 NE2 HE21 HE22"], "ASP": ["CB CG OD1 OD2"], "GLU": ["CB CG CD OE1 OE2"]},
    **{"THR": ["CB OG1 HG1 CG2"], "SER": ["CB OG HG"], "LYS": ["CB CG CD", "CE NZ HZ1 HZ2 HZ3"], "GLY": []},
    **{"ARG": ["CB CG CD", "NE HE CZ NH1 HH11 HH12 NH2 HH21 HH22"]},
    **{"HIS": ["CB CG", "CD2 HD2 NE2 HE2", "ND1 HD1 CE1 HE1"]},
}
_MARTINI2 = _SAME | {
    "ALA": [],
    "PHE": ["CB CG CD1 HD1", "CD2 HD2 CE2 HE2", "CE1 HE1 CZ HZ"],
    "TYR": ["CB CG CD1 HD1", "CD2 HD2 CE2 HE2", "CE1 HE1 CZ OH HH"],
    "TRP": ["CB CG CD2", "CD1 HD1 NE1 HE1 CE2", "CE3 HE3 CZ3 HZ3", "CZ2 HZ2 CH2 HH2"],
}
_MARTINI3 = _SAME | {
    "ALA": ["CB"],
    "PHE": [
        "CB HB2 HB3 CG CD1:1/3 HD1:1/3 CD2:1/3 HD2:1/3",
        "CD1:2/3 HD1:2/3 CE1 HE1 CZ:1/2 HZ:1/2",
        "CD2:2/3 HD2:2/3 CE2 HE2 CZ:1/2 HZ:1/2",
    ],
    "TYR": ["CB CG", "CD1 HD1 CE1 HE1", "CD2 HD2 CE2 HE2", "CZ OH HH"],
    "TRP": ["CB CG", "CD1 HD1 NE1 HE1", "CE2 CD2", "CE3 HE3 CZ3 HZ3", "CZ2 HZ2 CH2 HH2"],
}
_TOLD = {("ALA", 1), ("TYR", 4), ("TRP", 5)}  # residues whose number of side chain's beads is that of Martini 3 alone
_TELLING = {name for name, _ in _TOLD}
_BRIDGED = {"ca": (0.38, 0.68), "com": (0.30, 0.56), "SC1": (0.18, 0.30)}  # nm, of a disulfide, by its geometry
_APART = 5  # residues, of cysteines whose alpha carbons or centres of mass are near
_NOT_READ = {"SCP", "SCN", "DIP", "DIM", "DBB"}  # dipoles of polarisable Martini


def checked_kind(beads: str) -> Literal["auto"] | BeadKind:
    """The kind of beads; refuse what is none.

    Raises:
        InvalidInputError: with the kinds that there are.
    """
    if beads not in ("auto", *BEAD_KINDS):
        raise InvalidInputError(f"beads are {beads!r}; give {', '.join(map(repr, BEAD_KINDS))} or 'auto'")
    return beads  # type: ignore[return-value]


def public_name(residue: str) -> str:
    """The name in a PDB file of a residue that is named by its variant, or by another program."""
    known = OTHER_NAMES.get(residue, residue)
    return PUBLIC_NAMES.get(known, known)


def bead_names(kind: str, residue: str) -> list[str]:
    """Names of the beads of a residue, in order."""
    if kind in ATOMS:
        return list(ATOMS[kind])
    if kind == "com":
        return ["COM"]
    sides = (_MARTINI2 if kind == "martini2" else _MARTINI3)[public_name(VARIANTS.get(residue, residue))]
    return ["BB", *(f"SC{k}" for k in range(1, len(sides) + 1))]


def kind_of_names(residues: Sequence[tuple[str, Sequence[str]]]) -> BeadKind:
    """The kind of beads that names tell; alpha carbons where there are more atoms than those of a backbone.

    Arguments:
        residues: the name of each residue of the protein, and those of its beads.

    Raises:
        InvalidInputError: Martini 2 and 3 have the same names in these residues, or they are of a polarisable model.
    """
    every = {name for _, names in residues for name in names}
    if every & _NOT_READ:
        raise InvalidInputError(
            f"beads {', '.join(sorted(every & _NOT_READ))} are of a polarisable Martini; take BB, SC1, ... alone, and "
            "say beads='martini2'"
        )
    if "BB" in every:
        if any((public_name(name), len(names) - 1) in _TOLD for name, names in residues):
            return "martini3"
        if any(public_name(name) in _TELLING for name, _ in residues):
            return "martini2"
        raise InvalidInputError(
            "these residues have the same beads in Martini 2 and 3 (ALA, TYR and TRP differ, and there is none); say "
            "beads='martini2' or beads='martini3' (--beads on the command line)"
        )
    if every == {"COM"}:
        return "com"
    names = [set(found) - {"OXT"} for _, found in residues]
    return next((k for k in ("n-ca-c", "backbone") if all(set(ATOMS[k]) == found for found in names)), "ca")


@dataclass(frozen=True)
class BeadMapping:
    """Beads as weighted means of atoms, residue by residue.

    Attributes:
        kind: of the beads.
        residue: `(beads,)`, of each.
        names: of each.
        bead: `(entries,)`, one entry for each atom of each bead.
        atom: `(entries,)`.
        weight: `(entries,)`; those of a bead sum to 1.
    """

    kind: BeadKind
    residue: Tensor
    names: tuple[str, ...]
    bead: Tensor
    atom: Tensor
    weight: Tensor

    @classmethod
    def of(cls, layout: ProteinLayout, kind: BeadKind) -> "BeadMapping":
        """The beads of a protein."""
        masses = [a.element.mass.value_in_unit(unit.dalton) for a in layout.topology.atoms()]
        residues, bead, atom, weight = [], [], [], []
        names: list[str] = []
        for k, residue in enumerate(layout.sequence.residues):
            index = layout.index[k]
            for name, parts in _parts(kind, residue.variant, list(index)):
                there = [(index[a], masses[index[a]] * share) for a, share in parts if a in index]
                total = sum(mass for _, mass in there)
                bead += [len(names)] * len(there)
                atom += [a for a, _ in there]
                weight += [mass / total for _, mass in there]
                residues.append(k)
                names.append(name)
        return cls(
            kind,
            torch.tensor(residues),
            tuple(names),
            torch.tensor(bead),
            torch.tensor(atom),
            torch.tensor(weight, dtype=torch.float64),
        )

    def __len__(self) -> int:
        return len(self.names)

    def beads_of(self, x: Tensor) -> Tensor:
        """Beads `(..., beads, 3)` of atoms `(..., atoms, 3)`."""
        made = x.new_zeros(*x.shape[:-2], len(self), 3)
        parts = self.weight.to(x)[:, None] * x.index_select(-2, self.atom.to(x.device))
        return made.index_add(-2, self.bead.to(x.device), parts)


def _parts(kind: BeadKind, variant: str, atoms: list[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Names of beads, and their atoms with the share of the mass that counts."""
    if kind in ATOMS:
        return [(name, [(name, 1.0)]) for name in ATOMS[kind]]
    if kind == "com":
        return [("COM", [(name, 1.0) for name in atoms])]
    public = public_name(variant)
    sides = (_MARTINI2 if kind == "martini2" else _MARTINI3)[public]
    first = f"{_BB} CB" if public == "ALA" and kind == "martini2" else _BB
    return [
        (name, [_share(part) for part in text.split()])
        for name, text in zip(bead_names(kind, variant), [first, *sides], strict=True)
    ]


def _share(part: str) -> tuple[str, float]:
    name, _, share = part.partition(":")
    return name, float(Fraction(share or "1"))


def bridged_cysteines(beads: np.ndarray, sequence: ProteinSequence, kind: BeadKind) -> list[tuple[int, int]]:
    """Cysteines whose beads `(frames, beads, 3)`, nm, are in the first frame as near as those of a disulfide.

    By alpha carbons or centres of mass of residues it is a guess; SC1 of Martini, two atoms each, are at 0.24 nm.
    """
    if kind not in ("martini2", "martini3"):
        reach = _BRIDGED["com" if kind == "com" else "ca"]
        return near_cysteines(sequence, rough_trace(beads, sequence, kind)[0], reach, _APART)
    has = np.array([len(bead_names(kind, residue.variant)) > 1 for residue in sequence.residues])
    return near_cysteines(sequence, beads[0, first_beads(sequence, kind) + has], _BRIDGED["SC1"], 1)


def rough_trace(beads: np.ndarray, sequence: ProteinSequence, kind: BeadKind) -> np.ndarray:
    """Alpha carbons, or the bead of each residue that is nearest to them, `(frames, residues, 3)`."""
    if kind in ATOMS:
        return beads[:, :, 1] if beads.ndim == 4 else beads
    return beads[:, first_beads(sequence, kind)]


def beads_in(
    protein: Any,  # noqa: ANN401
    sequence: ProteinSequence,
    beads: Literal["auto"] | BeadKind,
    all_atoms: bool,
) -> tuple[BeadKind, np.ndarray | None]:
    """The kind of beads, and where each of them is among the atoms of the Topology that was given.

    Arguments:
        protein: as `ProteinBackmapper` takes it.
        sequence: what was read from it.
        beads: the kind, or `"auto"` for what names tell.
        all_atoms: whether it has all atoms, which are no beads.

    Raises:
        InvalidInputError: a bead of this kind is not there, by residue.
    """
    if hasattr(protein, "to_openmm"):
        protein = protein.to_openmm()
    if all_atoms or not hasattr(protein, "atoms"):
        return ("ca" if beads == "auto" else beads), None
    residues = [{atom.name: atom.index for atom in residue.atoms()} for residue in protein.residues()]
    kind = (
        kind_of_names([(r.label.split()[0], list(names)) for r, names in zip(sequence.residues, residues, strict=True)])
        if beads == "auto"
        else beads
    )
    return kind, None if kind == "ca" else bead_order(residues, sequence, kind)


def bead_order(residues: Sequence[dict[str, int]], sequence: ProteinSequence, kind: BeadKind) -> np.ndarray:
    """Indices of beads, by name, residue by residue, `(beads,)`.

    Raises:
        InvalidInputError: one is missing, or a bead is there that this kind has not.
    """
    order = []
    for residue, found in zip(sequence.residues, residues, strict=True):
        wanted = bead_names(kind, residue.variant)
        if kind == "com" and len(found) == 1:
            wanted = list(found)
        missing = [name for name in wanted if name not in found]
        odd = [name for name in found if name not in wanted and kind not in ATOMS]
        if missing or odd:
            raise InvalidInputError(
                f"{residue.label} {'lacks the bead ' + missing[0] if missing else 'has the bead ' + odd[0]}, "
                f"{'which beads of kind' if missing else 'which no beads of kind'} {kind!r} have: it has "
                f"{', '.join(found)}; see whether beads= is right (here it would be {', '.join(wanted)})"
            )
        order += [found[name] for name in wanted]
    return np.array(order)


def first_beads(sequence: ProteinSequence, kind: str) -> np.ndarray:
    """Index of the first bead of each residue, `(residues,)`."""
    counts = [len(bead_names(kind, residue.variant)) for residue in sequence.residues]
    return np.cumsum([0, *counts[:-1]])
