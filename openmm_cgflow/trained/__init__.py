"""A flow that has been trained, or is to be: what it is of, what it gives, and its file.

`Trained` is a density over coordinates with the energies that it is for, of molecules and of vectors; `TrainedFlow` is
one of a molecule. They are loaded, saved, sampled and asked for densities here, and all that uses a flow (forces, Monte
Carlo, backmapping, audit, reports) takes one of these. How it is trained is no part of them.
"""

from openmm_cgflow.trained.base import Trained
from openmm_cgflow.trained.known_region import KnownRegion
from openmm_cgflow.trained.made_once import Made, made_once
from openmm_cgflow.trained.molecule import TrainedFlow

__all__ = ["KnownRegion", "Made", "Trained", "TrainedFlow", "made_once"]
