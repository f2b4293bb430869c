"""Positions from a file, whole, and whether its atoms are those of the topology, in the same order."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from openmm import app, unit

from openmm_cgflow.chemistry.system_bonds import covalent_length
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.inputs.parts import kind_of, read
from openmm_cgflow.inputs.pdb_file import read_pdb
from openmm_cgflow.structures import distances, made_whole

__all__ = ["read_structure", "whole"]

_log = logging.getLogger("openmm_cgflow")
_SPLIT = 2.0  # times the covalent length: longer bonds are between periodic images, or of another molecule


class _Structure(NamedTuple):
    """What a file with positions says.

    Attributes:
        positions: `(atoms, 3)`, nm.
        names: of the atoms; None where the file has none.
        elements: symbols; None where the file does not tell.
        box: `(3, 3)` nm, rows are the box vectors; None where the file has none.
    """

    positions: np.ndarray
    names: list[str] | None = None
    elements: list[str | None] | None = None
    box: np.ndarray | None = None


def read_structure(path: Path, topology: app.Topology) -> np.ndarray:
    """Positions of a file for the atoms of a topology, `(atoms, 3)` in nm, made whole where the box is known.

    Arguments:
        path: PDB, mmCIF, AMBER, GROMACS or CHARMM coordinates.
        topology: of the molecule, from another file, whose box is taken where the structure has none.

    Raises:
        InvalidInputError: a file that cannot be read, or whose names or elements show other atoms or another order.
        MismatchError: another number of atoms.
    """
    structure = _read(path)
    n_atoms = topology.getNumAtoms()
    if len(structure.positions) != n_atoms:
        raise MismatchError(
            f"the files do not belong together; numbers of atoms: the topology {n_atoms}, {path} "
            f"{len(structure.positions)}"
        )
    atoms = list(topology.atoms())
    wrong = _other_elements(structure, atoms) or _other_names(structure, topology, atoms)
    if wrong:
        raise InvalidInputError(
            f"{path} has other atoms than the topology, or another order: {'; '.join(wrong[:3])}"
            f"{f'; {len(wrong)} atoms in all' if len(wrong) > 3 else ''}. Write the structure with its atoms in the "
            "order of the topology file, or use the coordinate file that was made with it"
        )
    return whole(path, topology, structure.positions, structure.box)


def whole(path: Path, topology: app.Topology, x: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """A structure put together across its periodic box, if it has one and is split by it; else as it is.

    Arguments:
        path: of the structure, for the log.
        topology: its bonds, and the box if there is no other.
        x: `(atoms, 3)`, nm.
        box: `(3, 3)`, nm, or None.
    """
    box = _box(topology.getPeriodicBoxVectors()) if box is None else box
    bonds = list(topology.bonds())
    if box is None or not bonds or not np.isfinite(x).all():
        return x
    pairs = np.array([(first.index, second.index) for first, second in bonds])
    longest = np.array([_SPLIT * covalent_length(*(_number(atom) for atom in bond[:2])) for bond in bonds])
    if (distances(x[None], pairs)[0] <= longest).all() or _width(box) < 2 * longest.max():
        return x
    joined = made_whole(x[None], pairs, box)[0]
    found = distances(joined[None], pairs)[0]
    if ((found > longest) | (found < 0.25 * longest)).any():
        return x
    _log.info("%s: the molecule was split by its periodic box; it is made whole", path)
    return joined


def _read(path: Path) -> _Structure:
    kind = kind_of(path)
    if kind in ("pdb", "cif"):
        pdb = read_pdb(path)
        atoms = list(pdb.topology.atoms())
        box = _box(pdb.topology.getPeriodicBoxVectors())
        return _Structure(_nm(pdb.positions), [a.name for a in atoms], [_symbol(a) for a in atoms], box)
    if kind == "gro":
        gro = read(path, lambda: _gro(path))
        x = 0.1 * np.asarray(gro.coordinates, dtype=np.float64)
        return _Structure(x, [atom.name for atom in gro.atoms], box=_box(gro.box_vectors))
    if kind == "crd" and _is_charmm(path):
        crd = read(path, lambda: app.CharmmCrdFile(str(path)))
        return _Structure(_nm(crd.positions), crd.attype)  # OpenMM calls the column of names so
    amber = read(path, lambda: app.AmberInpcrdFile(str(path)))
    return _Structure(_nm(amber.positions), box=_box(amber.boxVectors))


def _gro(path: Path) -> Any:  # noqa: ANN401  (parmed has no types)
    """The Structure of parmed of a gro file: OpenMM's reader takes no more than three decimals for certain."""
    import parmed

    return parmed.gromacs.GromacsGroFile.parse(str(path))


def _is_charmm(path: Path) -> bool:
    """AMBER and CHARMM both write .crd; CHARMM's lines of atoms have ten columns, two of them names."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip() and line[0] != "*"]
    return len(lines) > 1 and len(lines[1].split()) >= 9


def _nm(positions: unit.Quantity) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64).reshape(-1, 3)


def _box(vectors: unit.Quantity | None) -> np.ndarray | None:
    return None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer), dtype=np.float64)


def _width(box: np.ndarray) -> float:
    """The least distance of two faces, nm; files without a box have dummies of 0 or 0.1 nm."""
    faces = np.cross(box[[1, 2, 0]], box[[2, 0, 1]])
    areas = np.linalg.norm(faces, axis=1)
    return float(abs(np.linalg.det(box)) / areas.max()) if areas.all() else 0.0


def _number(atom: app.topology.Atom) -> int:
    return 0 if atom.element is None else atom.element.atomic_number


def _symbol(atom: app.topology.Atom) -> str | None:
    """The element's symbol; deuterium is hydrogen to a force field."""
    symbol = atom.element.symbol if atom.element is not None else None
    return "H" if symbol == "D" else symbol


def _other_elements(structure: _Structure, atoms: list[app.topology.Atom]) -> list[str]:
    if structure.elements is None:
        return []
    there = zip(atoms, map(_symbol, atoms), structure.elements, _labels(structure), strict=True)
    return [
        f"atom {atom.index + 1} is {atom.name} ({wanted}) in the topology and {label} ({found}) there"
        for atom, wanted, found, label in there
        if None not in (wanted, found) and wanted != found
    ]


def _other_names(structure: _Structure, topology: app.Topology, atoms: list[app.topology.Atom]) -> list[str]:
    """Atoms whose name another atom of the residue has there. Names of another convention are no sign of anything."""
    if structure.names is None:
        return []
    parents = _parents(topology)
    wrong = []
    for residue in topology.residues():
        own = list(residue.atoms())
        names = [atom.name.upper() for atom in own]
        there = [structure.names[atom.index].upper() for atom in own]
        for atom, name in zip(own, names, strict=True):
            if names.count(name) > 1 or there.count(name) != 1:
                continue
            other = own[there.index(name)]
            # two hydrogens of one atom are numbered differently by AMBER, CHARMM and the PDB: either way is a structure
            if other is not atom and (atom.index not in parents or parents[atom.index] != parents.get(other.index)):
                wrong.append(f"atom {atom.index + 1} is {atom.name} in the topology; {name} is atom {other.index + 1}")
    return wrong


def _parents(topology: app.Topology) -> dict[int, int]:
    """The atom that each hydrogen is bound to."""
    parents = {}
    for first, second in topology.bonds():
        for hydrogen, heavy in ((first, second), (second, first)):
            if _symbol(hydrogen) == "H":
                parents[hydrogen.index] = heavy.index
    return parents


def _labels(structure: _Structure) -> list[str]:
    return structure.names or [str(k + 1) for k in range(len(structure.positions))]
