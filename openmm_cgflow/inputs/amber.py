"""AMBER prmtop and coordinates: OpenMM's reader, checked by parmed's."""

import logging
from pathlib import Path

import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.parts import Kinds, System, read, refuse_water
from openmm_cgflow.inputs.readings import differences, disagreement
from openmm_cgflow.inputs.solvent import without_known
from openmm_cgflow.inputs.structure import read_structure

__all__ = ["from_amber"]

_log = logging.getLogger("openmm_cgflow")


def from_amber(kinds: Kinds, solvent: object, constraints: object) -> System:
    """Read an AMBER (or chamber) prmtop and its structure.

    Raises:
        InvalidInputError: for what cannot be read, and for terms that OpenMM and parmed disagree about.
    """
    path = kinds["prmtop"][0]
    prmtop = read(path, lambda: app.AmberPrmtopFile(str(path)))
    refuse_water(prmtop.topology)
    _refuse_others(path, prmtop, solvent)
    x = read_structure(kinds["positions"][0], prmtop.topology)
    prmtop.topology.setPeriodicBoxVectors(None)
    options = {"nonbondedMethod": app.NoCutoff, "implicitSolvent": solvent}
    system = read(path, lambda: prmtop.createSystem(**options))
    second = _by_parmed(path, solvent)
    if second is not None:
        found = without_known(path, differences(system, second, x), prmtop.topology, solvent)
        if found:
            raise disagreement(path, "OpenMM's reader and parmed", found)
    if constraints is not None:
        system = read(path, lambda: prmtop.createSystem(constraints=constraints, **options))
    return prmtop.topology, system, x * unit.nanometer


def _refuse_others(path: Path, prmtop: app.AmberPrmtopFile, solvent: object) -> None:
    """Refuse extra points, missing radii, and polarizable models, whose sections OpenMM's reader passes over."""
    points = [atom for atom in prmtop.topology.atoms() if atom.element is None or atom.name.upper().startswith("EP")]
    data = prmtop._prmtop._raw_data
    if any(int(value) for value in data.get("IPOL", [])) or "POLARIZABILITY" in data:
        raise InvalidInputError(
            f"{path} is of a polarizable force field (IPOL, POLARIZABILITY), which OpenMM does not read from a prmtop: "
            "use a force field with fixed charges, or give a SYSTEM.xml with a PDB file"
        )
    if solvent is not None and "RADII" not in data:
        raise InvalidInputError(
            f"{path} has no Born radii (RADII) for an implicit solvent: add them, for instance with parmed's "
            "changeRadii mbondi2, or leave --implicit-solvent out"
        )
    if points:
        raise InvalidInputError(
            f"{path}: atom {points[0].index + 1} ({points[0].name}) is an extra point or has no element "
            f"({len(points)} such atoms); sites without mass are not sampled: use a force field without them"
        )


def _by_parmed(path: Path, solvent: object) -> openmm.System | None:
    """The same file's System by parmed; None, with a line in the log, where parmed cannot read it."""
    import parmed

    def build() -> openmm.System:
        parm = parmed.load_file(str(path))
        parm.box = None
        return parm.createSystem(nonbondedMethod=app.NoCutoff, implicitSolvent=solvent, useSASA=True)

    try:
        return read(path, build)
    except InvalidInputError as error:
        _log.info("%s (parmed), so OpenMM's reading was not checked by a second reader", error)
        return None
