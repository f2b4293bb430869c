"""A PDB file with force-field XMLs."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import openmm
from openmm import app

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.parts import Kinds, System, refuse_water
from openmm_cgflow.inputs.pdb_file import read_pdb

__all__ = ["from_pdb"]

_log = logging.getLogger("openmm_cgflow")

TEMPLATE = re.compile(r"No template found for residue (\d+) \((\w+)\)\.\s*(.*?)(?:\s*For more information.*)?$", re.S)
CAPS = ("ACE", "NME", "NMA", "NH2")
HYDROGENS = "Add missing atoms and hydrogens with openmm.app.Modeller or PDBFixer"


def from_pdb(kinds: Kinds, forcefield: Sequence[str], implicit_solvent: str | None, constraints: object) -> System:
    """Read a PDB or mmCIF file and build its System from a force field.

    With CHARMM's force fields the caps ACE and NME are joined to the residues beside them, whose patches describe them.

    Raises:
        InvalidInputError: for what cannot be read or is not described by the force field; the message says how to mend
            it.
    """
    path = kinds["positions"][0]
    pdb = read_pdb(path)
    topology = pdb.topology
    refuse_water(topology)
    topology.setPeriodicBoxVectors(None)
    xmls = list(forcefield)
    if implicit_solvent is not None and implicit_solvent.lower() != "none":
        xmls.append(f"implicit/{implicit_solvent.lower()}.xml")
    field = _force_field(xmls)
    system = _system(path, field, topology, xmls, constraints)
    born = [f.getName() for f in system.getForces() if isinstance(f, openmm.GBSAOBCForce | openmm.CustomGBForce)]
    if len(born) > 1:
        raise InvalidInputError(
            f"{' '.join(xmls)} together hold {len(born)} implicit solvents: leave --implicit-solvent out"
        )
    return topology, system, pdb.positions


def _force_field(xmls: Sequence[str]) -> app.ForceField:
    try:
        field = app.ForceField(*xmls)
    except Exception as error:
        raise InvalidInputError(f"the force field {' '.join(xmls)} cannot be read: {error}") from error
    if any(type(generator).__name__ == "DrudeGenerator" for generator in field.getGenerators()):
        raise InvalidInputError(
            f"{' '.join(xmls)} is a polarizable Drude force field, whose particles follow the atoms without being "
            "atoms: use one with fixed charges, such as charmm36.xml or amber14-all.xml"
        )
    return field


def _system(
    path: Path, field: app.ForceField, topology: app.Topology, xmls: Sequence[str], constraints: object
) -> openmm.System:
    options = {"nonbondedMethod": app.NoCutoff, "constraints": constraints}
    try:
        return field.createSystem(topology, **options)
    except Exception as error:
        reason = error
    merged = _caps_merged(topology)
    if merged is not None:
        try:
            system = field.createSystem(merged, **options)
        except Exception as error:
            if "No template" not in str(reason):
                reason = error
        else:
            _log.info("%s: caps are read as parts of the residues beside them, as %s has them", path, " ".join(xmls))
            return system
    raise InvalidInputError(_message(str(reason), path, xmls, topology)) from reason


def _caps_merged(topology: app.Topology) -> app.Topology | None:
    """The same atoms with each cap in the residue that it is bound to; None without caps.

    Force fields tell residues by their elements and bonds, so that names need not change.
    """
    home = {residue: residue for residue in topology.residues()}
    for first, second in topology.bonds():
        a, b = first.residue, second.residue
        for cap, other in ((a, b), (b, a)):
            if cap is not other and cap.name in CAPS and other.name not in CAPS:
                home[cap] = other
    if all(cap is residue for cap, residue in home.items()):
        return None
    merged = app.Topology()
    chains = {chain: merged.addChain(chain.id) for chain in topology.chains()}
    residues: dict[app.topology.Residue, app.topology.Residue] = {}
    atoms = []
    for residue in topology.residues():
        whole = home[residue]
        if whole not in residues:
            residues[whole] = merged.addResidue(whole.name, chains[whole.chain], whole.id)
        for atom in residue.atoms():
            atoms.append(merged.addAtom(atom.name, atom.element, residues[whole]))
    if [atom.index for atom in merged.atoms()] != list(range(len(atoms))):
        return None
    for first, second in topology.bonds():
        merged.addBond(atoms[first.index], atoms[second.index])
    return merged


def _message(message: str, path: Path, xmls: Sequence[str], topology: app.Topology) -> str:
    """Name the residue that OpenMM found no template for, and the mend."""
    found = TEMPLATE.search(message)
    if found is None:
        return f"{path} with {' '.join(xmls)}: {' '.join(message.split())}"
    index, name, reason = int(found[1]), found[2], " ".join(found[3].split())
    residue = list(topology.residues())[index]
    return (
        f"{path}: the force field {' '.join(xmls)} does not describe residue {name} (number {index + 1} in the file). "
        f"{reason} {_mend(residue, name, reason)}"
    ).replace("  ", " ")


def _mend(residue: app.topology.Residue, name: str, reason: str) -> str:
    """A way that works."""
    n_atoms, n_bonds = len(list(residue.atoms())), len(list(residue.internal_bonds()))
    other = f"give an XML that describes {name} with --forcefield, or use AMBER, GROMACS or CHARMM files"
    if n_atoms > 1 and n_bonds < n_atoms - 1:
        return (
            f"The file joins its {n_atoms} atoms by {n_bonds} bonds: OpenMM knows the bonds of standard residues with "
            f"standard names alone, the others have to be in CONECT records. Add them, or the atoms' standard names; "
            f"or {other}."
        )
    if "bonds are different" in reason or "bond" in reason.lower():
        return f"Check the CONECT records of {name} and that no two of its atoms are too close or too far; or {other}."
    if "external bond" in reason or "terminal" in reason or "chain is missing" in reason:
        return f"{HYDROGENS}, and cap or complete the ends of the chain; or {other}."
    return f"{HYDROGENS}, {other}."
