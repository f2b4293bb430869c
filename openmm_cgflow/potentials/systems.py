"""What a System must be, and what of it has no energy."""

import openmm

from openmm_cgflow.errors import InvalidInputError

__all__ = ["BAROSTATS", "ENERGY_FREE", "check_system", "without_barostats"]

BAROSTATS = tuple(
    getattr(openmm, name)
    for name in (
        "MonteCarloBarostat",
        "MonteCarloAnisotropicBarostat",
        "MonteCarloMembraneBarostat",
        "MonteCarloFlexibleBarostat",
    )
    if hasattr(openmm, name)
)
ENERGY_FREE = (openmm.CMMotionRemover, openmm.AndersenThermostat, *BAROSTATS)


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


def without_barostats(system: openmm.System) -> openmm.System:
    """The System itself, or a copy without its barostats, of which OpenMM makes no Context where there is no box."""
    found = [k for k, force in enumerate(system.getForces()) if isinstance(force, BAROSTATS)]
    if not found:
        return system
    copy = openmm.XmlSerializer.clone(system)
    for k in reversed(found):
        copy.removeForce(k)
    return copy
