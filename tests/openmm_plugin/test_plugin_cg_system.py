"""The System of beads: energy and forces against the flow's density, dynamics, and openmm-ml."""

import copy
import functools
import importlib.util
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from molecules import MODELS, load
from openmm import unit

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.forces import torch_force
from openmm_cgflow.openmm_plugin.forces.bead_free_energy import BeadFreeEnergy
from openmm_cgflow.openmm_plugin.forces.slow_free_energy import SlowFreeEnergy
from openmm_cgflow.openmm_plugin.recorded.compiled_forces import compile_forces

MODEL = MODELS / "alanine_dipeptide.cgflow"
NO_TORCH = torch_force.why_no_torch_force()
needs_torch_force = pytest.mark.skipif(NO_TORCH is not None, reason=str(NO_TORCH))
BACKENDS = [pytest.param("torch", marks=needs_torch_force), "python"]
needs_ml = pytest.mark.skipif(importlib.util.find_spec("openmmml") is None, reason="openmmml is not installed")
REFERENCE = openmm.Platform.getPlatformByName("Reference")
KT = 2.494338785445972  # kJ/mol at 300 K


@pytest.fixture(scope="module")
def aldp() -> cgf.CGFlow:
    """The shipped model: alanine dipeptide, five beads."""
    return cgf.CGFlow.load(MODEL)


@pytest.fixture(scope="module")
def cg_system(aldp):
    """Its System of beads by the backend, each made once: that takes seconds."""
    return functools.cache(aldp.createCGSystem)


@pytest.fixture(scope="module")
def beads(aldp) -> np.ndarray:
    return aldp.sample(200, seed=3).positions[:, aldp.coordinates.bead_atoms].astype(np.float64)


def context_of(system: openmm.System, integrator: openmm.Integrator | None = None) -> openmm.Context:
    return openmm.Context(system, integrator or openmm.VerletIntegrator(0.001), REFERENCE)


