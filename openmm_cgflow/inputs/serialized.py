"""A serialized System and a PDB file."""

import numpy as np

from openmm_cgflow.chemistry.checks import without_ensemble
from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.inputs.parts import Kinds, System, read, refuse_water
from openmm_cgflow.inputs.pdb_file import read_pdb
from openmm_cgflow.inputs.structure import whole
from openmm_cgflow.storage import system_from_xml

import openmm  # isort: skip
from openmm import unit

__all__ = ["from_xml"]


def from_xml(kinds: Kinds, asked: str | None) -> System:
    """Read a System's XML with the structure and bonds of a PDB file; barostats and thermostats are left out.

    Arguments:
        kinds: the files.
        asked: an implicit solvent or constraints that were asked for; a System is used as it is.

    Raises:
        InvalidInputError: for an XML that is no System, or cannot be read.
    """
    path, where = kinds["xml"][0], kinds["positions"][0]
    text = read(path, path.read_text)
    if "<ForceField" in text[:4096]:
        raise InvalidInputError(f"{path} is a force field, not a System: name it with --forcefield {path}")
    if asked is not None and asked.lower() != "none":
        raise InvalidInputError(
            f"{asked} cannot be added to {path}: a serialized System is used as it is; leave it out"
        )
    try:
        system = read(path, lambda: system_from_xml(text))
    except ModelFileError as error:
        raise InvalidInputError(f"{path} cannot be used: {error}") from error
    if not isinstance(system, openmm.System):
        raise InvalidInputError(f"{path} holds a {type(system).__name__}, not a System")
    pdb = read_pdb(where)
    refuse_water(pdb.topology)
    x = whole(where, pdb.topology, np.array(pdb.positions.value_in_unit(unit.nanometer)), None)
    pdb.topology.setPeriodicBoxVectors(None)
    return pdb.topology, without_ensemble(system), x * unit.nanometer
