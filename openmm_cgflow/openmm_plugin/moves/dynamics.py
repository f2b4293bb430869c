"""What molecular dynamics samples: by which forces, at which temperature, and in which measure."""

import re

import numpy as np
import openmm
from openmm import unit

from openmm_cgflow.units import KB

__all__ = ["ConstraintMetric", "boosts_forces", "current_integrator", "integrated_groups", "thermostat_temperatures"]

_ALL_GROUPS = 0xFFFFFFFF
_NAME, _FORCE, _ENERGY = re.compile(r"[A-Za-z_]\w*"), re.compile(r"f\d*"), re.compile(r"energy\d*")
_READ = re.compile(r"\b(f|energy)(\d*)\b")


def integrated_groups(integrator: openmm.Integrator) -> set[int]:
    """The force groups by which an integrator moves the particles.

    Those of `getIntegrationForceGroups`; of a `CustomIntegrator` (such as `MTSIntegrator`) the groups whose forces its
    steps read, or whose energies where they read no forces; of a `CompoundIntegrator` those of the current one.
    """
    if isinstance(integrator, openmm.CompoundIntegrator):
        return integrated_groups(integrator.getIntegrator(integrator.getCurrentIntegrator()))
    chosen = integrator.getIntegrationForceGroups()
    groups = {group for group in range(32) if (chosen & _ALL_GROUPS) >> group & 1}
    if not isinstance(integrator, openmm.CustomIntegrator):
        return groups
    steps = [integrator.getComputationStep(k)[2] for k in range(integrator.getNumComputations())]
    read = {(kind, group) for step in steps for kind, group in _READ.findall(step)}
    wanted = [group for kind, group in read if kind == "f"] or [group for _, group in read]
    if not wanted:
        return groups
    named = {int(group) for group in wanted if group}
    return named | groups if "" in wanted else named


def thermostat_temperatures(context: openmm.Context) -> list[unit.Quantity]:
    """The temperature of each thermostat; there are none where dynamics has none, or none that can be read.

    Of a `CustomIntegrator` the global variable `kT` is read, as `MTSLangevinIntegrator` has it.
    """
    integrator, found = current_integrator(context), []
    if isinstance(integrator, openmm.NoseHooverIntegrator):
        found += [integrator.getTemperature(chain) for chain in range(integrator.getNumThermostats())]
    elif hasattr(integrator, "getTemperature"):
        found.append(integrator.getTemperature())
    elif isinstance(integrator, openmm.CustomIntegrator):
        names = [integrator.getGlobalVariableName(k) for k in range(integrator.getNumGlobalVariables())]
        if "kT" in names:
            found.append(integrator.getGlobalVariableByName("kT") / KB * unit.kelvin)
    andersen = openmm.AndersenThermostat.Temperature()
    if andersen in context.getParameters():
        found.append(context.getParameter(andersen) * unit.kelvin)
    return found


def current_integrator(context: openmm.Context) -> openmm.Integrator:
    """The integrator of a Context, and of a `CompoundIntegrator` the current one."""
    integrator = context.getIntegrator()
    if isinstance(integrator, openmm.CompoundIntegrator):
        return integrator.getIntegrator(integrator.getCurrentIntegrator())
    return integrator


def boosts_forces(integrator: openmm.Integrator) -> bool:
    """Whether a `CustomIntegrator` changes forces by what the energy is, as accelerated dynamics does.

    A step of it reads both, or globals and forces of the particles that were made of them before. Metropolized
    integrators read energies too, but not where they read forces.
    """
    if not isinstance(integrator, openmm.CustomIntegrator):
        return False
    of_energy, of_force = set[str](), set[str]()
    for k in range(integrator.getNumComputations()):
        kind, variable, expression = integrator.getComputationStep(k)
        read = set(_NAME.findall(expression))
        by_force = any(name in of_force or _FORCE.fullmatch(name) for name in read)
        by_energy = any(name in of_energy or _ENERGY.fullmatch(name) for name in read)
        if by_force and by_energy:
            return True
        if by_energy and kind == openmm.CustomIntegrator.ComputeGlobal:
            of_energy.add(variable)
        elif _FORCE.fullmatch(expression.strip()):
            of_force.add(variable)
    return False


class ConstraintMetric:
    """The factor `sqrt(det Z)` by which dynamics with constraints differs from the density of a flow.

    A flow's density is one over the coordinates that are left when constrained bonds are constants:
    `exp(-u) prod_k delta(sigma_k) dx` with `sigma_k = |x_i - x_j| - d_k`, the limit of ever stiffer springs. Momenta of
    constrained dynamics lie in the tangent space; integrated over, they leave the factor `sqrt(det Z)`,
    `Z_kl = sum_i (d sigma_k / dx_i) (d sigma_l / dx_i) / m_i`.

    Source: Fixman, PNAS 71, 3050 (1974); den Otter and Briels, J. Chem. Phys. 109, 4139 (1998).

    Arguments:
        system: its constraints and masses.
    """

    def __init__(self, system: openmm.System) -> None:
        n = system.getNumConstraints()
        pairs = [system.getConstraintParameters(k)[:2] for k in range(n)]
        self._first, self._second = np.array(pairs, dtype=np.int64).reshape(n, 2).T
        masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
        ends = np.zeros((n, len(masses)))
        ends[range(n), self._first], ends[range(n), self._second] = 1, -1
        self._coupling = (ends / np.array(masses)) @ ends.T if n else np.zeros((0, 0))

    def log_factor(self, x: np.ndarray) -> float:
        """`log sqrt(det Z)` of positions `(atoms, 3)` in nm, up to a constant of the units."""
        if not len(self._first):
            return 0.0
        along = x[self._first] - x[self._second]
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        return 0.5 * float(np.linalg.slogdet(self._coupling * (along @ along.T))[1])