def energy_and_forces(context: openmm.Context, x: np.ndarray) -> tuple[float, np.ndarray]:
    context.setPositions(x)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def density_of_beads(flow: cgf.CGFlow, x: np.ndarray) -> np.ndarray:
    """Log-density of the beads' Cartesian positions, rigid motion taken out."""
    q, logdet = flow.coordinates.bead_coordinates().to_internal(torch.as_tensor(x))
    with torch.no_grad():
        return (flow.flow.bead_flow.log_prob(q.float()).double() - logdet).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_is_minus_kt_log_density(aldp, cg_system, beads, backend):
    context = context_of(cg_system(backend).system)
    energies = [energy_and_forces(context, x)[0] for x in beads[:20]]
    np.testing.assert_allclose(energies, -KT * density_of_beads(aldp, beads[:20]), rtol=0, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forces_are_differences_of_the_energy(cg_system, beads, backend):
    context = context_of(cg_system(backend).system)
    for x in beads[:3]:
        _, forces = energy_and_forces(context, x)
        numeric = np.zeros_like(forces)
        for index in np.ndindex(*x.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = x.copy()
                moved[index] += step
                ends.append(energy_and_forces(context, moved)[0])
            numeric[index] = -(ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(forces, numeric, rtol=0, atol=1e-4 * np.abs(forces).max())
        np.testing.assert_allclose(forces.sum(0), 0, atol=1e-6)
        np.testing.assert_allclose(np.cross(x, forces).sum(0), 0, atol=1e-6)


def test_beads_carry_elements_bonds_and_the_whole_mass(aldp, cg_system):
    cg = cg_system("python")
    assert [atom.name for atom in cg.topology.atoms()] == ["C", "N", "CA", "C", "N"]
    assert [atom.residue.name for atom in cg.topology.atoms()] == ["ACE", "ALA", "ALA", "ALA", "NME"]
    assert cg.topology.getNumBonds() == 4
    masses = [cg.system.getParticleMass(k)._value for k in range(5)]
    whole = sum(aldp.system.getParticleMass(k)._value for k in range(22))
    assert sum(masses) == pytest.approx(whole)
    assert masses[0] == pytest.approx(12.01 + 15.999 + 12.01 + 3 * 1.008, abs=0.02)  # C, its O and CH3
    assert cg.positions.unit == unit.nanometer
    assert cg.positions.shape == (5, 3)


@pytest.mark.parametrize("kind", ["beads", "slow"])
def test_the_compiled_forces_are_bound_to_no_device_and_no_precision(aldp, kind):
    """A TorchForce moves buffers and parameters to the GPU; a device noted in the graph would stay behind."""
    slow = SlowFreeEnergy(aldp.flow.bead_flow.slow, aldp.slow_torsions, KT)
    module = BeadFreeEnergy(aldp) if kind == "beads" else slow
    x = torch.as_tensor(aldp.positions._value)
    compiled = compile_forces(module, x)
    assert "Device = prim::Constant" not in str(compiled.inlined_graph)
    moved = x + 0.002 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = moved.clone().requires_grad_()
    energy = module(leaf, torch.tensor(0.5))
    energy.backward()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        found, forces = compiled(moved.to(dtype), torch.tensor(0.5))
        assert found.item() == pytest.approx(energy.item(), abs=tolerance * 10)
        assert forces.dtype is dtype
        assert forces.is_contiguous()
        torch.testing.assert_close(forces.double(), -leaf.grad, rtol=tolerance, atol=tolerance * leaf.grad.abs().max())


def test_energy_is_conserved_without_a_thermostat(cg_system):
    """What is left is the error of the integrator, which falls with the square of the time step; kT, of all beads.

    Forces that are one per cent off, or no gradient of the energy, would make it ten times as large, whatever the step.
    """
    cg = cg_system()
    spreads = []
    for timestep in (0.001, 0.0005):
        integrator = openmm.VerletIntegrator(timestep)
        context = context_of(cg.system, integrator)
        context.setPositions(cg.positions)
        context.setVelocitiesToTemperature(300, 1)
        energies = []
        for _ in range(20):
            integrator.step(round(0.01 / timestep))
            state = context.getState(energy=True)
            energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / KT)
        assert abs(np.mean(energies[10:]) - np.mean(energies[:10])) < 0.01  # in 0.1 ps
        spreads.append(np.std(energies))
    assert spreads[0] < 0.02
    assert 3 < spreads[0] / spreads[1] < 5.5


def test_beads_torn_apart_are_driven_back(aldp, cg_system, beads):
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
    integrator.setRandomNumberSeed(1)
    context = context_of(cg_system().system, integrator)
    rng = np.random.default_rng(0)
    module = BeadFreeEnergy(aldp)
    for x in beads[:2]:
        torn = x + rng.normal(scale=0.1, size=x.shape)
        energy, forces = energy_and_forces(context, torn)
        assert np.isfinite(energy)
        assert np.abs(forces).max() < 1e5  # kJ/mol/nm: a carbon moves 0.0002 nm in a step of 2 fs at that
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(500)
        after = context.getState(positions=True).getPositions(asNumpy=True)._value
        assert -module(torch.as_tensor(after), torch.tensor(1.0)) / KT > density_of_beads(aldp, beads).min() - 10
        assert not aldp.backmap(after).outside.any()


def test_dynamics_sample_the_density_of_the_beads(aldp, cg_system):
    """Bonds and angles, which a short run samples well, against the flow's own beads."""
    integrator = openmm.LangevinMiddleIntegrator(300, 20, 0.001)
    integrator.setRandomNumberSeed(2)
    cg = cg_system()
    context = context_of(cg.system, integrator)
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(300, 3)
    integrator.step(300)
    blocks, each = 10, 6
    frames = np.empty((blocks, each, 5, 3))
    for index in np.ndindex(blocks, each):
        integrator.step(20)
        frames[index] = context.getState(positions=True).getPositions(asNumpy=True)._value
    coordinates = aldp.coordinates.bead_coordinates()
    own = aldp.sample(5000, seed=5).positions[:, aldp.coordinates.bead_atoms]
    expected = coordinates.to_internal(torch.as_tensor(own))[0][:, 2:].numpy()
    found = coordinates.to_internal(torch.as_tensor(frames.reshape(-1, 5, 3)))[0][:, 2:].numpy()
    assert found.shape[1] == 7
    for values, wanted in zip(found.T, expected.T, strict=True):
        means = values.reshape(blocks, each).mean(1)
        error = means.std(ddof=1) / blocks**0.5 + 0.1 * wanted.std()  # angles differ a little between basins
        assert abs(values.mean() - wanted.mean()) < 4 * error
        assert values.std() == pytest.approx(wanted.std(), rel=0.25)


def test_constraints_among_beads_are_kept():
    flow = cgf.CGFlow(*load("butane", constraints="AllBonds"), seed=1)
    cg = flow.createCGSystem("python")
    assert cg.system.getNumConstraints() == 3
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    context = context_of(cg.system, integrator)
    context.setPositions(cg.positions)
    integrator.step(20)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    lengths = [cg.system.getConstraintParameters(k)[2]._value for k in range(3)]
    pairs = [cg.system.getConstraintParameters(k)[:2] for k in range(3)]
    np.testing.assert_allclose([np.linalg.norm(x[i] - x[j]) for i, j in pairs], lengths, rtol=1e-4)


@needs_torch_force
def test_torch_force_survives_xml_copies_and_nesting(cg_system, beads):
    cg = cg_system("torch")
    plain, _ = energy_and_forces(context_of(cg.system), beads[0])
    again = copy.deepcopy(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(cg.system)))
    assert energy_and_forces(context_of(again), beads[0])[0] == pytest.approx(plain)
    nested = openmm.System()
    for k in range(5):
        nested.addParticle(cg.system.getParticleMass(k))
    outer = openmm.CustomCVForce("2*f")
    outer.addCollectiveVariable("f", copy.deepcopy(cg.system.getForce(0)))
    nested.addForce(outer)
    assert energy_and_forces(context_of(nested), beads[0])[0] == pytest.approx(2 * plain)


def test_bad_input():
    three = cgf.CGFlow(*load("butane"), beads=[0, 1, 2])
    with pytest.raises(cgf.InvalidInputError, match=r"3 beads.*at least 4"):
        three.createCGSystem()
    with pytest.raises(cgf.InvalidInputError, match=r"backend for beads is 'tabulated'; give None"):
        cgf.CGFlow(*load("butane")).createCGSystem("tabulated")


# -- openmm-ml


@needs_ml
@pytest.mark.parametrize("backend", BACKENDS)
def test_openmm_ml_makes_the_same_system(cg_system, beads, backend):
    from openmmml import MLPotential

    cg = cg_system("python")
    system = MLPotential("cgflow", modelPath=MODEL).createSystem(cg.topology, removeCMMotion=False, backend=backend)
    masses = [[s.getParticleMass(k)._value for k in range(5)] for s in (system, cg.system)]
    assert masses[0] == pytest.approx(masses[1])
    ours, theirs = (energy_and_forces(context_of(s), beads[0]) for s in (cg.system, system))
    assert theirs[0] == pytest.approx(ours[0])
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-6)


