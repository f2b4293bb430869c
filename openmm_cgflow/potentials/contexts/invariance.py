"""Whether energies depend on shapes alone: each force at copies of structures that were turned and moved."""

import logging

import numpy as np
import openmm

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.contexts.check import shaken
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.potentials.systems import ENERGY_FREE

__all__ = ["check_invariance"]

_log = logging.getLogger("openmm_cgflow")
_TOLERANCE = 0.01  # kT
_OPAQUE_TOLERANCE = 0.1  # kT: machine-learned energies need not be quite the same in every orientation
_ROUNDING, _OPAQUE_ROUNDING = 1e-9, 3e-7  # of the energy: double precision, and single
_OPAQUE = (openmm.PythonForce, openmm.CustomCVForce) if hasattr(openmm, "PythonForce") else (openmm.CustomCVForce,)
_WIDTH = 0.02  # nm by which the atoms are shaken, so that no symmetry of the molecule hides what a field does
_MOVES = (0.0, 0.3, 1.0, 3.0, 10.0)  # nm; the first copy is only turned


def check_invariance(system: openmm.System, x: np.ndarray, kT: float, reference: Reference) -> None:
    """Refuse forces whose energy changes when the molecule is turned and moved.

    A flow describes shapes; its samples come in an orientation of no meaning. Each force is evaluated by itself, on the
    Reference platform (double precision), at `x` and at shaken copies of it, each turned at random and moved by up to
    10 nm.

    Arguments:
        system: the user's System, without a periodic box: forces are named by their indices in it.
        x: `(atoms, 3)`, nm.
        kT: kJ/mol.
        reference: energies of the System, or of a copy that lacks forces without energy.

    Raises:
        InvalidInputError: naming the force, by its index and name, and what to do; a force without a finite energy at
            `x` too.
    """
    structures = shaken(x, copies=2, width=_WIDTH)
    moved = np.stack([_moved(structure, np.random.default_rng(k)) for k, structure in enumerate(structures)])
    energies = reference.by_force(moved.reshape(-1, *x.shape))[0][reference.with_energy]
    named = [(k, force) for k, force in enumerate(system.getForces()) if not isinstance(force, ENERGY_FREE)]
    for (k, force), values in zip(named, energies, strict=True):
        _refuse_infinite(k, force, values[: len(_MOVES)])
        change = np.ptp(values.reshape(moved.shape[:2]), axis=1)
        size = np.abs(values).reshape(moved.shape[:2]).max(1)
        opaque = isinstance(force, _OPAQUE) or type(force) is openmm.Force
        tolerance = np.maximum(_TOLERANCE * kT, (_OPAQUE_ROUNDING if opaque else _ROUNDING) * size)
        worst = float(np.nanmax(np.where(change > tolerance, change, 0.0), initial=0.0)) / kT
        what = f"the energy of force {k} of the System ({_called(force)}) changes by {worst:.2g} kT"
        if opaque and 0 < worst <= _OPAQUE_TOLERANCE:
            _log.warning("%s when the molecule is turned and moved; weights are as uncertain", what)
        elif worst > 0:
            raise InvalidInputError(
                f"{what} when the molecule is turned and moved: it depends on place or orientation, and a flow "
                "describes shapes alone. Leave this force out of the System that the flow is made from, or restrain "
                "distances, angles, torsions or the RMSD of the molecule's own atoms instead."
            )


def _refuse_infinite(k: int, force: openmm.Force, energies: np.ndarray) -> None:
    """See that the force has an energy at the given structure, in whatever orientation."""
    if not np.isfinite(energies).any():
        raise InvalidInputError(
            f"the energy of force {k} of the System ({_called(force)}) is {energies[0]} kJ/mol at the given positions: "
            "one of its parameters is not a number or too large, or atoms lie on one another."
        )


def _moved(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Copies of `x (atoms, 3)` in random orientations and in other places, `(copies, atoms, 3)`."""
    centred = x - x.mean(0)
    copies = []
    for distance in _MOVES:
        rotation, triangle = np.linalg.qr(generator.normal(size=(3, 3)))
        rotation = rotation * np.sign(np.diag(triangle))
        rotation[:, 0] *= np.linalg.det(rotation)  # a rotation, not a reflection
        direction = generator.normal(size=3)
        copies.append(centred @ rotation.T + x.mean(0) + distance * direction / np.linalg.norm(direction))
    return np.stack(copies)


def _called(force: openmm.Force) -> str:
    kind = type(force).__name__
    return kind if force.getName() in (kind, "") else f"{force.getName()}, {kind}"
