"""Densities of slow and fast variables, and the chain of them over all internal coordinates.

`Factor` is what each of them is: `encode` gives the log-density of a value and what later densities see of it, `decode`
makes a value of noise. `SoftVariables` and `StiffDensity` are the two kinds, and a `Chain` joins any number.
"""

from openmm_cgflow.flows.coupling import SinhArcsinhCoupling
from openmm_cgflow.flows.factor import Chain, Decoded, Encoded, Factor
from openmm_cgflow.flows.joint import AtomFlow, BeadFlow, FlowSettings, JointFlow
from openmm_cgflow.flows.mixture import MixtureDensity
from openmm_cgflow.flows.scored import Given, ScoredSamples, draw_with_score
from openmm_cgflow.flows.soft import SoftVariables
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = [
    "AtomFlow",
    "BeadFlow",
    "Chain",
    "Decoded",
    "Encoded",
    "Factor",
    "FlowSettings",
    "Given",
    "JointFlow",
    "MixtureDensity",
    "ScoredSamples",
    "SinhArcsinhCoupling",
    "SoftVariables",
    "StiffDensity",
    "draw_with_score",
]
