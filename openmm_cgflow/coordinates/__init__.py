"""Slow and fast coordinates: bonds, angles and torsions of a molecule, or a rotation of plain vectors.

A map has `to_internal(x) -> (q, log |det dx/dq|)`, `to_cartesian(q) -> (x, log |det dx/dq|)` and `in_domain(q)`. It
knows the `sizes` of the four blocks of `q` (slow, bead, rotor, atom), and the `names`, `reference`, `centre`, `scale`,
`period` and `span` of its entries.
"""

from openmm_cgflow.coordinates.chain import chain_coordinates
from openmm_cgflow.coordinates.internal import InternalCoordinates
from openmm_cgflow.coordinates.linear import LinearCoordinates

__all__ = ["InternalCoordinates", "LinearCoordinates", "chain_coordinates"]
