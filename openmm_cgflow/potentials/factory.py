"""Choosing a potential for a System."""

import logging

import numpy as np
import openmm
import torch

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.base import Potential
from openmm_cgflow.potentials.contexts.check import ImpreciseError, Judge, demand_finite, positions_array, shaken
from openmm_cgflow.potentials.contexts.context_potential import ContextPotential
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.potentials.systems import check_system
from openmm_cgflow.potentials.terms.translate import TORSION_FORCES
from openmm_cgflow.potentials.torch_potential import TorchPotential
from openmm_cgflow.units import KB, PositionsLike

__all__ = ["make_potential", "torsion_energy"]

_log = logging.getLogger("openmm_cgflow")
_COARSE = 0.05  # kT


def make_potential(
    system: openmm.System, positions: PositionsLike, temperature: float = 300.0, reference: Reference | None = None
) -> Potential:
    """A TorchPotential that was compared with OpenMM, force by force, or Contexts where the System is not translated.

    Energies in single precision that are more than 0.01 kT off at thermal structures are computed in double precision.

    Arguments:
        system: An OpenMM System without a periodic box.
        positions: (atoms, 3), nm or a Quantity.
        temperature: K, at which energies are going to be used.
        reference: Of the System, if it is there already: for some Systems it takes long to make.

    Returns:
        The potential; what is slower than usual is logged as a warning that names the force.

    Raises:
        InvalidInputError: The System is periodic, has virtual sites or no particles; the positions are not finite or
            not of this System, or their energy is not finite; or OpenMM cannot make a Context of the System.
    """
    check_system(system)
    x = positions_array(positions, system.getNumParticles())
    reference = reference or Reference(system)
    demand_finite(reference.energy(x))
    x = x - x.mean(axis=0)  # as samples are: far from the origin single precision has no digits left
    try:
        exact = TorchPotential.fromSystem(system, dtype=torch.float64)
        judge = Judge(system, x, temperature, reference)
        exact.stand_before(judge)
    except UnsupportedForceError as error:
        _log.warning("%s: energies come from OpenMM Contexts instead, which is slower", error)
        return _contexts(system, x, temperature)
    single = TorchPotential.fromSystem(system)
    try:
        single.stand_before(judge)
    except ImpreciseError as error:
        _log.warning("%s: energies are computed in double precision instead, which is slower", error)
        return exact
    return single


def _contexts(system: openmm.System, x: np.ndarray, kelvin: float) -> ContextPotential:
    potential = ContextPotential(system)
    energies = potential.energies_here(shaken(x, 3))
    step = abs(float(np.spacing(np.float32(energies[0]))))
    if step > _COARSE * KB * kelvin and np.array_equal(energies, energies.astype(np.float32), equal_nan=True):
        _log.warning(
            "the energies of this System, %.9g kJ/mol at the given positions, come in single precision, in steps of "
            "%.2g kT: weights are as coarse. Let the model subtract a constant, or give its energy in double precision",
            energies[0],
            step / (KB * kelvin),
        )
    return potential


def torsion_energy(system: openmm.System) -> TorchPotential:
    """The energy of the torsion forces alone (periodic, Ryckaert-Bellemans, CMAP, custom), in double precision.

    Raises:
        UnsupportedForceError: A torsion force has no translation; the message names it.
    """
    return TorchPotential.fromSystem(system, dtype=torch.float64, compile=False, only=TORSION_FORCES)
