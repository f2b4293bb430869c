"""From beads to atoms: what is kept, the weights, the warnings, and bad input."""

import importlib.util

import mdtraj
import numpy as np
import pytest
import torch
from molecules import MODELS, load
from openmm import unit
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow import cli

MODEL = MODELS / "alanine_dipeptide.cgflow"


@pytest.fixture(scope="module")
def aldp() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL)


@pytest.fixture(scope="module")
def samples(aldp) -> cgf.Samples:
    return aldp.sample(2000, seed=1)


@pytest.fixture(scope="module")
def beads(aldp, samples) -> np.ndarray:
    return samples.positions[:, aldp.coordinates.bead_atoms]


def test_beads_stay_where_they_are(aldp, beads):
    result = aldp.backmap(beads[:100], n=3, seed=0)
    assert result.positions.shape == (100, 3, 22, 3)
    kept = result.positions[:, :, aldp.coordinates.bead_atoms]
    np.testing.assert_allclose(kept, np.repeat(beads[:100, None], 3, 1), rtol=0, atol=1e-6)
    assert np.ptp(result.positions, axis=1).max() > 0.01  # three different structures
    assert result.trajectory.n_frames == 300
    np.testing.assert_array_equal(result.trajectory.xyz[4], result.positions[1, 1])


def test_geometry_agrees_with_the_beads_before_they_are_put_back(aldp, beads):
    """The atoms hang on beads placed by the flow; these must be the given ones, else bonds would be off."""
    result = aldp.backmap(beads[:200], seed=0)
    q, _ = aldp.coordinates.to_internal(torch.as_tensor(result.positions[:, 0]).double())
    assert aldp.coordinates.in_domain(q).all()
    assert result.checks.worst_bond.max() < 0.15


def test_densities_of_beads_and_atoms_multiply_to_that_of_the_whole(aldp, beads):
    result = aldp.backmap(beads[:200], n=2, seed=0)
    whole = aldp.logDensity(result.positions.reshape(-1, 22, 3)).reshape(200, 2)
    q, logdet = aldp.coordinates.bead_coordinates().to_internal(torch.as_tensor(beads[:200]))
    with torch.no_grad():
        of_beads = (aldp.flow.bead_flow.log_prob(q.float()) - logdet).numpy()
    inside = np.isfinite(whole)
    assert inside.mean() > 0.99
    np.testing.assert_allclose((of_beads[:, None] + result.log_densities)[inside], whole[inside], rtol=0, atol=2e-3)


def test_energies_and_weights(aldp, beads):
    result = aldp.backmap(beads[:50], n=8, seed=0)
    u = aldp.potential.energy(torch.as_tensor(result.positions[:, 0])) / aldp.target.kT
    np.testing.assert_allclose(result.reduced_energies[:, 0], u, rtol=0, atol=1e-3)
    np.testing.assert_allclose(result.weights.sum(1), 1)
    np.testing.assert_allclose(result.log_weights, -result.reduced_energies - result.log_densities)
    assert result.ess.mean() > 0.9


def test_what_is_kept_of_a_result_cannot_be_written_to(aldp, beads):
    result = aldp.backmap(beads[:2], n=2, seed=0)
    for kept in (result.weights, result.ess, result.checks.clashes, result.checks.fine):
        assert not kept.flags.writeable


def test_reweighted_structures_have_the_energies_of_the_whole_ensemble(aldp, samples):
    """Beads of Boltzmann frames, atoms made anew: energies must come out as they were."""
    chosen = samples.resample(2000, seed=2)
    frames = samples.positions[chosen]
    result = aldp.backmap(frames[:, aldp.coordinates.bead_atoms], n=8, seed=4)
    before = samples.reduced_energies[chosen]
    after = (result.weights * np.where(result.weights > 0, result.reduced_energies, 0)).sum(1)
    error = np.hypot(before.std(), after.std()) / 2000**0.5
    assert abs(after.mean() - before.mean()) < 4 * error
    one = result.resample(seed=3)
    assert one.positions.shape == (2000, 1, 22, 3)
    drawn = aldp.potential.energy(torch.as_tensor(one.trajectory.xyz)).numpy() / aldp.target.kT
    np.testing.assert_allclose(one.reduced_energies[:, 0], drawn, rtol=1e-4, atol=1e-3)
    assert drawn.std() == pytest.approx(before.std(), rel=0.1)


