"""Implicit solvents for readers that have none, and what parmed does not know of them."""

import logging
import math
import re
from pathlib import Path

import openmm
from openmm import app, unit
from openmm.app.internal import customgbforces

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.readings import SOLVENT, Difference

__all__ = ["solvent_force", "without_known"]

_log = logging.getLogger("openmm_cgflow")

WATER = 78.5  # dielectric constant, as OpenMM's other readers have it
NUCLEIC = re.compile(r"D?[ACGTU][35N]?")
UNITED = 0.5  # Da: atoms heavier than their element by more hold hydrogens


def solvent_force(path: Path, topology: app.Topology, system: openmm.System, solvent: object) -> openmm.Force:
    """The force of an implicit solvent, with OpenMM's radii for it and the surface-area term ("ACE").

    Arguments:
        path: the file, for messages.
        topology: elements and bonds, from which the radii follow.
        system: has the charges in its NonbondedForce.
        solvent: one of OpenMM's: `app.HCT`, `app.OBC1`, `app.OBC2`, `app.GBn`, `app.GBn2`.

    Raises:
        InvalidInputError: for united atoms, which have no radii.
    """
    for atom in topology.atoms():
        mass = system.getParticleMass(atom.index).value_in_unit(unit.dalton)
        own = math.inf if atom.element is app.element.hydrogen else UNITED  # heavy hydrogens are repartitioned masses
        if atom.element is None or mass - atom.element.mass.value_in_unit(unit.dalton) > own:
            raise InvalidInputError(
                f"{path}: atom {atom.index + 1} ({atom.name}, {mass:g} Da) is a united atom, for which implicit "
                "solvents have no radii: leave --implicit-solvent out, or use a force field with all hydrogens"
            )
    models = {
        app.HCT: customgbforces.GBSAHCTForce,
        app.OBC1: customgbforces.GBSAOBC1Force,
        app.OBC2: customgbforces.GBSAOBC2Force,
        app.GBn: customgbforces.GBSAGBnForce,
        app.GBn2: customgbforces.GBSAGBn2Force,
    }
    force = models[solvent](solventDielectric=WATER, SA="ACE")
    (nonbonded,) = [f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)]
    for k, parameters in enumerate(type(force).getStandardParameters(topology)):
        force.addParticle([nonbonded.getParticleParameters(k)[0], *parameters])
    force.finalize()
    return force


def without_known(path: Path, found: list[Difference], topology: app.Topology, solvent: object) -> list[Difference]:
    """The differences between OpenMM's reader and parmed without one that is known: GBn2 of nucleic acids.

    Its parameters for them (Nguyen, Perez, Bermudez and Simmerling, JCTC 2015) are in OpenMM and not in parmed.
    """
    nucleic = solvent is app.GBn2 and any(NUCLEIC.fullmatch(residue.name) for residue in topology.residues())
    known = [d for d in found if nucleic and d.term == SOLVENT]
    for difference in known:
        _log.info("%s: %s, the second by parmed, which lacks GBn2's parameters of nucleic acids", path, difference)
    return [d for d in found if d not in known]
