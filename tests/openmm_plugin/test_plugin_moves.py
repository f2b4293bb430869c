"""Monte Carlo moves keep what the dynamics at hand samples: its forces, its constraints, its biases; on four atoms."""

import copy
import csv
import gc
import io
import warnings

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from openmmtools import cache, integrators, states

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.moves.dynamics import (
    ConstraintMetric,
    boosts_forces,
    integrated_groups,
    thermostat_temperatures,
)
from openmm_cgflow.openmm_plugin.moves.structure_density import StructureDensity

KT = 0.0083144626 * 300
BOND, ANGLE, STIFFNESS = 0.153, np.radians(140), 30.0  # nm, rad, kJ/mol/rad^2
WIDTH = np.sqrt(KT / STIFFNESS)
LIGHT = (16.0, 1.0, 16.0, 16.0)  # Da: the light second atom makes det Z depend on the first angle


def chain(masses=(12.0, 12.0, 12.0, 12.0), constraints: bool = True, copies: int = 1) -> openmm.System:
    """Four atoms in a row, with two soft angles and no torsion term."""
    system, bonds = openmm.System(), openmm.HarmonicBondForce()
    # no HarmonicAngleForce: OpenMM takes its angles for granted when it solves constraints, and these are soft
    angles = openmm.CustomAngleForce(f"0.5*{STIFFNESS}*(theta-{ANGLE})^2")
    for k in range(0, 4 * copies, 4):
        for mass in masses:
            system.addParticle(mass)
        for i in (k, k + 1, k + 2):
            bonds.addBond(i, i + 1, BOND, 200_000)
            if constraints:
                system.addConstraint(i, i + 1, BOND)
        for i in (k, k + 1):
            angles.addAngle(i, i + 1, i + 2)
    system.addForce(angles)
    system.addForce(bonds)
    return system


def topology() -> app.Topology:
    result = app.Topology()
    residue = result.addResidue("CHN", result.addChain())
    atoms = [result.addAtom(f"C{k}", app.element.carbon, residue) for k in range(4)]
    for k in range(3):
        result.addBond(atoms[k], atoms[k + 1])
    return result


def positions() -> np.ndarray:
    """At the minimum, with a torsion of 90 degrees."""
    along, aside = np.cos(ANGLE), np.sin(ANGLE)
    first, last = [along, aside, 0], [1 - along, 0, aside]
    return BOND * np.array([first, [0, 0, 0], [1, 0, 0], last])


def angle(x: np.ndarray) -> np.ndarray:
    """The first angle, rad."""
    a, b = x[..., 0, :] - x[..., 1, :], x[..., 2, :] - x[..., 1, :]
    return np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def expected(masses, metric: bool) -> float:
    """The mean of the first angle, by quadrature over both."""
    a, b = np.meshgrid(*[(np.arange(400) + 0.5) / 400 * np.pi] * 2, indexing="ij")
    weight = np.sin(a) * np.sin(b) * np.exp(-STIFFNESS / 2 / KT * ((a - ANGLE) ** 2 + (b - ANGLE) ** 2))
    if metric:
        m = 1 / np.array(masses)
        first, second, third = m[0] + m[1], m[1] + m[2], m[2] + m[3]
        weight *= np.sqrt(first * second * third - first * (m[2] * np.cos(b)) ** 2 - third * (m[1] * np.cos(a)) ** 2)
    return float((weight * a).sum() / weight.sum())


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    """Not trained: normal in the angles, of about the right width, and nearly uniform in the torsion."""
    made = cgf.CGFlow(topology(), chain(), positions(), seed=1)
    stiff = made.flow.bead_flow.stiff
    stiff.set_factor(torch.diag(1.2 * WIDTH / stiff.scale))
    return made


def simulate(system: openmm.System, integrator: openmm.Integrator | None = None) -> app.Simulation:
    if integrator is None:
        integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
        integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(topology(), system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions())
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


