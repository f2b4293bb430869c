"""Which rings flip: puckers that the System lets exchange at thermal energies, such as the two of proline."""

from __future__ import annotations

import copy
from collections.abc import Collection
from itertools import combinations

import networkx
import numpy as np
import openmm

from openmm_cgflow.coordinates.molecule import Molecule, bond_key

__all__ = ["flipping_bonds"]

WITHIN = 25.0
"""kJ/mol: a flipped ring whose energy is higher by more is left out."""

_TURNED = np.deg2rad(20.0)  # torsions that change by less stay stiff
_LARGEST = 8  # atoms; larger rings are no puckers but loops
_STRETCHED = 0.1  # of a bond's length, by which the two forms may differ
_STRENGTH = 500.0  # kJ/mol, of the torsions that turn a ring


def flipping_bonds(molecule: Molecule, system: openmm.System, beads: Collection[int] = ()) -> set[tuple[int, int]]:
    """Ring bonds (`bond_key`) whose torsion has another value in a flipped form of the ring.

    Bonds between two beads are left out where the ring has others: its pucker is then no slow variable.

    Each ring with a bond between two atoms of four neighbours is driven to the opposite of its torsions and minimised.
    The form counts if it is another one, not much higher in energy, and the same isomer.
    """
    rings = [ring for ring in _rings(molecule) if len(ring) <= _LARGEST and _saturated(molecule, ring)]
    if not rings:
        return set()
    driver = _Driver(molecule, system, rings)
    plain, energy = driver.minimised()
    found: set[tuple[int, int]] = set()
    for ring in rings:
        angles = _torsions(plain, ring)
        flipped, its_energy = driver.turned(plain, ring, -angles)
        if its_energy - energy < WITHIN and _same_isomer(molecule, plain, flipped):
            change = (_torsions(flipped, ring) - angles + np.pi) % (2 * np.pi) - np.pi
            bonds = {bond_key(*_fours(ring)[k][1:3]) for k in np.flatnonzero(np.abs(change) > _TURNED)}
            found |= {bond for bond in bonds if not set(bond) <= set(beads)} or bonds
    return found


class _Driver:
    """The molecule in a Context in which the torsions of one ring can be pulled."""

    def __init__(self, molecule: Molecule, system: openmm.System, rings: list[list[int]]) -> None:
        system = copy.deepcopy(system)
        self.bias = openmm.CustomTorsionForce("strength*(1-cos(theta-wanted))")
        self.bias.addPerTorsionParameter("strength")
        self.bias.addPerTorsionParameter("wanted")
        for ring in rings:
            for atoms in _fours(ring):
                self.bias.addTorsion(*atoms, [0.0, 0.0])
        system.addForce(self.bias)
        platform = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
        self.context.setPositions(molecule.positions)

    def _pull(self, targets: dict[tuple[int, ...], float]) -> None:
        for k in range(self.bias.getNumTorsions()):
            *atoms, _ = self.bias.getTorsionParameters(k)
            wanted = targets.get(tuple(atoms))
            self.bias.setTorsionParameters(k, *atoms, [0.0, 0.0] if wanted is None else [_STRENGTH, wanted])
        self.bias.updateParametersInContext(self.context)

    def turned(self, x: np.ndarray, ring: list[int], wanted: np.ndarray) -> tuple[np.ndarray, float]:
        """The minimum reached from `x` after the ring was pulled to the wanted torsions, and its energy."""
        self.context.setPositions(x)
        self._pull(dict(zip(_fours(ring), wanted.tolist(), strict=True)))
        openmm.LocalEnergyMinimizer.minimize(self.context, 10.0, 300)
        self._pull({})
        return self.minimised()

    def minimised(self) -> tuple[np.ndarray, float]:
        """The minimum next to where the Context is, nm, and its energy, kJ/mol."""
        openmm.LocalEnergyMinimizer.minimize(self.context, 1.0, 1000)
        state = self.context.getState(positions=True, energy=True)
        return np.array(state.getPositions(asNumpy=True)._value), float(state.getPotentialEnergy()._value)


def _rings(molecule: Molecule) -> list[list[int]]:
    """The smallest rings, each in the order of its bonds."""
    return [list(ring) for ring in networkx.minimum_cycle_basis(networkx.Graph(sorted(molecule.ring_bonds)))]


def _saturated(molecule: Molecule, ring: list[int]) -> bool:
    near = molecule.neighbours
    return any(len(near[ring[k - 1]]) == 4 and len(near[ring[k]]) == 4 for k in range(len(ring)))


def _fours(ring: list[int]) -> list[tuple[int, ...]]:
    """The four atoms of the torsion about each bond of the ring."""
    return [tuple(ring[(k + shift) % len(ring)] for shift in (-1, 0, 1, 2)) for k in range(len(ring))]


def _torsions(x: np.ndarray, ring: list[int]) -> np.ndarray:
    """The torsions of `_fours`, rad."""
    a, b, c, d = (x[list(atoms)] for atoms in zip(*_fours(ring), strict=True))
    b1, b2, b3 = b - a, c - b, d - c
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return np.arctan2(np.linalg.norm(b2, axis=1) * (b1 * n2).sum(1), (n1 * n2).sum(1))


def _same_isomer(molecule: Molecule, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether every centre of four neighbours has the same handedness, and every bond about its length."""
    bonds = np.array(molecule.bonds())
    before, after = (np.linalg.norm(z[bonds[:, 0]] - z[bonds[:, 1]], axis=1) for z in (x, y))
    if (np.abs(after / before - 1) > _STRETCHED).any():
        return False
    for centre, near in enumerate(molecule.neighbours):
        if len(near) == 4:
            for three in combinations(near, 3):
                volumes = [np.linalg.det(z[list(three)] - z[centre]) for z in (x, y)]
                if volumes[0] * volumes[1] < 0:
                    return False
    return True
