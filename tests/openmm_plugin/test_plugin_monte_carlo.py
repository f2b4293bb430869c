"""Flow proposals in OpenMM and openmmtools: exact whatever the flow, refused where they do not belong."""

import copy
import csv
import errno
import io
import json

import numpy as np
import openmm
import pytest
import torch
from molecules import load, small_networks
from openmm import app, unit
from openmmtools import mcmc, states
from openmmtools.utils import deserialize, serialize

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.moves.proposals import IndependenceSampler


@pytest.fixture(scope="module")
def butane(butane_file) -> cgf.CGFlow:
    return cgf.CGFlow.load(butane_file)


@pytest.fixture(scope="module")
def poor(butane) -> cgf.CGFlow:
    """The same with a slow density that was never trained: nearly uniform."""
    with small_networks():
        flow = cgf.CGFlow(*load("butane"), seed=1)
    slow = copy.deepcopy(flow.flow.bead_flow.slow.state_dict())
    flow.flow.load_state_dict(butane.flow.state_dict())
    flow.flow.bead_flow.slow.load_state_dict(slow)
    return flow


def simulate(name: str = "butane", temperature: float = 300, **options) -> app.Simulation:
    molecule = load(name, **options)
    integrator = openmm.LangevinMiddleIntegrator(temperature, 1 / unit.picosecond, 0.001)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    simulation.context.setVelocitiesToTemperature(temperature, 1)
    return simulation


def torsion(simulation: app.Simulation, flow: cgf.CGFlow) -> float:
    x = simulation.context.getState(positions=True).getPositions(asNumpy=True)
    return float(flow.slowVariables(x)[0, 0])


def anti(angle):
    return np.abs(angle) > 2 * np.pi / 3


@pytest.mark.parametrize("quality", ["good", "poor"])
def test_populations_do_not_depend_on_the_flow(butane, poor, quality):
    flow = butane if quality == "good" else poor
    samples = butane.sample(20_000, seed=0)
    expected, error = samples.reweight(anti(samples.slow[:, 0]))
    simulation = simulate()
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, frequency=10, seed=2)
    angles = []
    for _ in range(600):
        monte_carlo.step(simulation, 10)
        angles.append(torsion(simulation, flow))
    blocks = anti(np.array(angles)).reshape(20, -1).mean(1)
    found, spread = blocks.mean(), blocks.std() / np.sqrt(len(blocks) - 1)
    assert abs(found - expected) < 4 * np.hypot(spread, error)
    assert spread < 0.08  # else the line above would show nothing
    assert monte_carlo.attempted == 600
    assert (monte_carlo.acceptance > 0.5) == (quality == "good")


def test_densities_of_proposals_are_those_of_the_flow(butane):
    """In whatever orientation and labelling they come."""
    sampler = IndependenceSampler(butane, seed=0, batch=50)
    centre = np.ones((14, 3))
    proposals = [sampler.propose(centre) for _ in range(50)]
    x = np.array([x for x, _ in proposals])
    np.testing.assert_allclose(butane.logDensity(x), [q for _, q in proposals], atol=5e-3)
    np.testing.assert_allclose(x.mean(1), 1, atol=1e-6)
    assert (np.abs(butane.coordinates.canonical(torch.as_tensor(x)).numpy() - x).max((1, 2)) > 0.01).mean() > 0.5


def test_velocities_are_redrawn_when_accepted_and_positions_kept_when_not(butane):
    simulation = simulate()
    monte_carlo = cgf.FlowMonteCarlo(simulation, butane, frequency=10)
    seen = set()
    for _ in range(60):
        before = simulation.context.getState(positions=True, velocities=True)
        accepted = monte_carlo.attempt(simulation)
        after = simulation.context.getState(positions=True, velocities=True)
        for read in ("getPositions", "getVelocities"):
            old, new = (getattr(s, read)(asNumpy=True)._value for s in (before, after))
            assert np.array_equal(old, new) != accepted
        seen.add(accepted)
    assert seen == {True, False}


def test_another_isomer_can_only_be_left_by_dynamics(caplog):
    flow = cgf.CGFlow(*load("ALA"), seed=1)
    simulation = simulate("ALA")
    simulation.context.setPositions(load("ALA").positions * [1, 1, -1])
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow)
    for _ in range(3):
        assert not monte_carlo.attempt(simulation)
    assert monte_carlo.outside == 3
    assert caplog.text.count("outside the domain of the flow") == 1


