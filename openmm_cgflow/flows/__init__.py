"""Densities of slow and fast variables, and the two joined into one bijection."""

from openmm_cgflow.flows.atom_flow import AtomFlow
from openmm_cgflow.flows.bead_flow import BeadFlow, SoftVariables
from openmm_cgflow.flows.coupling import SinhArcsinhCoupling
from openmm_cgflow.flows.joint import FlowSettings, JointFlow
from openmm_cgflow.flows.mixture import MixtureDensity
from openmm_cgflow.flows.scored import ScoredSamples, draw_with_score
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = [
    "AtomFlow",
    "BeadFlow",
    "FlowSettings",
    "JointFlow",
    "MixtureDensity",
    "ScoredSamples",
    "SinhArcsinhCoupling",
    "SoftVariables",
    "StiffDensity",
    "draw_with_score",
]
