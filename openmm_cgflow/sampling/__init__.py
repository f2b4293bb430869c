"""Drawing and weighing: what was drawn (`Drawn`), the density that weighs it, samples with weights, diagnostics."""

from openmm_cgflow.sampling.samples import Samples
from openmm_cgflow.sampling.target import BoltzmannTarget, Drawn
from openmm_cgflow.sampling.weights import (
    clip_log_weights,
    effective_sample_size,
    khat_limit,
    log_mean_exp,
    pareto_k,
    soften_log_weights,
    trust,
    trustworthy,
)

__all__ = [
    "BoltzmannTarget",
    "Drawn",
    "Samples",
    "clip_log_weights",
    "effective_sample_size",
    "khat_limit",
    "log_mean_exp",
    "pareto_k",
    "soften_log_weights",
    "trust",
    "trustworthy",
]