def test_state_and_log_go_on_where_they_were(butane, tmp_path):
    def run(monte_carlo, simulation, n):
        return [monte_carlo.attempt(simulation) for _ in range(n)]

    whole, first, second = io.StringIO(), tmp_path / "log.csv", tmp_path / "log.csv"
    simulation = simulate()
    run(cgf.FlowMonteCarlo(simulation, butane, seed=5, log=whole), simulation, 12)
    simulation = simulate()
    half = cgf.FlowMonteCarlo(simulation, butane, seed=5, log=first)
    run(half, simulation, 6)
    half.saveState(tmp_path / "mc.json")
    rest = cgf.FlowMonteCarlo(simulation, butane, seed=99, log=second, append=True)
    rest.loadState(tmp_path / "mc.json")
    run(rest, simulation, 6)
    rows = list(csv.reader(io.StringIO(whole.getvalue())))
    assert rows == list(csv.reader(first.read_text().splitlines()))
    assert rows[0][:3] == ["step", "attempted", "accepted"]
    assert rest.attempted == 12


def test_a_damaged_state_is_named(butane, tmp_path):
    (tmp_path / "mc.json").write_text("{")
    monte_carlo = cgf.FlowMonteCarlo(simulate(), butane)
    for name in ("mc.json", "missing.json"):
        with pytest.raises(cgf.ModelFileError, match=name):
            monte_carlo.loadState(tmp_path / name)
    with pytest.raises(cgf.ModelFileError, match="could not be written"):
        monte_carlo.saveState(tmp_path / "no" / "mc.json")


@pytest.mark.parametrize(
    "damage",
    [
        {"generator": {"bit_generator": "MT19937"}},
        {"attempted": "3"},
        {"accepted": None},
        {"outside": 4},
        {"accepted": -1},
        {"batch": 0, "next": 0},
        {"batch_seed": -1},
        {"format": "something else"},
    ],
)
def test_a_damaged_state_changes_nothing(butane, tmp_path, damage):
    simulation, path = simulate(), tmp_path / "mc.json"
    monte_carlo = cgf.FlowMonteCarlo(simulation, butane, seed=5)
    for _ in range(3):
        monte_carlo.attempt(simulation)
    monte_carlo.saveState(path)
    good = path.read_text()
    other = cgf.FlowMonteCarlo(simulation, butane, seed=7)
    other.saveState(path)
    before = path.read_text()
    path.write_text(json.dumps(json.loads(good) | damage))
    with pytest.raises(cgf.ModelFileError, match="is not a state that FlowMonteCarlo"):
        other.loadState(path)
    other.saveState(path)
    assert path.read_text() == before


def test_a_state_that_cannot_be_written_leaves_the_old_one(butane, tmp_path, monkeypatch):
    monte_carlo, path = cgf.FlowMonteCarlo(simulate(), butane), tmp_path / "mc.json"
    monte_carlo.saveState(path)
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(cgf.ModelFileError, match="No space left"):
        monte_carlo.saveState(path)
    assert path.read_text() == before


def test_simulations_that_do_not_belong_are_refused(butane):
    with pytest.raises(cgf.MismatchError, match="14"):
        cgf.FlowMonteCarlo(simulate("biphenyl"), butane)
    with pytest.raises(cgf.MismatchError, match=r"310 K.*300 K"):
        cgf.FlowMonteCarlo(simulate(temperature=310), butane)
    with pytest.raises(cgf.MismatchError, match="constraints="):
        cgf.FlowMonteCarlo(simulate(constraints="HBonds"), butane)
    with pytest.raises(cgf.InvalidInputError, match="frequency"):
        cgf.FlowMonteCarlo(simulate(), butane, frequency=0)
    simulation = simulate()
    monte_carlo = cgf.FlowMonteCarlo(simulation, butane)
    simulation.integrator.setTemperature(400)
    with pytest.raises(cgf.MismatchError, match="400 K"):
        monte_carlo.attempt(simulation)


def test_atoms_in_another_order_are_refused(butane):
    molecule = load("butane")
    modeller = app.Modeller(molecule.topology, molecule.positions)
    swapped = app.Topology()
    residue = swapped.addResidue("LIG", swapped.addChain())
    atoms = list(modeller.topology.atoms())
    order = [atoms[-1], *atoms[:-1]]
    new = {a: swapped.addAtom(a.name, a.element, residue) for a in order}
    for a, b in modeller.topology.bonds():
        swapped.addBond(new[a], new[b])
    simulation = app.Simulation(swapped, molecule.system, openmm.LangevinMiddleIntegrator(300, 1, 0.001))
    with pytest.raises(cgf.MismatchError, match="another order"):
        cgf.FlowMonteCarlo(simulation, butane)


