"""The grid of phi and psi on which free energies of residues are known."""

__all__ = ["BINS", "CAP"]

BINS = 72
"""Points of a circle on which free energies are known, and planes are turned."""

CAP = 60.0
"""kJ/mol, the largest free energy that is kept."""
