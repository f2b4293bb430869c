"""The free energy as a force: every backend against `freeEnergy`, and what is said where one cannot be had."""

import copy
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from molecules import DATA, jiggled, load

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.forces import torch_force
from openmm_cgflow.openmm_plugin.forces.force import create_force

MODEL = DATA.parents[1] / "examples" / "models" / "aldp_vacuum.cgflow"
NO_TORCH = torch_force.why_no_torch_force()
BACKENDS = [pytest.param("torch", marks=pytest.mark.skipif(NO_TORCH is not None, reason=str(NO_TORCH))), "python"]
REFERENCE = openmm.Platform.getPlatformByName("Reference")


@pytest.fixture(scope="module")
def aldp() -> cgf.CGFlow:
    """The shipped model: alanine dipeptide, two slow torsions."""
    return cgf.CGFlow.load(MODEL)


def context_of(force: openmm.Force, platform: openmm.Platform = REFERENCE, n: int = 22) -> openmm.Context:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(1.0)
    system.addForce(force)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform)


def energy_and_forces(context: openmm.Context, x: np.ndarray) -> tuple[float, np.ndarray]:
    context.setPositions(x)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def free_energy(flow: cgf.CGFlow, x: np.ndarray) -> np.ndarray:
    return flow.freeEnergy(flow.slowVariables(x))._value


def frames(flow: cgf.CGFlow, n: int) -> np.ndarray:
    return flow.sample(n, seed=0).positions.astype(float)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_is_the_free_energy_and_forces_are_its_differences(aldp, backend, platform):
    context = context_of(aldp.createForce(backend), openmm.Platform.getPlatformByName(platform))
    for x in frames(aldp, 4):
        energy, forces = energy_and_forces(context, x)
        assert energy == pytest.approx(free_energy(aldp, x)[0], abs=2e-3)
        step, moved = 1e-4, sorted({a for torsion in aldp.slow_torsions for a in torsion})
        numeric = np.zeros_like(forces)
        for atom in moved:
            for axis in range(3):
                shifted = np.repeat(x[None], 2, 0)
                shifted[:, atom, axis] += [step, -step]
                ends = [energy_and_forces(context, y)[0] for y in shifted]
                numeric[atom, axis] = -(ends[0] - ends[1]) / (2 * step)
        tolerance = 1e-4 if platform == "Reference" else 5e-3  # the CPU platform holds positions in single precision
        np.testing.assert_allclose(forces, numeric, atol=tolerance * np.abs(forces).max())
        np.testing.assert_allclose(forces.sum(0), 0, atol=1e-3)


@pytest.mark.parametrize("backend", [*BACKENDS, "tabulated"])
def test_scale_is_a_global_parameter(aldp, backend):
    force = aldp.createForce(backend, scale=-1.0, parameter="bias")
    context, x = context_of(force), frames(aldp, 1)[0]
    flat = energy_and_forces(context, x)
    context.setParameter("bias", 1.0)
    pmf = energy_and_forces(context, x)
    context.setParameter("bias", 0.0)
    assert energy_and_forces(context, x)[0] == 0
    assert flat[0] == pytest.approx(-pmf[0])
    np.testing.assert_allclose(flat[1], -pmf[1], atol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "tabulated"])
def test_force_survives_xml_and_deepcopy(aldp, backend):
    force, x = aldp.createForce(backend), frames(aldp, 1)[0]
    context = context_of(force)
    expected = energy_and_forces(context, x)
    system = context.getSystem()
    for copied in (copy.deepcopy(system), openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))):
        again = openmm.Context(copied, openmm.VerletIntegrator(0.001), REFERENCE)
        found = energy_and_forces(again, x)
        assert found[0] == pytest.approx(expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "tabulated"])
def test_force_works_as_a_collective_variable(aldp, backend):
    x = frames(aldp, 1)[0]
    expected = energy_and_forces(context_of(aldp.createForce(backend)), x)
    cv = openmm.CustomCVForce("2*f")
    cv.addCollectiveVariable("f", aldp.createForce(backend))
    found = energy_and_forces(context_of(cv), x)
    assert found[0] == pytest.approx(2 * expected[0])
    np.testing.assert_allclose(found[1], 2 * expected[1], atol=1e-5)


def test_a_table_is_close(aldp):
    context = context_of(aldp.createForce("tabulated"))
    x = frames(aldp, 50)
    found = np.array([energy_and_forces(context, frame)[0] for frame in x])
    np.testing.assert_allclose(found, free_energy(aldp, x), atol=0.1)


