import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import molecules
import numpy as np
import openmm
import pytest
import torch

import openmm_cgflow
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.potentials import ContextPotential
from openmm_cgflow.potentials.contexts.evaluator import fastest_platform


def batch(molecule, n):
    return torch.from_numpy(molecules.jiggled(molecule.positions, n))


@pytest.fixture(scope="module")
def workers():
    molecule = molecules.load("aldp_vacuum")
    potential = ContextPotential(molecule.system, platform="Reference", workers=2)
    yield potential, molecule
    potential.close()


def test_energies_and_gradient_are_those_of_openmm(aldp_vacuum):
    potential = ContextPotential(aldp_vacuum.system, platform="Reference", workers=0)
    x = batch(aldp_vacuum, 3).requires_grad_(True)
    energy = potential(x)
    (gradient,) = torch.autograd.grad((energy * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    context = openmm.Context(
        aldp_vacuum.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for k in range(3):
        context.setPositions(x[k].detach().numpy())
        state = context.getState(getEnergy=True, getForces=True)
        assert energy[k].item() == pytest.approx(state.getPotentialEnergy()._value, rel=1e-12)
        np.testing.assert_allclose(gradient[k].numpy(), -(k + 1) * state.getForces(asNumpy=True)._value, rtol=1e-9)
    assert potential.evaluations == 3
    assert potential.energy(x.detach().float()).dtype == torch.float64
    assert potential.energy_and_forces(x.detach().float())[1].dtype == torch.float32


def test_workers_take_chunks_and_agree(workers):
    potential, molecule = workers
    x = batch(molecule, 37)
    energy, forces = potential.energy_and_forces(x)
    assert potential._pool is not None
    alone = ContextPotential(molecule.system, platform="Reference", workers=0)
    true_energy, true_forces = alone.energy_and_forces(x)
    torch.testing.assert_close(energy, true_energy, rtol=1e-12, atol=0)
    torch.testing.assert_close(forces, true_forces, rtol=1e-12, atol=1e-9)


def test_small_batches_stay_in_this_process(aldp_vacuum):
    potential = ContextPotential(aldp_vacuum.system, platform="Reference", workers=2)
    potential.energy_and_forces(batch(aldp_vacuum, 3))
    assert potential._pool is None


def test_nan_positions_give_nan_energies(workers):
    potential, molecule = workers
    x = batch(molecule, 6)
    x[2, 0, 0] = torch.inf
    energy, forces = potential.energy_and_forces(x)
    assert energy.isnan().tolist() == [False, False, True, False, False, False]
    assert forces[2].isnan().all()


def test_a_dead_worker_is_an_error_and_the_next_batch_works(aldp_vacuum):
    potential = ContextPotential(aldp_vacuum.system, platform="Reference", workers=1)
    x = batch(aldp_vacuum, 20)
    potential.energy_and_forces(x)
    potential._pool._workers[0][0].kill()
    potential._pool._workers[0][0].join()
    with pytest.raises(CGFlowError, match="worker process"):
        potential.energy_and_forces(x)
    energy, _ = potential.energy_and_forces(x)
    assert torch.isfinite(energy).all()
    potential.close()


def test_automatic_workers_that_die_are_done_without(aldp_vacuum, caplog, monkeypatch):
    potential = ContextPotential(aldp_vacuum.system, platform="Reference")
    monkeypatch.setattr(potential, "workers", 1)
    monkeypatch.setattr(potential, "_seconds", 1.0)
    x = batch(aldp_vacuum, 20)
    expected, _ = potential.energy_and_forces(x)
    for process, _ in potential._pool._workers:
        process.kill()
        process.join()
    with caplog.at_level(logging.WARNING):
        energy, _ = potential.energy_and_forces(x)
    assert "going on in this process" in caplog.text
    torch.testing.assert_close(energy, expected)


def test_scripts_need_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            print("started")
            import openmm_cgflow
            import openmm, torch
            from openmm_cgflow.potentials import ContextPotential
            system = openmm.System()
            system.addParticle(1.0)
            force = openmm.CustomExternalForce("x^2")
            force.addParticle(0)
            system.addForce(force)
            potential = ContextPotential(system, platform="Reference", workers=1)
            print(potential.energy(torch.ones(8, 1, 3)).sum().item())
            """
        )
    )
    root = str(Path(openmm_cgflow.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.split() == ["started", "8.0"]


def test_the_fastest_platform_exists_and_was_timed(aldp_vacuum):
    name, _, seconds = fastest_platform(aldp_vacuum.system)
    assert name in {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    assert seconds > 0


def test_bad_arguments_are_named(aldp_vacuum):
    with pytest.raises(InvalidInputError, match=r"'Abacus'.*Reference"):
        ContextPotential(aldp_vacuum.system, platform="Abacus")
    with pytest.raises(InvalidInputError, match="workers is -1"):
        ContextPotential(aldp_vacuum.system, workers=-1)
    with pytest.raises(InvalidInputError, match=r"\(batch, 22, 3\)"):
        ContextPotential(aldp_vacuum.system, platform="Reference").energy(torch.zeros(1, 5, 3))
