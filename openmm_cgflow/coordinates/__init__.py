"""Slow and fast coordinates: bonds, angles and torsions of a molecule, or a learned rotation of plain vectors."""

from openmm_cgflow.coordinates.internal import InternalCoordinates
from openmm_cgflow.coordinates.linear import LinearCoordinates

__all__ = ["InternalCoordinates", "LinearCoordinates"]
