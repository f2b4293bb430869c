"""Checks at the door: what internal coordinates cannot describe is refused by name."""

import logging
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.systems import refuse_periodic
from openmm_cgflow.units import PositionsLike, in_nm

__all__ = ["check_inputs", "without_ensemble"]

_log = logging.getLogger("openmm_cgflow")

ENSEMBLE = (
    openmm.AndersenThermostat,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
)
"""What sets temperature or pressure in a simulation; the molecule's energy does not have it."""

MASS = 0.1  # Da: force fields round masses, elements differ by more
WATER = {"HOH", "WAT", "H2O", "SOL", "TIP", "TIP2", "TIP3", "TIP3P", "TIP4", "TIP5", "SPC", "SPCE", "DOD"}


def without_ensemble(system: openmm.System) -> openmm.System:
    """The System without barostats and thermostats, a copy if it has any; what is left out is logged.

    A single molecule has no volume, and its temperature is that of the flow.

    Arguments:
        system: not changed.
    """
    chosen = [k for k, force in enumerate(system.getForces()) if isinstance(force, ENSEMBLE)]
    if not chosen:
        return system
    names = ", ".join(type(system.getForce(k)).__name__ for k in chosen)
    _log.info("%s: left out of the System, for a single molecule has no volume and the flow its own temperature", names)
    copy = openmm.XmlSerializer.clone(system)
    for k in reversed(chosen):
        copy.removeForce(k)
    return copy


def check_inputs(topology: Any, system: openmm.System, positions: PositionsLike) -> Molecule:  # noqa: ANN401
    """The molecule of a topology, system and positions that belong together.

    Arguments:
        topology: `openmm.app.Topology`, or an mdtraj Topology.
        system: the OpenMM System, without periodic boundaries and virtual sites.
        positions: see `in_nm`; `(atoms, 3)`, nm.

    Raises:
        InvalidInputError: anything that internal coordinates cannot describe: several molecules, explicit water, ions,
            no bonds, periodic boundaries, virtual sites, Drude particles, massless particles, fewer than 4 atoms,
            numbers of atoms that differ, masses in another order than the elements, positions that are not finite or on
            top of each other.
    """
    if hasattr(topology, "to_openmm"):
        topology = topology.to_openmm()
    if not isinstance(topology, app.Topology):
        raise InvalidInputError(
            f"topology is a {type(topology).__name__}; give an openmm.app.Topology, such as pdb.topology"
        )
    x = in_nm(positions)
    if x.ndim == 3 and x.shape[0] == 1:
        x = x[0]
    _check_numbers(topology, system, x)
    _check_system(system)
    _check_masses(topology, system)
    molecule = _graph(topology, system, x)
    _check_graph(molecule, topology)
    _check_geometry(molecule)
    return molecule


def _check_numbers(topology: app.Topology, system: openmm.System, x: np.ndarray) -> None:
    n_top, n_sys = topology.getNumAtoms(), system.getNumParticles()
    if n_top != n_sys:
        raise InvalidInputError(
            f"the System has {n_sys} particles and the Topology {n_top} atoms; "
            "create the System from this very Topology (virtual sites and missing hydrogens are usual reasons)"
        )
    if x.ndim != 2 or x.shape[1] != 3:
        raise InvalidInputError(f"positions have shape {x.shape}; give ({n_sys}, 3) values, one structure")
    if x.shape[0] != n_sys:
        raise InvalidInputError(
            f"there are {x.shape[0]} positions for the {n_sys} atoms of the System; give one for each atom"
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise InvalidInputError(
            f"the position of atom {bad[0]} is {x[bad[0]].tolist()} ({len(bad)} atoms with NaN or infinite positions); "
            "give a structure with finite coordinates"
        )
    if n_sys < 4:
        raise InvalidInputError(f"the molecule has {n_sys} atoms; at least 4 are needed for a torsion")


def _check_system(system: openmm.System) -> None:
    refuse_periodic(system)
    drude = [force for force in system.getForces() if isinstance(force, openmm.DrudeForce)]
    if drude:
        raise InvalidInputError(
            f"the System has a DrudeForce with {drude[0].getNumParticles()} Drude particles, which follow the atoms "
            "without being atoms; use a force field with fixed charges, such as charmm36.xml or amber14-all.xml"
        )
    for i in range(system.getNumParticles()):
        if system.isVirtualSite(i):
            raise InvalidInputError(f"particle {i} is a virtual site; use a force field without virtual sites")
        if system.getParticleMass(i)._value == 0:
            raise InvalidInputError(
                f"particle {i} has mass 0 (frozen in OpenMM); give it its mass, every atom is sampled here"
            )


def _check_masses(topology: app.Topology, system: openmm.System) -> None:
    """Masses tell the order of a System's atoms, unless it repartitions them."""
    elements = [atom.element for atom in topology.atoms()]
    if None in elements:
        return
    wanted = np.array([element.mass.value_in_unit(unit.dalton) for element in elements])
    there = np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(len(wanted))])
    other = np.flatnonzero(np.abs(wanted - there) > MASS)
    if len(other) and np.allclose(np.sort(wanted), np.sort(there), atol=MASS):
        k = int(other[0])
        atom = list(topology.atoms())[k]
        raise InvalidInputError(
            "the System has its atoms in another order than the Topology: atom "
            f"{k} ({atom.residue.name}{atom.residue.id}:{atom.name}) has the mass {there[k]:.3f} Da there, and "
            f"{len(other)} atoms in all another element's; give the Topology that the System was created from"
        )


