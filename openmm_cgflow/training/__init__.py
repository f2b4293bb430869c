"""Training a flow on a potential: Laplace start, reverse KL, reweighted maximum likelihood."""

from openmm_cgflow.training.budget import Budget
from openmm_cgflow.training.laplace import LaplaceMixture, curvature_factor, laplace, minimise
from openmm_cgflow.training.objectives import joint_reverse_kl, negative_log_likelihood, stiff_divergence
from openmm_cgflow.training.parallel import Parallel, available_cores
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.settings import TrainSettings
from openmm_cgflow.training.start import anneal_soft, separating_directions, soft_and_stiff
from openmm_cgflow.training.target import BoltzmannTarget
from openmm_cgflow.training.tempering import AdaptiveTempering, GeometricTempering, Tempering
from openmm_cgflow.training.trainer import Trainer

__all__ = [
    "AdaptiveTempering",
    "BoltzmannTarget",
    "Budget",
    "GeometricTempering",
    "LaplaceMixture",
    "Metrics",
    "Parallel",
    "Reporter",
    "Tempering",
    "TrainSettings",
    "Trainer",
    "anneal_soft",
    "available_cores",
    "curvature_factor",
    "joint_reverse_kl",
    "laplace",
    "minimise",
    "negative_log_likelihood",
    "separating_directions",
    "soft_and_stiff",
    "stiff_divergence",
]
