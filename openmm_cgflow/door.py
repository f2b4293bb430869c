"""The door of the package: a Topology, a System and positions come in, are looked at, and are copied."""

import logging
import time
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.chemistry.checks import check_inputs
from openmm_cgflow.chemistry.elements import correct_elements
from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.chemistry.system_bonds import (
    atomic_numbers,
    bond_lengths,
    bonds_of,
    check_bonds,
    constraints_of,
    covalent_length,
    measured_bonds,
)
from openmm_cgflow.copies import copied_system, copied_topology
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.contexts.evaluator import make_context
from openmm_cgflow.potentials.contexts.invariance import check_invariance
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.structures import OVERLAP, StructureReader, given_structures
from openmm_cgflow.units import KB, PositionsLike

__all__ = ["Admitted", "Bonds", "admit", "structure_reader"]

Bonds = Literal["topology", "system"]
_log = logging.getLogger("openmm_cgflow")
_OVERLAP_SHARE = 0.6  # of the covalent length: atoms that are not bonded and closer are on one another
_ITERATIONS, _LEAST_ITERATIONS = 100, 20
_SECONDS = 1.0  # for the minimisation, where energies are slow
_SLOW_TO_MAKE = 2.0  # s
_ABSURD = 1000.0  # kJ/mol for each atom, after minimising
_STRAIN = 0.3  # of its length, by which a bond may be off after minimising


class Admitted(NamedTuple):
    """What came through the door: copies, which nobody else holds."""

    topology: app.Topology
    system: openmm.System
    x: np.ndarray
    """`(atoms, 3)`, nm."""
    reference: Reference
    """Energies of the System in double precision."""


def admit(
    topology: Any,  # noqa: ANN401
    system: openmm.System,
    positions: PositionsLike,
    kelvin: float,
    bonds: Bonds = "topology",
) -> Admitted:
    """Copies of a Topology, System and structure that belong together and that a flow can be of.

    Names and elements of the positions' own Topology (of an mdtraj Trajectory, a PDBFile), the box, bond lengths, the
    shortest distance, bonds against the System, energies against place and orientation, and what becomes of the
    structure when it is minimised for a moment.

    Arguments:
        topology: OpenMM or mdtraj Topology.
        system: the System.
        positions: one structure, see `given_structures`.
        kelvin: temperature, K.
        bonds: `"topology"`, or `"system"` to take the bonds from the System's terms.

    Raises:
        InvalidInputError: anything is wrong; the message names it, its value and the fix.
        MismatchError: the positions' own Topology is of another molecule.
    """
    if bonds not in ("topology", "system"):
        raise InvalidInputError(f'bonds is {bonds!r}; give "topology" or "system".')
    if not isinstance(system, openmm.System):
        raise InvalidInputError(f"system is a {type(system).__name__}; give an openmm.System, as createSystem makes")
    topology, ours = copied_topology(topology), copied_system(system)
    if topology.getNumAtoms() != ours.getNumParticles():
        check_inputs(topology, ours, given_structures(positions).x)
    correct_elements(topology, [ours.getParticleMass(i)._value for i in range(ours.getNumParticles())])
    numbers = atomic_numbers(topology, ours)
    x = _structure(topology, ours, numbers, positions)
    if bonds == "system":
        found = bonds_of(ours, numbers, x)
        if not found:
            raise InvalidInputError(
                "bonds='system' takes the bonds from the System, but it has no terms of bonds and no constrained "
                "bonds; add the bonds to the Topology instead (topology.addBond, CONECT records)"
            )
        topology = copied_topology(topology, sorted(found))
    molecule = check_inputs(topology, ours, x)
    _refuse_overlap(molecule, numbers)
    check_bonds(molecule, ours, numbers)
    reference = Reference(ours)
    if not reference.with_energy:
        raise InvalidInputError("the System has no force with an energy: give the one that createSystem made")
    check_invariance(system, x, KB * kelvin, reference)
    _check_minimised(molecule, ours, numbers, _to_minimise(ours, reference))
    return Admitted(topology, ours, x, reference)


def structure_reader(topology: app.Topology, system: openmm.System, x: np.ndarray) -> StructureReader:
    """Reads further structures of the molecule.

    Arguments:
        topology: its Topology.
        system: its System.
        x: `(atoms, 3)`, nm, a sound structure of it, for bonds of which the System has no lengths.
    """
    pairs = sorted({bond_key(bond[0].index, bond[1].index) for bond in topology.bonds()})
    return _reader(topology, system, pairs, atomic_numbers(topology, system), x)