def _graph(topology: app.Topology, system: openmm.System, x: np.ndarray) -> Molecule:
    near: list[set[int]] = [set() for _ in range(topology.getNumAtoms())]
    for bond in topology.bonds():
        i, j = bond[0].index, bond[1].index
        if i != j:
            near[i].add(j)
            near[j].add(i)
    atoms = list(topology.atoms())
    numbers = [
        atom.element.atomic_number if atom.element is not None else _number_from_mass(system.getParticleMass(i)._value)
        for i, atom in enumerate(atoms)
    ]
    labels = [f"{atom.residue.name}{atom.residue.id}" for atom in atoms]
    return Molecule(
        [sorted(s) for s in near], numbers, [a.name for a in atoms], labels, [a.residue.index for a in atoms], x
    )


def _number_from_mass(mass: float) -> int:
    return 1 if mass < 4.1 else round(mass)


def _check_graph(molecule: Molecule, topology: app.Topology) -> None:
    if not any(molecule.neighbours):
        raise InvalidInputError(
            "the Topology has no bonds; add them (topology.createStandardBonds(), CONECT records in the PDB "
            "file, or read "
            "the molecule from a prmtop, psf or top file)"
        )
    parts = molecule.fragments()
    if len(parts) == 1:
        return
    waters = [r for r in topology.residues() if r.name.upper() in WATER]
    if waters:
        raise InvalidInputError(
            f"the System contains explicit water ({len(waters)} residues named {waters[0].name}); "
            "remove it (modeller.deleteWater()) and use an implicit solvent"
        )
    single = [p[0] for p in parts if len(p) == 1]
    if single:
        raise InvalidInputError(
            f"atom {single[0]} ({molecule.label(single[0])}) has no bonds ({len(single)} such atoms); "
            "remove ions, or add the missing bonds to the Topology"
        )
    sizes = ", ".join(str(len(p)) for p in parts[:5])
    raise InvalidInputError(
        f"the Topology holds {len(parts)} molecules (of {sizes} atoms{', ...' if len(parts) > 5 else ''}), for "
        "instance atoms "
        f"{molecule.label(parts[0][0])} and {molecule.label(parts[1][0])} are not connected; give one molecule, "
        "or add the bonds that are missing (disulfides, non-standard residues)"
    )


def _check_geometry(molecule: Molecule) -> None:
    x = molecule.positions
    for i, j in molecule.bonds():
        length = float(np.linalg.norm(x[i] - x[j]))
        if not 0.03 < length < 0.5:
            raise InvalidInputError(
                f"the bond {molecule.label(i)}-{molecule.label(j)} is {length:.4g} nm long in the positions; "
                "check their unit (nm) and order, and minimise the structure"
            )
    if all(
        molecule.collinear(i, j, k)
        for j in range(molecule.n_atoms)
        for i in molecule.neighbours[j]
        for k in molecule.neighbours[j]
        if i < k
    ):
        raise InvalidInputError("all atoms lie on one line; linear molecules have no torsions to sample")
