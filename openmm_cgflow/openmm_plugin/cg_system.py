"""A System of beads whose force is the free energy that the flow learned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import openmm
from openmm import app, unit

from openmm_cgflow.openmm_plugin.force import BeadBackend, create_bead_force

if TYPE_CHECKING:
    from openmm_cgflow.model import CGFlow

__all__ = ["CGSystem", "add_bead_constraints", "bead_masses", "bead_topology", "create_cg_system"]


@dataclass(frozen=True)
class CGSystem:
    """All that a `Simulation` of the beads needs.

    Attributes:
        topology: the beads, named as their atoms, with the bonds and pseudo-bonds between them.
        system: masses, constraints among the beads, and the force.
        positions: a start structure, Quantity `(beads, 3)`.
    """

    topology: app.Topology
    system: openmm.System
    positions: unit.Quantity


def create_cg_system(flow: "CGFlow", backend: BeadBackend | None = None) -> CGSystem:
    """The CG System of `CGFlow.createCGSystem`, which see."""
    force = create_bead_force(flow, backend)
    system = openmm.System()
    for mass in bead_masses(flow):
        system.addParticle(mass)
    add_bead_constraints(flow, system)
    system.addForce(force)
    return CGSystem(bead_topology(flow), system, flow.positions[flow.coordinates.bead_atoms])


def add_bead_constraints(flow: "CGFlow", system: openmm.System) -> None:
    """Constrain those beads of a System of beads that are constrained to one another in the flow's own System."""
    bead_of = {atom: bead for bead, atom in enumerate(flow.coordinates.bead_atoms)}
    for k in range(flow.system.getNumConstraints()):
        i, j, distance = flow.system.getConstraintParameters(k)
        if i in bead_of and j in bead_of:
            system.addConstraint(bead_of[i], bead_of[j], distance)


def bead_masses(flow: "CGFlow") -> list[unit.Quantity]:
    """The mass of each bead: that of its atom and of all that hang on it and on no other bead."""
    beads = flow.coordinates.bead_atoms
    masses = dict.fromkeys(beads, 0.0 * unit.dalton)
    for atom, bead in enumerate(flow.coordinates.bead_of_atom):
        masses[bead] += flow.system.getParticleMass(atom)
    return [masses[bead] for bead in beads]


def bead_topology(flow: "CGFlow") -> app.Topology:
    """The beads as a Topology, in their order, with elements and names of their atoms."""
    atoms = list(flow.topology.atoms())
    topology = app.Topology()
    chain, residue, last = topology.addChain(), None, None
    made = {}
    for index in flow.coordinates.bead_atoms:
        atom = atoms[index]
        if atom.residue is not last:
            last = atom.residue
            residue = topology.addResidue(last.name, chain, last.id, last.insertionCode)
        made[index] = topology.addAtom(atom.name, atom.element, residue)
    bonds = {frozenset((bond[0].index, bond[1].index)) for bond in flow.topology.bonds()}
    bonds |= {frozenset(pair) for pair in flow.coordinates.bead_bonds}
    for i, j in sorted(sorted(bond) for bond in bonds if bond <= made.keys()):
        topology.addBond(made[i], made[j])
    return topology
