"""PDB and mmCIF files as OpenMM reads them, with a word about what OpenMM would drop or force fields do not know."""

import io
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from openmm import app

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.parts import kind_of, read

__all__ = ["read_pdb"]

_log = logging.getLogger("openmm_cgflow")


def read_pdb(path: Path) -> app.PDBFile | app.PDBxFile:
    """Read a PDB or mmCIF file; of several models the first.

    Deuterium is read as hydrogen: energies do not depend on masses. Of alternate locations the first of each atom is
    taken. Both are logged.

    Raises:
        InvalidInputError: a file that cannot be read, without atoms, or with two atoms of one name in a residue, of
            which OpenMM would keep only one.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if kind_of(path) == "pdb":
        text = _checked(path, text)
        pdb = read(path, lambda: app.PDBFile(io.StringIO(text)))
    else:
        _check_rows_of_cif(path, text)
        pdb = read(path, lambda: app.PDBxFile(str(path)))
        _as_hydrogen(path, pdb.topology)
    return pdb


class _Atom(NamedTuple):
    """One line of an atom in a PDB file."""

    line: int
    residue: tuple[int, str, str]
    """How many chains ended before it, its chain, its number."""
    residue_name: str
    name: str
    alternate: str
    element: str

    @property
    def label(self) -> str:
        _, chain, number = self.residue
        return " ".join(part for part in (self.residue_name, chain, number) if part)


def _atoms(lines: list[str]) -> Iterator[_Atom]:
    """The atoms of the first model."""
    chains = 0
    for k, line in enumerate(lines):
        if line.startswith("ENDMDL"):
            return
        chains += line.startswith("TER")
        if line.startswith(("ATOM", "HETATM")):
            residue = (chains, line[21:22].strip(), line[22:27].strip())
            yield _Atom(k, residue, line[17:21].strip(), line[12:16].strip(), line[16:17].strip(), line[76:78].strip())


def _checked(path: Path, text: str) -> str:
    """The text, with deuterium written as hydrogen."""
    lines = text.splitlines()
    atoms = list(_atoms(lines))
    if not atoms:
        raise InvalidInputError(f"{path} has no atoms (lines that begin with ATOM or HETATM)")
    _refuse_twins(path, atoms)
    _say_models(path, sum(line.startswith("MODEL ") for line in lines))
    _say_alternates(path, atoms)
    names = {(atom.residue, atom.name) for atom in atoms}
    deuterium = [atom for atom in atoms if atom.element.upper() == "D"]
    for atom in deuterium:
        name = atom.name.replace("D", "H", 1)
        line = lines[atom.line]
        if name != atom.name and (atom.residue, name) in names:  # a site that is partly exchanged: it is there already
            lines[atom.line] = ""
        else:
            lines[atom.line] = line[:12] + line[12:16].replace("D", "H", 1) + line[16:76] + " H" + line[78:]
    if deuterium:
        _log.info("%s: %d deuterium atoms are read as hydrogen: energies do not depend on masses", path, len(deuterium))
    return "\n".join([*(line for line in lines if line), ""])


def _refuse_twins(path: Path, atoms: list[_Atom]) -> None:
    """OpenMM tells the atoms of a residue by their names, and keeps one of each."""
    seen: dict[tuple, _Atom] = {}
    for atom in atoms:
        key = (atom.residue, atom.residue_name, atom.name, atom.alternate)
        if key in seen:
            raise InvalidInputError(_twins(f"{path}, line {atom.line + 1}", atom.label, atom.name))
        seen[key] = atom


def _twins(where: str, residue: str, name: str) -> str:
    return (
        f"{where}: the residue {residue} has several atoms named {name}, of which OpenMM would keep one. Give each "
        "atom of a residue its own name (C1, C2, H1, ...), and separate molecules their own residue numbers or a TER "
        "line between them"
    )


def _say_alternates(path: Path, atoms: list[_Atom]) -> None:
    alternates: dict[tuple, dict[str, None]] = defaultdict(dict)
    residue_names: dict[tuple, dict[str, None]] = defaultdict(dict)
    labels: dict[tuple, str] = {}
    for atom in atoms:
        if atom.alternate:
            alternates[atom.residue][atom.alternate] = None
            labels.setdefault(atom.residue, atom.label)
        residue_names[atom.residue][atom.residue_name] = None
    for residue, found in alternates.items():
        if len(found) > 1:
            first, *others = residue_names[residue]
            others_too = f", and of {first} and {', '.join(others)} only {first}" if others else ""
            _log.info(
                "%s: the residue %s has alternate locations %s; the first of each atom is taken%s. Another choice: "
                "a file with that one alone",
                *(path, labels[residue], ", ".join(found), others_too),
            )


def _check_rows_of_cif(path: Path, text: str) -> None:
    """See that there are atoms, each with a name of its own; say which alternate locations and models there are."""
    lines = [line.strip() for line in text.splitlines()]
    columns = [line.split(".")[1].split()[0] for line in lines if line.startswith("_atom_site.")]
    rows = [line.split() for line in lines if line.startswith(("ATOM", "HETATM"))]
    if not columns:
        raise InvalidInputError(f"{path} has no atoms (columns _atom_site)")
    whole = [row for row in rows if len(row) == len(columns)]  # names with a blank between quotes are left to OpenMM

    def column(*names: str) -> list[str]:
        name = next((name for name in names if name in columns), None)
        return [row[columns.index(name)] if name else "" for row in whole]

    alternates = column("label_alt_id")
    found = set(alternates) - {".", "?", ""}
    if len(found) > 1:
        _log.info("%s has alternate locations %s; the first of each atom is taken", path, ", ".join(sorted(found)))
    models = column("pdbx_PDB_model_num")
    _say_models(path, len(set(models)))
    residues = zip(column("auth_asym_id", "label_asym_id"), column("auth_seq_id", "label_seq_id"),
                   column("pdbx_PDB_ins_code"), column("label_comp_id"), strict=True)  # fmt: skip
    names = column("label_atom_id", "auth_atom_id")
    seen: set[tuple] = set()
    for key in zip(residues, names, alternates, models, strict=True):
        if key in seen:
            raise InvalidInputError(_twins(f"{path}", " ".join([key[0][3], *key[0][:2]]), key[1]))
        seen.add(key)


def _say_models(path: Path, count: int) -> None:
    if count > 1:
        _log.info("%s has %d models; the first is read", path, count)


def _as_hydrogen(path: Path, topology: app.Topology) -> None:
    deuterium = [a for a in topology.atoms() if a.element is not None and a.element.symbol == "D"]
    for atom in deuterium:
        atom.element = app.element.hydrogen
    if deuterium:
        _log.info("%s: %d deuterium atoms are read as hydrogen: energies do not depend on masses", path, len(deuterium))
