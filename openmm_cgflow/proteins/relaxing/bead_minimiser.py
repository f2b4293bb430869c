"""Minimisation with beads held that are means of atoms: in the space of what does not move them."""

import numpy as np
import openmm
import scipy.sparse
from openmm import unit
from scipy.optimize import minimize
from scipy.sparse.linalg import splu

from openmm_cgflow.proteins.beads.kinds import BeadMapping
from openmm_cgflow.proteins.relaxing.force_field import Minimiser

__all__ = ["BeadMinimiser"]

_HIGHEST = 1e15  # kJ/mol, in place of what is not finite
_ENOUGH = 1.0  # kJ/mol/nm
_MEMORY = 6  # of L-BFGS


class BeadMinimiser(Minimiser):
    """Energies, and minimisation with beads held.

    Arguments:
        system: the System; its constraints are stiff bonds.
        mapping: the beads.
        threads: of the CPU platform.
    """

    def __init__(self, system: openmm.System, mapping: BeadMapping, threads: int = 1) -> None:
        super().__init__(system, [], threads)
        entries = mapping.weight.numpy(), (mapping.bead.numpy(), mapping.atom.numpy())
        self.weights = scipy.sparse.csr_matrix(entries, shape=(len(mapping), system.getNumParticles()))
        self._solver = splu((self.weights @ self.weights.T).tocsc())
        mass = np.array([system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(system.getNumParticles())])
        self._by_mass = scipy.sparse.diags(1 / mass) @ self.weights.T
        self._mass_solver = splu((self.weights @ self._by_mass).tocsc())

    def onto_beads(self, x: np.ndarray, beads: np.ndarray) -> np.ndarray:
        """Atoms `(atoms, 3)` moved so that their beads are those that are given, those of one bead alike."""
        return x + self._by_mass @ self._mass_solver.solve(beads - self.weights @ x)

    def free(self, x: np.ndarray) -> np.ndarray:
        """What of a direction `(atoms, 3)` leaves beads where they are."""
        return x - self.weights.T @ self._solver.solve(self.weights @ x)

    def minimised_on(self, x: np.ndarray, steps: int, beads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Structures `(n, atoms, 3)` nm after some steps of L-BFGS with beads `(n, beads, 3)`, and energies `(n,)`."""
        made = np.empty_like(x)
        for k, (frame, given) in enumerate(zip(x.astype(np.float64), beads.astype(np.float64), strict=True)):
            start = self.onto_beads(frame, given)
            options = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": _MEMORY, "gtol": _ENOUGH, "ftol": 0.0}
            found = minimize(self._slope, start.ravel(), jac=True, method="L-BFGS-B", options=options)
            made[k] = self.onto_beads(found.x.reshape(frame.shape), given)
        return made, self.energies(made)

    def _slope(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy with the springs of constraints, and its gradient in the free directions."""
        self.context.setPositions(flat.reshape(-1, 3))
        state = self.context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        force = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        if not (np.isfinite(energy) and np.isfinite(force).all()):
            return _HIGHEST, np.zeros(flat.shape)
        return energy, -self.free(force).ravel()
