"""The facade: training, sampling, densities, files, and what it says of bad input."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
import safetensors.torch
import torch
from molecules import MODELS, load, small_networks
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow import analysis, storage
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.storage import read_file, write_file

QUICK = cgf.TrainSettings(points=128, sweeps=5, fit_steps=120, buffer=2000, buffer_steps=20, soft_buffers=10, batch=512)


@pytest.fixture(scope="module")
def butane(butane_file) -> cgf.CGFlow:
    return cgf.CGFlow.load(butane_file)


def build(name: str = "butane", **options) -> cgf.CGFlow:
    molecule = load(name)
    arguments = {"topology": molecule.topology, "system": molecule.system, "positions": molecule.positions, **options}
    with small_networks():
        return cgf.CGFlow(**arguments)


def test_training_learns_butane(butane):
    samples = butane.sample(5000, seed=0)
    assert butane.slow_names == ["LIG1:C1-C2-C3-C4"]
    assert [set(torsion) for torsion in butane.slow_torsions] == [{0, 1, 2, 3}]
    assert samples.ess > 0.5
    assert samples.trustworthy
    assert butane.evaluations >= 60_000
    stages = [row["stage"] for row in butane.history]
    assert stages[0] == "laplace"
    assert "refine" in stages


def test_a_molecule_without_soft_torsions_can_be_learned():
    """Formaldehyde: six stiff coordinates and nothing soft."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("FAL", topology.addChain())
    atoms = [topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("C", "O", "H1", "H2")]
    for atom in atoms:
        system.addParticle(atom.element.mass)
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for other, length in ((1, 0.121), (2, 0.111), (3, 0.111)):
        topology.addBond(atoms[0], atoms[other])
        bonds.addBond(0, other, length, 300_000)
    for i, j in ((1, 2), (1, 3), (2, 3)):
        angles.addAngle(i, 0, j, 2 * np.pi / 3, 500)
    torsions.addTorsion(2, 3, 0, 1, 2, np.pi, 40)
    for force in (bonds, angles, torsions):
        system.addForce(force)
    x = [[0, 0, 0], [0.121, 0, 0], [-0.0555, 0.0961, 0], [-0.0555, -0.0961, 0]]
    flow = cgf.CGFlow(topology, system, x, seed=0).train(evaluations=10_000, progress=False, settings=QUICK)
    assert flow.coordinates.sizes[0] == flow.coordinates.sizes[2] == 0
    assert flow.sample(2000, seed=0).ess > 0.9


def test_weights_are_those_of_openmm(butane):
    """Energies recomputed by a double-precision Context, densities by `logDensity`: the same weights."""
    samples = butane.sample(200, seed=3)
    context = openmm.Context(
        butane.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    energies = []
    for frame in samples.positions:
        context.setPositions(frame.astype(float))
        energies.append(context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    beta = 1 / (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
    recomputed = -beta * np.array(energies) - butane.logDensity(samples.positions)
    np.testing.assert_allclose(recomputed, samples.log_weights, atol=2e-3)


def test_log_density_does_not_depend_on_orientation(butane):
    samples = butane.sample(20, seed=3)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned = samples.positions.astype(float) @ rotation.T + 1.5
    np.testing.assert_allclose(butane.logDensity(turned), butane.logDensity(samples.positions), atol=2e-3)


def test_log_density_of_the_mirror_image_is_minus_infinity():
    flow = build("ALA")
    assert np.isfinite(flow.logDensity(load("ALA").positions)).all()
    assert flow.logDensity(load("ALA").positions * [1, 1, -1]) == [-np.inf]


def test_free_energy_is_normalised_and_slow_variables_are_dihedrals(butane):
    grid = np.linspace(-np.pi, np.pi, 2001)[:, None]
    free_energy = butane.freeEnergy(grid) / (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin)
    assert np.trapezoid(np.exp(-free_energy), grid[:, 0]) == pytest.approx(1, abs=1e-4)
    samples = butane.sample(50, seed=0)
    np.testing.assert_allclose(butane.slowVariables(samples.positions), samples.slow, atol=1e-3)


def test_model_file_round_trip(butane, tmp_path):
    butane.save(tmp_path / "b.cgflow")
    loaded = cgf.CGFlow.load(tmp_path / "b.cgflow")
    ours, theirs = butane.sample(100, seed=5), loaded.sample(100, seed=5)
    np.testing.assert_array_equal(ours.positions, theirs.positions)
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, atol=1e-3)
    assert loaded.provenance == butane.provenance
    assert [a.name for a in loaded.topology.atoms()] == [a.name for a in butane.topology.atoms()]


def test_provenance_of_a_file_is_that_of_the_training(tmp_path, monkeypatch):
    flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0)
    assert flow.provenance["machine"] is None
    here = flow.train(evaluations=500, progress=False).provenance
    flow.save(tmp_path / "v.cgflow")
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    loaded = cgf.VectorFlow.load(tmp_path / "v.cgflow", DoubleWell())
    assert loaded.provenance == here
    assert "sparc64" not in here["machine"]
    assert here["version"] == cgf.__version__
    assert "sparc64" in loaded.train(evaluations=500, progress=False).provenance["machine"]


def test_a_file_that_does_not_say_where_it_was_trained():
    old = cgf.CGFlow.load(MODELS / "aldp.cgflow")
    assert old.provenance["machine"] is None
    assert old.provenance["evaluations"] > 0
    assert "trained on" not in dict(analysis.summary(old, old.sample(100, seed=0)))


def test_frames_of_a_simulation_can_be_mixed_in(butane):
    frames = butane.sample(200, seed=0).trajectory
    flow = build(seed=2).train(evaluations=6_000, progress=False, settings=QUICK, frames=frames)
    assert flow.sample(500, seed=0).ess > 0.1


def test_metrics_are_written(tmp_path):
    vectors = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0)
    vectors.train(evaluations=8000, progress=False, settings=QUICK, metrics=tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0].startswith("stage,seconds,evaluations")
    assert len(lines) > 2


