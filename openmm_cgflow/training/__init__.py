"""Training a flow on a potential: a loop that goes through stages.

`Loop` (loop.py) knows a budget, an optimizer and checkpoints, and no flow; `stages/` know a flow and what they share, a
`Task` (task.py); `Trainer` (trainer.py) puts them together. Settings are recipes that never change: whatever changes
is in a `state_dict`, and a checkpoint is that of the trainer.
"""

from openmm_cgflow.compute import Parallel, available_cores
from openmm_cgflow.sampling import BoltzmannTarget
from openmm_cgflow.training.budget import Budget, Spent
from openmm_cgflow.training.laplace import LaplaceMixture, curvature_factor, laplace, minimise
from openmm_cgflow.training.objectives import negative_log_likelihood, reverse_kl, stiff_divergence
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.settings import TrainSettings
from openmm_cgflow.training.start import anneal_soft, separating_directions, soft_and_stiff
from openmm_cgflow.training.tempering import AdaptiveTempering, GeometricTempering, Level, Tempering
from openmm_cgflow.training.trainer import Trainer

__all__ = [
    "AdaptiveTempering",
    "BoltzmannTarget",
    "Budget",
    "GeometricTempering",
    "LaplaceMixture",
    "Level",
    "Metrics",
    "Parallel",
    "Reporter",
    "Spent",
    "Tempering",
    "TrainSettings",
    "Trainer",
    "anneal_soft",
    "available_cores",
    "curvature_factor",
    "laplace",
    "minimise",
    "negative_log_likelihood",
    "reverse_kl",
    "separating_directions",
    "soft_and_stiff",
    "stiff_divergence",
]
