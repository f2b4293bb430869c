"""OpenMM in double precision, force by force: what everything else is judged by."""

import time
from collections.abc import Collection

import numpy as np
import openmm

from openmm_cgflow.potentials.contexts.evaluator import Evaluator
from openmm_cgflow.potentials.systems import ENERGY_FREE

__all__ = ["Reference"]

_GROUPS = 32  # force groups in a Context


class Reference:
    """A System on the Reference platform, each of its forces by itself. Not to be shared by threads.

    A Context may take long to make (15 s with AMOEBA's many expressions), so one Reference serves whoever asks.

    Arguments:
        system: copied: force groups are those of the copy, so that whatever the user made of them plays no part.

    Attributes:
        with_energy: indices in the System of the forces that have any.
        custom: those of them with expressions, or of collective variables: what restraints are made of.
        seconds: how long the Contexts took to make.

    Raises:
        InvalidInputError: OpenMM cannot make a Context of the System.

    Example:
        energies, forces = Reference(system).by_force(x[None])
    """

    def __init__(self, system: openmm.System) -> None:
        start = time.perf_counter()
        self._n_forces = system.getNumForces()
        self.with_energy = [k for k, force in enumerate(system.getForces()) if not isinstance(force, ENERGY_FREE)]
        self.custom = [k for k in self.with_energy if type(system.getForce(k)).__name__.startswith(("Custom", "RMSD"))]
        chosen = [self.with_energy[first : first + _GROUPS] for first in range(0, len(self.with_energy), _GROUPS)]
        self._parts = [(Evaluator(_grouped(system, forces), "Reference"), forces) for forces in chosen]
        self.seconds = time.perf_counter() - start

    def by_force(self, x: np.ndarray, chosen: Collection[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Energies `(forces, n)`, kJ/mol, and forces `(forces, n, atoms, 3)`, kJ/mol/nm, of `x (n, atoms, 3)`, nm.

        Every force of the System has a row, of zeros if it has no energy, or is none of those that are `chosen`.
        """
        energies, forces = np.zeros((self._n_forces, len(x))), np.zeros((self._n_forces, *x.shape))
        for evaluate, indices in self._parts:
            for group, k in enumerate(indices):
                if chosen is not None and k not in chosen:
                    continue
                energies[k], forces[k] = evaluate(x, group=group)
        return energies, forces

    def energy(self, x: np.ndarray) -> float:
        """The energy of one structure `(atoms, 3)`, nm, in kJ/mol."""
        return float(sum(evaluate(x[None])[0][0] for evaluate, _ in self._parts))

    @property
    def context(self) -> openmm.Context | None:
        """The Context of all forces, if there is one."""
        return self._parts[0][0].context if len(self._parts) == 1 else None


def _grouped(system: openmm.System, forces: list[int]) -> openmm.System:
    """A copy with these forces alone, each a group by itself."""
    copy = openmm.XmlSerializer.clone(system)
    for k in reversed(range(copy.getNumForces())):
        if k in forces:
            copy.getForce(k).setForceGroup(forces.index(k))
        else:
            copy.removeForce(k)
    return copy
