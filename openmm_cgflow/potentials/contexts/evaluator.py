"""One OpenMM Context that evaluates many configurations, and the platform to make it on."""

import time

import numpy as np
import openmm
from openmm import unit

from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.potentials.systems import without_barostats

__all__ = ["Evaluator", "fastest_platform", "likely_platform", "make_context"]

_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
_CPU_OVERHEAD = 80.0  # microseconds that a call of the CPU platform costs beside the work
_PER_PAIR = {  # microseconds of a pair of particles on the Reference platform beyond those on the CPU platform
    "CustomGBForce": 6.0,
    "CustomNonbondedForce": 0.5,
    "GBSAOBCForce": 0.2,
    "NonbondedForce": 0.05,
}
Result = tuple[np.ndarray, np.ndarray]
_FIXES = {
    "identical exclusions": "give each CustomNonbondedForce the pairs that are exceptions of the NonbondedForce as "
    "exclusions (addExclusion)"
}
"""What to do where OpenMM says why it cannot."""


def make_context(system: openmm.System, integrator: openmm.Integrator, platform: str) -> openmm.Context:
    """A Context on a named platform: one thread on CPUs, mixed precision on GPUs; barostats are left out.

    Raises:
        InvalidInputError: There is no such platform, or OpenMM cannot make a Context of the System; says why.
    """
    present = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if platform not in present:
        raise InvalidInputError(f"no OpenMM platform is named {platform!r}; there are: {', '.join(present)}")
    properties = {"Threads": "1"} if platform == "CPU" else {"Precision": "mixed"} if platform in _GPU_PLATFORMS else {}
    chosen = openmm.Platform.getPlatformByName(platform)
    try:
        return openmm.Context(without_barostats(system), integrator, chosen, properties)
    except openmm.OpenMMException as error:
        fix = next((f": {fix}" for reason, fix in _FIXES.items() if reason in str(error)), "")
        raise InvalidInputError(
            f"OpenMM cannot make a Context of this System on the platform {platform}: {error}{fix}"
        ) from error


class Evaluator:
    """A Context of `system` on a named platform. Not to be shared by threads.

    Arguments:
        system: The System; OpenMM keeps a reference to it.
        platform: The platform's name.

    Attributes:
        context: The Context.

    Raises:
        InvalidInputError: There is no such platform, or OpenMM cannot make a Context of the System.
    """

    def __init__(self, system: openmm.System, platform: str) -> None:
        self.context = make_context(system, openmm.VerletIntegrator(0.001), platform)

    def __call__(self, x: np.ndarray, group: int | None = None) -> Result:
        """Energies (batch,) in kJ/mol and forces, as `x` (batch, atoms, 3) nm; NaN where positions are not finite.

        Arguments:
            x: Positions.
            group: The force group to evaluate alone; all of them by default.

        Raises:
            CGFlowError: OpenMM, or a force that calls a program, has failed.
        """
        energies = np.full(len(x), np.nan)
        forces = np.full(x.shape, np.nan)
        groups = -1 if group is None else 1 << group
        for k in np.flatnonzero(np.isfinite(x).all(axis=(1, 2))):
            try:
                self.context.setPositions(x[k])
                state = self.context.getState(getEnergy=True, getForces=True, groups=groups)
            except openmm.OpenMMException as error:
                raise CGFlowError(f"OpenMM cannot evaluate an energy any more: {error}") from error
            energies[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            forces[k] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return energies, forces

    def seconds(self, x: np.ndarray, repeats: int = 3) -> float:
        """Shortest time of one evaluation of `x` (atoms, 3), in seconds, after one that does not count."""
        self(x[None])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self(x[None])
            times.append(time.perf_counter() - start)
        return min(times)


def _starting_positions(n_atoms: int) -> np.ndarray:
    """Points on a cubic lattice, 0.15 nm apart, slightly shaken: good enough to time a force field."""
    side = int(np.ceil(n_atoms ** (1 / 3)))
    lattice = 0.15 * np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    return lattice + np.random.default_rng(0).normal(0.0, 0.01, (n_atoms, 3))


def likely_platform(system: openmm.System) -> str:
    """CPU or Reference, whichever should be faster: by the System alone, for a choice by the clock is another each run.

    With a cutoff it is Reference: what the CPU platform then gives depends in its last digits on what was evaluated
    before.
    """
    n = system.getNumParticles()
    cost = 0.0
    for force in system.getForces():
        kind = type(force).__name__
        if kind in _PER_PAIR:
            if force.getNonbondedMethod() != force.NoCutoff:
                return "Reference"
            cost += _PER_PAIR[kind] * n * (n - 1) / 2
    return "CPU" if cost > _CPU_OVERHEAD and _has("CPU") else "Reference"


def _has(platform: str) -> bool:
    return platform in {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}


def fastest_platform(system: openmm.System) -> tuple[str, Evaluator, float]:
    """The platform to use, the System's evaluator there, and the seconds that one evaluation takes.

    CUDA, then HIP, then OpenCL if such a Context can be made; else what `likely_platform` says.
    """
    x = _starting_positions(system.getNumParticles())
    for name in _GPU_PLATFORMS:
        if _has(name):
            try:
                evaluator = Evaluator(system, name)
                return name, evaluator, evaluator.seconds(x)
            except (CGFlowError, openmm.OpenMMException):
                continue
    name = likely_platform(system)
    evaluator = Evaluator(system, name)
    return name, evaluator, evaluator.seconds(x)