@needs_ml
@pytest.mark.parametrize("backend", BACKENDS)
def test_openmm_ml_on_a_part_of_a_larger_system(aldp, beads, backend):
    from openmmml import MLPotential

    system = openmm.System()
    for _ in range(7):
        system.addParticle(10.0)
    potential = MLPotential("cgflow", modelPath=MODEL)
    larger = aldp.beads.topology
    residue = larger.addResidue("X", larger.addChain())
    for name in ("A", "B"):
        larger.addAtom(name, None, residue)
    potential._impl.addForces(larger, system, [0, 1, 2, 3, 4], 3, backend=backend)
    assert system.getForce(0).getForceGroup() == 3
    x = np.concatenate([beads[0], np.ones((2, 3))])
    energy, forces = energy_and_forces(context_of(system), x)
    assert energy == pytest.approx(-KT * density_of_beads(aldp, beads[:1])[0], abs=2e-3)
    assert not forces[5:].any()


@needs_ml
def test_openmm_ml_refuses_other_beads_and_a_missing_model(aldp):
    from openmmml import MLPotential

    with pytest.raises(cgf.InvalidInputError, match="modelPath="):
        MLPotential("cgflow")
    potential = MLPotential("cgflow", modelPath=MODEL)
    with pytest.raises(cgf.MismatchError, match="22 beads, but the flow has 5: ACE1:C, ALA2:N, ALA2:CA"):
        potential.createSystem(aldp.topology)
    with pytest.raises(cgf.ModelFileError, match="nowhere"):
        MLPotential("cgflow", modelPath="nowhere.cgflow").createSystem(aldp.beads.topology)


@needs_ml
def test_openmm_ml_is_imported_without_torch():
    code = "import sys, openmm_cgflow.ml_potential; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