def mts(kelvin: float, groups: list[tuple[int, int]]) -> openmm.CustomIntegrator:
    return openmm.MTSLangevinIntegrator(kelvin * unit.kelvin, 10 / unit.picosecond, 2 * unit.femtosecond, groups)


def moved(simulation: app.Simulation, monte_carlo: cgf.FlowMonteCarlo, n: int) -> np.ndarray:
    frames = np.empty((n, 4, 3))
    for frame in frames:
        monte_carlo.attempt(simulation)
        frame[:] = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    return frames


def error_of_mean(values: np.ndarray, blocks: int = 20) -> float:
    return float(values[: len(values) // blocks * blocks].reshape(blocks, -1).mean(1).std() / np.sqrt(blocks - 1))


# -- constraints -----------------------------------------------------------------------------------------------------


def test_constrained_dynamics_has_the_factor_sqrt_det_z():
    """OpenMM itself is the judge of the formula: 40 chains, 20 ps each. Fails by chance 1 time in 15,000."""
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
    integrator.setRandomNumberSeed(3)
    integrator.setConstraintTolerance(1e-8)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(chain(LIGHT, copies=40), integrator, platform)
    context.setPositions(np.concatenate([positions()] * 40))
    context.setVelocitiesToTemperature(300, 2)
    integrator.step(1000)
    means = []
    for _ in range(200):
        integrator.step(50)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        means.append(angle(x.reshape(40, 4, 3)))
    by_chain = np.array(means).mean(0)
    error = by_chain.std() / np.sqrt(39)
    assert abs(by_chain.mean() - expected(LIGHT, metric=True)) < 4 * error
    assert abs(by_chain.mean() - expected(LIGHT, metric=False)) > 8 * error


def test_moves_have_the_factor_of_constrained_dynamics(flow):
    """With the masses of the System at hand. Fails by chance 1 time in 15,000."""
    simulation = simulate(chain(LIGHT))
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=3)
    values = angle(moved(simulation, monte_carlo, 2000))
    assert monte_carlo.acceptance > 0.4
    assert abs(values.mean() - expected(LIGHT, metric=True)) < 4 * error_of_mean(values)
    assert abs(values.mean() - expected(LIGHT, metric=False)) > 4 * error_of_mean(values)


def test_without_constraints_there_is_no_factor():
    metric = ConstraintMetric(chain(LIGHT, constraints=False))
    assert metric.log_factor(positions()) == 0


def test_the_factor_is_the_determinant_of_the_gradients():
    """`Z = J M^-1 J^T` with the Jacobian of all constraints by autograd."""
    x = positions() + np.random.default_rng(0).normal(scale=0.01, size=(4, 3))
    leaf = torch.as_tensor(x)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    jacobian = torch.autograd.functional.jacobian(lambda y: (y[pairs[:, 0]] - y[pairs[:, 1]]).norm(dim=1), leaf)
    jacobian = jacobian.flatten(1).numpy()
    z = (jacobian / np.repeat(LIGHT, 3)) @ jacobian.T
    assert ConstraintMetric(chain(LIGHT)).log_factor(x) == pytest.approx(0.5 * np.log(np.linalg.det(z)), abs=1e-10)


# -- forces ----------------------------------------------------------------------------------------------------------


def biased(system: openmm.System, height: float = 6.0, group: int = 0) -> openmm.System:
    """A barrier in the torsion, in kJ/mol."""
    bias = openmm.CustomTorsionForce("height*cos(theta)")
    bias.addGlobalParameter("height", height)
    bias.addTorsion(0, 1, 2, 3)
    bias.setForceGroup(group)
    system.addForce(bias)
    return system


def cosine(height: float) -> float:
    theta = (np.arange(2000) + 0.5) / 2000 * 2 * np.pi
    weight = np.exp(-height * np.cos(theta) / KT)
    return float((weight * np.cos(theta)).sum() / weight.sum())


def cosines(flow: cgf.CGFlow, frames: np.ndarray) -> np.ndarray:
    return np.cos(flow.slowVariables(frames)[:, 0])


@pytest.mark.parametrize("included", [True, False])
def test_a_bias_counts_if_the_integrator_integrates_it(flow, included):
    """Fails by chance 1 time in 15,000; the two distributions are more than 10 standard errors apart."""
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
    integrator.setIntegrationForceGroups({0, 3} if included else {0})
    simulation = simulate(biased(chain(), group=3), integrator)
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=4)
    values = cosines(flow, moved(simulation, monte_carlo, 1500))
    error = error_of_mean(values)
    assert abs(values.mean() - cosine(6.0 if included else 0.0)) < 4 * error
    assert abs(cosine(6.0) - cosine(0.0)) > 10 * error


