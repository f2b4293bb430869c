"""The System of a protein when none is given, its implicit solvent in OpenMM's fast form, and minimisation."""

from functools import lru_cache
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError, MismatchError

__all__ = ["Minimiser", "amber14", "expected_lengths", "with_fast_solvent"]

_OFFSET = 0.009  # nm, of Born radii
_STIFF_BOND = 4e5  # kJ/mol/nm^2, in place of constraints while alpha carbons are held
_SOLVENT = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)"


@lru_cache(maxsize=1)
def _force_field() -> app.ForceField:
    return app.ForceField("amber14-all.xml", "implicit/obc2.xml")


def amber14(topology: app.Topology) -> openmm.System:
    """The protein in amber14 (ff14SB) with OBC2, no cutoff, no constraints.

    Raises:
        InvalidInputError: amber14 has no such residue, which OpenMM's message names.
    """
    try:
        return _force_field().createSystem(topology)
    except ValueError as error:
        raise InvalidInputError(
            f"amber14-all.xml cannot make a System of this protein ({error}); give a System of another force field"
        ) from error


def expected_lengths(topology: app.Topology, system: openmm.System) -> np.ndarray:
    """Lengths of the Topology's bonds by the System's bonds and constraints, `(bonds,)` nm."""
    known: dict[frozenset[int], float] = {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(k)
                known[frozenset((i, j))] = length.value_in_unit(unit.nanometer)
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        known[frozenset((i, j))] = length.value_in_unit(unit.nanometer)
    pairs = [(frozenset((a.index, b.index)), a, b) for a, b in topology.bonds()]
    missing = next(((a, b) for pair, a, b in pairs if pair not in known), None)
    if missing:
        a, b = missing
        raise MismatchError(
            f"the System has no bond between {a.name} and {b.name} of {a.residue.name} {a.residue.id} and "
            f"{b.residue.name} {b.residue.id}; make it of this Topology"
        )
    return np.array([known[pair] for pair, _, _ in pairs])


def with_fast_solvent(system: openmm.System) -> openmm.System:
    """A copy in which the CustomGBForce of `implicit/obc2.xml` is the GBSAOBCForce that has the same energy.

    It is several times faster on a CPU. Other Systems are copied as they are.
    """
    made = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for k, force in enumerate(made.getForces()):
        if isinstance(force, openmm.CustomGBForce) and _is_obc2(force):
            fast = openmm.GBSAOBCForce()
            fast.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
            names = [force.getPerParticleParameterName(j) for j in range(force.getNumPerParticleParameters())]
            for i in range(force.getNumParticles()):
                row = dict(zip(names, force.getParticleParameters(i), strict=True))
                fast.addParticle(row["charge"], row["or"] + _OFFSET, row["sr"] / row["or"])
            made.removeForce(k)
            made.addForce(fast)
            break
    return made


def _is_obc2(force: openmm.CustomGBForce) -> bool:
    names = [force.getPerParticleParameterName(j) for j in range(force.getNumPerParticleParameters())]
    if names != ["charge", "or", "sr"] or force.getNonbondedMethod() != openmm.CustomGBForce.NoCutoff:
        return False
    values = [force.getComputedValueParameters(j)[1].replace(" ", "") for j in range(force.getNumComputedValues())]
    terms = [force.getEnergyTermParameters(j)[0].replace(" ", "") for j in range(force.getNumEnergyTerms())]
    surface = any(term.startswith("28.3919551*(radius+0.14)^2*(radius/B)^6") for term in terms)
    water = all("solventDielectric=78.5" in term and "soluteDielectric=1;" in term for term in terms)
    unscreened = all("kappa=0" in term for term in terms) and len(terms) == 3
    return surface and water and unscreened and any(value.startswith(_SOLVENT) for value in values)


class Minimiser:
    """Energies, and minimisation with some atoms held, of one System.

    Arguments:
        system: the System; its constraints are stiff bonds while atoms are held.
        held: indices of the atoms that keep their places.
        threads: of the CPU platform.
    """

    def __init__(self, system: openmm.System, held: list[int], threads: int = 1) -> None:
        self.held = held
        ours = with_fast_solvent(system)
        springs = openmm.HarmonicBondForce()
        for k in reversed(range(ours.getNumConstraints())):
            i, j, distance = ours.getConstraintParameters(k)
            springs.addBond(i, j, distance, _STIFF_BOND)
            ours.removeConstraint(k)
        groups = {force.getForceGroup() for force in ours.getForces()}
        springs.setForceGroup(max(set(range(32)) - groups, default=0))
        self.groups = set(range(32)) - ({springs.getForceGroup()} if springs.getNumBonds() else set())
        """Those of the System itself: springs in place of constraints are not of its energy."""
        ours.addForce(springs)
        for atom in held:
            ours.setParticleMass(atom, 0.0)
        self.context = openmm.Context(ours, openmm.VerletIntegrator(0.001), *_platform(threads))

    def energies(self, x: np.ndarray) -> np.ndarray:
        """Of structures `(n, atoms, 3)` nm: `(n,)` kJ/mol."""
        made = np.empty(len(x))
        for k, frame in enumerate(x):
            self.context.setPositions(frame.astype(np.float64))
            state = self.context.getState(energy=True, groups=self.groups)
            made[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        return made

    def minimised(self, x: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Structures `(n, atoms, 3)` nm after some steps of L-BFGS, held atoms in place, and energies `(n,)` kJ/mol."""
        made, energies = x.copy(), np.empty(len(x))
        for k, frame in enumerate(x):
            self.context.setPositions(frame.astype(np.float64))
            openmm.LocalEnergyMinimizer.minimize(self.context, 1.0, steps)
            state = self.context.getState(energy=True, positions=True, groups=self.groups)
            moved = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            moved[self.held] = frame[self.held]
            made[k] = moved
            energies[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        return made, energies


def _platform(threads: int) -> tuple[Any, ...]:
    names = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    if "CPU" in names:
        return openmm.Platform.getPlatformByName("CPU"), {"Threads": str(threads)}
    return (openmm.Platform.getPlatformByName("Reference"),)
