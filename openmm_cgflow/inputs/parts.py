"""What every reader shares: the files by kind, and errors that name the file."""

import contextlib
import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch  # noqa: F401  isort: skip  (before openmm, or TorchForce does not load)
import openmm
from openmm import app, unit

from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.text_files import check_encoding

__all__ = ["COMBINATIONS", "Kinds", "System", "kind_of", "read", "refuse_water", "sorted_by_kind"]

System = tuple[app.Topology, openmm.System, unit.Quantity]
"""Topology, System and positions `(atoms, 3)` in nm."""
Kinds = dict[str, list[Path]]
"""The files of a molecule by what they hold; `"positions"` is the one file with the structure."""

WATER = {"HOH", "WAT", "SOL", "H2O", "DOD", "SPC", "SPCE", "OPC"}
WATER |= {"TIP", "TIP2", "TIP3", "TIP3P", "TIP4", "TIP4P", "TIP5"}

SUFFIXES = {
    **dict.fromkeys((".prmtop", ".parm7"), "prmtop"),
    **dict.fromkeys((".inpcrd", ".rst7", ".rst", ".ncrst"), "inpcrd"),
    **dict.fromkeys((".crd", ".cor"), "crd"),
    ".gro": "gro",
    ".psf": "psf",
    **dict.fromkeys((".prm", ".par", ".rtf", ".str", ".inp"), "parameters"),
    **dict.fromkeys((".pdb", ".ent"), "pdb"),
    **dict.fromkeys((".cif", ".pdbx", ".mmcif"), "cif"),
    ".xml": "xml",
}
MARKED = ("pdb", "top", "gro", "xml")
"""Kinds whose readers know the byte order mark of UTF-8, or have nothing but a title where it is."""
POSITION_KINDS = {
    "prmtop": ("inpcrd", "crd", "pdb", "cif"),
    "top": ("gro", "pdb", "cif"),
    "psf": ("crd", "pdb", "cif"),
    "xml": ("pdb", "cif"),
}
COMBINATIONS = (
    "give a PDB file (with --forcefield XMLs), MOL.prmtop MOL.inpcrd, MOL.top MOL.gro, "
    "MOL.psf MOL.crd with CHARMM parameter files, or a serialized SYSTEM.xml with a PDB file"
)

T = TypeVar("T")


def sorted_by_kind(files: Sequence[str | Path]) -> Kinds:
    """Sort the files by what they hold and see that they make a set.

    Raises:
        InvalidInputError: a file that is missing or of an unknown kind; files that do not make a molecule.
    """
    kinds: Kinds = defaultdict(list)
    for path in map(Path, files):
        if not path.is_file():
            raise InvalidInputError(f"{path}: there is no such file")
        check_encoding(path, marked=True)
        kind = kind_of(path)
        check_encoding(path, marked=kind in MARKED)
        kinds[kind].append(path)
    mains = [k for k in POSITION_KINDS if kinds[k]]
    if len(mains) > 1 or any(len(kinds[k]) > 1 for k in mains):
        raise InvalidInputError(f"{_names(kinds, mains)} each describe a whole molecule: {COMBINATIONS}")
    wanted = POSITION_KINDS[mains[0]] if mains else ("pdb", "cif")
    extra = [k for k in kinds if kinds[k] and k not in (*mains, *wanted, *(["parameters"] if mains == ["psf"] else []))]
    if extra:
        raise InvalidInputError(f"{_names(kinds, extra)} cannot be used like this: {COMBINATIONS}")
    positions = [path for k in wanted for path in kinds[k]]
    if len(positions) != 1:
        have = ", ".join(map(str, positions)) or "none"
        subject = f"{kinds[mains[0]][0]} needs" if mains else "a molecule needs"
        raise InvalidInputError(f"{subject} exactly one file with positions (got {have}): {COMBINATIONS}")
    kinds["positions"] = positions
    return kinds


def kind_of(path: Path) -> str:
    """What a file holds, by its suffix.

    Raises:
        InvalidInputError: a suffix that is not known.
    """
    suffix = path.suffix.lower()
    if suffix == ".top":  # AMBER and GROMACS both use it
        return "prmtop" if path.read_text(errors="replace")[:4096].lstrip().startswith("%VERSION") else "top"
    if suffix not in SUFFIXES:
        raise InvalidInputError(f"{path}: the suffix {suffix or '(none)'} is not known; {COMBINATIONS}")
    return SUFFIXES[suffix]


def _names(kinds: Kinds, chosen: Sequence[str]) -> str:
    return ", ".join(str(path) for kind in chosen for path in kinds[kind])


def read(path: Path, reader: Callable[[], T]) -> T:
    """Run a reader; whatever it raises (parsers raise anything) becomes one error that names the file.

    Raises:
        InvalidInputError: if the reader raised.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # readers print while they fail
            warnings.simplefilter("ignore")  # what matters is compared afterwards, and said in this package's words
            return reader()
    except CGFlowError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(f"{path} cannot be used: {reason}") from error


def refuse_water(topology: app.Topology) -> None:
    """Raise InvalidInputError if there are water molecules."""
    waters = [residue for residue in topology.residues() if residue.name.upper() in WATER]
    if waters:
        raise InvalidInputError(
            f"the molecule comes with explicit water ({len(waters)} x {waters[0].name}): take the water out (for "
            "instance openmm.app.Modeller.deleteWater) and use --implicit-solvent OBC2"
        )
