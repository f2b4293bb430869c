"""TorchPotential on whole molecules, and what it does at its edges."""

import logging
from concurrent.futures import ThreadPoolExecutor

import molecules
import numpy as np
import openmm
import pytest
import torch

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials import ContextPotential, TorchPotential, make_potential, torsion_energy
from openmm_cgflow.potentials import torch_potential as torch_potential_module
from openmm_cgflow.potentials.contexts import evaluator as evaluator_module
from openmm_cgflow.potentials.contexts.evaluator import Evaluator

EVERY_FORCE_FIELD = [
    *((name, "default") for name in molecules.ALL),
    *((name, "GBn2") for name in molecules.AMINO_ACIDS),
    ("ALA", "HCT"),
    ("ALA", "GBn"),
    ("caffeine", "OBC2"),
]


@pytest.fixture
def aldp(aldp_vacuum):
    return aldp_vacuum


def batch(molecule, n, dtype=torch.float32):
    return torch.from_numpy(molecules.jiggled(molecule.positions, n)).to(dtype)


@pytest.mark.parametrize(("name", "solvent"), EVERY_FORCE_FIELD)
def test_molecule_agrees_with_openmm(name, solvent):
    molecule = molecules.load(name, solvent)
    x = molecules.jiggled(molecule.positions, 3, sigma=0.01)
    energy, forces = Evaluator(molecule.system, "Reference")(x)
    potential = TorchPotential.fromSystem(molecule.system, dtype=torch.float64)
    ours, our_forces = potential.energy_and_forces(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), energy, rtol=1e-6)
    error = np.linalg.norm(our_forces.numpy() - forces, axis=(1, 2)) / np.linalg.norm(forces, axis=(1, 2))
    assert error.max() < 1e-5

    single = TorchPotential.fromSystem(molecule.system, dtype=torch.float32)
    low, low_forces = single.energy_and_forces(torch.from_numpy(x).float())
    assert np.abs(low.numpy() - energy).max() < 0.02  # kJ/mol: below a hundredth of kT
    error = np.linalg.norm(low_forces.numpy() - forces, axis=(1, 2)) / np.linalg.norm(forces, axis=(1, 2))
    assert error.max() < 1e-4


def test_energy_is_differentiable_and_weights_rows(aldp):
    potential = TorchPotential.fromSystem(aldp.system, dtype=torch.float64)
    x = batch(aldp, 5, torch.float64).requires_grad_(True)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    energy = potential(x)
    (gradient,) = torch.autograd.grad((weights * energy).sum(), x)
    _, forces = potential.energy_and_forces(x)
    torch.testing.assert_close(gradient, -weights[:, None, None] * forces)
    assert not forces.requires_grad


