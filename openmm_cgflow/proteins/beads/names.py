"""Beads that come with names: these tell their order, and are refused where they are of another protein."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_cgflow.atom_matching import atom_label, order_by_names
from openmm_cgflow.errors import MismatchError
from openmm_cgflow.proteins.beads.kinds import BeadKind, bead_names, public_name
from openmm_cgflow.proteins.chain.residues import ONE_LETTER
from openmm_cgflow.proteins.chain.sequence import ProteinSequence

__all__ = ["NamedBead", "named_beads", "order_of_beads"]

_STANDARD = set(ONE_LETTER.values())
_TOLD_APART = ({"N", "CA", "C", "O"}, {"BB", "SC1", "SC2", "SC3", "SC4", "SC5"})


@dataclass(frozen=True)
class _NamedResidue:
    name: str
    id: str
    index: int


@dataclass(frozen=True)
class NamedBead:
    """A bead or atom by its names alone, as `order_by_names` takes it; variants of a residue have one name."""

    name: str
    residue: _NamedResidue
    element: None = None


def named_beads(sequence: ProteinSequence, kind: BeadKind) -> list[NamedBead]:
    """Beads of a protein, residue by residue."""
    return [
        NamedBead(name, _NamedResidue(public_name(residue.variant), residue.number + residue.insertion, k))
        for k, residue in enumerate(sequence.residues)
        for name in bead_names(kind, residue.variant)
    ]


def order_of_beads(
    ours: Sequence[Any], theirs: Sequence[Any], numbered: bool, what: str, used: Sequence[int] | None = None
) -> np.ndarray | None:
    """Where each of our atoms is among theirs, `(atoms,)`, if names tell; None if they are in one order, or do not.

    Arguments:
        ours: beads or atoms, of OpenMM, of mdtraj, or `NamedBead`.
        theirs: as many.
        numbered: whether numbers of residues tell as well.
        what: where theirs come from, for messages.
        used: those of ours that are beads; all by default.

    Raises:
        MismatchError: a bead is of another residue, or another one of it, in every order that names tell.
    """
    plain_ours, plain_theirs = ([_plain(atom, numbered) for atom in atoms] for atoms in (ours, theirs))
    order = order_by_names(plain_ours, plain_theirs)
    if order is None:
        order = np.arange(len(ours))
    for k in range(len(ours)) if used is None else used:
        if _is_other(plain_ours[k], plain_theirs[order[k]]):
            raise MismatchError(
                f"{what} has {atom_label(theirs[order[k]])} where {atom_label(ours[k])} is expected, and names do not "
                "tell another order: give the beads of this protein, or positions without names if these are wrong"
            )
    return None if (order == np.arange(len(order))).all() else order


def _plain(atom: Any, numbered: bool) -> NamedBead:  # noqa: ANN401
    if isinstance(atom, NamedBead) and numbered:
        return atom
    residue = atom.residue
    number = (
        f"{residue.id}{getattr(residue, 'insertionCode', '').strip()}" if hasattr(residue, "id") else residue.resSeq
    )
    name = public_name(residue.name)
    return NamedBead(atom.name, _NamedResidue(name, str(number if numbered else residue.index), residue.index))


def _is_other(a: NamedBead, b: NamedBead) -> bool:
    """Whether names of two beads contradict each other: unknown ones do not, nor does BB where CA is expected."""
    residues, atoms = {a.residue.name, b.residue.name}, {a.name, b.name}
    known = residues <= _STANDARD
    return known and (len(residues) > 1 or (len(atoms) > 1 and any(atoms <= names for names in _TOLD_APART)))
