"""Molecules from files: PDB with force-field XMLs, AMBER, GROMACS, CHARMM, or a serialized System."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

# isort: off
import torch  # noqa: F401  (before openmm, or TorchForce does not load)
import openmm
from openmm import app, unit

# isort: on

from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError, ModelFileError
from openmm_cgflow.storage import system_from_xml

__all__ = ["CONSTRAINTS", "SOLVENTS", "System", "load_system"]

System = tuple[app.Topology, openmm.System, unit.Quantity]
"""Topology, System and positions `(atoms, 3)` in nm."""

SOLVENTS = {"HCT": app.HCT, "OBC1": app.OBC1, "OBC2": app.OBC2, "GBn": app.GBn, "GBn2": app.GBn2}
CONSTRAINTS = {"HBonds": app.HBonds}
DEFAULT_FORCE_FIELD = ("amber14-all.xml",)
WATER = {"HOH", "WAT", "SOL", "H2O", "DOD", "TIP", "TIP3", "TIP3P", "TIP4", "TIP4P", "TIP5", "SPC", "SPCE", "OPC"}

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

TEMPLATE = re.compile(r"No template found for residue (\d+) \((\w+)\)\.\s*(.*?)(?:\s*For more information.*)?$", re.S)
T = TypeVar("T")


def load_system(
    *files: str | Path,
    forcefield: Sequence[str] | None = None,
    implicit_solvent: str | None = None,
    constraints: str | None = None,
) -> System:
    """Read a molecule and its forces, without cutoff, in vacuum or implicit solvent.

    Implicit solvents come with OpenMM's surface-area term ("ACE") whatever the kind of file. Born radii are those of an
    AMBER prmtop; OpenMM's XMLs and parmed (GROMACS, CHARMM) choose the ones that the solvent model was made for. Boxes
    in the files are left out, for the molecule has no periodic images.

    Args:
        files: one of: a PDB or mmCIF file; AMBER prmtop and inpcrd; GROMACS top and gro; CHARMM psf, crd and parameter
            files; a System XML and a PDB file. Their suffixes decide.
        forcefield: XML files of a force field for a PDB file, local or of OpenMM; None takes amber14.
        implicit_solvent: HCT, OBC1, OBC2, GBn, GBn2 or None.
        constraints: HBonds or None.

    Returns:
        Topology, System and positions.

    Raises:
        InvalidInputError: a file that is missing, unreadable or not fitting the others; an unknown solvent; a residue
            that the force field lacks; explicit water; a periodic System; positions that are not finite.
        MismatchError: topology, System and positions with different numbers of atoms.
    """
    solvent = _choice("implicit solvent", implicit_solvent, SOLVENTS)
    constrained = _choice("constraints", constraints, CONSTRAINTS)
    kinds = _sorted_by_kind(files)
    main = next((k for k in ("xml", "prmtop", "top", "psf") if kinds[k]), None)
    if main and forcefield:
        raise InvalidInputError(f"--forcefield {forcefield[0]}: {kinds[main][0]} has its own parameters; leave it out")
    if main is None:
        loaded = _from_pdb(kinds, forcefield or DEFAULT_FORCE_FIELD, implicit_solvent, constrained)
    elif main == "xml":
        loaded = _from_xml(kinds, implicit_solvent or constraints)
    else:
        reader = {"prmtop": _from_amber, "top": _from_gromacs, "psf": _from_charmm}[main]
        loaded = reader(kinds, solvent, constrained)
    return _checked(*loaded)


def _choice(what: str, name: str | None, known: dict[str, T]) -> T | None:
    """Look a name up, whatever its case."""
    if name is None or name.lower() == "none":
        return None
    for key, value in known.items():
        if key.lower() == name.lower():
            return value
    raise InvalidInputError(f"{what} {name!r} is not known: use {', '.join(known)} or none")


def _sorted_by_kind(files: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Sort the files by what they hold and see that they make a set."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in map(Path, files):
        if not path.is_file():
            raise InvalidInputError(f"{path}: there is no such file")
        kinds[_kind(path)].append(path)
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


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".top":  # AMBER and GROMACS both use it
        return "prmtop" if path.read_text(errors="replace")[:4096].lstrip().startswith("%VERSION") else "top"
    if suffix not in SUFFIXES:
        raise InvalidInputError(f"{path}: the suffix {suffix or '(none)'} is not known; {COMBINATIONS}")
    return SUFFIXES[suffix]


def _names(kinds: dict[str, list[Path]], chosen: Sequence[str]) -> str:
    return ", ".join(str(path) for kind in chosen for path in kinds[kind])


def _read(path: Path, reader: Callable[[], T]) -> T:
    """Run a reader; whatever it raises (parsers raise anything) becomes one error that names the file."""
    try:
        return reader()
    except CGFlowError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(f"{path} cannot be used: {reason}") from error


def _pdb(path: Path) -> app.PDBFile | app.PDBxFile:
    reader = app.PDBFile if SUFFIXES[path.suffix.lower()] == "pdb" else app.PDBxFile
    return _read(path, lambda: reader(str(path)))


def _positions(path: Path) -> unit.Quantity:
    """Positions of a PDB, mmCIF, AMBER, GROMACS or CHARMM coordinate file."""
    if SUFFIXES[path.suffix.lower()] in ("pdb", "cif"):
        return _pdb(path).positions
    import parmed

    coordinates = _read(path, lambda: parmed.load_file(str(path)).coordinates)
    if coordinates is None:
        raise InvalidInputError(f"{path} has no positions")
    return np.asarray(coordinates, dtype=np.float64).reshape(-1, 3) * unit.angstrom


def _from_pdb(
    kinds: dict[str, list[Path]], forcefield: Sequence[str], implicit_solvent: str | None, constraints: object
) -> System:
    path = kinds["positions"][0]
    pdb = _pdb(path)
    _refuse_water(pdb.topology)
    xmls = list(forcefield)
    if implicit_solvent is not None and implicit_solvent.lower() != "none":
        xmls.append(f"implicit/{implicit_solvent.lower()}.xml")
    try:
        field = app.ForceField(*xmls)
    except Exception as error:
        raise InvalidInputError(f"the force field {' '.join(xmls)} cannot be read: {error}") from error
    topology = pdb.topology
    topology.setPeriodicBoxVectors(None)
    try:
        system = field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=constraints)
    except Exception as error:
        raise InvalidInputError(_template_message(str(error), path, xmls)) from error
    born = [f.getName() for f in system.getForces() if isinstance(f, (openmm.GBSAOBCForce, openmm.CustomGBForce))]
    if len(born) > 1:
        raise InvalidInputError(
            f"{' '.join(xmls)} together hold {len(born)} implicit solvents: leave --implicit-solvent out"
        )
    return topology, system, pdb.positions


def _template_message(message: str, path: Path, xmls: Sequence[str]) -> str:
    """Name the residue that OpenMM found no template for, and the mend."""
    found = TEMPLATE.search(message)
    if found is None:
        return f"{path} with {' '.join(xmls)}: {' '.join(message.split())}"
    number, name, reason = int(found[1]) + 1, found[2], " ".join(found[3].split())
    return (
        f"{path}: the force field {' '.join(xmls)} does not describe residue {name} (number {number} in the file). "
        f"{reason} Add missing atoms and hydrogens with openmm.app.Modeller or PDBFixer, "
        f"give an XML that describes {name} with --forcefield, or use AMBER, GROMACS or CHARMM files."
    ).replace("  ", " ")


def _from_amber(kinds: dict[str, list[Path]], solvent: object, constraints: object) -> System:
    path, where = kinds["prmtop"][0], kinds["positions"][0]
    prmtop = _read(path, lambda: app.AmberPrmtopFile(str(path)))
    _refuse_water(prmtop.topology)
    prmtop.topology.setPeriodicBoxVectors(None)
    system = _read(
        path,
        lambda: prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=constraints, implicitSolvent=solvent),
    )
    if SUFFIXES[where.suffix.lower()] in ("pdb", "cif"):
        return prmtop.topology, system, _positions(where)
    return prmtop.topology, system, _read(where, lambda: app.AmberInpcrdFile(str(where)).positions)


def _from_gromacs(kinds: dict[str, list[Path]], solvent: object, constraints: object) -> System:
    import parmed

    path, where = kinds["top"][0], kinds["positions"][0]
    structure = _read(path, lambda: parmed.gromacs.GromacsTopologyFile(str(path)))
    return _from_parmed(path, structure, where, solvent, constraints)


def _from_charmm(kinds: dict[str, list[Path]], solvent: object, constraints: object) -> System:
    import parmed

    path, where = kinds["psf"][0], kinds["positions"][0]
    parameters = kinds["parameters"]
    if not parameters:
        raise InvalidInputError(f"{path} needs CHARMM parameter files (.prm, .rtf, .str) beside it: name them too")
    structure = _read(path, lambda: parmed.charmm.CharmmPsfFile(str(path)))
    known = _read(parameters[0], lambda: parmed.charmm.CharmmParameterSet(*map(str, parameters)))
    _read(path, lambda: structure.load_parameters(known))
    return _from_parmed(path, structure, where, solvent, constraints)


def _from_parmed(path: Path, structure: object, where: Path, solvent: object, constraints: object) -> System:
    topology: app.Topology = structure.topology  # type: ignore[attr-defined]
    _refuse_water(topology)
    topology.setPeriodicBoxVectors(None)
    structure.box = None  # type: ignore[attr-defined]
    system = _read(
        path,
        lambda: structure.createSystem(  # type: ignore[attr-defined]
            nonbondedMethod=app.NoCutoff, constraints=constraints, implicitSolvent=solvent, useSASA=True
        ),
    )
    return topology, system, _positions(where)


def _from_xml(kinds: dict[str, list[Path]], asked: str | None) -> System:
    path, where = kinds["xml"][0], kinds["positions"][0]
    text = _read(path, path.read_text)
    if "<ForceField" in text[:4096]:
        raise InvalidInputError(f"{path} is a force field, not a System: name it with --forcefield {path}")
    if asked is not None and asked.lower() != "none":
        raise InvalidInputError(
            f"{asked} cannot be added to {path}: a serialized System is used as it is; leave it out"
        )
    try:
        system = system_from_xml(text)
    except ModelFileError as error:
        raise InvalidInputError(f"{path} cannot be used: {error}") from error
    if not isinstance(system, openmm.System):
        raise InvalidInputError(f"{path} holds a {type(system).__name__}, not a System")
    pdb = _pdb(where)
    _refuse_water(pdb.topology)
    pdb.topology.setPeriodicBoxVectors(None)
    return pdb.topology, system, pdb.positions


def _refuse_water(topology: app.Topology) -> None:
    waters = [residue for residue in topology.residues() if residue.name.upper() in WATER]
    if waters:
        raise InvalidInputError(
            f"the molecule comes with explicit water ({len(waters)} x {waters[0].name}): take the water out (for "
            "instance openmm.app.Modeller.deleteWater) and use --implicit-solvent OBC2"
        )


def _checked(topology: app.Topology, system: openmm.System, positions: unit.Quantity) -> System:
    """See that the three belong together and that nothing is periodic."""
    x = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64).reshape(-1, 3)
    counts = {"the topology": topology.getNumAtoms(), "the System": system.getNumParticles(), "the positions": len(x)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{what} {n}" for what, n in counts.items())
        raise MismatchError(f"the files do not belong together; numbers of atoms: {listed}")
    if system.usesPeriodicBoundaryConditions():
        raise InvalidInputError(
            "the System is periodic: build it without a cutoff (nonbondedMethod=NoCutoff), without water and with an "
            "implicit solvent such as OBC2"
        )
    if not np.all(np.isfinite(x)):
        atom = int(np.argmax(~np.isfinite(x).all(axis=1)))
        raise InvalidInputError(f"atom {atom} has the position {x[atom].tolist()} nm: give finite positions")
    return topology, system, x * unit.nanometer
