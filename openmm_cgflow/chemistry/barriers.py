"""Which bonds are rotatable: the torsion energy of the System itself, scanned around each bond."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import openmm

from openmm_cgflow.chemistry.molecule import Molecule, bond_key

__all__ = ["GRID", "STIFF_BARRIER", "TURNING_BARRIER", "torsion_profiles"]

STIFF_BARRIER = 35.0
"""kJ/mol: a torsion whose terms span more is turned and minimised, to see whether another form can be had."""

TURNING_BARRIER = 40.0
"""kJ/mol: a torsion turns if another form lies behind a relaxed barrier no higher (amides have 50 and more)."""

GRID = np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
"""rad: the rotations at which torsion energies are scanned, from the input structure."""

_WITHOUT_TORSIONS = (
    openmm.HarmonicBondForce,
    openmm.HarmonicAngleForce,
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CustomTorsionForce,
    openmm.CMAPTorsionForce,
    openmm.CustomBondForce,
    openmm.CustomAngleForce,
    openmm.CustomExternalForce,
    openmm.NonbondedForce,
    openmm.CustomNonbondedForce,
    openmm.GBSAOBCForce,
    openmm.CustomGBForce,
    openmm.CMMotionRemover,
)
"""Forces that hold no torsion energy but in terms that can be read."""

Profile = Callable[[np.ndarray], np.ndarray]


def torsion_profiles(molecule: Molecule, system: openmm.System) -> dict[tuple[int, int], np.ndarray]:
    """The torsion energy as one side of each acyclic bond turns rigidly through 360 degrees.

    Sums the proper terms of PeriodicTorsionForce, RBTorsionForce and CustomTorsionForce around the bond (CMAP couples
    two bonds and is left out). In a System with other forces that may hold torsion energy (AMOEBA's, machine-learned
    ones, compound bonds) these terms are not all, or only restraints: there, what a short bond hints at is added, bond
    by bond, see `_hinted`.

    Returns:
        `{(i, j): energies on GRID}` with `i < j`, kJ/mol, for every bond that is in no ring and has neighbours
        on both ends.
    """
    profiles: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(len(GRID)))
    for force in system.getForces():
        for (i, j, k, m), profile in _terms(force):
            if molecule.bonded(i, j) and molecule.bonded(j, k) and molecule.bonded(k, m) and i != k and j != m:
                profiles[bond_key(j, k)] += profile(molecule.torsion(i, j, k, m) + GRID)
    opaque = any(not isinstance(force, _WITHOUT_TORSIONS) for force in system.getForces())
    found = {}
    for i, j in molecule.bonds():
        if (i, j) in molecule.ring_bonds or min(len(molecule.neighbours[i]), len(molecule.neighbours[j])) < 2:
            continue
        found[i, j] = profiles[i, j] + _hinted(molecule, i, j) if opaque else profiles[i, j]
    return found


def _terms(force: openmm.Force) -> list[tuple[tuple[int, int, int, int], Profile]]:
    """The torsion terms of a force: four atoms, and the energy (kJ/mol) as a function of the torsion (rad)."""
    if isinstance(force, openmm.PeriodicTorsionForce):
        return [_periodic(force, t) for t in range(force.getNumTorsions())]
    if isinstance(force, openmm.RBTorsionForce):
        return [_ryckaert_bellemans(force, t) for t in range(force.getNumTorsions())]
    if isinstance(force, openmm.CustomTorsionForce):
        return [_custom(force, t) for t in range(force.getNumTorsions())]
    return []


def _periodic(force: openmm.PeriodicTorsionForce, t: int) -> tuple[tuple[int, int, int, int], Profile]:
    i, j, k, m, n, phase, barrier = force.getTorsionParameters(t)
    phase, barrier = getattr(phase, "_value", phase), getattr(barrier, "_value", barrier)
    return (i, j, k, m), lambda phi: barrier * (1 + np.cos(n * phi - phase))


def _ryckaert_bellemans(force: openmm.RBTorsionForce, t: int) -> tuple[tuple[int, int, int, int], Profile]:
    i, j, k, m, *c = force.getTorsionParameters(t)
    values = [getattr(value, "_value", value) for value in c]
    return (i, j, k, m), lambda phi: np.polynomial.polynomial.polyval(np.cos(phi - np.pi), values)


def _custom(force: openmm.CustomTorsionForce, t: int) -> tuple[tuple[int, int, int, int], Profile]:
    i, j, k, m, parameters = force.getTorsionParameters(t)
    return (i, j, k, m), lambda phi: _custom_energies(force, parameters, phi)


def _custom_energies(force: openmm.CustomTorsionForce, parameters: tuple[float, ...], phi: np.ndarray) -> np.ndarray:
    """Energies of one CustomTorsionForce term, by a Context of four particles placed at each torsion."""
    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    term = openmm.CustomTorsionForce(force.getEnergyFunction())
    for p in range(force.getNumPerTorsionParameters()):
        term.addPerTorsionParameter(force.getPerTorsionParameterName(p))
    for p in range(force.getNumGlobalParameters()):
        term.addGlobalParameter(force.getGlobalParameterName(p), force.getGlobalParameterDefaultValue(p))
    term.addTorsion(0, 1, 2, 3, parameters)
    system.addForce(term)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies = []
    for angle in phi:
        end = [0.1 * np.cos(angle), 0.1 * np.sin(angle), 0.15]
        context.setPositions([[0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.15], end])
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    return np.array(energies)


def _hinted(molecule: Molecule, i: int, j: int) -> np.ndarray:
    """A profile where torsion energy is hidden in forces that cannot be read: multiple and amide bonds are short.

    Single bonds between carbon, nitrogen and oxygen are longer than the limits below; conjugated, amide and double ones
    shorter: a two-fold barrier of twice the limit of stiffness, so that the bond is turned and its energies looked at.
    """
    limits = {(6, 6): 0.141, (6, 7): 0.139, (6, 8): 0.137, (7, 7): 0.137}
    kinds = sorted((molecule.numbers[i], molecule.numbers[j]))
    length = float(np.linalg.norm(molecule.positions[i] - molecule.positions[j]))
    short = length < limits.get((kinds[0], kinds[1]), 0.0)
    return STIFF_BARRIER * (1 - np.cos(2 * GRID)) if short else np.zeros(len(GRID))
