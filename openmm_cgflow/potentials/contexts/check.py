"""The judge: OpenMM in double precision, force by force, against which a translation must stand."""

import logging

import numpy as np
import openmm
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials.contexts.evaluator import likely_platform, make_context
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.units import KB, PositionsLike, in_nm

__all__ = [
    "ImpreciseError",
    "Judge",
    "as_array",
    "compare_totals",
    "demand_finite",
    "positions_array",
    "shaken",
    "thermal_structures",
]

_log = logging.getLogger("openmm_cgflow")
_EXACT_ENERGY, _EXACT_FORCE = 1e-6, 1e-5  # relative, of a translation in double precision
_THERMAL = 0.01  # kT by which an energy that is used may be off in a structure of the ensemble
_STRAINED = 1e-5  # the same beyond it, as a share of the energy above the lowest: such structures have no weight
_THERMAL_FORCE = 1e-3  # relative to the largest force in the structure: single precision gives 1e-5 or so
_COLLAPSED = 1e7  # kJ/mol below the input: atoms have fallen onto one another, where a force field has no floor
_SHAKEN, _FRAMES, _STEPS = 3, 4, 50  # structures, and steps of 1 fs between those of dynamics


class ImpreciseError(UnsupportedForceError):
    """The energies that would be used are not those of OpenMM, though the translation is exact in double precision."""


def positions_array(positions: PositionsLike, n_atoms: int) -> np.ndarray:
    """Positions (atoms, 3) in nm, checked.

    Raises:
        InvalidInputError: Another shape, or values that are not finite; the message names the atom.
    """
    x = in_nm(positions)
    if x.shape != (n_atoms, 3):
        raise InvalidInputError(
            f"positions have shape {x.shape}, but the System has {n_atoms} particles: ({n_atoms}, 3)"
        )
    if not np.isfinite(x).all():
        atom = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise InvalidInputError(f"the position of atom {atom} is {x[atom]}; give finite positions in nm")
    return x


def shaken(x: np.ndarray, copies: int, width: float = 0.005) -> np.ndarray:
    """`x` (atoms, 3) and `copies` of it with Gaussian noise of `width` nm: (copies + 1, atoms, 3)."""
    noise = np.random.default_rng(0).normal(0.0, width, (copies, *x.shape))
    return np.concatenate([x[None], x + noise])


def thermal_structures(system: openmm.System, x: np.ndarray, kelvin: float) -> np.ndarray:
    """Structures to compare energies at: (structures, atoms, 3) nm.

    The given one, shaken copies of it, and some of a short Langevin dynamics that starts from it minimised. What
    dynamics does not reach, because it blows up, is left out.
    """
    structures = [shaken(x, _SHAKEN)]
    integrator = openmm.LangevinMiddleIntegrator(kelvin, 5.0, 0.001)
    integrator.setRandomNumberSeed(1)
    try:
        context = make_context(system, integrator, likely_platform(system))
        context.setPositions(x)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 50)
        context.setVelocitiesToTemperature(kelvin, 1)
        for _ in range(_FRAMES):
            integrator.step(_STEPS)
            frame = in_nm(context.getState(getPositions=True).getPositions(asNumpy=True))
            if np.isfinite(frame).all():
                structures.append(frame[None])
    except openmm.OpenMMException as error:
        _log.info("no dynamics from the given positions (%s): energies are compared at shaken copies alone", error)
    return np.concatenate(structures)


def demand_finite(energy: float) -> float:
    """The energy of the structure that was given.

    Raises:
        InvalidInputError: It is not finite.
    """
    if not np.isfinite(energy):
        raise InvalidInputError(f"the energy at the given positions is {energy}; do atoms lie on one another?")
    return energy