def test_gradient_is_the_derivative_of_the_energy(aldp_obc1):
    potential = TorchPotential.fromSystem(aldp_obc1.system, dtype=torch.float64)
    x = batch(aldp_obc1, 1, torch.float64)
    direction = torch.randn(x.shape, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (potential(x + step * direction) - potential(x - step * direction)) / (2 * step)
    _, forces = potential.energy_and_forces(x)
    torch.testing.assert_close(slope, -(forces * direction).sum((1, 2)), rtol=1e-6, atol=1e-4)


def test_chunks_do_not_show(aldp):
    potential = TorchPotential.fromSystem(aldp.system, dtype=torch.float64)
    x = batch(aldp, 700, torch.float64)
    energy, forces = potential.energy_and_forces(x)
    first, first_forces = potential.energy_and_forces(x[300:310])
    torch.testing.assert_close(energy[300:310], first, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(forces[300:310], first_forces, rtol=1e-9, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(potential(x), energy, rtol=1e-12, atol=1e-10)


def test_evaluations_are_counted(aldp):
    potential = TorchPotential.fromSystem(aldp.system)
    potential.energy_and_forces(batch(aldp, 30))
    potential.energy(batch(aldp, 12))
    assert potential.evaluations == 42


def test_threads_may_share_a_potential(aldp):
    potential = TorchPotential.fromSystem(aldp.system, dtype=torch.float64)
    x = batch(aldp, 20, torch.float64)
    expected = potential.energy(x)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: potential.energy_and_forces(x)[0], range(40)))
    assert potential.evaluations == 41 * 20
    for energy in found:
        torch.testing.assert_close(energy, expected, rtol=1e-12, atol=1e-10)


def test_an_empty_batch_is_no_error(aldp):
    potential = TorchPotential.fromSystem(aldp.system)
    energy, forces = potential.energy_and_forces(batch(aldp, 0))
    assert energy.shape == (0,)
    assert forces.shape == (0, 22, 3)
    assert potential.energy(batch(aldp, 0)).shape == (0,)


def test_precision_is_that_of_the_module_and_the_dtype_that_of_the_positions(aldp):
    potential = TorchPotential.fromSystem(aldp.system)
    exact = TorchPotential.fromSystem(aldp.system, dtype=torch.float64)
    x = batch(aldp, 4, torch.float64)
    forces = exact.energy_and_forces(x)[1]
    energy, rough = potential.energy_and_forces(x)
    assert energy.dtype == rough.dtype == torch.float64
    assert exact.energy_and_forces(x.float())[1].dtype == torch.float32
    assert 1e-5 < (rough - forces).abs().max() < 1
    # its parameters were rounded before
    torch.testing.assert_close(potential.double().energy_and_forces(x)[1], forces, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(potential.energy(x), exact.energy(x), rtol=1e-5, atol=1e-2)


def test_nan_stays_in_its_row(aldp):
    potential = TorchPotential.fromSystem(aldp.system)
    x = batch(aldp, 3)
    x[1, 4, 2] = torch.nan
    energy, forces = potential.energy_and_forces(x)
    assert energy.isnan().tolist() == [False, True, False]
    assert not forces[[0, 2]].isnan().any()


@pytest.mark.parametrize("shape", [(4, 21, 3), (22, 3), (4, 22, 2)])
def test_wrong_shapes_are_named(aldp, shape):
    with pytest.raises(InvalidInputError, match=r"\(batch, 22, 3\)"):
        TorchPotential.fromSystem(aldp.system).energy(torch.zeros(shape))


def test_integers_are_refused(aldp):
    with pytest.raises(InvalidInputError, match="int64"):
        TorchPotential.fromSystem(aldp.system).energy(torch.zeros(1, 22, 3, dtype=torch.int64))


def test_compiled_agrees_with_eager():
    molecule = molecules.load("vinylether")  # with all kinds of terms of a force field, and few of them
    x = batch(molecule, 300)
    eager = TorchPotential.fromSystem(molecule.system, compile=False)
    compiled = TorchPotential.fromSystem(molecule.system, positions=molecule.positions)
    compiled.count(10**9)
    compiled.settle()  # so many are worth it: compiled now, and compared with OpenMM
    assert compiled._compiled is not None
    energy, forces = eager.energy_and_forces(x)
    ours, our_forces = compiled.energy_and_forces(x)
    torch.testing.assert_close(ours, energy, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(our_forces, forces, rtol=1e-4, atol=1.0)
    for size in (5, 70):  # no bit depends on what else is in the batch
        assert torch.equal(torch.cat([compiled.energy_and_forces(part)[0] for part in x.split(size)]), ours)


def test_auto_goes_on_when_compiling_fails(aldp, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(torch_potential_module, "compile_energy_gradient", fail)
    monkeypatch.setattr(torch_potential_module, "_AUTO_WORK", 0)
    potential = TorchPotential.fromSystem(aldp.system)
    with caplog.at_level(logging.INFO):
        potential.energy_and_forces(batch(aldp, 200))
        potential.settle()
        energy, _ = potential.energy_and_forces(batch(aldp, 200))
    assert "no luck" in caplog.text
    assert torch.isfinite(energy).all()
    with pytest.raises(RuntimeError, match="no luck"):
        TorchPotential.fromSystem(aldp.system, compile=True).energy_and_forces(batch(aldp, 200))


def test_self_check_accepts_and_rejects(aldp, monkeypatch):
    TorchPotential.fromSystem(aldp.system, positions=aldp.positions)
    true = evaluator_module.Evaluator.__call__

    def wrong(self, x, group=None):
        energy, forces = true(self, x, group)
        return energy + 1e-3, forces

    monkeypatch.setattr(evaluator_module.Evaluator, "__call__", wrong)
    with pytest.raises(UnsupportedForceError, match="does not agree"):
        TorchPotential.fromSystem(aldp.system, positions=aldp.positions)


def test_make_potential_translates(aldp):
    assert isinstance(make_potential(aldp.system, aldp.positions), TorchPotential)


def test_make_potential_falls_back_and_names_the_force(aldp, caplog):
    force = openmm.CustomHbondForce("distance(a1,d1)")
    force.setName("odd one")
    force.addDonor(0, -1, -1)
    force.addAcceptor(5, -1, -1)
    aldp.system.addForce(force)
    with caplog.at_level(logging.WARNING):
        potential = make_potential(aldp.system, aldp.positions)
    assert isinstance(potential, ContextPotential)
    assert "odd one" in caplog.text


def test_bad_positions_are_named(aldp):
    x = aldp.positions.copy()
    x[7, 1] = np.nan
    with pytest.raises(InvalidInputError, match="atom 7"):
        make_potential(aldp.system, x)
    with pytest.raises(InvalidInputError, match=r"\(21, 3\).*22"):
        make_potential(aldp.system, aldp.positions[:21])
    with pytest.raises(InvalidInputError, match=r"energy at the given positions"):
        make_potential(aldp.system, 0 * aldp.positions)


def test_bad_systems_are_named(aldp):
    periodic = openmm.System()
    periodic.addParticle(1.0)
    force = openmm.CustomExternalForce("periodicdistance(x,y,z,0,0,0)^2")
    force.addParticle(0)
    periodic.addForce(force)
    with pytest.raises(InvalidInputError, match="periodic"):
        make_potential(periodic, np.zeros((1, 3)))
    with pytest.raises(InvalidInputError, match="no particles"):
        TorchPotential.fromSystem(openmm.System())
    aldp.system.addParticle(0.0)
    aldp.system.setVirtualSite(22, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(InvalidInputError, match="particle 22 is a virtual site"):
        ContextPotential(aldp.system)


def test_torsion_energy_is_that_of_the_torsion_forces(aldp):
    x = batch(aldp, 4, torch.float64)
    for force in aldp.system.getForces():
        force.setForceGroup(1 if isinstance(force, openmm.PeriodicTorsionForce) else 0)
    context = openmm.Context(
        aldp.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for k in range(4):
        context.setPositions(x[k].numpy())
        true = context.getState(getEnergy=True, groups={1}).getPotentialEnergy()._value
        assert torsion_energy(aldp.system).energy(x[k : k + 1]).item() == pytest.approx(true, rel=1e-9)
