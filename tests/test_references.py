"""The scripts of the references by OpenMM alone: what they simulate, what they count, and that they go on."""

import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app

REFERENCES = Path(__file__).resolve().parents[1] / "examples" / "references"


@pytest.fixture(scope="module")
def chignolin():
    sys.path.insert(0, str(REFERENCES))  # the script's own neighbour is beside it
    try:
        import chignolin_reference
    finally:
        sys.path.remove(str(REFERENCES))
    return chignolin_reference


def test_the_system_is_that_of_the_prmtop_with_obc2(chignolin):
    system, topology = chignolin.make_system()
    assert "".join(residue.name for residue in topology.residues()) == "TYRTYRASPPROGLUTHRGLYTHRTRPTYR"
    prmtop = app.AmberPrmtopFile(str(chignolin.DATA / "chignolin.prmtop"))
    by_openmm = prmtop.createSystem(implicitSolvent=app.OBC2, constraints=app.HBonds)
    hydrogens = sum(atom.element.symbol == "H" for atom in topology.atoms())
    assert system.getNumConstraints() == by_openmm.getNumConstraints() == hydrogens
    energies = []
    for each in (system, by_openmm):
        context = openmm.Context(each, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(chignolin.read("folded"))
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)
    masses, usual = (np.array([each.getParticleMass(i)._value for i in range(166)]) for each in (system, by_openmm))
    np.testing.assert_allclose(masses[usual < 2], 3)
    assert masses.min() == pytest.approx(3)
    assert masses.sum() == pytest.approx(usual.sum())


def test_rmsd_is_to_the_crystal_structure_and_tells_mirror_images(chignolin):
    atoms = app.PDBFile(str(chignolin.DATA / "folded.pdb")).topology.atoms()
    ca = chignolin.read("folded")[[a.index for a in atoms if a.name == "CA"]]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    moved = ca @ turn.T + 3
    mirrored = ca * [1, 1, -1]
    stretched = ca.copy()
    stretched[[0, 9]] += 1  # the ends do not count
    stretched[4] += [0.08, 0, 0]
    rmsd = chignolin.core_rmsd(np.stack([ca, moved, mirrored, stretched]))
    np.testing.assert_allclose(rmsd[:2], 0, atol=1e-6)
    assert rmsd[2] > 0.1
    assert 0.015 < rmsd[3] < 0.08 / 8**0.5  # one of eight atoms moved by 0.08 nm, and the rest fitted to it


def test_wrong_structures_are_refused(chignolin):
    topology = app.PDBFile(str(chignolin.DATA / "folded.pdb")).topology
    chignolin.check_structure(topology, chignolin.read("folded"))
    with pytest.raises(RuntimeError, match="residue 1 is not L"):
        chignolin.check_structure(topology, chignolin.read("folded") * [1, 1, -1])
    torn = chignolin.read("folded")
    torn[next(atom.index for atom in topology.atoms() if atom.residue.index == 1) :] += 0.3
    with pytest.raises(RuntimeError, match="residues 1 and 2"):
        chignolin.check_structure(topology, torn)


@pytest.mark.parametrize(
    ("rmsd", "events"),
    [
        ([0.05, 0.3, 0.05, 0.3], (0, 0)),
        ([0.05, 0.3, 0.5, 0.3, 0.05], (1, 1)),
        ([0.5, 0.3, 0.15, 0.05, 0.2, 0.45, 0.05], (2, 1)),
        ([0.2, 0.3], (0, 0)),
    ],
)
def test_foldings_are_counted_between_cores(chignolin, rmsd, events):
    assert chignolin.foldings(np.array(rmsd)) == events


def test_a_stopped_run_resumes_with_what_it_had_and_new_noise(chignolin, tmp_path, monkeypatch):
    monkeypatch.setattr(chignolin, "PERIOD", 2)
    monkeypatch.setattr(chignolin, "SWEEPS_PER_FRAME", 1)
    temperatures = np.array([300.0, 400.0])
    first = chignolin.ReplicaExchange(temperatures, seed=3)
    first.x = np.stack([chignolin.read("folded")] * 2)
    first.v = np.zeros_like(first.x)
    for _ in range(2):
        first.sweep()
    first.save(tmp_path / "c.checkpoint.npz")
    again = [chignolin.ReplicaExchange(temperatures, seed=3) for _ in range(2)]
    seeds = {first.integrator.getRandomNumberSeed()}
    for run in again:
        run.load(tmp_path / "c.checkpoint.npz")
        np.testing.assert_array_equal(run.x, first.x)
        np.testing.assert_array_equal(run.v, first.v)
        np.testing.assert_array_equal(run.replica, first.replica)
        assert (run.sweeps, len(run.frames["ca"])) == (2, 2)
        seeds.add(run.integrator.getRandomNumberSeed())
        run.sweep()
        assert len(run.frames["ca"]) == 3
    assert len(seeds) == 2  # not the noise of the beginning, and the same at both attempts
    np.testing.assert_array_equal(again[0].x, again[1].x)
    with pytest.raises(ValueError, match="other temperatures"):
        chignolin.ReplicaExchange(np.array([300.0, 410.0]), seed=3).load(tmp_path / "c.checkpoint.npz")
