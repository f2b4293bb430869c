"""GROMACS top and gro: OpenMM reads a topology with every pair written out; a sum by hand and parmed check it."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.gromacs_topology import GromacsTopology
from openmm_cgflow.inputs.parts import Kinds, System, read, refuse_water
from openmm_cgflow.inputs.readings import NONBONDED, Difference, differences, disagreement, term_energies
from openmm_cgflow.inputs.solvent import solvent_force, without_known
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
    gb = solvent_force(path, top, system, solvent) if solvent is not None else None
    if gb is not None:
        system.addForce(openmm.XmlSerializer.clone(gb))
    second = _by_parmed(path, topology, solvent)
    if second is not None:
        found = without_known(path, differences(system, second, x), top, solvent)
        _judge(path, topology, found)
    if constraints is not None:
        system = _by_openmm(path, topology, constraints)[1]
        if gb is not None:
            system.addForce(gb)
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


def _by_parmed(path: Path, topology: GromacsTopology, solvent: object) -> openmm.System | None:
    """The System of parmed of the file as it stands; None, with a line in the log, where parmed cannot read it."""
    import parmed

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "molecule.top"
        written.write_text(topology.plain_text())
        try:
            structure = read(path, lambda: parmed.gromacs.GromacsTopologyFile(str(written)))
            structure.box = None
            return read(path, lambda: structure.createSystem(implicitSolvent=solvent, useSASA=True))
        except InvalidInputError as error:
            _log.info("%s (parmed), so that only the nonbonded energy was checked by a second way", error)
            return None


def _check_by_hand(path: Path, topology: GromacsTopology, system: openmm.System, x: np.ndarray) -> None:
    read_energy = float(term_energies(system, x[None])[NONBONDED][0])
    by_hand = topology.nonbonded_energy(x)
    if not np.isclose(read_energy, by_hand, rtol=1e-4, atol=0.01, equal_nan=True):
        found = [Difference(NONBONDED, (read_energy, by_hand))]
        raise disagreement(path, "OpenMM's reader and a sum over all pairs by GROMACS' rules", found)


def _judge(path: Path, topology: GromacsTopology, found: list[Difference]) -> None:
    """Refuse what differs from parmed, but for pairs where parmed is known to pass over a part of the file."""
    understood = [d for d in found if d.term == NONBONDED and topology.causes]
    if len(understood) < len(found):
        raise disagreement(path, "OpenMM's reader and parmed", [d for d in found if d not in understood])
    for difference in understood:
        _log.info(
            "%s: %s, the second by parmed, which does not know %s; the first was checked by hand and is used",
            *(path, difference, " and ".join(sorted(topology.causes))),
        )
