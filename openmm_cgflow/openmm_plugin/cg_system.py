"""A System of beads whose force is the free energy that the flow learned."""

from dataclasses import dataclass

import mdtraj
import numpy as np
import openmm
from openmm import app, unit
from rich.progress import track

from openmm_cgflow.openmm_plugin.force import BeadBackend, create_bead_force
from openmm_cgflow.trained import TrainedFlow

__all__ = ["CGSystem", "add_bead_constraints", "bead_masses", "bead_topology", "create_cg_system", "langevin_frames"]


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


def create_cg_system(flow: TrainedFlow, backend: BeadBackend | None = None) -> CGSystem:
    """The CG System of `CGFlow.createCGSystem`, which see."""
    force = create_bead_force(flow, backend)
    system = openmm.System()
    for mass in bead_masses(flow):
        system.addParticle(mass)
    add_bead_constraints(flow, system)
    system.addForce(force)
    return CGSystem(bead_topology(flow), system, flow.positions[flow.coordinates.bead_atoms])


def add_bead_constraints(flow: TrainedFlow, system: openmm.System) -> None:
    """Constrain those beads of a System of beads that are constrained to one another in the flow's own System."""
    bead_of = {atom: bead for bead, atom in enumerate(flow.coordinates.bead_atoms)}
    for (i, j), distance in flow.constraints.items():
        if i in bead_of and j in bead_of:
            system.addConstraint(bead_of[i], bead_of[j], distance)


def bead_masses(flow: TrainedFlow) -> list[unit.Quantity]:
    """The mass of each bead: that of its atom and of all that hang on it and on no other bead."""
    beads, whole = flow.coordinates.bead_atoms, flow.system
    masses = dict.fromkeys(beads, 0.0 * unit.dalton)
    for atom, bead in enumerate(flow.coordinates.bead_of_atom):
        masses[bead] += whole.getParticleMass(atom)
    return [masses[bead] for bead in beads]


def bead_topology(flow: TrainedFlow) -> app.Topology:
    """The beads as a Topology, in their order, with elements and names of their atoms."""
    whole = flow.topology
    atoms = list(whole.atoms())
    topology = app.Topology()
    chain, residue, last = topology.addChain(), None, None
    made = {}
    for index in flow.coordinates.bead_atoms:
        atom = atoms[index]
        if atom.residue is not last:
            last = atom.residue
            residue = topology.addResidue(last.name, chain, last.id, last.insertionCode)
        made[index] = topology.addAtom(atom.name, atom.element, residue)
    bonds = {frozenset((bond[0].index, bond[1].index)) for bond in whole.bonds()}
    bonds |= {frozenset(pair) for pair in flow.coordinates.bead_bonds}
    for i, j in sorted(sorted(bond) for bond in bonds if bond <= made.keys()):
        topology.addBond(made[i], made[j])
    return topology


def langevin_frames(
    flow: TrainedFlow, picoseconds: float, timestep: float, interval: float, seed: int = 0
) -> mdtraj.Trajectory:
    """Frames of Langevin dynamics of the beads at the flow's temperature (friction 1 / ps, Reference platform).

    Arguments:
        flow: the flow.
        picoseconds: how long, ps.
        timestep: fs.
        interval: between frames, ps.
        seed: of velocities and noise.
    """
    cg = create_cg_system(flow)
    integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, timestep * unit.femtosecond)
    integrator.setRandomNumberSeed(seed)
    # a handful of particles: starting threads or a GPU for each step costs more than the step
    context = openmm.Context(cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(flow.temperature, seed)
    every = max(1, round(1000 * interval / timestep))
    frames = np.empty((max(1, round(1000 * picoseconds / timestep / every)), cg.topology.getNumAtoms(), 3))
    for frame in track(frames, description="beads", transient=True):
        integrator.step(every)
        frame[:] = context.getState(positions=True).getPositions(asNumpy=True)._value
    frames -= frames.mean(1, keepdims=True)
    times = 1e-3 * timestep * every * np.arange(1, len(frames) + 1)
    return mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(cg.topology), time=times)