def _reader(
    topology: app.Topology,
    system: openmm.System,
    pairs: list[tuple[int, int]],
    numbers: list[int],
    x: np.ndarray | None,
) -> StructureReader:
    atoms = list(topology.atoms())
    lengths = bond_lengths(pairs, system, numbers, x)
    residues = "-".join(residue.name for residue in topology.residues())
    what = f"a molecule with {len(atoms)} atoms ({residues}): give (frames, {len(atoms)}, 3), in nm"
    return StructureReader(atoms, lengths, constraints_of(system), what)


def _structure(
    topology: app.Topology, system: openmm.System, numbers: list[int], positions: PositionsLike
) -> np.ndarray:
    """One structure `(atoms, 3)`, in the Topology's order and whole; unusual shapes and NaN go to `check_inputs`."""
    given = given_structures(positions)
    x = given.x[0] if given.x.ndim == 3 and len(given.x) == 1 else given.x
    if x.shape != (len(numbers), 3) or not np.isfinite(x).all():
        check_inputs(topology, system, x)
    pairs = measured_bonds({bond_key(b[0].index, b[1].index) for b in topology.bonds()}, system, numbers)
    reader = _reader(topology, system, sorted(pairs), numbers, None)
    if given.box is None and topology.getPeriodicBoxVectors() is not None:
        given = replace(given, box=np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)))
    x = reader.read(given)
    odd = reader.mean_lengths(x)
    if odd is not None:
        _log.warning(
            "the bond %s in the given structure: see that its atoms are in the order of the Topology, and minimise it",
            odd,
        )
    return x[0]


def _refuse_overlap(molecule: Molecule, numbers: list[int]) -> None:
    i, j = np.triu_indices(molecule.n_atoms, 1)
    distances = np.linalg.norm(molecule.positions[i] - molecule.positions[j], axis=1)
    covalent = np.array([covalent_length(numbers[a], numbers[b]) for a, b in zip(i, j, strict=True)])
    for k in np.flatnonzero(distances < np.maximum(OVERLAP, _OVERLAP_SHARE * covalent)):
        first, second = int(i[k]), int(j[k])
        if not molecule.bonded(first, second):
            raise InvalidInputError(
                f"the atoms {molecule.label(first)} and {molecule.label(second)} are {distances[k]:.3f} nm apart and "
                "not bonded: one lies on the other; build the structure again, or move one of them and minimise"
            )


def _to_minimise(system: openmm.System, reference: Reference) -> openmm.Context:
    """The Context that is there if another would take long to make, else one on the CPU platform, which is faster."""
    if reference.context is not None and reference.seconds > _SLOW_TO_MAKE:
        return reference.context
    names = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    return make_context(system, openmm.VerletIntegrator(0.001), "CPU" if "CPU" in names else "Reference")


def _check_minimised(molecule: Molecule, system: openmm.System, numbers: list[int], context: openmm.Context) -> None:
    """See that a short minimisation keeps the bonds and gives an energy that a molecule can have."""
    fix = (
        "the structure does not fit the System: are its atoms in another order, are atoms on one another, is a bond "
        "through a ring, or are the parameters those of another molecule?"
    )
    context.setPositions(molecule.positions)
    start = time.perf_counter()
    context.getState(energy=True, forces=True)
    affordable = int(_SECONDS / max(time.perf_counter() - start, 1e-6))
    try:
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, min(_ITERATIONS, max(_LEAST_ITERATIONS, affordable)))
    except openmm.OpenMMException as error:
        raise InvalidInputError(f"the structure cannot be minimised ({error}); {fix}") from error
    state = context.getState(energy=True, positions=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    if not np.isfinite(energy) or energy > _ABSURD * molecule.n_atoms:
        raise InvalidInputError(f"the energy is {energy:.6g} kJ/mol after minimising; {fix}")
    x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    for (i, j), length in bond_lengths(molecule.bonds(), system, numbers, molecule.positions).items():
        now = float(np.linalg.norm(x[i] - x[j]))
        if abs(now - length.expected) > (_STRAIN * length.expected if length.stiff else length.width):
            raise InvalidInputError(
                f"after minimising, the bond {molecule.label(i)}-{molecule.label(j)} is {now:.3f} nm long, where about "
                f"{length.expected:.3f} nm are expected (energy {energy:.6g} kJ/mol); {fix}"
            )
