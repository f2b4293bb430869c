"""Molecules from files: PDB with force-field XMLs, AMBER, GROMACS, CHARMM, or a serialized System."""

from openmm_cgflow.inputs.load import CONSTRAINTS, SOLVENTS, load_system
from openmm_cgflow.inputs.parts import System

__all__ = ["CONSTRAINTS", "SOLVENTS", "System", "load_system"]
