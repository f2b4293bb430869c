"""Which torch term stands for which OpenMM force."""

import openmm
import torch
from openmm import unit

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials.bonded import AngleTerm, BondTerm, FourierTorsionTerm
from openmm_cgflow.potentials.cmap import CMAPTerm
from openmm_cgflow.potentials.custom import custom_term
from openmm_cgflow.potentials.customgb import CustomGBTerm
from openmm_cgflow.potentials.customnonbonded import CustomNonbondedTerm
from openmm_cgflow.potentials.frame import DifferenceTable, Term
from openmm_cgflow.potentials.gbsa import gbsa_obc_term
from openmm_cgflow.potentials.nonbonded import NonbondedTerm
from openmm_cgflow.potentials.tabulated import tabulated_functions
from openmm_cgflow.potentials.torsions import periodic_series, ryckaert_bellemans_series

__all__ = ["TORSION_FORCES", "build_terms", "check_system"]

ENERGY_FREE = (
    openmm.CMMotionRemover,
    openmm.AndersenThermostat,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloMembraneBarostat,
)
TORSION_FORCES = (
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CMAPTorsionForce,
    openmm.CustomTorsionForce,
)


def check_system(system: openmm.System) -> None:
    """Raise InvalidInputError for what no potential here can do: periodic boxes, virtual sites, no particles."""
    for force in system.getForces():
        try:
            periodic = force.usesPeriodicBoundaryConditions()
        except openmm.OpenMMException:
            periodic = False
        if periodic and not isinstance(force, ENERGY_FREE):
            raise InvalidInputError(
                f"the System is periodic ({force.getName()} uses a periodic box); build it without a box: "
                "nonbondedMethod=NoCutoff or CutoffNonPeriodic, in vacuum or with an implicit solvent"
            )
    if system.getNumParticles() == 0:
        raise InvalidInputError("the System has no particles")
    for i in range(system.getNumParticles()):
        if system.isVirtualSite(i):
            raise InvalidInputError(f"particle {i} is a virtual site; use a force field without virtual sites")


def _needs_every_pair(force: openmm.Force) -> bool:
    return isinstance(force, openmm.CustomGBForce | openmm.GBSAOBCForce | openmm.CustomNonbondedForce)


def build_terms(system: openmm.System, table: DifferenceTable, dtype: torch.dtype, only: tuple[type, ...] | None = None
                ) -> list[tuple[str, Term]]:  # fmt: skip
    """Translate the forces of `system`.

    Arguments:
        system: The OpenMM System.
        table: Where the terms ask for difference vectors.
        dtype: Of the parameters.
        only: Translate forces of these types alone.

    Returns:
        Pairs of a force's name and its term; forces without energy are left out.

    Raises:
        UnsupportedForceError: A force has no translation; the message names it.
    """
    check_system(system)
    forces = [f for f in system.getForces() if not isinstance(f, ENERGY_FREE)]
    if only is not None:
        forces = [f for f in forces if isinstance(f, only)]
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
    share = any(_needs_every_pair(f) for f in forces)
    terms: list[tuple[str, Term]] = []
    for force in forces:
        try:
            terms += [(force.getName(), term) for term in _translate(force, table, masses, dtype, share)]
        except UnsupportedForceError as error:
            raise UnsupportedForceError(f"the force {force.getName()} ({type(force).__name__}): {error}") from error
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
