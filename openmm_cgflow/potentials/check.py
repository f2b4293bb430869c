"""The judge: a double-precision OpenMM Context, against which a translation must stand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials.evaluator import Evaluator
from openmm_cgflow.units import in_nm

__all__ = ["compare_with_context", "positions_array", "shaken"]

_ENERGY_TOLERANCE = 1e-6
_FORCE_TOLERANCE = 1e-5


def positions_array(positions: Any, n_atoms: int) -> np.ndarray:  # noqa: ANN401
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


def shaken(x: np.ndarray, copies: int = 3, width: float = 0.005) -> np.ndarray:
    """`x` (atoms, 3) and `copies` of it with Gaussian noise of `width` nm: (copies + 1, atoms, 3)."""
    noise = np.random.default_rng(0).normal(0.0, width, (copies, *x.shape))
    return np.concatenate([x[None], x + noise])


def _errors(energy: np.ndarray, forces: np.ndarray, true_energy: np.ndarray, true_forces: np.ndarray
            ) -> tuple[float, float]:  # fmt: skip
    """Relative errors of energies and forces; energies below 1 kJ/mol and forces below 1 kJ/mol/nm count as that."""
    e = np.abs(energy - true_energy) / np.maximum(np.abs(true_energy), 1.0)
    norms = np.linalg.norm(true_forces, axis=(1, 2))
    f = np.linalg.norm(forces - true_forces, axis=(1, 2)) / np.maximum(norms, 1.0)
    return float(e.max()), float(f.max())


def compare_with_context(system: openmm.System, x: np.ndarray, translate: Callable[[openmm.System], Any]) -> None:
    """Compare a double-precision translation with a Reference Context at `x` (n, atoms, 3) nm.

    Arguments:
        system: The System.
        x: Where to compare.
        translate: Makes a potential in float64 from a System.

    Raises:
        UnsupportedForceError: Energies differ by more than 1e-6 or forces by more than 1e-5, relative; the message
            names the force that differs most.
        InvalidInputError: The energy is not finite at the first of the positions.
    """
    energy_error, force_error = _system_errors(system, x, translate)
    if energy_error <= _ENERGY_TOLERANCE and force_error <= _FORCE_TOLERANCE:
        return
    worst, errors = "", (0.0, 0.0)
    for k in range(system.getNumForces()):
        found = _system_errors(_only_force(system, k), x, translate)
        if not worst or max(found) > max(errors):
            worst, errors = system.getForce(k).getName(), found
    raise UnsupportedForceError(
        f"the torch translation of the force {worst} does not agree with OpenMM: relative errors {errors[0]:.1e} of "
        f"the energy and {errors[1]:.1e} of the forces (in all: {energy_error:.1e} and {force_error:.1e})"
    )


def _only_force(system: openmm.System, k: int) -> openmm.System:
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for other in reversed(range(copy.getNumForces())):
        if other != k:
            copy.removeForce(other)
    return copy


def _system_errors(system: openmm.System, x: np.ndarray, translate: Callable[[openmm.System], Any]
                   ) -> tuple[float, float]:  # fmt: skip
    true_energy, true_forces = Evaluator(system, "Reference")(x)
    if not np.isfinite(true_energy[0]):
        raise InvalidInputError(f"the energy at the given positions is {true_energy[0]}; do atoms lie on one another?")
    energy, forces = translate(system).energy_and_forces(torch.from_numpy(x))
    return _errors(_array(energy), _array(forces), true_energy, true_forces)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
