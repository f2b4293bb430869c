"""Minimisation of atoms around beads that are held."""

import numpy as np
import openmm

from openmm_cgflow.trained import TrainedFlow

__all__ = ["relaxed"]

_STIFF_BOND = 4e5  # kJ/mol/nm^2, in place of constraints while beads are held


def relaxed(flow: TrainedFlow, x: np.ndarray, steps: int) -> np.ndarray:
    """The structures `(frames, n, atoms, 3)` after some steps of minimisation with their beads held."""
    system = flow.system
    beads = flow.coordinates.bead_atoms
    springs = openmm.HarmonicBondForce()
    for k in reversed(range(system.getNumConstraints())):
        i, j, distance = system.getConstraintParameters(k)
        springs.addBond(i, j, distance, _STIFF_BOND)
        system.removeConstraint(k)
    system.addForce(springs)
    for bead in beads:
        system.setParticleMass(bead, 0.0)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001))
    done = x.reshape(-1, *x.shape[2:]).copy()
    for frame in done:
        context.setPositions(frame.astype(np.float64))
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, steps)
        moved = context.getState(positions=True).getPositions(asNumpy=True)._value
        moved[beads] = frame[beads]
        frame[:] = moved
    return done.reshape(x.shape)
