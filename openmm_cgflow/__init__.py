"""Data-free Boltzmann samplers and coarse-grained models for OpenMM, by normalizing flows.

What is exported is loaded at its first use, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openmm_cgflow.errors import (
    CGFlowError,
    InvalidInputError,
    MismatchError,
    ModelFileError,
    TrainingError,
    UnsupportedForceError,
)
from openmm_cgflow.version import __version__

if TYPE_CHECKING:
    from openmm_cgflow.beads import BeadParticles
    from openmm_cgflow.coverage import Coverage
    from openmm_cgflow.force_field import CGForceField
    from openmm_cgflow.model import CGFlow
    from openmm_cgflow.openmm_plugin.forces.force import force_from_energy
    from openmm_cgflow.openmm_plugin.moves.mcmc_move import FlowMove
    from openmm_cgflow.openmm_plugin.moves.monte_carlo import FlowMonteCarlo
    from openmm_cgflow.openmm_plugin.moves.replica_exchange import FlowReplicaExchangeSampler
    from openmm_cgflow.proteins import FragmentLibrary, ProteinBackmapper
    from openmm_cgflow.sampling import Samples
    from openmm_cgflow.slow_scan import SlowScan, scanTorsions
    from openmm_cgflow.training import AdaptiveTempering, GeometricTempering, TrainSettings
    from openmm_cgflow.vector_flow import VectorFlow

__all__ = [
    "AdaptiveTempering",
    "BeadParticles",
    "CGFlow",
    "CGFlowError",
    "CGForceField",
    "Coverage",
    "FlowMonteCarlo",
    "FlowMove",
    "FlowReplicaExchangeSampler",
    "FragmentLibrary",
    "GeometricTempering",
    "InvalidInputError",
    "MismatchError",
    "ModelFileError",
    "ProteinBackmapper",
    "Samples",
    "SlowScan",
    "TrainSettings",
    "TrainingError",
    "UnsupportedForceError",
    "VectorFlow",
    "__version__",
    "force_from_energy",
    "scanTorsions",
]

_HOMES = {
    "AdaptiveTempering": "training",
    "BeadParticles": "beads",
    "CGFlow": "model",
    "CGForceField": "force_field",
    "Coverage": "coverage",
    "FlowMonteCarlo": "openmm_plugin",
    "FlowMove": "openmm_plugin.moves.mcmc_move",
    "FlowReplicaExchangeSampler": "openmm_plugin.moves.replica_exchange",
    "FragmentLibrary": "proteins",
    "GeometricTempering": "training",
    "ProteinBackmapper": "proteins",
    "Samples": "sampling",
    "SlowScan": "slow_scan",
    "TrainSettings": "training",
    "VectorFlow": "vector_flow",
    "force_from_energy": "openmm_plugin.forces.force",
    "scanTorsions": "slow_scan",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("torch")  # before openmm: openmm-torch's plugin needs torch's libraries in the process first
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
