"""The force field of a chain student: Systems, files, other sequences, and the command line."""

import math
import random

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from fuzz.mutate import JSON_WORDS, damaged, put
from molecules import MODELS
from openmm import unit
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow import storage
from openmm_cgflow.cli import app
from openmm_cgflow.forcematching import (
    BeadModel,
    DistilSettings,
    FitSettings,
    SchNetSettings,
    StudentSettings,
    fit_beads,
    why_no_nnpops,
)
from openmm_cgflow.openmm_plugin.forces.torch_force import why_no_torch_force

SMALL = SchNetSettings(width=8, gaussians=6, layers=2, cutoff=0.9)
QUICK = DistilSettings(points=400, steps=5, batch=32, student=SMALL)
STEPS = np.array([[0.3, 0.0, 0.2], [0.1, 0.3, 0.1], [0.0, -0.1, 0.35]])


def frames_of(n: int) -> np.ndarray:
    """Frames of `n` alpha carbons that hardly move."""
    path = np.cumsum(np.tile(0.38 * STEPS / np.linalg.norm(STEPS, axis=1)[:, None], (n, 1))[:n], 0)
    return path + 0.02 * np.random.default_rng(n).normal(size=(60, n, 3))


@pytest.fixture(scope="module")
def fitted() -> cgf.CGForceField:
    return cgf.CGForceField.fromFlow(cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu"), QUICK)


@pytest.fixture(scope="module")
def both() -> list[cgf.CGForceField]:
    fits = [
        fit_beads(frames_of(len(name)), BeadModel.fromSequence(name), settings=FitSettings(members=1, steps=5))
        for name in ("GYDPE", "TGWPDY")
    ]
    return cgf.CGForceField.fromFits(fits, 300, QUICK)


@pytest.fixture(scope="module")
def good(fitted, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("files") / "good.cgff"
    fitted.save(path)
    return path.read_bytes()


def at_start(force_field: cgf.CGForceField, backend: str) -> tuple[float, np.ndarray]:
    cg = force_field.createCGSystem(backend)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(cg.system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(cg.positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


@pytest.mark.parametrize("backend", ["torch", "python", "nnpops"])
def test_chain_student_is_the_force_of_a_system_of_beads(both, backend):
    if backend != "python" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    if backend == "nnpops" and why_no_nnpops():
        pytest.skip(why_no_nnpops())
    x = torch.tensor(both[1].positions._value, requires_grad=True)
    energy = both[1].student(x)
    (gradient,) = torch.autograd.grad(energy, x)
    found, forces = at_start(both[1], backend)
    close = 1e-4 if backend == "nnpops" else 1e-6  # which works in single precision
    assert found == pytest.approx(float(energy.detach()), rel=close)
    np.testing.assert_allclose(forces, -gradient, atol=10 * close * float(gradient.abs().max()))


def test_backend_that_cannot_be_had_is_named(fitted):
    if why_no_nnpops():
        with pytest.raises(cgf.UnsupportedForceError, match="conda install nnpops"):
            fitted.createCGSystem("nnpops")
    quick = DistilSettings(points=100, steps=1, student=StudentSettings(hidden=4, layers=1))
    other = cgf.CGForceField.fromFlow(cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu"), quick)
    with pytest.raises(cgf.UnsupportedForceError, match="this student has none"):
        other.createCGSystem("nnpops")
    with pytest.raises(cgf.InvalidInputError, match="this student is of one molecule"):
        other.forBeads(BeadModel.fromSequence("GYDPE"), frames_of(5)[0])


def test_round_trip(fitted, good, tmp_path):
    path = tmp_path / "a.cgff"
    path.write_bytes(good)
    read = cgf.CGForceField.load(path)
    x = torch.as_tensor(fitted.positions._value + 0.01 * np.random.default_rng(0).normal(size=(9, 5, 3)))
    assert torch.equal(read.student(x), fitted.student(x))
    assert read.fitted == fitted.fitted
    read.save(path)
    (tensors, header), (ours, our_header) = (storage.unpack(d, "force field") for d in (path.read_bytes(), good))
    assert header == our_header
    assert header["kind"] == "schnet"
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(tensors[name], ours[name]) for name in ours)


def test_one_network_for_several_sequences(both, tmp_path):
    first, second = both
    assert first.student.network is second.student.network
    assert (len(first.masses), len(second.masses)) == (5, 6)
    first.save(tmp_path / "first.cgff")
    read = cgf.CGForceField.load(tmp_path / "first.cgff")
    model = BeadModel.fromSequence("TGWPDY")
    again = read.forBeads(model, second.positions)
    x = torch.as_tensor(frames_of(6)[:4])
    energies = [(ff.student(x) - ff.student(x)[0]).detach() for ff in (again, second)]
    torch.testing.assert_close(energies[0], energies[1], atol=1e-8, rtol=0)  # but for the constant
    walkers = again.createWalkers(np.repeat(again.positions._value[None], 3, 0) * unit.nanometer, device="cpu")
    assert walkers.run(4, every=2).shape == (2, 3, 6, 3)
    with pytest.raises(cgf.InvalidInputError, match="not trained on beads of HIS:CA, only on ASP:CA"):
        read.forBeads(BeadModel.fromSequence("GYDPH"), frames_of(5)[0])
    with pytest.raises(cgf.MismatchError, match="frames of beads have shape"):
        read.forBeads(model, frames_of(5)[0])


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
        (put("kind", value="gnn"), "not one of"),
        (put("kind", value="mlp"), "its kind is 'mlp'"),
        (put("knows", value=None), "its kind is 'schnet'"),
        (put("knows", "types", value=["ALA:CA"]), "not trained on beads of ACE:C"),
        (put("knows", "types", value=["ACE:C", "ALA:C", "ALA:CA", "ALA:N", "ALA:N"]), "twice"),
        (put("knows", "types", 0, value=7), "not text"),
        (put("knows", "kinds", value=[]), "not trained on bonds or angles"),
        (put("topology", "atoms", value=[]), "names atom"),
        (put("student", "width", value=10**9), "larger networks than it holds"),
        (put("student", "width", value=0), "width is 0"),
        (put("student", "width", value=9), "belongs there"),
        (put("student", "gaussians", value=10**9), "larger networks than it holds"),
        (put("student", "gaussians", value=1), "gaussians is 1"),
        (put("student", "layers", value=10**9), "another network than it holds"),
        (put("student", "layers", value=1), "unknown"),
        (put("student", "cutoff", value=-1.0), "cutoff is -1"),
        (put("student", "cutoff", value=math.inf), "not a finite number"),
        (put("student", "depth", value=1), "unknown field 'depth'"),
        (tensor("student.network.rest", None), "missing"),
        (tensor("student.network.stiffness", lambda t: -t), "not positive"),
        (tensor("student.network.low", lambda t: t + 1e9), "not positive"),
        (tensor("student.network.closest", torch.zeros_like), "not positive"),
        (tensor("student.network.embedding", lambda t: t[:-1]), "belongs there"),
        (tensor("student.network.embedding", lambda t: t * math.nan), "NaN or infinite"),
        (tensor("student.network.energy.weight", lambda t: t.float()), "belongs there"),
        (tensor("student.network.rest", lambda t: t + 1e200), "not finite at the positions"),
        (tensor("student.more", lambda t: torch.zeros(3)), "unknown"),
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


def test_damaged_bytes_end_in_the_one_error(good, tmp_path):
    path, source, refused = tmp_path / "bad.cgff", random.Random(0), 0
    for _ in range(30):
        path.write_bytes(damaged(good, JSON_WORDS, source))
        try:
            read = cgf.CGForceField.load(path)
        except cgf.ModelFileError:
            refused += 1
        else:
            assert torch.isfinite(read.student(torch.as_tensor(read.positions._value)))
    assert refused > 10


def test_command_line_fits_a_chain_student(tmp_path, monkeypatch):
    quick = type("Quick", (FitSettings,), {"__init__": lambda self: FitSettings.__init__(self, members=1, steps=5)})
    monkeypatch.setattr("openmm_cgflow.forcematching.density.fitting.FitSettings", quick)
    topology = mdtraj.Topology.from_openmm(BeadModel.fromSequence("GYDPE").topology)
    frames = mdtraj.Trajectory(frames_of(5), topology)
    frames.save(str(tmp_path / "ca.xtc"))
    frames[0].save_pdb(str(tmp_path / "ca.pdb"))
    arguments = ["fit-cg", str(tmp_path / "ca.xtc"), str(tmp_path / "ca.pdb"), "-o", str(tmp_path / "a.cgff")]
    arguments += ["--points", "200", "--steps", "2"]
    done = CliRunner().invoke(app, [*arguments, "--student", "schnet"])
    assert done.exit_code == 0, done.output
    assert cgf.CGForceField.load(tmp_path / "a.cgff").student.settings == SchNetSettings()
    wrong = CliRunner().invoke(app, [*arguments, "--student", "gnn"])
    assert wrong.exit_code == 2
    assert "--student is 'gnn'; give mlp or schnet" in wrong.output
