"""A force field of frames: from a trajectory to dynamics of the beads, and the same from a shell."""

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from molecules import load
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app
from openmm_cgflow.forcematching import BeadModel, DistilSettings, FitSettings, StudentSettings, fit_beads, judge_beads

FIT = FitSettings(members=2, steps=150)
QUICK = DistilSettings(points=6_000, steps=500, batch=256, student=StudentSettings(hidden=48, layers=2))


@pytest.fixture(scope="module")
def md() -> tuple[mdtraj.Trajectory, np.ndarray, openmm.System]:
    """Frames of butane, and the forces on all of its atoms, from Langevin dynamics at 450 K."""
    topology, system, positions = load("butane")
    integrator = openmm.LangevinMiddleIntegrator(450, 5, 0.002)
    integrator.setRandomNumberSeed(4)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(450, 4)
    integrator.step(2000)
    frames, forces = np.empty((2, 1500, topology.getNumAtoms(), 3))
    for k in range(1500):
        integrator.step(100)
        state = context.getState(positions=True, forces=True)
        frames[k] = state.getPositions(asNumpy=True)._value
        forces[k] = state.getForces(asNumpy=True)._value
    return mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology)), forces, system


def carbons_of(topology) -> list[int]:
    return [a.index for a in topology.atoms if a.element.symbol == "C"]


def gauche(torsions: np.ndarray, weights: np.ndarray | None = None) -> float:
    return float(np.average(np.cos(torsions) > -0.5, weights=weights))


def test_force_field_of_frames_gives_what_the_frames_show(md):
    trajectory, forces, _ = md
    beads = carbons_of(trajectory.topology)
    ff = cgf.CGForceField.fromFrames(
        trajectory.topology, trajectory, beads, forces=forces, temperature=450, fit=FIT, settings=QUICK
    )
    torsions = mdtraj.compute_dihedrals(trajectory, [beads])[:, 0]
    teacher = fit_beads(trajectory, BeadModel.fromTopology(trajectory.topology, beads), settings=FIT)
    proposal = teacher.density.members[0]
    found = judge_beads(ff.student, proposal, ff.student.coordinates, ff.student.kT, bins=36, n=20_000)
    assert found.ess > 0.3
    centres = -np.pi + 2 * np.pi * (np.arange(36) + 0.5) / 36
    expected = gauche(torsions)
    # some 100 independent frames in either basin: a standard error of 0.04, and 0.02 for the fit
    assert gauche(centres, found.probabilities) == pytest.approx(expected, abs=0.16)
    assert 0.2 < expected < 0.8
    context = openmm.Context(
        ff.createCGSystem("python").system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(ff.positions)
    assert np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)


def test_force_field_of_frames_takes_beads_as_they_are(md):
    trajectory, _, _ = md
    beads = carbons_of(trajectory.topology)
    model = BeadModel.fromTopology(trajectory.topology, beads)
    quick = DistilSettings(points=500, steps=20, batch=64, student=StudentSettings(hidden=8, layers=1))
    one, other = (
        cgf.CGForceField.fromFrames(
            topology, frames, beads, temperature=450, fit=FitSettings(members=1, steps=10), settings=quick
        )
        for topology, frames in ((trajectory.topology, trajectory), (model, trajectory.xyz[:, beads].astype(float)))
    )
    x = one.positions._value
    assert np.allclose(other.positions._value, x, atol=1e-6)
    energies = [float(ff.student(torch.as_tensor(x))) for ff in (one, other)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-3)


def test_command_line_fits_and_simulates(md, tmp_path, monkeypatch):
    trajectory, forces, _ = md
    trajectory[:400].save(str(tmp_path / "md.xtc"))
    trajectory[0].save_pdb(str(tmp_path / "md.pdb"))
    np.save(tmp_path / "f.npy", forces[:400])
    quick = type("Quick", (FitSettings,), {"__init__": lambda self: FitSettings.__init__(self, members=1, steps=10)})
    monkeypatch.setattr("openmm_cgflow.forcematching.density.fitting.FitSettings", quick)
    run = CliRunner().invoke
    files = [str(tmp_path / name) for name in ("md.xtc", "md.pdb")]
    options = ["--beads", "element C", "--temperature", "450", "--forces", str(tmp_path / "f.npy")]
    options += ["--points", "500", "--steps", "20"]
    done = run(app, ["fit-cg", *files, "-o", str(tmp_path / "b.cgff"), *options])
    assert done.exit_code == 0, done.output
    assert "400" in done.output
    done = run(app, ["simulate", str(tmp_path / "b.cgff"), "-o", str(tmp_path / "cg.dcd"), "--time", "0.2"])
    assert done.exit_code == 0, done.output
    assert "outside what it was fitted to" in done.output
    assert mdtraj.load(str(tmp_path / "cg.dcd"), top=str(tmp_path / "cg.topology.pdb")).n_atoms == 4
    wrong = run(app, ["fit-cg", *files, "-o", str(tmp_path / "b.cgflow"), *options])
    assert wrong.exit_code == 2
    assert ".cgff" in wrong.output
    wrong = run(app, ["fit-cg", files[0], str(tmp_path / "none.pdb"), "-o", str(tmp_path / "b.cgff")])
    assert wrong.exit_code == 2
    assert "no such file" in wrong.output
