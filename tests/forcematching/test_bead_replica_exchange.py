"""Beads in replica exchange, openmmtools' and that of OpenMM 8.6: one energy at each temperature."""

import logging

import numpy as np
import openmm
import pytest
import torch
from molecules import MODELS
from openmm import app, unit
from openmmtools import cache, mcmc, multistate, states

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import DistilSettings, StudentSettings
from openmm_cgflow.units import KB

REFERENCE = openmm.Platform.getPlatformByName("Reference")
TEMPERATURES = [300.0, 390.0, 500.0]


@pytest.fixture(scope="module")
def force_field() -> cgf.CGForceField:
    quick = DistilSettings(points=1_000, steps=60, batch=128, student=StudentSettings(hidden=16, layers=2))
    return cgf.CGForceField.fromFlow(cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu"), quick)


def reduced(force_field: cgf.CGForceField, x: list[np.ndarray]) -> np.ndarray:
    """`(replicas, temperatures)`, the student's own energies over kT."""
    energy = force_field.student(torch.as_tensor(np.array(x))).numpy()
    return energy[:, None] / (KB * np.array(TEMPERATURES))


def test_replica_exchange_of_openmmtools_takes_beads(force_field, tmp_path, monkeypatch):
    logging.getLogger("openmmtools").setLevel(logging.ERROR)
    monkeypatch.setattr(cache.global_context_cache, "_platform", REFERENCE)
    cg = force_field.createCGSystem()
    move = mcmc.LangevinDynamicsMove(2 * unit.femtosecond, 1 / unit.picosecond, n_steps=5)
    sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=2)
    sampler.create(
        [states.ThermodynamicState(cg.system, t * unit.kelvin) for t in TEMPERATURES],
        states.SamplerState(cg.positions),
        multistate.MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=1),
    )
    sampler.run()
    x = [state.positions.value_in_unit(unit.nanometer) for state in sampler.sampler_states]
    assert np.ptp(x, axis=0).max() > 1e-3
    np.testing.assert_allclose(sampler._energy_thermodynamic_states, reduced(force_field, x), atol=1e-4)
    assert sampler._n_proposed_matrix.sum() > 0
    assert sorted(sampler._replica_thermodynamic_states) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(app, "ReplicaExchangeSampler"), reason="OpenMM's replica exchange is of 8.6")
def test_replica_exchange_of_openmm_takes_beads(force_field):
    cg = force_field.createCGSystem("python")
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 0.002)
    simulation = app.Simulation(cg.topology, cg.system, integrator, REFERENCE)
    simulation.context.setPositions(cg.positions)
    sampler = app.ReplicaExchangeSampler([{"temperature": t * unit.kelvin} for t in TEMPERATURES], simulation, 5)
    sampler.simulate(4)
    x = [state.getPositions(asNumpy=True)._value for state in sampler.replicaConformation]
    assert np.ptp(x, axis=0).max() > 1e-3
    kept = [[energy.value_in_unit(unit.kilojoule_per_mole) for energy in row] for row in sampler.replicaStateEnergy]
    np.testing.assert_allclose(kept / (KB * np.array(TEMPERATURES)), reduced(force_field, x), atol=1e-4)
    assert sorted(sampler.replicaStateIndex) == [0, 1, 2]