def test_a_global_parameter_counts_as_it_is_now(flow):
    """Fails by chance 1 time in 15,000."""
    simulation = simulate(biased(chain(), height=0.0))
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=5)
    simulation.context.setParameter("height", -6.0)
    values = cosines(flow, moved(simulation, monte_carlo, 1500))
    assert abs(values.mean() - cosine(-6.0)) < 4 * error_of_mean(values)
    assert simulation.context.getParameter("height") == -6.0


def test_a_force_that_is_not_integrated_does_not_stop_moves(flow):
    """As a monitor of kJ/mol by the million would, if it were counted."""
    for make in (
        lambda: openmm.LangevinMiddleIntegrator(300, 10, 0.002),
        lambda: mts(300, [(0, 1), (1, 2)]),
    ):
        system, monitor = chain(), openmm.CustomBondForce("1e9*r")
        monitor.addBond(0, 3)
        monitor.setForceGroup(5)
        system.addForce(monitor)
        system.getForce(1).setForceGroup(1)
        integrator = make()
        integrator.setIntegrationForceGroups({0, 1})
        simulation = simulate(system, integrator)
        monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=4)
        moved(simulation, monte_carlo, 50)
        assert monte_carlo.acceptance > 0.2


def test_the_groups_of_an_integrator():
    langevin = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    assert integrated_groups(langevin) == set(range(32))
    langevin.setIntegrationForceGroups({1, 31})
    assert integrated_groups(langevin) == {1, 31}
    assert integrated_groups(openmm.MTSIntegrator(0.002, [(0, 1), (2, 2)])) == {0, 2}
    custom = openmm.CustomIntegrator(0.001)
    assert integrated_groups(custom) == set(range(32))
    custom.addComputeGlobal("dt", "dt+0*energy4")
    assert integrated_groups(custom) == {4}
    custom.addComputePerDof("v", "v+dt*(f+f7)/m")
    custom.setIntegrationForceGroups({2})
    assert integrated_groups(custom) == {2, 7}
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.MTSIntegrator(0.002, [(0, 1)]))
    compound.addIntegrator(copy.copy(langevin))
    assert integrated_groups(compound) == {0}
    compound.setCurrentIntegrator(1)
    assert integrated_groups(compound) == {1, 31}


def test_the_flows_own_energies_are_never_asked_for(flow, monkeypatch):
    """The System at hand may be fine where the flow's own is not."""

    def refuse(x):
        raise AssertionError("asked for the flow's own energy")

    monkeypatch.setattr(type(flow.potential), "energy", lambda self, x: refuse(x))
    simulation = simulate(chain())
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=4)
    moved(simulation, monte_carlo, 30)
    assert monte_carlo.acceptance > 0.2


def test_flow_moves_of_openmmtools_reject_what_they_must(flow):
    """Proposals are nearly uniform in the torsion; were all accepted, the mean would be 10 standard errors off.

    With constraints and a light atom, so that the mean of the angle shows the factor of dynamics as well. Fails by
    chance 1 time in 8,000.
    """
    np.random.seed(5)
    state = states.ThermodynamicState(biased(chain(LIGHT)), 300 * unit.kelvin)
    sampler_state = states.SamplerState(positions() * unit.nanometer)
    move = cgf.FlowMove(flow, context_cache=cache.ContextCache(platform=openmm.Platform.getPlatformByName("Reference")))
    frames = np.empty((1000, 4, 3))
    for frame in frames:
        move.apply(state, sampler_state)
        frame[:] = sampler_state.positions.value_in_unit(unit.nanometer)
    values, proposed = cosines(flow, frames), cosines(flow, flow.sample(2000, seed=1).positions)
    error = error_of_mean(values)
    assert abs(values.mean() - cosine(6.0)) < 4 * error
    assert abs(proposed.mean() - cosine(6.0)) > 10 * error
    angles = angle(frames)
    assert abs(angles.mean() - expected(LIGHT, metric=True)) < 4 * error_of_mean(angles)