def test_frames_without_a_finite_energy_are_named_and_never_drawn_from(aldp, beads, caplog, monkeypatch, tmp_path):
    whole, energy = aldp.backmap(beads[:4], n=3, seed=0), aldp.potential.energy

    def refuse(x):  # all structures of frame 1, and one of frame 2
        u = energy(x)
        u[3:7] = torch.tensor([torch.nan, torch.inf, torch.inf, torch.inf])
        return u

    monkeypatch.setattr(aldp.potential, "energy", refuse)
    result = aldp.backmap(beads[:4], n=3, seed=0)
    assert "1 of 4 frames" in caplog.text
    np.testing.assert_array_equal(result.failed, [False, True, False, False])
    for values in (result.ess, result.weights.sum(1)):
        np.testing.assert_array_equal(np.isnan(values), result.failed)
    assert result.weights[2, 0] == 0
    np.testing.assert_allclose(result.ess[[0, 3]], whole.ess[[0, 3]])
    caplog.clear()
    for seed in range(10):
        drawn = result.resample(seed=seed)
        assert np.isnan(drawn.positions[1]).all()
        assert np.isfinite(drawn.positions[[0, 2, 3]]).all()
        assert np.abs(drawn.positions[2, 0] - result.positions[2, 0]).max() > 1e-4
        np.testing.assert_array_equal(drawn.failed, result.failed)
        assert not drawn.checks.fine[1]
    assert "resample: in 1 of 4 frames" in caplog.text
    with pytest.raises(cgf.InvalidInputError, match="1 of 4 frames hold NaN, the first is frame 1, which xtc files"):
        drawn.save(tmp_path / "a.xtc")  # where they became numbers
    drawn.save(tmp_path / "a.dcd")
    assert np.isnan(mdtraj.load(str(tmp_path / "a.dcd"), top=drawn.trajectory.topology).xyz[1]).all()


