"""Coarse-grained force fields fitted to the exact density of beads, and the judge of any of them.

A teacher is a density of the beads' internal coordinates; `distil` fits a `BeadNetwork`, the student, to its forces and
energies. `judge_beads` says what any energy of the beads gives at equilibrium, without a simulation; `BatchedLangevin`
moves many copies of the beads at once. Nothing here knows of OpenMM's forces.
"""

from openmm_cgflow.forcematching.distil import Distilled, DistilSettings, distil
from openmm_cgflow.forcematching.evaluator import BeadMarginal, judge_beads, torsion_histogram
from openmm_cgflow.forcematching.langevin import BatchedLangevin
from openmm_cgflow.forcematching.student import BeadNetwork, StudentSettings
from openmm_cgflow.forcematching.teacher import Points, Teacher, training_points

__all__ = [
    "BatchedLangevin",
    "BeadMarginal",
    "BeadNetwork",
    "DistilSettings",
    "Distilled",
    "Points",
    "StudentSettings",
    "Teacher",
    "distil",
    "judge_beads",
    "torsion_histogram",
    "training_points",
]
