"""GROMACS top and gro: OpenMM reads a topology with every pair written out; a sum by hand and parmed check it."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.gromacs_topology import GromacsTopology
from openmm_cgflow.inputs.parts import Kinds, System, read, refuse_water
from openmm_cgflow.inputs.readings import NONBONDED, Difference, differences, disagreement, term_energies
from openmm_cgflow.inputs.structure import read_structure

__all__ = ["from_gromacs"]

_log = logging.getLogger("openmm_cgflow")


def from_gromacs(kinds: Kinds, solvent: object, constraints: object) -> System:
    """Read a GROMACS topology and its structure.

    Raises:
        InvalidInputError: for what cannot be read, and for terms that two readings disagree about.
    """
    path = kinds["top"][0]
    topology = read(path, lambda: GromacsTopology(path))
    top, system = _by_openmm(path, topology, None)
    refuse_water(top)
    x = read_structure(kinds["positions"][0], top)
    _check_by_hand(path, topology, system, x)
    second = _by_parmed(path, topology)
    if second is not None:
        _check_by_parmed(path, topology, system, second.createSystem(), x)
    if constraints is not None:
        system = _by_openmm(path, topology, constraints)[1]
    if solvent is not None:
        system.addForce(_solvent_force(path, second, solvent))
    return top, system, x * unit.nanometer


def _by_openmm(path: Path, topology: GromacsTopology, constraints: object) -> tuple[app.Topology, openmm.System]:
    """OpenMM's reader, on the text with all pairs. It is read anew each time: building a System changes its tables."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "molecule.top"
        written.write_text(topology.text)
        reader = read(path, lambda: app.GromacsTopFile(str(written)))
    system = read(path, lambda: reader.createSystem(nonbondedMethod=app.NoCutoff, constraints=constraints))
    atoms = list(reader.topology.atoms())
    for i, j in topology.constrained:
        reader.topology.addBond(atoms[i], atoms[j])
    return reader.topology, system


def _by_parmed(path: Path, topology: GromacsTopology) -> Any:  # noqa: ANN401  (parmed has no types)
    """The Structure of parmed of the file as it stands; None, with a line in the log, where parmed cannot read it."""
    import parmed

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "molecule.top"
        written.write_text(topology.plain_text())
        try:
            structure = read(path, lambda: parmed.gromacs.GromacsTopologyFile(str(written)))
            structure.box = None
            read(path, structure.createSystem)
        except InvalidInputError as error:
            _log.info("%s; parmed could not read it, so only its nonbonded energy was checked by a second way", error)
            return None
    return structure


def _check_by_hand(path: Path, topology: GromacsTopology, system: openmm.System, x: np.ndarray) -> None:
    read_energy = float(term_energies(system, x[None])[NONBONDED][0])
    by_hand = topology.nonbonded_energy(x)
    if not np.isclose(read_energy, by_hand, rtol=1e-4, atol=0.01, equal_nan=True):
        found = [Difference(NONBONDED, (read_energy, by_hand))]
        raise disagreement(path, "OpenMM's reader and a sum over all pairs by GROMACS' rules", found)


def _check_by_parmed(
    path: Path, topology: GromacsTopology, system: openmm.System, second: openmm.System, x: np.ndarray
) -> None:
    found = differences(system, second, x)
    understood = [d for d in found if d.term == NONBONDED and topology.causes]
    if len(understood) < len(found):
        raise disagreement(path, "OpenMM's reader and parmed", [d for d in found if d not in understood])
    for difference in understood:
        _log.info(
            "%s: %s, the second by parmed, which does not know %s; the first was checked by hand and is used",
            *(path, difference, " and ".join(sorted(topology.causes))),
        )


def _solvent_force(path: Path, structure: Any, solvent: object) -> openmm.Force:  # noqa: ANN401
    """The force of an implicit solvent, with the radii that parmed chooses for it."""
    if structure is None:
        raise InvalidInputError(
            f"{path}: an implicit solvent needs radii, which parmed finds, and parmed cannot read this file (united "
            "atoms have none in any case): leave --implicit-solvent out, or give a SYSTEM.xml with a PDB file"
        )
    system = read(path, lambda: structure.createSystem(implicitSolvent=solvent, useSASA=True))
    (force,) = [f for f in system.getForces() if isinstance(f, openmm.CustomGBForce | openmm.GBSAOBCForce)]
    return openmm.XmlSerializer.clone(force)