def test_seeds_repeat(aldp, beads):
    first, second, other = (aldp.backmap(beads[:5], seed=seed).positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_structures_are_right(aldp, beads):
    checks = aldp.backmap(beads, seed=0).checks
    assert not checks.wrong_chirality.any()
    assert not checks.wrong_peptides.any()
    assert not checks.clashes.any()
    assert checks.fine.all()


def test_frames_outside_the_trained_region_are_named(aldp, beads, caplog):
    strange = beads[:12].copy()
    strange[[3, 7], 2] += 0.05
    result = aldp.backmap(strange, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(result.outside), [3, 7])
    assert "2 of 12 frames are outside" in caplog.text
    assert "3, 7" in caplog.text
    assert "ALA2:CA" in caplog.text


def test_relaxation_lowers_the_energy_and_holds_the_beads(aldp, beads):
    plain, relaxed = (aldp.backmap(beads[:5], n=2, seed=0, relax=relax) for relax in (False, 20))
    np.testing.assert_array_equal(
        relaxed.positions[:, :, aldp.coordinates.bead_atoms], plain.positions[:, :, aldp.coordinates.bead_atoms]
    )
    before, after = (aldp.potential.energy(torch.as_tensor(r.positions[:, 0])) for r in (plain, relaxed))
    assert (after < before - 20).all()
    assert relaxed.relaxed
    np.testing.assert_array_equal(relaxed.log_weights, plain.log_weights)


def test_relaxation_with_constraints():
    flow = cgf.CGFlow(*load("butane", constraints="HBonds"), seed=1)
    x = flow.positions[flow.coordinates.bead_atoms]
    result = flow.backmap(x, relax=True, seed=0)
    assert result.checks.fine.all()


def test_whatever_holds_beads(aldp, beads, tmp_path):
    frames = mdtraj.Trajectory(beads[:4], mdtraj.Topology.from_openmm(aldp.beads.topology))
    expected = aldp.backmap(beads[:4], seed=0).positions
    for suffix, tolerance in ((".dcd", 1e-6), (".xtc", 1e-3), (".pdb", 1e-3), (".h5", 1e-6)):
        if suffix == ".h5" and importlib.util.find_spec("tables") is None:
            continue
        frames.save(str(tmp_path / f"cg{suffix}"))
        found = aldp.backmap(tmp_path / f"cg{suffix}", seed=0)
        np.testing.assert_allclose(
            found.positions[:, :, aldp.coordinates.bead_atoms],
            expected[:, :, aldp.coordinates.bead_atoms],
            atol=tolerance,
        )
    for cg in (frames, beads[:4] * unit.nanometer, beads[:4] * 10 * unit.angstrom, torch.as_tensor(beads[:4])):
        np.testing.assert_allclose(aldp.backmap(cg, seed=0).positions, expected, atol=1e-5)
    assert aldp.backmap(beads[0], seed=0).positions.shape == (1, 1, 22, 3)


def test_bad_input(aldp, beads, tmp_path):
    with pytest.raises(cgf.MismatchError, match=r"beads have shape \(3, 4, 3\); give \(frames, 5, 3\).*C, N, CA, C, N"):
        aldp.backmap(beads[:3, :4])
    with pytest.raises(cgf.InvalidInputError, match="no frames"):
        aldp.backmap(beads[:0])
    broken = beads[:3].copy()
    broken[1, 2, 0] = np.nan
    with pytest.raises(cgf.InvalidInputError, match="frame 1 holds NaN"):
        aldp.backmap(broken)
    with pytest.raises(cgf.InvalidInputError, match="n is 0"):
        aldp.backmap(beads[:1], n=0)
    with pytest.raises(cgf.InvalidInputError, match="no file"):
        aldp.backmap(tmp_path / "none.dcd")
    (tmp_path / "broken.dcd").write_bytes(b"nothing")
    with pytest.raises(cgf.InvalidInputError, match=r"broken\.dcd cannot be read as a trajectory of 5 beads"):
        aldp.backmap(tmp_path / "broken.dcd")
    with pytest.raises(cgf.InvalidInputError, match=r"3 beads.*at least 4"):
        cgf.CGFlow(*load("butane"), beads=[0, 1, 2]).backmap(np.zeros((1, 3, 3)))


def test_beads_in_another_order_are_refused(aldp, beads):
    frames = mdtraj.Trajectory(beads[:2], mdtraj.Topology.from_openmm(aldp.beads.topology))
    topology = mdtraj.Topology()
    residue = topology.add_residue("ALA", topology.add_chain())
    for name, symbol in (("C", "C"), ("CA", "C"), ("N", "N"), ("C", "C"), ("N", "N")):
        topology.add_atom(name, mdtraj.element.get_by_symbol(symbol), residue)
    with pytest.raises(cgf.MismatchError, match=r"bead 1 is CA \(C\), that of the flow N \(N\): give the beads in"):
        aldp.backmap(mdtraj.Trajectory(beads[:2], topology))
    with pytest.raises(cgf.MismatchError, match="4 beads, but the flow has 5: ACE1:C"):
        aldp.backmap(frames.atom_slice([0, 1, 2, 3]))


# -- command line


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_command_line_simulates_and_backmaps(aldp, tmp_path):
    cg, atoms = tmp_path / "cg.dcd", tmp_path / "aa.dcd"
    result = run("simulate", MODEL, "-o", cg, "--time", 0.4, "--interval", 0.04)
    assert result.exit_code == 0, result.output
    assert "10 frames" in result.output
    assert mdtraj.load(str(cg), top=str(tmp_path / "cg.topology.pdb")).n_atoms == 5
    result = run("backmap", MODEL, cg, "-o", atoms, "-n", 4, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "40 around 10 frames" in result.output
    assert "0 of 40 structures" in result.output
    frames = mdtraj.load(str(atoms), top=str(tmp_path / "aa.topology.pdb"))
    assert (frames.n_frames, frames.n_atoms) == (40, 22)
    with np.load(tmp_path / "aa.npz") as saved:
        assert saved["log_weights"].shape == saved["weights"].shape == (10, 4)
        assert saved["check_clashes"].shape == (40,)
    result = run("backmap", MODEL, cg, "-o", atoms, "-n", 4, "--seed", 1, "--resample")
    assert result.exit_code == 0, result.output
    kept = mdtraj.load(str(atoms), top=str(tmp_path / "aa.topology.pdb"))
    assert kept.n_frames == 10
    for k, frame in enumerate(kept.xyz):  # one of the four of before
        assert np.abs(frames.xyz[4 * k : 4 * k + 4] - frame).max((1, 2)).min() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backmap", MODEL, "cg.dcd", "-o", "aa.npz"], "structures are written as"),
        (["backmap", MODEL, "cg.dcd", "-o", "aa.dcd", "-n", "0"], "-n is 0"),
        (["backmap", MODEL, "cg.dcd", "-o", "aa.dcd", "--relax", "-1"], "--relax is -1"),
        (["backmap", MODEL, "missing.dcd", "-o", "aa.dcd"], "there is no file missing.dcd"),
        (["simulate", MODEL, "-o", "cg.dcd", "--time", "0"], "--time is 0"),
        (["simulate", MODEL, "-o", "cg.txt"], "beads are written as"),
    ],
)
def test_command_line_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_centres_of_mass_are_no_beads_of_a_flow(aldp):
    groups = [[1, 4, 5], [6, 7], [8, 9, 10], [14, 15], [16, 17, 18]]
    positions = aldp.sample(5, seed=0).positions
    centres = np.stack([positions[:, group].mean(1) for group in groups], axis=1)
    with pytest.raises(cgf.InvalidInputError, match=r"centres of mass.*CGForceField\.fromFrames"):
        aldp.backmap(centres)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for name in ("BB", "SC1", "BB", "SC1", "BB"):
        topology.add_atom(name, mdtraj.element.virtual, topology.add_residue("ALA", chain))
    beads = positions[:, aldp.coordinates.bead_atoms]
    with pytest.raises(cgf.MismatchError, match=r"bead 0 is BB, no atom, where that of the flow is C.*centres of mass"):
        aldp.backmap(mdtraj.Trajectory(beads, topology))