def test_a_table_of_one_torsion_is_exact_and_periodic():
    flow = cgf.CGFlow(*load("butane"), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # an untrained density is flat, and any constant would do
        for parameter in flow.flow.bead_flow.slow.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    context = context_of(flow.createForce("tabulated"))
    x = jiggled(load("butane").positions, 10, sigma=0.01)
    assert np.ptp(free_energy(flow, x)) > 0.01
    padded = np.concatenate([x, np.zeros((10, 8, 3))], axis=1)
    found = [energy_and_forces(context, frame)[0] for frame in padded]
    np.testing.assert_allclose(found, free_energy(flow, x), atol=1e-3)


def test_all_atom_simulation_has_the_force_beside_its_own(aldp):
    """Wherever it is after some steps: the System's energy plus the bias, and the bias follows the free energy."""
    system = copy.deepcopy(load("aldp_vacuum").system)
    bias = aldp.createForce(scale=-1.0)
    bias.setForceGroup(7)
    system.addForce(bias)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    context = openmm.Context(system, integrator, REFERENCE)
    context.setPositions(load("aldp_vacuum").positions)
    for _ in range(4):
        integrator.step(50)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        whole, own, added = (
            context.getState(energy=True, groups=groups).getPotentialEnergy()._value
            for groups in (-1, ~(1 << 7), 1 << 7)
        )
        assert added == pytest.approx(-free_energy(aldp, x)[0], abs=2e-3)
        assert whole == pytest.approx(own + added, abs=1e-6)


def test_what_cannot_be_had_is_said():
    with pytest.raises(cgf.InvalidInputError, match="one to three dimensions"):
        cgf.CGFlow(*load("ARG"), seed=0).createForce("tabulated")
    with pytest.raises(cgf.InvalidInputError, match="no slow torsions"):
        cgf.CGFlow(*load("caffeine"), seed=0).createForce()
    with pytest.raises(cgf.InvalidInputError, match="backend"):
        cgf.CGFlow(*load("butane"), seed=0).createForce("nonsense")


def test_without_openmmtorch_it_says_which_versions_work(monkeypatch):
    monkeypatch.setattr("importlib.metadata.packages_distributions", dict)
    torch_force.why_no_torch_force.cache_clear()
    flow = cgf.CGFlow(*load("butane"), seed=0)
    try:
        with pytest.raises(cgf.UnsupportedForceError, match=r"not installed.*torch==2\.9\.1"):
            create_force(flow, "torch")
        assert isinstance(flow.createForce(), openmm.PythonForce)
    finally:
        monkeypatch.undo()
        torch_force.why_no_torch_force.cache_clear()


@pytest.mark.skipif(NO_TORCH is not None, reason=str(NO_TORCH))
def test_another_build_of_the_plugin_is_tried_out(monkeypatch, caplog):
    """Under its own name; versions that were not tried before are, in another process."""
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"openmmtorch": ["another-build"]})
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"another-build": "9.9"}[name])
    torch_force.why_no_torch_force.cache_clear()
    try:
        with caplog.at_level("INFO", logger="openmm_cgflow"):
            assert torch_force.why_no_torch_force() is None
        assert "another-build" in caplog.text
    finally:
        monkeypatch.undo()
        torch_force.why_no_torch_force.cache_clear()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_force_on_the_wrong_system_says_so(aldp, backend):
    system = openmm.System()
    for _ in range(14):
        system.addParticle(1.0)
    system.addForce(aldp.createForce(backend))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(np.random.default_rng(0).normal(size=(14, 3)))
    with pytest.raises(Exception, match="for 22 particles, but the System has 14"):
        context.getState(energy=True)


def test_machine_code_gives_the_same_forces():
    butane = cgf.CGFlow(*load("butane"), device="cpu")  # untrained; one slow torsion takes less time to compile
    plain, compiled = (context_of(butane.createForce(b, scale=0.7), n=14) for b in ("python", "compiled"))
    for x in frames(butane, 3):
        energy, forces = energy_and_forces(plain, x)
        same_energy, same_forces = energy_and_forces(compiled, x)
        assert same_energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(same_forces, forces, rtol=1e-9, atol=1e-8)


def test_machine_code_needs_a_compiler(aldp, monkeypatch):
    monkeypatch.setattr("openmm_cgflow.openmm_plugin.forces.force.compiler_available", lambda device: False)
    with pytest.raises(cgf.UnsupportedForceError, match=r"needs a C\+\+ compiler"):
        aldp.createForce("compiled")


def test_python_force_does_not_swallow_a_broken_simulation(aldp):
    context = context_of(aldp.createForce("python"))
    x = frames(aldp, 1)[0]
    x[6] = np.nan
    with pytest.raises(Exception, match=r"blown up|NaN|nan"):
        energy_and_forces(context, x)


@pytest.mark.skipif(NO_TORCH is not None, reason=str(NO_TORCH))
def test_torch_force_in_a_script_that_imports_openmm_first():
    script = f"""
import openmm
import openmm_cgflow as cgf
flow = cgf.CGFlow.load({str(MODEL)!r})
system = flow.system
system.addForce(flow.createForce("torch"))
openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_parameter_that_a_table_takes_for_a_coordinate_is_refused(aldp):
    """Its expression has x1 to z4: the first particle's position was the scale."""
    with pytest.raises(cgf.InvalidInputError, match="'x1', a coordinate"):
        aldp.createForce("tabulated", parameter="x1")
    aldp.createForce("tabulated", parameter="x")
