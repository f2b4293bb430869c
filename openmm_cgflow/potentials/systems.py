"""What a System must be, and what of it has no energy."""

import openmm

from openmm_cgflow.errors import InvalidInputError

__all__ = ["BAROSTATS", "ENERGY_FREE", "check_system", "refuse_periodic", "without_barostats"]

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
    """Raise InvalidInputError for periodic boxes, virtual sites, and Systems without particles."""
    refuse_periodic(system)
    if system.getNumParticles() == 0:
        raise InvalidInputError("the System has no particles")
    for i in range(system.getNumParticles()):
        if system.isVirtualSite(i):
            raise InvalidInputError(f"particle {i} is a virtual site; use a force field without virtual sites")


def refuse_periodic(system: openmm.System) -> None:
    """Raise InvalidInputError if a force uses a periodic box, naming the forces and the fix that is theirs."""
    periodic = [force for force in system.getForces() if not isinstance(force, ENERGY_FREE) and _is_periodic(force)]
    if not periodic:
        return
    fix = "call setUsesPeriodicBoundaryConditions(False) on it"
    if any(isinstance(force, openmm.CustomExternalForce) for force in periodic):
        fix = "write (x-x0)^2+(y-y0)^2+(z-z0)^2 in place of periodicdistance(x, y, z, x0, y0, z0)^2"
    if any("Nonbonded" in type(force).__name__ for force in periodic):
        fix = "create the System with nonbondedMethod=NoCutoff (or CutoffNonPeriodic)"
    names = ", ".join(dict.fromkeys(force.getName() or type(force).__name__ for force in periodic))
    raise InvalidInputError(
        f"the System is periodic ({names} uses a periodic box), but a flow is of one molecule in vacuum or implicit "
        f"solvent: {fix}"
    )


def _is_periodic(force: openmm.Force) -> bool:
    try:
        return bool(force.usesPeriodicBoundaryConditions())
    except openmm.OpenMMException:
        return False


def without_barostats(system: openmm.System) -> openmm.System:
    """The System itself, or a copy without its barostats, of which OpenMM makes no Context where there is no box."""
    found = [k for k, force in enumerate(system.getForces()) if isinstance(force, BAROSTATS)]
    if not found:
        return system
    copy = openmm.XmlSerializer.clone(system)
    for k in reversed(found):
        copy.removeForce(k)
    return copy
