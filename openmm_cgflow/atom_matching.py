"""Atoms of a trajectory put into the order of the flow's, by their names."""

import logging
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from openmm_cgflow.errors import MismatchError

__all__ = ["atom_label", "match_atoms", "order_by_names", "same_elements", "symbol_of"]

_log = logging.getLogger("openmm_cgflow")
_SHOWN = 3  # names in a message


def match_atoms(ours: Sequence[Any], theirs: Sequence[Any], what: str = "the trajectory") -> np.ndarray | None:
    """Where each of our atoms is among theirs; names decide where they can, elements must agree.

    Atoms are told apart by residue and name. Where the names are the same set in another order, that order is found; it
    is logged. Where they are of another convention, the order is taken as it is if the elements agree; that is logged
    as a warning.

    Arguments:
        ours: atoms of an OpenMM or mdtraj Topology.
        theirs: as many atoms, of either.
        what: where theirs come from, for messages.

    Returns:
        `(atoms,)` indices into theirs, or None if the order is the same.

    Raises:
        MismatchError: elements differ, in every order that the names allow.
    """
    found = order_by_names(ours, theirs)
    if found is not None:
        if (found == np.arange(len(found))).all():
            return None
        moved = int(np.flatnonzero(found != np.arange(len(found)))[0])
        _log.info(
            "%s holds the atoms in another order; they are put into the flow's by their names (%s is atom %d there, "
            "%d here)",
            what,
            atom_label(ours[moved]),
            found[moved],
            moved,
        )
        return found
    if not same_elements(ours, theirs):
        k = next(k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not same_elements([a], [b]))
        raise MismatchError(
            f"atom {k} of {what} is {atom_label(theirs[k])} ({symbol_of(theirs[k])}), that of the flow "
            f"{atom_label(ours[k])} ({symbol_of(ours[k])}), and their names do not tell which atom is "
            "which: give this molecule, with its atoms in the flow's order or with the flow's names."
        )
    unlike = [(a, b) for a, b in zip(ours, theirs, strict=True) if _name(a) != _name(b)]
    if unlike:
        shown = ", ".join(f"{atom_label(b)} for {atom_label(a)}" for a, b in unlike[:_SHOWN])
        _log.warning(
            "%s names %d atoms differently (%s%s); its atoms are taken to be in the flow's order, for the elements "
            "agree",
            what,
            len(unlike),
            shown,
            ", ..." if len(unlike) > _SHOWN else "",
        )
    return None


def order_by_names(ours: Sequence[Any], theirs: Sequence[Any]) -> np.ndarray | None:
    """`(atoms,)` indices into theirs, where residues and names tell all atoms apart and elements agree; else None."""
    for key in _keys(ours, theirs):
        found = _order(ours, theirs, key)
        if found is not None and same_elements(ours, [theirs[k] for k in found]):
            return found
    return None


def same_elements(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether the atoms are of the same elements, one by one; those without an element agree with any."""
    numbers = ((_number(a), _number(b)) for a, b in zip(ours, theirs, strict=True))
    return all(a == b or not a or not b for a, b in numbers)


def _order(ours: Sequence[Any], theirs: Sequence[Any], key: Callable[[Any], Hashable]) -> np.ndarray | None:
    """Indices into theirs, if the key tells all atoms apart and both have the same."""
    where = {key(atom): k for k, atom in enumerate(theirs)}
    wanted = [key(atom) for atom in ours]
    if len(where) < len(theirs) or len(set(wanted)) < len(wanted) or where.keys() != set(wanted):
        return None
    return np.array([where[k] for k in wanted])


def _keys(ours: Sequence[Any], theirs: Sequence[Any]) -> list[Callable[[Any], Hashable]]:
    """What may tell atoms apart, the surest first; the place of a residue only if residues are in one order."""
    kinds = [[atom.residue.name for atom in atoms] for atoms in (ours, theirs)]
    moved = kinds[0] != kinds[1] and sorted(kinds[0]) == sorted(kinds[1])
    return [_numbered, *([] if moved else [_placed]), _named]


def _numbered(atom: Any) -> Hashable:  # noqa: ANN401
    residue = atom.residue
    return residue.name, str(residue.id if hasattr(residue, "id") else residue.resSeq), _name(atom)


def _placed(atom: Any) -> Hashable:  # noqa: ANN401
    return atom.residue.index, _name(atom)


def _named(atom: Any) -> Hashable:  # noqa: ANN401
    return atom.residue.name, _name(atom)


def _name(atom: Any) -> str:  # noqa: ANN401
    """The name, in capitals; old PDB names such as `1HB` are turned into `HB1`."""
    return re.sub(r"^(\d+)(\D.*)$", r"\2\1", atom.name.strip().upper())


def atom_label(atom: Any) -> str:  # noqa: ANN401  (of OpenMM or of mdtraj, which have no type in common)
    """How an atom is called in messages, such as `ALA2:CA`."""
    residue = atom.residue
    return f"{residue.name}{residue.id if hasattr(residue, 'id') else residue.resSeq}:{atom.name}"


def _number(atom: Any) -> int:  # noqa: ANN401
    """Atomic number; 0 for none (mdtraj's virtual site has 0 too)."""
    return atom.element.atomic_number if atom.element is not None else 0


def symbol_of(atom: Any) -> str:  # noqa: ANN401
    """The element's symbol, or that there is none; mdtraj has one that stands for none."""
    return atom.element.symbol if _number(atom) else "without an element"
