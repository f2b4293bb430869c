"""Choosing a potential for a System."""

import logging
from typing import Any

import openmm
import torch

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.base import Potential
from openmm_cgflow.potentials.check import positions_array
from openmm_cgflow.potentials.context_potential import ContextPotential
from openmm_cgflow.potentials.torch_potential import TorchPotential
from openmm_cgflow.potentials.translate import TORSION_FORCES, check_system

__all__ = ["make_potential", "torsion_energy"]

_log = logging.getLogger(__name__)


def make_potential(system: openmm.System, positions: Any) -> Potential:  # noqa: ANN401
    """A TorchPotential that was checked at `positions`, or Contexts where the System cannot be translated.

    Arguments:
        system: An OpenMM System without a periodic box.
        positions: (atoms, 3), nm or a Quantity.

    Returns:
        The potential; falling back to Contexts is logged as a warning that names the force.

    Raises:
        InvalidInputError: The System is periodic, has virtual sites or no particles; the positions are not finite or
            not of this System.
    """
    check_system(system)
    x = positions_array(positions, system.getNumParticles())
    try:
        return TorchPotential.fromSystem(system, positions=x)
    except UnsupportedForceError as error:
        _log.warning("%s: energies come from OpenMM Contexts instead, which is slower", error)
        return ContextPotential(system)


def torsion_energy(system: openmm.System) -> TorchPotential:
    """The energy of the torsion forces alone (periodic, Ryckaert-Bellemans, CMAP, custom), in double precision.

    Raises:
        UnsupportedForceError: A torsion force has no translation; the message names it.
    """
    return TorchPotential.fromSystem(system, dtype=torch.float64, compile=False, only=TORSION_FORCES)
