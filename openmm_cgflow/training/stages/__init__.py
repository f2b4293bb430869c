"""The stages of a training, by the names that its history and its files have: each with its settings and its state."""

from openmm_cgflow.training.loop import Stage
from openmm_cgflow.training.stages.refine import Refine
from openmm_cgflow.training.stages.soft import Soft
from openmm_cgflow.training.stages.start import Start
from openmm_cgflow.training.stages.temper import Temper

__all__ = ["Refine", "Soft", "Stage", "Start", "Temper"]
