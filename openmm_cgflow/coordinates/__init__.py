"""Internal coordinates of a molecule: the bijection between positions and bonds, angles and torsions."""

from openmm_cgflow.coordinates.internal import InternalCoordinates

__all__ = ["InternalCoordinates"]
