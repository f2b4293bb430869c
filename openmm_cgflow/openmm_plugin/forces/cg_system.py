"""A System of beads whose force is the free energy that the flow learned."""

from dataclasses import dataclass

import mdtraj
import numpy as np
import openmm
from openmm import app, unit
from rich.progress import track

from openmm_cgflow.beads import BeadParticles
from openmm_cgflow.copies import copied_topology
from openmm_cgflow.counts import fits_memory, seed_number
from openmm_cgflow.errors import TrainingError
from openmm_cgflow.openmm_plugin.forces.force import BeadBackend, create_bead_force
from openmm_cgflow.trained import TrainedFlow

__all__ = ["CGSystem", "create_cg_system", "langevin_frames", "system_of_beads"]


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
    return system_of_beads(flow.beads.particles, create_bead_force(flow, backend))


def system_of_beads(beads: BeadParticles, force: openmm.Force) -> CGSystem:
    """A System of beads with one force.

    Arguments:
        beads: the particles.
        force: of all beads; the System takes it.
    """
    system = openmm.System()
    for mass in beads.masses:
        system.addParticle(mass)
    for (i, j), distance in beads.constraints.items():
        system.addConstraint(i, j, distance)
    system.addForce(force)
    return CGSystem(copied_topology(beads.topology), system, beads.positions.copy() * unit.nanometer)


def langevin_frames(
    cg: CGSystem, temperature: unit.Quantity, picoseconds: float, timestep: float, interval: float, seed: int = 0
) -> mdtraj.Trajectory:
    """Frames of Langevin dynamics of beads (friction 1 / ps, Reference platform).

    Arguments:
        cg: the beads.
        temperature: of the thermostat.
        picoseconds: how long, ps.
        timestep: fs.
        interval: between frames, ps.
        seed: of velocities and noise.

    Raises:
        InvalidInputError: so many frames do not fit into the memory.
        TrainingError: if positions are not finite any more.
    """
    every = max(1, round(1000 * interval / timestep))
    n, beads = max(1, round(1000 * picoseconds / timestep / every)), cg.topology.getNumAtoms()
    fits_memory(n, 6 * beads, "simulate: the number of frames")
    integrator = openmm.LangevinMiddleIntegrator(temperature, 1 / unit.picosecond, timestep * unit.femtosecond)
    seed = 1 + seed_number(seed) % (2**31 - 1)  # OpenMM takes 0 for "choose one"
    integrator.setRandomNumberSeed(seed)
    # a handful of particles: starting threads or a GPU for each step costs more than the step
    context = openmm.Context(cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(temperature, seed)
    frames = np.empty((n, beads, 3))
    for frame in track(frames, description="beads", transient=True):
        integrator.step(every)
        frame[:] = context.getState(positions=True).getPositions(asNumpy=True)._value
        if not np.isfinite(frame).all():
            raise TrainingError("positions of the beads are not finite: the dynamics blew up; shorten the time step.")
    frames -= frames.mean(1, keepdims=True)
    times = 1e-3 * timestep * every * np.arange(1, len(frames) + 1)
    return mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(cg.topology), time=times)