# -- what is left as it was ------------------------------------------------------------------------------------------


def test_a_rejected_proposal_leaves_the_context_as_it_was(flow):
    simulation = simulate(biased(chain(), height=200.0))
    simulation.step(200)
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=6)
    rejected = 0
    for _ in range(40):
        before = simulation.context.getState(positions=True, velocities=True, parameters=True)
        if monte_carlo.attempt(simulation):
            continue
        after = simulation.context.getState(positions=True, velocities=True, parameters=True)
        for read in ("getPositions", "getVelocities"):
            assert np.array_equal(*(getattr(state, read)(asNumpy=True)._value for state in (before, after)))
        assert dict(before.getParameters()) == dict(after.getParameters())
        assert (before.getTime(), before.getStepCount()) == (after.getTime(), after.getStepCount())
        rejected += 1
    assert rejected > 10


def test_an_energy_that_cannot_be_computed_leaves_the_context_as_it_was(flow):
    """An error within the proposal's energy; it is the second that is asked for."""
    calls = []

    def energy(state):
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no energy here")
        return 0.0, np.zeros((4, 3))

    system = chain()
    system.addForce(openmm.PythonForce(energy, {}))
    simulation = simulate(system)
    before = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, seed=6)
    with pytest.raises(Exception, match="no energy here"):
        monte_carlo.attempt(simulation)
    after = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.array_equal(before, after)


def test_positions_that_are_not_finite_are_named(flow):
    simulation = simulate(chain())
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow)
    simulation.context.setPositions(np.full((4, 3), np.nan))
    with pytest.raises(cgf.TrainingError, match="blown up"):
        monte_carlo.attempt(simulation)


# -- the density of one structure ------------------------------------------------------------------------------------


def test_a_flow_that_is_changed_does_not_change_moves_made_before(flow):
    changed = copy.deepcopy(flow)
    first = StructureDensity.of(changed)
    x = positions()
    before = first.log_prob(x)
    assert StructureDensity.of(changed) is first
    with torch.no_grad():
        changed.flow.bead_flow.stiff.log_diagonal += 0.3
    assert first.log_prob(x) == before
    assert StructureDensity.of(changed).log_prob(x) == pytest.approx(changed.logDensity(x)[0], abs=1e-4)
    assert abs(changed.logDensity(x)[0] - before) > 0.1


# -- who belongs together --------------------------------------------------------------------------------------------


def test_temperatures_are_read_wherever_they_are(flow):
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.LangevinMiddleIntegrator(310, 1, 0.001))
    for integrator in (mts(310, [(0, 1)]), compound):
        with pytest.raises(cgf.MismatchError, match=r"310 K"):
            cgf.FlowMonteCarlo(simulate(chain(), integrator), flow)
    system = chain()
    system.addForce(openmm.AndersenThermostat(310, 1))
    with pytest.raises(cgf.MismatchError, match=r"310 K"):
        cgf.FlowMonteCarlo(simulate(system, openmm.VerletIntegrator(0.001)), flow)
    assert thermostat_temperatures(simulate(chain(), openmm.VerletIntegrator(0.001)).context) == []


def test_every_thermostat_must_be_at_the_temperature_of_the_flow(flow):
    system = chain()
    system.addForce(openmm.AndersenThermostat(310, 1))
    parts = openmm.NoseHooverIntegrator(0.001)
    parts.addSubsystemThermostat([0, 1], [], 300, 1, 10, 1, 3, 3, 3)
    parts.addSubsystemThermostat([2, 3], [], 310, 1, 10, 1, 3, 3, 3)
    with pytest.raises(cgf.MismatchError, match=r"310 K"):
        cgf.FlowMonteCarlo(simulate(system, openmm.LangevinMiddleIntegrator(300, 1, 0.001)), flow)
    with pytest.raises(cgf.MismatchError, match=r"310 K"):
        cgf.FlowMonteCarlo(simulate(chain(constraints=False), parts), free_flow())


