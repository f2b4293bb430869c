"""Samples with weights and diagnostics."""

from openmm_cgflow.sampling.samples import Samples
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
