"""What protein it is: chains of residues, read from a sequence or a Topology, with everything refused by name."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.proteins.chain.residues import CHI, ONE_LETTER, OTHER_NAMES, REFUSED, VARIANTS

__all__ = ["ProteinSequence", "Residue"]

_log = logging.getLogger("openmm_cgflow")
_STANDARD = {*ONE_LETTER.values(), *CHI, "ALA", "GLY", "PRO"}
_MET_OF = {"MSE": "MET"}
_CHAINS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Residue:
    """One residue.

    Attributes:
        variant: its template's name, such as `HIE`.
        chain: number of its chain.
        label: how messages call it, such as `LYS 12 of chain A`.
        number: of the residue, as text.
        chain_name: of its chain.
        insertion: code after the number, such as `A` of 100A; empty for none.
    """

    variant: str
    chain: int
    label: str
    number: str
    chain_name: str
    insertion: str = ""


@dataclass(frozen=True)
class ProteinSequence:
    """The residues of a protein, chain by chain.

    Attributes:
        residues: all of them, in the order of the trace.

    Example:
        >>> [residue.variant for residue in ProteinSequence.of("GH/AC").residues]
        ['GLY', 'HIE', 'ALA', 'CYS']
    """

    residues: tuple[Residue, ...]

    def __len__(self) -> int:
        return len(self.residues)

    @property
    def lengths(self) -> list[int]:
        """Number of residues of each chain."""
        n_chains = self.residues[-1].chain + 1
        return [sum(residue.chain == k for residue in self.residues) for k in range(n_chains)]

    def following(self, k: int) -> str | None:
        """The variant of the residue after residue `k`, None at the end of its chain."""
        after = self.residues[k + 1] if k + 1 < len(self) else None
        return after.variant if after is not None and after.chain == self.residues[k].chain else None

    def end(self, k: int) -> str | None:
        """`"N"` for the first residue of a chain, `"C"` for the last one, None for others."""
        return "N" if self.is_first(k) else "C" if self.is_last(k) else None

    def is_first(self, k: int) -> bool:
        """Whether residue `k` begins its chain."""
        return k == 0 or self.residues[k - 1].chain != self.residues[k].chain

    def is_last(self, k: int) -> bool:
        """Whether residue `k` ends its chain."""
        return k + 1 == len(self) or self.residues[k + 1].chain != self.residues[k].chain

    @property
    def followed(self) -> np.ndarray:
        """`(residues - 1,)`: whether the next residue is of the same chain."""
        return np.array([not self.is_last(k) for k in range(len(self) - 1)], dtype=bool)

    @property
    def inner(self) -> list[int]:
        """The residues that neither begin nor end a chain."""
        return [k for k in range(len(self)) if self.end(k) is None]

    @classmethod
    def of(cls, source: Any) -> "ProteinSequence":  # noqa: ANN401
        """Read a sequence.

        Arguments:
            source: one-letter codes, chains divided by `/`, on as many lines as there are; a list of names of three
                letters, or a list of such lists, one for each chain; an OpenMM or mdtraj Topology, of alpha carbons or
                of more; or a `ProteinSequence`.

        Raises:
            InvalidInputError: for what is no residue that can be built, by name, with the way out.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str):
            chains = ["".join(part.split()) for part in source.split("/")]
            return cls._named([_letters(chain) for chain in chains if chain])
        if hasattr(source, "to_openmm"):
            source = source.to_openmm()
        if hasattr(source, "chains") and hasattr(source, "atoms"):
            return cls._of_topology(source)
        if isinstance(source, Sequence) and source:
            lists = [source] if isinstance(source[0], str) else source
            return cls._named([list(map(str, names)) for names in lists])
        raise InvalidInputError(
            f"a protein is given as {type(source).__name__}; give its sequence in one-letter codes, such as "
            '"GSHMKV", names of residues, or a Topology'
        )

    @classmethod
    def _named(cls, chains: list[list[str]]) -> "ProteinSequence":
        rows = [
            (name, k, str(i), _CHAINS[k % 26], "")
            for k, chain in enumerate(chains)
            for i, name in enumerate(chain, start=1)
        ]
        return cls._checked(rows)

    @classmethod
    def _of_topology(cls, topology: Any) -> "ProteinSequence":  # noqa: ANN401
        rows, strange, number = [], [], -1
        for chain in topology.chains():
            begun, before, repeated = False, None, 0
            for residue in chain.residues():
                names = [atom.name for atom in residue.atoms()]
                known = residue.name in _STANDARD or residue.name in OTHER_NAMES or residue.name in REFUSED
                if not {"CA", "BB"} & set(names) and not (known and len(names) == 1):
                    if known and residue.name not in ("ACE", "NME", "NH2"):
                        raise InvalidInputError(
                            f"{residue.name} {residue.id} of chain {chain.id} has no atom CA; give one bead for each "
                            "residue, named CA (or BB, of Martini), or leave the residue out and end the chain there"
                        )
                    strange.append(f"{residue.name} {residue.id}")
                    continue
                if not known and len(names) == 1 and names[0] == "CA" and residue.name in ("CA", "CAL"):
                    strange.append(f"{residue.name} {residue.id}")  # calcium
                    continue
                number += not begun
                _refuse_gap(before, residue, chain)
                name = _with_hydrogens(residue.name, set(names))
                code = residue.insertionCode.strip()
                same = before is not None and before.id == residue.id and not before.insertionCode.strip()
                repeated = repeated + 1 if same and not code else 0
                code = code or ("", *_CHAINS)[repeated % 27]  # mdtraj drops codes: 100, 100A are both 100
                rows.append((name, number, residue.id, chain.id or "A", code))
                begun, before = True, residue
        if strange:
            raise InvalidInputError(
                f"{len(strange)} residues are no part of a protein ({', '.join(strange[:5])}): caps, ligands, ions and "
                "waters are not built; take the protein alone, for instance "
                "trajectory.atom_slice(trajectory.topology.select('protein'))"
            )
        return cls._checked(rows)

    @classmethod
    def _checked(cls, rows: list[tuple[str, int, str, str, str]]) -> "ProteinSequence":
        residues = []
        for name, chain, number, chain_name, insertion in rows:
            label = f"{name} {number}{insertion} of chain {chain_name}"
            if name in REFUSED:
                raise InvalidInputError(f"{label} is {REFUSED[name]}")
            known = OTHER_NAMES.get(name, name)
            if known not in _STANDARD:
                raise InvalidInputError(
                    f"{label} is no standard amino acid, and there is no template for it; rename it to the one that "
                    "shall be built in its place, or leave its chain out"
                )
            if name in _MET_OF:
                _log.warning("%s is built as %s", label, known)
            residues.append(Residue(VARIANTS.get(known, known), chain, label, number, chain_name, insertion))
        if not residues:
            raise InvalidInputError("the protein has no residues; give at least two of a chain")
        sequence = cls(tuple(residues))
        for k, length in enumerate(sequence.lengths):
            if length < 2:
                alone = next(residue.label for residue in residues if residue.chain == k)
                raise InvalidInputError(
                    f"{alone} is alone in its chain: peptide planes lie between two alpha carbons; give chains of at "
                    "least two residues"
                )
        return sequence


