"""Coarse-grained force fields of frames or of a flow alone: a density of the beads, and a network that learns from it.

A teacher is a density of the beads' internal coordinates: that of a trained flow, or one that `fit_beads` fits to
frames of a `BeadModel` (flow-matching: Köhler et al. 2023, arXiv 2203.11167). `distil` fits a student to its forces and
energies: a `BeadNetwork`, or a `ChainNetwork`, whose weights `distil_many` fits to several sequences at once.
`judge_beads` says what any energy of the beads gives at equilibrium, without a simulation; `BatchedLangevin` moves many
copies of the beads at once. `fit_forces` and `fit_relative_entropy` fit a `BeadNetwork` to frames without a teacher:
flow-matching is measured by them. Nothing here knows of OpenMM's forces.
"""

from openmm_cgflow.forcematching.baselines.force_matching import fit_forces
from openmm_cgflow.forcematching.baselines.members import Matched, MatchSettings
from openmm_cgflow.forcematching.baselines.relative_entropy import EntropySettings, fit_relative_entropy
from openmm_cgflow.forcematching.density.chain_torsions import ChainTorsions
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.fitting import FittedBeads, fit_beads
from openmm_cgflow.forcematching.density.mixture import BeadMixture
from openmm_cgflow.forcematching.density.teacher import Points, Teacher, training_points
from openmm_cgflow.forcematching.evaluator import BeadMarginal, judge_beads, reweighted_histogram, torsion_histogram
from openmm_cgflow.forcematching.frames.bead_model import BeadModel
from openmm_cgflow.forcematching.frames.force_map import ForceMap, aggregated_map, generalised_forces, optimal_map
from openmm_cgflow.forcematching.frames.mapping import BeadMapping
from openmm_cgflow.forcematching.frames.residues import bead_types
from openmm_cgflow.forcematching.langevin import BatchedLangevin
from openmm_cgflow.forcematching.students.bead_network import BeadNetwork, StudentSettings
from openmm_cgflow.forcematching.students.chain_network import ChainNetwork, shared_network
from openmm_cgflow.forcematching.students.distil import Chain, Distilled, DistilSettings, distil, distil_many
from openmm_cgflow.forcematching.students.lessons import Student
from openmm_cgflow.forcematching.students.nnpops import NNPOpsEnergy, why_no_nnpops
from openmm_cgflow.forcematching.students.schnet import SchNet, SchNetSettings

__all__ = [
    "BatchedLangevin",
    "BeadMapping",
    "BeadMarginal",
    "BeadMixture",
    "BeadModel",
    "BeadNetwork",
    "Chain",
    "ChainNetwork",
    "ChainTorsions",
    "DistilSettings",
    "Distilled",
    "EntropySettings",
    "FitSettings",
    "FittedBeads",
    "ForceMap",
    "MatchSettings",
    "Matched",
    "NNPOpsEnergy",
    "Points",
    "SchNet",
    "SchNetSettings",
    "Student",
    "StudentSettings",
    "Teacher",
    "aggregated_map",
    "bead_types",
    "distil",
    "distil_many",
    "fit_beads",
    "fit_forces",
    "fit_relative_entropy",
    "generalised_forces",
    "judge_beads",
    "optimal_map",
    "reweighted_histogram",
    "shared_network",
    "torsion_histogram",
    "training_points",
    "why_no_nnpops",
]
