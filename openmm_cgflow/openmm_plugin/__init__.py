"""What a trained flow gives to OpenMM scripts."""

from openmm_cgflow.openmm_plugin.moves.monte_carlo import FlowMonteCarlo

__all__ = ["FlowMonteCarlo"]