def _letters(part: str) -> list[str]:
    names = []
    for place, letter in enumerate(part, start=1):
        if letter not in ONE_LETTER:
            why = (
                "lower case is for D-amino acids, which are not built; write" if letter.upper() in ONE_LETTER else "use"
            )
            raise InvalidInputError(
                f"the sequence has {letter!r} at place {place} of {part[:30]!r}: {why} {', '.join(ONE_LETTER)}, and / "
                "between chains"
            )
        names.append(ONE_LETTER[letter])
    return names


def _refuse_gap(before: Any, residue: Any, chain: Any) -> None:  # noqa: ANN401
    """Numbers of residues that are left out within a chain: beads are missing there."""
    if before is None or not (str(before.id).lstrip("-").isdecimal() and str(residue.id).lstrip("-").isdecimal()):
        return
    gap = int(residue.id) - int(before.id)
    if gap > 1 or (gap < 0):
        raise InvalidInputError(
            f"between {before.name} {before.id} and {residue.name} {residue.id} of chain {chain.id} "
            f"{'residues are missing' if gap > 1 else 'numbers go back'}: give their beads as well, or end the chain "
            "there (another chain name, or TER), so that charged termini are built"
        )


def _with_hydrogens(name: str, atoms: set[str]) -> str:
    """The variant that the hydrogens of an all-atom residue tell."""
    if name == "HIS" and {"HD1", "HE2"} & atoms:
        return "HIP" if {"HD1", "HE2"} <= atoms else "HID" if "HD1" in atoms else "HIE"
    if name == "CYS" and "SG" in atoms and "HB2" in atoms and "HG" not in atoms:
        return "CYX"
    if name == "ASP" and "HD2" in atoms:
        return "ASH"
    if name == "GLU" and "HE2" in atoms:
        return "GLH"
    if name == "LYS" and "HZ3" in atoms and "HZ1" not in atoms:
        return "LYN"
    return name
