"""A molecule whose torsions can be pulled to given values and minimised there."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import openmm

__all__ = ["Driven", "torsion_angles"]

_STRENGTH = 500.0  # kJ/mol, of the pull
_MANY = 60  # atoms above which, or with forces between every pair as in implicit solvents, the CPU platform is faster
_EVERY_PAIR = (openmm.GBSAOBCForce, openmm.CustomGBForce, openmm.CustomNonbondedForce)
_GROUP = 31  # of forces: the pull's, so that energies come without it


class Driven:
    """The molecule in a Context in which some torsions can be pulled.

    Arguments:
        system: left as it is.
        torsions: the four atoms of each torsion that may be pulled.
    """

    def __init__(self, system: openmm.System, torsions: Iterable[Sequence[int]]) -> None:
        system = openmm.XmlSerializer.clone(system)
        self._bias = openmm.CustomTorsionForce("strength*(1-cos(theta-wanted))")
        self._bias.addPerTorsionParameter("strength")
        self._bias.addPerTorsionParameter("wanted")
        self._bias.setForceGroup(_GROUP)
        self._rows: dict[tuple[int, ...], int] = {}
        for atoms in torsions:
            self._rows[tuple(atoms)] = self._bias.addTorsion(*atoms, [0.0, 0.0])
        for force in system.getForces():
            if force.getForceGroup() == _GROUP:
                force.setForceGroup(0)
        system.addForce(self._bias)
        slow = system.getNumParticles() > _MANY or any(isinstance(f, _EVERY_PAIR) for f in system.getForces())
        name, properties = ("CPU", {"Threads": "1", "DeterministicForces": "true"}) if slow else ("Reference", {})
        platform = openmm.Platform.getPlatformByName(name)
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, properties)

    def minimised(
        self, x: np.ndarray, pulled: Mapping[tuple[int, ...], float] | None = None, tolerance: float = 1.0,
        iterations: int = 1000,
    ) -> tuple[np.ndarray, float]:  # fmt: skip
        """The minimum next to `x (atoms, 3)` nm, and its energy without the pull, kJ/mol.

        Arguments:
            x: where to start.
            pulled: torsions, by their four atoms, and where they are pulled to, rad.
            tolerance: of the forces, kJ/mol/nm.
            iterations: at most.
        """
        wanted = pulled or {}
        for atoms, row in self._rows.items():
            strength, angle = (_STRENGTH, wanted[atoms]) if atoms in wanted else (0.0, 0.0)
            self._bias.setTorsionParameters(row, *atoms, [strength, angle])
        self._bias.updateParametersInContext(self._context)
        self._context.setPositions(x)
        openmm.LocalEnergyMinimizer.minimize(self._context, tolerance, iterations)
        state = self._context.getState(positions=True, energy=True, groups={*range(_GROUP)})
        return np.array(state.getPositions(asNumpy=True)._value), float(state.getPotentialEnergy()._value)


def torsion_angles(x: np.ndarray, fours: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
    """Torsions `(..., n)` of `x (..., atoms, 3)`, rad, IUPAC sign; `fours` are `n` rows of four atoms."""
    index = np.asarray(fours, dtype=int).reshape(-1, 4)
    a, b, c, d = (x[..., index[:, k], :] for k in range(4))
    b1, b2, b3 = b - a, c - b, d - c
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return np.arctan2(np.linalg.norm(b2, axis=-1) * (b1 * n2).sum(-1), (n1 * n2).sum(-1))