# -- interruptions

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from openmm_cgflow.training import checkpoint
from test_model import train_well
checkpoint._SECONDS = 0.2
flow = train_well(*{arguments!r})
print("ess", flow.sample(500, seed=0).ess)
flow.save({model!r})
"""


def train_well(folder: Path | str, evaluations: int, fit_steps: int = 40, soft_buffers: int = 3) -> cgf.VectorFlow:
    """A small training with a checkpoint, here or in a process of its own; the same call goes on with it."""
    quick = cgf.TrainSettings(
        points=64, sweeps=2, fit_steps=fit_steps, buffer=1000, buffer_steps=5, soft_buffers=soft_buffers, batch=256
    )
    small = FlowSettings(components=8, slow_hidden=16, hidden=16, atom_couplings=2, rank=2)
    flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, settings=small, seed=1)
    files = {"checkpoint": f"{folder}/c.checkpoint", "metrics": f"{folder}/m.csv"}
    return flow.train(evaluations=evaluations, progress=False, settings=quick, **files)


def start(tmp_path: Path, **steps: int) -> subprocess.Popen:
    """`train_well` without an end, and the model saved after it."""
    tests, model = str(Path(__file__).parent), str(tmp_path / "model")
    arguments = [str(tmp_path), 10**9, *({"fit_steps": 40, "soft_buffers": 3} | steps).values()]
    script = SCRIPT.format(tests=tests, arguments=arguments, model=model)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, env=environment)


def wait_for(tmp_path: Path, stage: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (tmp_path / "m.csv").exists() and (tmp_path / "m.csv").read_text().count(stage) > 1:
            return
        time.sleep(0.1)
    raise AssertionError(f"the training did not come to {stage} within two minutes")


def test_training_goes_on_after_being_killed(tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, "refine")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, header = read_file(tmp_path / "c.checkpoint", "checkpoint")
    assert header["stage"] == "refine"
    again = train_well(tmp_path, header["evaluations"] + 5000)
    assert 5000 <= again.evaluations - header["evaluations"] < 10_000
    assert (tmp_path / "m.csv").read_text().count("laplace") == 1


@pytest.mark.parametrize("stage", ["fit", "soft", "refine"])
def test_ctrl_c_keeps_what_was_learned_and_the_training_goes_on(tmp_path, stage):
    process = start(tmp_path, fit_steps=2000 if stage == "fit" else 100, soft_buffers=400 if stage == "soft" else 3)
    wait_for(tmp_path, stage)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    if stage != "fit":  # 9 % without training, 43 % after 3,000 evaluations
        assert float(output.split()[-1]) > 0.2
    assert cgf.VectorFlow.load(tmp_path / "model", DoubleWell()).sample(10).n == 10
    _, header = read_file(tmp_path / "c.checkpoint", "checkpoint")
    assert header["stage"] == {"fit": "laplace"}.get(stage, stage)
    train_well(tmp_path, header["evaluations"] + 4000)
    assert "refine" in (tmp_path / "m.csv").read_text()


def test_resumed_training_has_the_state_that_was_saved(tmp_path):
    quick = cgf.TrainSettings(points=32, sweeps=2, fit_steps=5, buffer=500, buffer_steps=3, soft_buffers=1, batch=64)
    first = build(seed=1).train(evaluations=4000, progress=False, settings=quick, checkpoint=tmp_path / "c")
    again = build(seed=1).train(evaluations=1, progress=False, checkpoint=tmp_path / "c")  # too few for anything
    assert again.history == first.history
    assert again.evaluations == first.evaluations
    np.testing.assert_array_equal(again.sample(20, seed=0).positions, first.sample(20, seed=0).positions)
    further = build(seed=1).train(evaluations=2000, progress=False, settings=quick, checkpoint=tmp_path / "c")
    assert further.history[: len(first.history)] == first.history
    assert 5950 <= further.evaluations <= 6000


def test_checkpoint_of_another_training_is_refused(tmp_path):
    quick = cgf.TrainSettings(points=32, sweeps=2, fit_steps=5, buffer=200, buffer_steps=2, soft_buffers=1, batch=64)
    build(seed=1).train(evaluations=4000, progress=False, settings=quick, checkpoint=tmp_path / "c")
    with pytest.raises(cgf.MismatchError, match="another System, temperature"):
        build(seed=1, temperature=350).train(
            evaluations=8000, progress=False, settings=quick, checkpoint=tmp_path / "c"
        )


def test_checkpoints_are_read_after_an_update_of_openmm(tmp_path, monkeypatch):
    quick = cgf.TrainSettings(points=32, sweeps=2, fit_steps=5, buffer=200, buffer_steps=2, soft_buffers=1, batch=64)
    path, flow = tmp_path / "c", build(seed=1)
    flow.train(evaluations=1500, progress=False, settings=quick, checkpoint=path)
    tensors, header = read_file(path, "checkpoint")

    def resumed() -> list[dict]:
        return build(seed=1).train(evaluations=1, progress=False, checkpoint=path).history  # too few for anything

    def of_another_version(system: openmm.System) -> str:
        return storage.system_to_xml(system).replace('openmmVersion="', 'openmmVersion="9.')

    with monkeypatch.context() as patch:
        patch.setattr("openmm_cgflow.model.system_to_xml", of_another_version)
        assert resumed() == flow.history
    older = header | {"identity": flow._identity(with_version=True)}
    assert older != header
    write_file(path, "checkpoint", tensors, older)
    assert resumed() == flow.history


# -- bad input


@pytest.mark.parametrize("temperature", [0, -10, 0 * unit.kelvin])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(cgf.InvalidInputError, match=r"temperature is .* K; give one above 0"):
        build(temperature=temperature)


def test_nan_positions_are_refused():
    positions = load("butane").positions.copy()
    positions[3, 1] = np.nan
    with pytest.raises(cgf.InvalidInputError, match=r"(?i)nan"):
        build(positions=positions)


def test_periodic_system_is_refused():
    molecule = load("ALA", solvent=None)
    system = app.ForceField("amber14-all.xml").createSystem(
        _in_a_box(molecule.topology), nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer
    )
    with pytest.raises(cgf.InvalidInputError, match=r"(?i)periodic"):
        build("ALA", system=system)


def _in_a_box(topology: app.Topology) -> app.Topology:
    topology.setPeriodicBoxVectors(np.eye(3) * 2.5 * unit.nanometer)
    return topology


def test_explicit_water_is_refused():
    molecule = load("ALA", solvent=None)
    modeller = app.Modeller(molecule.topology, molecule.positions * unit.nanometer)
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller.addSolvent(field, numAdded=5)
    modeller.topology.setPeriodicBoxVectors(None)
    system = field.createSystem(modeller.topology)
    with pytest.raises(cgf.InvalidInputError, match=r"(?i)water"):
        cgf.CGFlow(modeller.topology, system, modeller.positions)


def test_system_of_another_topology_is_refused():
    with pytest.raises(cgf.InvalidInputError, match="14"):
        build("butane", system=load("biphenyl").system)


def test_topology_without_bonds_is_refused():
    topology = app.Topology()
    residue = topology.addResidue("BUT", topology.addChain())
    for atom in load("butane").topology.atoms():
        topology.addAtom(atom.name, atom.element, residue)
    with pytest.raises(cgf.InvalidInputError, match=r"(?i)no bonds"):
        build(topology=topology)


def test_unsupported_force_falls_back_to_contexts_and_says_so(caplog):
    molecule = load("butane")
    force = openmm.CustomManyParticleForce(3, "0*(distance(p1,p2)+distance(p1,p3))")
    for _ in range(molecule.system.getNumParticles()):
        force.addParticle([])
    molecule.system.addForce(force)
    with caplog.at_level("WARNING", logger="openmm_cgflow"):
        flow = cgf.CGFlow(*molecule)
    assert "CustomManyParticleForce" in caplog.text
    assert np.isfinite(flow.sample(3).reduced_energies).all()


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_number_of_samples_must_be_positive(butane, n):
    with pytest.raises(cgf.InvalidInputError, match=r"sample: n is .*; give a positive number"):
        butane.sample(n)


@pytest.mark.parametrize(
    "budget", [{"time": 0}, {"evaluations": -5}, {"evaluations": 0}, {"evaluations": "a"}, {"evaluations": 2.5}]
)
def test_budget_must_be_positive(budget):
    with pytest.raises(cgf.InvalidInputError, match=r"give a (positive|whole) number"):
        build().train(**budget)


def test_positions_of_another_molecule_are_refused(butane):
    with pytest.raises(cgf.MismatchError, match="a molecule with 14 atoms"):
        butane.logDensity(load("biphenyl").positions)


def test_free_energy_of_the_wrong_number_of_torsions_is_refused(butane):
    with pytest.raises(cgf.MismatchError, match=r"give \(n, 1\)"):
        butane.freeEnergy([0.0, 1.0])


def test_missing_model_file_is_named(tmp_path):
    with pytest.raises(cgf.ModelFileError, match="there is no such file"):
        cgf.CGFlow.load(tmp_path / "none.cgflow")


def test_truncated_model_file_is_refused(butane, tmp_path):
    butane.save(tmp_path / "b.cgflow")
    data = (tmp_path / "b.cgflow").read_bytes()
    for size in (0, 5, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "t.cgflow").write_bytes(data[:size])
        with pytest.raises(cgf.ModelFileError, match="truncated or not an openmm_cgflow model"):
            cgf.CGFlow.load(tmp_path / "t.cgflow")


def test_foreign_model_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(cgf.ModelFileError, match="truncated or not an openmm_cgflow model"):
        cgf.CGFlow.load(tmp_path / "text")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(cgf.ModelFileError, match="not one of openmm_cgflow"):
        cgf.CGFlow.load(tmp_path / "other")
    write_file(tmp_path / "checkpoint", "checkpoint", {}, {})
    with pytest.raises(cgf.ModelFileError, match="is a checkpoint, not a model"):
        cgf.CGFlow.load(tmp_path / "checkpoint")


def test_newer_model_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("openmm_cgflow.storage.container.VERSION", 2)
    write_file(tmp_path / "new", "model", {}, {})
    monkeypatch.undo()
    with pytest.raises(cgf.ModelFileError, match=r"version 2; .* Update openmm_cgflow"):
        cgf.CGFlow.load(tmp_path / "new")


def test_full_disk_while_saving_loses_nothing(butane, tmp_path, monkeypatch):
    path = tmp_path / "b.cgflow"
    butane.save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(cgf.ModelFileError, match="No space left on device"):
        butane.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.cgflow"]


@pytest.mark.parametrize("how", ['"PythonForce"', "'PythonForce'", '"&#80;ythonForce"'])
def test_system_with_a_python_force_is_not_read_from_a_file(how):
    with pytest.raises(cgf.ModelFileError, match="would run code"):
        storage.system_from_xml(f"<System><Forces><Force type={how}/></Forces></System>")