def test_an_integrator_of_which_no_temperature_can_be_read_is_said(flow, caplog):
    cgf.FlowMonteCarlo(simulate(chain(), openmm.VerletIntegrator(0.001)), flow)
    assert "VerletIntegrator" in caplog.text
    assert "300 K" in caplog.text


def test_fixed_particles_and_copies_are_refused(flow):
    with pytest.raises(cgf.MismatchError, match="mass zero"):
        cgf.FlowMonteCarlo(simulate(chain((0.0, 12.0, 12.0, 12.0), constraints=False)), free_flow())
    with pytest.raises(cgf.MismatchError, match="RPMDIntegrator"):
        cgf.FlowMonteCarlo(simulate(chain(constraints=False), openmm.RPMDIntegrator(4, 300, 1, 0.001)), free_flow())


def test_dynamics_that_samples_something_else_is_refused(flow):
    accelerated = (
        openmm.amd.AMDIntegrator(0.001, 10.0, 5.0),
        openmm.amd.AMDForceGroupIntegrator(0.001, 1, 10.0, 5.0),
        openmm.amd.DualAMDIntegrator(0.001, 1, 10.0, 5.0, 10.0, 5.0),
    )
    for integrator in (openmm.QTBIntegrator(300, 1, 0.001), *accelerated):
        with pytest.raises(cgf.MismatchError, match=type(integrator).__name__):
            cgf.FlowMonteCarlo(simulate(chain(), integrator), flow)
    for sound in (integrators.GHMCIntegrator(), integrators.HMCIntegrator(), integrators.BAOABIntegrator()):
        assert not boosts_forces(sound)


def test_what_is_no_flow_or_no_simulation_is_refused(flow):
    simulation = simulate(chain())
    for wrong in ((simulation, "model.cgflow"), (simulation.context, flow)):
        with pytest.raises(cgf.InvalidInputError, match=r"CGFlow\.load"):
            cgf.FlowMonteCarlo(*wrong)


def free_flow() -> cgf.CGFlow:
    return cgf.CGFlow(topology(), chain(constraints=False), positions(), seed=1)


def test_other_masses_are_said_unless_hydrogens_took_them(flow, caplog):
    cgf.FlowMonteCarlo(simulate(chain(LIGHT)), flow)
    assert "same order" in caplog.text
    caplog.clear()
    cgf.FlowMonteCarlo(simulate(chain()), flow)
    assert not caplog.text


def test_another_simulation_is_checked_too(flow):
    monte_carlo = cgf.FlowMonteCarlo(simulate(chain()), flow)
    with pytest.raises(cgf.MismatchError, match="constrained"):
        monte_carlo.attempt(simulate(chain(constraints=False)))


# -- the log ---------------------------------------------------------------------------------------------------------


def test_a_log_is_closed(flow, tmp_path):
    path = tmp_path / "log.csv"
    simulation = simulate(chain())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with cgf.FlowMonteCarlo(simulation, flow, log=path) as monte_carlo:
            monte_carlo.attempt(simulation)
        monte_carlo.attempt(simulation)
        del monte_carlo
        left = cgf.FlowMonteCarlo(simulation, flow, log=path, append=True)
        left.attempt(simulation)
        del left
        gc.collect()
    rows = list(csv.reader(path.read_text().splitlines()))
    assert len(rows) == 3
    other = io.StringIO()
    with cgf.FlowMonteCarlo(simulation, flow, log=other):
        pass
    assert not other.closed
    with pytest.raises(cgf.InvalidInputError, match="cannot be written"):
        cgf.FlowMonteCarlo(simulation, flow, log=tmp_path / "no" / "log.csv")
