"""Which torch term stands for which OpenMM force."""

import openmm
import torch
from openmm import unit

from openmm_cgflow.errors import CGFlowError, InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials.systems import ENERGY_FREE, check_system
from openmm_cgflow.potentials.terms.bonded import AngleTerm, BondTerm, FourierTorsionTerm
from openmm_cgflow.potentials.terms.cmap import CMAPTerm
from openmm_cgflow.potentials.terms.custom import custom_term
from openmm_cgflow.potentials.terms.customgb import CustomGBTerm
from openmm_cgflow.potentials.terms.customnonbonded import CustomNonbondedTerm
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Term
from openmm_cgflow.potentials.terms.gbsa import gbsa_obc_term
from openmm_cgflow.potentials.terms.nonbonded import NonbondedTerm
from openmm_cgflow.potentials.terms.tabulated import tabulated_functions
from openmm_cgflow.potentials.terms.torsions import periodic_series, ryckaert_bellemans_series

__all__ = ["TORSION_FORCES", "build_terms"]

TORSION_FORCES = (
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CMAPTorsionForce,
    openmm.CustomTorsionForce,
)


def _needs_every_pair(force: openmm.Force) -> bool:
    return isinstance(force, openmm.CustomGBForce | openmm.GBSAOBCForce | openmm.CustomNonbondedForce)


def build_terms(system: openmm.System, table: DifferenceTable, dtype: torch.dtype, only: tuple[type, ...] | None = None
                ) -> list[tuple[int, Term]]:  # fmt: skip
    """Translate the forces of `system`.

    Arguments:
        system: The OpenMM System.
        table: Where the terms ask for difference vectors.
        dtype: Of the parameters.
        only: Translate forces of these types alone.

    Returns:
        Pairs of a force's number in the System and its term; forces without energy are left out.

    Raises:
        UnsupportedForceError: A force has no translation; the message names it.
    """
    check_system(system)
    forces = [(k, f) for k, f in enumerate(system.getForces()) if not isinstance(f, ENERGY_FREE)]
    if only is not None:
        forces = [(k, f) for k, f in forces if isinstance(f, only)]
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
    share = any(_needs_every_pair(f) for _, f in forces)
    terms: list[tuple[int, Term]] = []
    for number, force in forces:
        try:
            terms += [(number, term) for term in _translate(force, table, masses, dtype, share)]
        except UnsupportedForceError as error:
            raise UnsupportedForceError(f"the force {force.getName()} ({type(force).__name__}): {error}") from error
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, CGFlowError):
                raise
            raise UnsupportedForceError(
                f"the force {force.getName()} ({type(force).__name__}) could not be translated to torch: {error}"
            ) from error
    return terms


def _translate(force: openmm.Force, table: DifferenceTable, masses: list[float], dtype: torch.dtype, share: bool
               ) -> list[Term]:  # fmt: skip
    if isinstance(force, openmm.HarmonicBondForce):
        return BondTerm.from_force(force, table, dtype)
    if isinstance(force, openmm.HarmonicAngleForce):
        return AngleTerm.from_force(force, table, dtype)
    if isinstance(force, openmm.PeriodicTorsionForce):
        return FourierTorsionTerm.from_series(periodic_series(force), table, dtype)
    if isinstance(force, openmm.RBTorsionForce):
        return FourierTorsionTerm.from_series(ryckaert_bellemans_series(force), table, dtype)
    if isinstance(force, openmm.CMAPTorsionForce):
        return CMAPTerm.from_force(force, table)
    if isinstance(force, openmm.NonbondedForce):
        if force.getNonbondedMethod() not in (force.NoCutoff, force.CutoffNonPeriodic):
            raise InvalidInputError("NonbondedForce uses a periodic method; build the System with NoCutoff")
        return [NonbondedTerm(table, force, dtype, share)]
    if isinstance(force, openmm.GBSAOBCForce):
        return [gbsa_obc_term(table, force, dtype)]
    if isinstance(force, openmm.CustomGBForce):
        return [CustomGBTerm(table, force, tabulated_functions(force), dtype)]
    if isinstance(force, openmm.CustomNonbondedForce):
        return [CustomNonbondedTerm(table, force, dtype)]
    return custom_term(force, table, masses, dtype)
