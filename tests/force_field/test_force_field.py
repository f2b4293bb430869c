"""The force field of a flow: Systems, files, and files that are not what they say."""

import math
import random

import numpy as np
import openmm
import pytest
import torch
from fuzz.mutate import JSON_WORDS, damaged, put
from molecules import MODELS, load
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow import storage
from openmm_cgflow.force_field import force_field as module
from openmm_cgflow.forcematching import DistilSettings, SchNetSettings, StudentSettings
from openmm_cgflow.openmm_plugin.forces.torch_force import why_no_torch_force

QUICK = DistilSettings(points=1_000, steps=60, batch=128, student=StudentSettings(hidden=16, layers=2))
REFERENCE = openmm.Platform.getPlatformByName("Reference")


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu")


@pytest.fixture(scope="module")
def fitted(flow) -> cgf.CGForceField:
    return cgf.CGForceField.fromFlow(flow, QUICK)


@pytest.fixture(scope="module")
def good(fitted, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("files") / "good.cgff"
    fitted.save(path)
    return path.read_bytes()


def context_of(cg, integrator=None) -> openmm.Context:
    context = openmm.Context(cg.system, integrator or openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(cg.positions)
    return context


@pytest.mark.parametrize("backend", ["torch", "python"])
def test_student_is_the_force_of_a_system_of_beads(flow, fitted, backend, monkeypatch):
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    monkeypatch.setattr(module, "DistilSettings", lambda: QUICK)
    cg = flow.createCGSystem(backend, model="student")
    ours = flow.createCGSystem("python")
    assert [a.name for a in cg.topology.atoms()] == [a.name for a in ours.topology.atoms()]
    masses = [[s.getParticleMass(k)._value for k in range(5)] for s in (cg.system, ours.system)]
    assert masses[0] == masses[1]
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 0.002)
    context = context_of(cg, integrator)
    integrator.step(20)
    state = context.getState(positions=True, energy=True, forces=True)
    x = torch.tensor(state.getPositions(asNumpy=True)._value, requires_grad=True)
    energy = fitted.student(x)
    (gradient,) = torch.autograd.grad(energy, x)
    # the student of this flow by these settings and this seed, fitted again: the same bits
    assert state.getPotentialEnergy()._value == pytest.approx(float(energy.detach()), abs=1e-6)
    np.testing.assert_allclose(state.getForces(asNumpy=True)._value, -gradient, atol=1e-5)
    context.setParameter("cgflow_scale", 0.5)
    half = context.getState(energy=True).getPotentialEnergy()._value
    assert half == pytest.approx(0.5 * float(energy.detach()), abs=1e-6)


def test_student_of_a_flow_is_made_once(flow, monkeypatch):
    monkeypatch.setattr(module, "DistilSettings", lambda: QUICK)
    first = module.student_of(flow)
    assert module.student_of(flow) is first


def test_round_trip(fitted, good, tmp_path):
    path = tmp_path / "a.cgff"
    path.write_bytes(good)
    read = cgf.CGForceField.load(path)
    x = torch.as_tensor(fitted.positions._value) + 0.01 * torch.randn(
        9, 5, 3, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(read.student(x), fitted.student(x))
    assert read.masses == fitted.masses
    assert read.temperature == fitted.temperature
    assert read.fitted == fitted.fitted
    assert storage.topology_to_json(read.topology) == storage.topology_to_json(fitted.topology)
    read.save(path)
    (tensors, header), (ours, our_header) = (storage.unpack(d, "force field") for d in (path.read_bytes(), good))
    assert header == our_header
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(tensors[name], ours[name]) for name in ours)
    context = context_of(read.createCGSystem("python"))
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert energy == pytest.approx(float(fitted.student(torch.as_tensor(fitted.positions._value))), abs=1e-6)


def test_walkers_of_a_force_field(fitted):
    start = np.repeat(fitted.positions._value[None], 4, 0)
    walkers = fitted.createWalkers(start * unit.nanometer, device="cpu")
    assert walkers.run(10, every=5).shape == (2, 4, 5, 3)
    beads = cgf.BeadParticles(fitted.topology, fitted.positions, fitted.masses, {(0, 1): 0.13})
    bound = cgf.CGForceField(fitted.student, beads, fitted.temperature, fitted.fitted)
    assert bound.createCGSystem("python").system.getNumConstraints() == 1
    with pytest.raises(cgf.InvalidInputError, match="1 distances between beads are constrained"):
        bound.createWalkers(start)


def test_every_student_says_what_is_outside(flow):
    x = flow.sample(50, seed=5).positions[:, flow.coordinates.bead_atoms].astype(float)
    for student in (StudentSettings(hidden=4, layers=1), SchNetSettings()):
        made = cgf.CGForceField.fromFlow(flow, DistilSettings(points=500, steps=2, batch=16, student=student))
        assert made.outside(x).sum() <= 2
        assert made.outside(1.2 * x).all()


def test_hot_starts_are_held_by_walls(flow, fitted, caplog):
    x = flow.sample(20, seed=5).positions[:, flow.coordinates.bead_atoms].astype(float)
    x += 0.02 * np.random.default_rng(0).standard_normal(x.shape)
    assert fitted.outside(x).all()  # ten standard deviations of each bond
    walkers = fitted.createWalkers(
        x, friction=0.02 / unit.femtosecond, timestep=2 * unit.femtosecond, seed=3, device="cpu"
    )
    walkers.velocities *= 3**0.5
    frames = walkers.run(600, every=100).double().numpy()
    assert "frames are outside what the energy was fitted to" in caplog.text
    assert fitted.outside(frames[0]).sum() > fitted.outside(frames[-1]).sum()
    assert fitted.outside(frames[-1]).sum() <= 3
    energy = fitted.student(torch.as_tensor(frames[-1])) / fitted.student.kT
    assert float(energy.max() - energy.min()) < 40  # of nine coordinates at 300 K


def test_bad_input_is_named(flow, fitted):
    with pytest.raises(cgf.InvalidInputError, match='model is \'teacher\'; give "flow" or "student"'):
        flow.createCGSystem(model="teacher")
    with pytest.raises(cgf.InvalidInputError, match="backend is 'tabulated'"):
        fitted.createCGSystem("tabulated")
    parts = (fitted.topology, fitted.positions, fitted.masses)
    with pytest.raises(cgf.MismatchError, match=r"the topology has 5 beads, there are 4 masses"):
        cgf.BeadParticles(*parts[:2], parts[2][:4])
    with pytest.raises(cgf.MismatchError, match=r"positions have shape \(4, 3\)"):
        cgf.BeadParticles(parts[0], parts[1][:4], parts[2])
    with pytest.raises(cgf.InvalidInputError, match="masses of beads"):
        cgf.BeadParticles(*parts[:2], (1, 0, 1, 1, 1))
    one = app.Topology()
    one.addAtom("CA", app.element.carbon, one.addResidue("ALA", one.addChain()))
    with pytest.raises(cgf.MismatchError, match="the student is of 5 beads, and there are 1"):
        cgf.CGForceField(fitted.student, cgf.BeadParticles(one, np.zeros((1, 3)), (71.0,)), 300, fitted.fitted)


def tensor(name, value):
    def change(tensors, header):
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors.get(name))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("student", "hidden", value=10**9), "larger networks than it holds"),
        (put("student", "layers", value=10**9), "another network than it holds"),
        (put("student", "hidden", value=0), "width 0"),
        (put("student", "hidden", value=8), "belongs there"),
        (put("student", "layers", value=1), "unknown|missing|belongs there"),
        (put("student", "depth", value=1), "unknown field 'depth'"),
        (put("temperature", value=-1.0), "temperature -1"),
        (put("temperature", value=math.nan), "not a finite number"),
        (put("masses", value=[12.0] * 4), "4 masses for coordinates of 5"),
        (put("masses", 0, value=0.0), "a mass that is not positive"),
        (put("masses", 0, value=1e30), "a mass that is not positive"),
        (put("constraints", value=[[0, 7, 0.1]]), "a constraint that is none"),
        (put("constraints", value=[[1, 0, 0.1]]), "a constraint that is none"),
        (put("constraints", value=[[0, 1, -0.1]]), "a constraint that is none"),
        (put("topology", "bonds", value=[[0, 9]]), "names atom 9 of 5"),
        (put("topology", "atoms", value=[]), "names atom"),
        (put("coordinates", "order", value=[0, 1, 2, 3, 3]), "'order'"),
        (put("coordinates", "refs", value=[[0, 1, 99], [0, 1, 2]]), "'refs'"),
        (put("coordinates", "coordinates", 0, "scale", value=0.0), "'coordinates'"),
        (put("fitted", "points", value="many"), "not a whole number"),
        (put("fitted", value=None), "not an object"),
        (tensor("positions", None), "'positions' is missing"),
        (tensor("positions", lambda t: t[:3]), r"not \(beads, 3\)"),
        (tensor("positions", lambda t: t * 1e9), "huge"),
        (tensor("student.mean", None), "another network than it holds"),
        (tensor("student.mean", lambda t: torch.zeros(10**6, dtype=torch.float64)), "another network than it holds"),
        (tensor("student.scale", torch.zeros_like), "not positive"),
        (tensor("student.stiffness", lambda t: -t), "not positive"),
        (tensor("student.network.0.weight", lambda t: t * math.nan), "NaN or infinite"),
        (tensor("student.network.0.weight", lambda t: t.float()), "belongs there"),
        (tensor("student.rest", lambda t: t * 1e200), "not finite at the positions"),
        (tensor("more", lambda t: torch.zeros(3)), "'more' is unknown"),
    ],
)
def test_what_a_file_says_is_checked(good, tmp_path, change, match):
    tensors, header = storage.unpack(good, "force field")
    change(tensors, header)
    path = tmp_path / "bad.cgff"
    path.write_bytes(storage.pack("force field", tensors, header))
    with pytest.raises(cgf.ModelFileError, match=match) as caught:
        cgf.CGForceField.load(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(good, tmp_path):
    path = tmp_path / "bad.cgff"
    with pytest.raises(cgf.ModelFileError, match="there is no such file"):
        cgf.CGForceField.load(path)
    for data in (good[:-1], good[: len(good) // 2], b"", b"\x80\x04K\x01.", (MODELS / "aldp.cgflow").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(cgf.ModelFileError, match=str(path)):
            cgf.CGForceField.load(path)
    path.write_bytes(good)
    with pytest.raises(cgf.ModelFileError, match="is a force field, not a model"):
        cgf.CGFlow.load(path)


def test_damaged_bytes_end_in_the_one_error(good, tmp_path):
    path, source, refused = tmp_path / "bad.cgff", random.Random(0), 0
    for _ in range(60):
        path.write_bytes(damaged(good, JSON_WORDS, source))
        try:
            read = cgf.CGForceField.load(path)
        except cgf.ModelFileError:
            refused += 1
        else:
            assert torch.isfinite(read.student(torch.as_tensor(read.positions._value)))
    assert refused > 20


def test_constrained_beads_keep_their_distances(tmp_path):
    flow = cgf.CGFlow(*load("aldp_vacuum", constraints="AllBonds"), device="cpu")  # untrained, which is a density too
    force_field = cgf.CGForceField.fromFlow(flow, QUICK)
    assert len(force_field.constraints) == 4
    turned = {(j, i): distance for (i, j), distance in force_field.constraints.items()}
    beads = cgf.BeadParticles(force_field.topology, force_field.positions, force_field.masses, turned)
    cgf.CGForceField(force_field.student, beads, 300, force_field.fitted).save(tmp_path / "c.cgff")
    assert cgf.CGForceField.load(tmp_path / "c.cgff").constraints == force_field.constraints
    cg = force_field.createCGSystem("python")
    context = context_of(cg, openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 0.002))
    context.getIntegrator().step(100)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    for (i, j), distance in force_field.constraints.items():
        assert np.linalg.norm(x[i] - x[j]) == pytest.approx(distance, rel=1e-4)
    q = force_field.student.coordinates.to_internal(torch.tensor(x)[None])[0]
    away = (q[0, 2:] - force_field.student.rest) * force_field.student.stiffness.sqrt()
    assert float(away.abs().max()) < 8  # angles, in standard deviations: nothing has flown apart
