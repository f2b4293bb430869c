"""One door for molecules from files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

import torch  # noqa: F401  isort: skip  (before openmm, or TorchForce does not load)
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.inputs.amber import from_amber
from openmm_cgflow.inputs.charmm import from_charmm
from openmm_cgflow.inputs.gromacs import from_gromacs
from openmm_cgflow.inputs.parts import System, read, sorted_by_kind
from openmm_cgflow.inputs.pdb import from_pdb
from openmm_cgflow.inputs.serialized import from_xml
from openmm_cgflow.potentials.systems import refuse_periodic

__all__ = ["CONSTRAINTS", "SOLVENTS", "load_system"]

SOLVENTS = {"HCT": app.HCT, "OBC1": app.OBC1, "OBC2": app.OBC2, "GBn": app.GBn, "GBn2": app.GBn2}
CONSTRAINTS = {"HBonds": app.HBonds}
DEFAULT_FORCE_FIELD = ("amber14-all.xml",)

T = TypeVar("T")


def load_system(
    *files: str | Path,
    forcefield: Sequence[str] | None = None,
    implicit_solvent: str | None = None,
    constraints: str | None = None,
) -> System:
    """Read a molecule and its forces, without cutoff, in vacuum or implicit solvent.

    AMBER, GROMACS and CHARMM files are read by OpenMM and by parmed, and their energies compared term by term; where
    they differ and it cannot be known which is right, the file is refused and the term named.

    Implicit solvents come with OpenMM's surface-area term ("ACE") whatever the kind of file. Born radii are those of an
    AMBER prmtop; for other files OpenMM chooses the ones that the solvent model was made for. Boxes
    in the files are left out, for the molecule has no periodic images, and so are barostats and thermostats.

    Arguments:
        files: one of: a PDB or mmCIF file; AMBER prmtop and inpcrd; GROMACS top and gro; CHARMM psf, crd and parameter
            files; a System XML and a PDB file. Their suffixes decide.
        forcefield: XML files of a force field for a PDB file, local or of OpenMM; None takes amber14.
        implicit_solvent: HCT, OBC1, OBC2, GBn, GBn2 or None.
        constraints: HBonds or None.

    Returns:
        Topology, System and positions.

    Raises:
        InvalidInputError: a file that is missing, unreadable or not fitting the others; an unknown solvent; a residue
            that the force field lacks; explicit water; a periodic System; positions that are not finite; energies
            about which readers disagree; names or elements in another order than the topology's.
        MismatchError: topology, System and positions with different numbers of atoms.

    Example:
        >>> topology, system, positions = load_system("butane.prmtop", "butane.inpcrd")  # doctest: +SKIP
    """
    forcefield = [forcefield] if isinstance(forcefield, str) else forcefield
    solvent = _choice("implicit solvent", implicit_solvent, SOLVENTS)
    constrained = _choice("constraints", constraints, CONSTRAINTS)
    kinds = sorted_by_kind(files)
    main = next((k for k in ("xml", "prmtop", "top", "psf") if kinds[k]), None)
    if main and forcefield:
        raise InvalidInputError(f"--forcefield {forcefield[0]}: {kinds[main][0]} has its own parameters; leave it out")
    readers: dict[str, Callable[[], System]] = {
        "positions": lambda: from_pdb(kinds, forcefield or DEFAULT_FORCE_FIELD, implicit_solvent, constrained),
        "xml": lambda: from_xml(kinds, implicit_solvent or constraints),
        "prmtop": lambda: from_amber(kinds, solvent, constrained),
        "top": lambda: from_gromacs(kinds, solvent, constrained),
        "psf": lambda: from_charmm(kinds, solvent, constrained),
    }
    main = main or "positions"
    return _checked(*read(kinds[main][0], readers[main]))


def _choice(what: str, name: str | None, known: dict[str, T]) -> T | None:
    """Look a name up, whatever its case."""
    name = None if name is None else str(name)  # OpenMM's own objects, such as app.OBC2, are written as their names
    if name is None or name.lower() == "none":
        return None
    for key, value in known.items():
        if key.lower() == name.lower():
            return value
    raise InvalidInputError(f"{what} {name!r} is not known: use {', '.join(known)} or none")


def _checked(topology: app.Topology, system: openmm.System, positions: unit.Quantity) -> System:
    """See that the three belong together and that nothing is periodic."""
    x = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64).reshape(-1, 3)
    counts = {"the topology": topology.getNumAtoms(), "the System": system.getNumParticles(), "the positions": len(x)}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{what} {n}" for what, n in counts.items())
        raise MismatchError(f"the files do not belong together; numbers of atoms: {listed}")
    refuse_periodic(system)
    if not np.all(np.isfinite(x)):
        atom = int(np.argmax(~np.isfinite(x).all(axis=1)))
        raise InvalidInputError(f"atom {atom} has the position {x[atom].tolist()} nm: give finite positions")
    return topology, system, x * unit.nanometer
