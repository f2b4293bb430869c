"""A PDB file with force-field XMLs."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.parts import Kinds, System, refuse_water
from openmm_cgflow.inputs.pdb_file import read_pdb
from openmm_cgflow.inputs.structure import whole

__all__ = ["from_pdb"]

_log = logging.getLogger("openmm_cgflow")

TEMPLATE = re.compile(r"No template found for residue (\d+) \(([^)]*)\)\.\s*(.*?)(?:\s*For more information.*)?$", re.S)
CAPS = ("ACE", "NME", "NMA", "NH2")
AMBIGUOUS = re.compile(r"Multiple non-identical matching templates found for residue (\d+) \(([^)]*)\): (.*?)\.")
OF_THE_PROTEIN = "ALAD"
"""Alanine dipeptide among CHARMM's proteins; AANM, the same molecule, is of the force field for small molecules."""
CHARMM_CAPS = {"CAY", "CY", "CAT", "NT"}
"""Atoms of caps that CHARMM writes into the residue beside them."""
HYDROGENS = "Add missing atoms and hydrogens with openmm.app.Modeller or PDBFixer"


def from_pdb(kinds: Kinds, forcefield: Sequence[str], implicit_solvent: str | None, constraints: object) -> System:
    """Read a PDB or mmCIF file and build its System from a force field.

    With CHARMM's force fields the caps ACE and NME are joined to the residues beside them, whose patches describe them.

    Raises:
        InvalidInputError: for what cannot be read or is not described by the force field; the message says how to fix
            it.
    """
    path = kinds["positions"][0]
    pdb = read_pdb(path)
    topology = pdb.topology
    refuse_water(topology)
    x = whole(path, topology, np.array(pdb.positions.value_in_unit(unit.nanometer)), None)
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
    return topology, system, x * unit.nanometer


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
    """The System of the topology, or of the same atoms with caps in the residues beside them."""
    merged = _caps_merged(topology)
    candidates = [topology] if merged is None else [topology, merged]
    if any("charmm" in Path(xml).name.lower() for xml in xmls):
        candidates.reverse()  # a failure takes longest: every patch is tried on every residue
    reasons = []
    for candidate in candidates:
        try:
            system = _created(field, candidate, {"nonbondedMethod": app.NoCutoff, "constraints": constraints})
        except Exception as error:
            reasons.append(error)
            continue
        if candidate is merged:
            _log.info("%s: caps are read as parts of the residues beside them, as %s has them", path, " ".join(xmls))
        return system
    raise InvalidInputError(_message(str(reasons[0]), path, xmls, candidates[0])) from reasons[0]


def _created(field: app.ForceField, topology: app.Topology, options: dict[str, object]) -> openmm.System:
    try:
        return field.createSystem(topology, **options)
    except Exception as error:
        found = AMBIGUOUS.search(str(error))
        if found is None or OF_THE_PROTEIN not in found[3].split(", "):
            raise
        residue = list(topology.residues())[int(found[1])]
        return field.createSystem(topology, residueTemplates={residue: OF_THE_PROTEIN}, **options)


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
    """Name the residue that OpenMM found no template for, and the fix."""
    several, found = AMBIGUOUS.search(message), TEMPLATE.search(message)
    if several is not None:
        return (
            f"{path}: several residues of {' '.join(xmls)} fit {several[2]} (number {int(several[1]) + 1}): "
            f"{several[3]}. Choose one in a script (residueTemplates of openmm.app.ForceField.createSystem), and give "
            "the SYSTEM.xml with the PDB file"
        )
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
    names, n_bonds = {atom.name for atom in residue.atoms()}, len(list(residue.internal_bonds()))
    other = f"give an XML that describes {name} with --forcefield, or use AMBER, GROMACS or CHARMM files"
    if names & CHARMM_CAPS:
        return (
            f"It holds the atoms of a cap as CHARMM names them ({', '.join(sorted(names & CHARMM_CAPS))}): write caps "
            "as residues ACE (CH3, C, O, H1, H2, H3) and NME (N, H, C, H1, H2, H3), or use the CHARMM psf."
        )
    if len(names) > 1 and n_bonds < len(names) - 1:
        return (
            f"The file joins its {len(names)} atoms by {n_bonds} bonds: OpenMM knows the bonds of standard residues "
            f"with standard names alone, the others have to be in CONECT records. Add them, or the atoms' standard "
            f"names; or {other}."
        )
    if "externally bonded" in reason or "terminal" in reason or "capping" in reason:
        return f"{HYDROGENS}, and complete or cap the ends of the chain (ACE, NME, OXT); or {other}."
    if "bond" in reason:
        return f"Check the CONECT records of {name} and that no two of its atoms are too close or too far; or {other}."
    if "matches" in reason:
        return f"{HYDROGENS}; or {other}."
    return f"If it is a residue of the force field, {HYDROGENS[0].lower()}{HYDROGENS[1:]}; or {other}."