class Judge:
    """What OpenMM says of a System in double precision: each Force by itself, at thermal structures.

    Arguments:
        system: The System.
        positions: One structure (atoms, 3), nm.
        kelvin: The temperature at which energies are going to be used.
        reference: Of the System, if it is there already.

    Attributes:
        names: The Forces' names.
        x: Structures (k, atoms, 3), nm, float64.
        energies: (forces, k), kJ/mol.
        forces: (forces, k, atoms, 3), kJ/mol/nm.

    Raises:
        InvalidInputError: The energy at the given positions is not finite, or OpenMM cannot make a Context.
    """

    def __init__(
        self, system: openmm.System, positions: np.ndarray, kelvin: float, reference: Reference | None = None
    ) -> None:
        self.names = [force.getName() for force in system.getForces()]
        self._kT = KB * kelvin
        reference = reference or Reference(system)
        start = demand_finite(reference.energy(positions))
        self.x = thermal_structures(system, positions, kelvin)
        self.energies, self.forces = reference.by_force(self.x)
        total = self.energies.sum(0)
        fine = np.isfinite(total) & np.isfinite(self.forces).all((0, 2, 3)) & (total > start - _COLLAPSED)
        self.x, self.energies, self.forces = self.x[fine], self.energies[:, fine], self.forces[:, fine]
        self._allowed = thermal_tolerance(total[fine], self._kT)

    def demand_exact(self, energies: Tensor, forces: Tensor) -> None:
        """Compare a translation in double precision, force by force.

        Arguments:
            energies: (forces, k).
            forces: (forces, k, atoms, 3).

        Raises:
            UnsupportedForceError: Energies differ by more than 1e-6 or forces by more than 1e-5, relative; the message
                names the force that differs most.
        """
        e = np.abs(as_array(energies) - self.energies) / np.maximum(np.abs(self.energies), 1.0)
        norms = np.linalg.norm(self.forces, axis=(2, 3))
        f = np.linalg.norm(as_array(forces) - self.forces, axis=(2, 3)) / np.maximum(norms, 1.0)
        if f.shape[1] > 1:  # the given structure may have straight angles, at which OpenMM damps its forces
            f = f[:, 1:]
        if _within(e, _EXACT_ENERGY) and _within(f, _EXACT_FORCE):
            return
        k = _worst(np.concatenate([e / _EXACT_ENERGY, f / _EXACT_FORCE], axis=1))
        raise UnsupportedForceError(
            f"the torch translation of the force {self.names[k]} does not agree with OpenMM: relative errors "
            f"{e[k].max():.1e} of the energy and {f[k].max():.1e} of the forces"
        )

    def demand_precise(self, energies: Tensor, forces: Tensor, what: str) -> None:
        """Compare energies and forces as they are going to be used, force by force, in kT.

        Arguments:
            energies: (forces, k).
            forces: (forces, k, atoms, 3).
            what: Says how they were computed.

        Raises:
            ImpreciseError: Energies differ by more than 0.01 kT at a thermal structure; the message names the force.
        """
        e = np.abs(as_array(energies) - self.energies)
        f = np.abs(as_array(forces) - self.forces).max((2, 3)) / _force_scale(np.abs(self.forces).max((0, 2, 3)))
        if _within(e, self._allowed) and _within(f, _THERMAL_FORCE):
            return
        k = _worst(np.maximum(e / self._allowed, f / _THERMAL_FORCE))
        raise ImpreciseError(
            f"the force {self.names[k]} in {what} differs from OpenMM by "
            f"{e[k].max() / self._kT:.2g} kT at thermal structures (and its forces by {100 * f[k].max():.2g} % of the "
            "largest)"
        )

    def demand_total(self, energy: Tensor, forces: Tensor, what: str) -> None:
        """Compare the sum of all Forces, (k,) and (k, atoms, 3), in kT.

        Raises:
            ImpreciseError: They differ by more than 0.01 kT; the message says what.
        """
        compare_totals(
            as_array(energy), as_array(forces), self.energies.sum(0), self.forces.sum(0), what, kT=self._kT
        )  # fmt: skip


def thermal_tolerance(energies: np.ndarray, kT: float) -> np.ndarray:
    """How far energies (k,) may be off: 0.01 kT for the lowest, more for strained structures, which have no weight."""
    lowest = energies.min() if len(energies) else 0.0
    return _THERMAL * kT + _STRAINED * (energies - lowest)


def compare_totals(energy: np.ndarray, forces: np.ndarray, true_energy: np.ndarray, true_forces: np.ndarray,
                   what: str, kT: float = KB * 300) -> None:  # fmt: skip
    """Compare energies (k,) and forces (k, atoms, 3), where the true ones are finite.

    Raises:
        ImpreciseError: They differ by more than the tolerance; the message says `what` differs, and by how much.
    """
    fine = np.isfinite(true_energy) & np.isfinite(true_forces).all((1, 2))
    if not fine.any():
        return
    allowed = thermal_tolerance(true_energy[fine], kT)
    e = np.abs(energy - true_energy)[fine]
    largest = np.abs(true_forces)[fine].max((1, 2))
    f = np.abs(forces - true_forces)[fine].max((1, 2)) / _force_scale(largest)
    if not (_within(e, allowed) and _within(f, _THERMAL_FORCE)):
        raise ImpreciseError(
            f"{what} differ by {e.max() / kT:.2g} kT (and their forces by {100 * f.max():.2g} % of the largest)"
        )


def _force_scale(largest: np.ndarray) -> np.ndarray:
    """What errors of forces are held against: at a minimum there are none to compare with, those elsewhere count."""
    return np.maximum(largest, np.median(largest)) + 1.0


def _within(errors: np.ndarray, limits: np.ndarray | float) -> bool:
    return bool((errors <= limits).all())  # NaN is not


def _worst(errors: np.ndarray) -> int:
    """The row of the largest error, NaN being the largest of all."""
    return int(np.nan_to_num(errors, nan=np.inf).max(1).argmax())


def as_array(values: Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return values.detach().cpu().double().numpy()
