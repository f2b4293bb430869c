"""Batched, differentiable potentials: OpenMM Systems in torch or through Contexts, and toy targets."""

from openmm_cgflow.potentials.base import Potential
from openmm_cgflow.potentials.contexts.context_potential import ContextPotential
from openmm_cgflow.potentials.factory import make_potential, torsion_energy
from openmm_cgflow.potentials.torch_potential import TorchPotential
from openmm_cgflow.potentials.toys import DoubleWell, GaussianMixture, ManyWell

__all__ = [
    "ContextPotential",
    "DoubleWell",
    "GaussianMixture",
    "ManyWell",
    "Potential",
    "TorchPotential",
    "make_potential",
    "torsion_energy",
]
