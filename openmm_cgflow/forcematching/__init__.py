"""Coarse-grained force fields of frames: a density of the beads is fitted first, and a force field learns from it.

`BeadModel` says what the beads are and reads frames of them; `fit_beads` fits their density, the teacher
(flow-matching: Köhler et al. 2023, arXiv 2203.11167).
"""

from openmm_cgflow.forcematching.bead_model import BeadModel
from openmm_cgflow.forcematching.chain_torsions import ChainTorsions
from openmm_cgflow.forcematching.fitting import FitSettings, FittedBeads, fit_beads
from openmm_cgflow.forcematching.force_map import ForceMap, aggregated_map, generalised_forces, optimal_map
from openmm_cgflow.forcematching.mixture import BeadMixture

__all__ = [
    "BeadMixture",
    "BeadModel",
    "ChainTorsions",
    "FitSettings",
    "FittedBeads",
    "ForceMap",
    "aggregated_map",
    "fit_beads",
    "generalised_forces",
    "optimal_map",
]