# -- openmmtools -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(butane_file):
    return butane_file


def nvt(temperature: float = 300, **options):
    molecule = load("butane", **options)
    state = states.ThermodynamicState(molecule.system, temperature * unit.kelvin)
    return state, states.SamplerState(molecule.positions * unit.nanometer)


@pytest.mark.parametrize("what", [3, None])
def test_a_flow_move_of_something_else_is_refused(what):
    with pytest.raises(cgf.InvalidInputError, match="FlowMove: model is a"):
        cgf.FlowMove(what)


def test_flow_move_samples_with_dynamics_between(model, butane):
    np.random.seed(3)
    expected = butane.sample(20_000, seed=0)
    expected = expected.reweight(anti(expected.slow[:, 0]))[0]
    move = mcmc.SequenceMove([mcmc.LangevinDynamicsMove(n_steps=5), cgf.FlowMove(model)])
    sampler = mcmc.MCMCSampler(*nvt(), move=move)
    angles = []
    for _ in range(300):
        sampler.run(1)
        angles.append(butane.slowVariables(sampler.sampler_state.positions)[0, 0])
    assert abs(anti(np.array(angles)).mean() - expected) < 0.12
    assert 0.4 < move.move_list[1].n_accepted / move.move_list[1].n_proposed <= 1


def test_flow_move_is_restored_from_storage(model, tmp_path):
    move = cgf.FlowMove(model, any_temperature=True)
    move.n_proposed, move.n_accepted = 5, 3
    stored = serialize(move)
    again = deserialize(dict(stored))
    assert again.statistics == {"n_accepted": 3, "n_proposed": 5}
    assert again.any_temperature
    assert again.flow is move.flow
    assert copy.deepcopy(move).flow is move.flow
    with pytest.raises(cgf.ModelFileError, match="save the flow"):
        serialize(cgf.FlowMove(move.flow))
    with pytest.raises(cgf.MismatchError, match="not the model"):
        deserialize({**serialize(move), "digest": "0"})
    with pytest.raises(cgf.ModelFileError, match=r"gone\.cgflow"):
        deserialize({**serialize(move), "path": str(tmp_path / "gone.cgflow")})


def test_flow_move_refuses_what_does_not_belong(model):
    move = cgf.FlowMove(model)
    with pytest.raises(cgf.MismatchError, match="any_temperature=True"):
        move.apply(*nvt(310))
    with pytest.raises(cgf.MismatchError, match="constraints="):
        move.apply(*nvt(constraints="HBonds"))
    warm = cgf.FlowMove(model, any_temperature=True)
    warm.apply(*nvt(310))
    assert warm.n_proposed == 1


# -- OpenMM's own replica exchange -----------------------------------------------------------------------------------


needs_86 = pytest.mark.skipif(not hasattr(app, "ReplicaExchangeSampler"), reason="OpenMM's replica exchange is of 8.6")


@needs_86
def test_replica_exchange_proposes_at_the_temperature_of_the_flow(butane):
    temperatures = [300, 350, 400]
    replicas = [{"temperature": t * unit.kelvin} for t in temperatures]
    sampler = cgf.FlowReplicaExchangeSampler(replicas, simulate(), 20, flow=butane, seed=1)
    sampler.simulate(60)
    assert sampler.attempted == 60
    assert sampler.acceptance > 0.5


@needs_86
def test_replica_exchange_without_the_temperature_of_the_flow_is_refused(butane):
    with pytest.raises(cgf.MismatchError, match=r"300 K"):
        cgf.FlowReplicaExchangeSampler([{"temperature": 350 * unit.kelvin}] * 2, simulate(), 20, flow=butane)
    with pytest.raises(cgf.InvalidInputError, match="groups"):
        cgf.FlowReplicaExchangeSampler([{"groups": {0: 0.5}}, {"groups": {0}}], simulate(), 20, flow=butane)


@pytest.mark.skipif(hasattr(app, "ReplicaExchangeSampler"), reason="OpenMM has replica exchange")
def test_replica_exchange_says_that_openmm_is_too_old(butane):
    with pytest.raises(cgf.InvalidInputError, match=r"8\.6"):
        cgf.FlowReplicaExchangeSampler([], simulate(), 20, flow=butane)
