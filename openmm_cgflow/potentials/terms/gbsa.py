"""GBSAOBCForce, written as the CustomGBForce that it is equal to."""

import math

import openmm
import torch
from openmm import unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.terms.customgb import CustomGBTerm
from openmm_cgflow.potentials.terms.frame import DifferenceTable
from openmm_cgflow.potentials.terms.nonbonded import COULOMB

__all__ = ["as_custom_gb", "gbsa_obc_term"]

_INTEGRAL = (
    "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r+C), 0);"
    "U=r+sr2; C=2*(1/or1-1/L)*step(sr2-r-or1); L=max(or1,D); D=abs(r-sr2)"
)
_RADIUS = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius); psi=I*or; radius=or+0.009"


def as_custom_gb(force: openmm.GBSAOBCForce) -> openmm.CustomGBForce:
    """The OBC2 model (Onufriev, Bashford, Case 2004) with the surface-area term of Schaefer et al., as expressions."""
    custom = openmm.CustomGBForce()
    for name in ("charge", "or", "sr"):
        custom.addPerParticleParameter(name)
    for i in range(force.getNumParticles()):
        charge, radius, scale = force.getParticleParameters(i)
        offset = radius.value_in_unit(unit.nanometer) - 0.009
        custom.addParticle([charge.value_in_unit(unit.elementary_charge), offset, scale * offset])
    factor = COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric())
    surface = 4 * math.pi * force.getSurfaceAreaEnergy().value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
    custom.addComputedValue("I", _INTEGRAL, custom.ParticlePairNoExclusions)
    custom.addComputedValue("B", _RADIUS, custom.SingleParticle)
    custom.addEnergyTerm(f"{-0.5 * factor!r}*charge^2/B", custom.SingleParticle)
    if surface != 0:
        custom.addEnergyTerm(f"{surface!r}*(or+0.149)^2*((or+0.009)/B)^6", custom.SingleParticle)
    shift = ""
    if force.getNonbondedMethod() == force.CutoffNonPeriodic:
        custom.setNonbondedMethod(custom.CutoffNonPeriodic)
        custom.setCutoffDistance(force.getCutoffDistance())
        shift = f"-1/{force.getCutoffDistance().value_in_unit(unit.nanometer)!r}"
    elif force.getNonbondedMethod() != force.NoCutoff:
        raise InvalidInputError("GBSAOBCForce uses a periodic method; build the System with NoCutoff")
    custom.addEnergyTerm(
        f"{-factor!r}*charge1*charge2*(1/sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2))){shift})", custom.ParticlePairNoExclusions
    )
    return custom


def gbsa_obc_term(table: DifferenceTable, force: openmm.GBSAOBCForce, dtype: torch.dtype) -> CustomGBTerm:
    """The term of a GBSAOBCForce."""
    return CustomGBTerm(table, as_custom_gb(force), {}, dtype)
