"""Slow and fast coordinates: bonds, angles and torsions of a molecule, or a rotation of plain vectors."""

from openmm_cgflow.coordinates.internal import InternalCoordinates
from openmm_cgflow.coordinates.kept_back import KeptBack, find_kept_back, kept_isomers
from openmm_cgflow.coordinates.linear import LinearCoordinates
from openmm_cgflow.coordinates.perception import Perceived, perceive

__all__ = [
    "InternalCoordinates",
    "KeptBack",
    "LinearCoordinates",
    "Perceived",
    "find_kept_back",
    "kept_isomers",
    "perceive",
]
