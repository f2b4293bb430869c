"""Backmapping of files: the same in pieces, in processes and after an interruption as in one go; any format."""

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from molecules import MODELS

import openmm_cgflow as cgf
from openmm_cgflow.backmapping import backmap_file, long_files, outputs_beside
from openmm_cgflow.forcematching import BeadModel
from openmm_cgflow.trajectory_files import (
    WRITTEN,
    count_frames,
    frame_range,
    read_pieces,
    save_arrays,
    whole_file,
    write_frames,
)

MODEL = MODELS / "alanine_dipeptide.cgflow"
FRAMES = 23


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def beads(flow, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("beads") / "beads.xtc"
    samples = flow.sample(FRAMES, seed=4)
    x = samples.positions[:, flow.beads.atoms]
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(flow.beads.topology)).save(str(path))
    return path


def test_pieces_are_the_frames_of_the_file(flow, beads):
    topology = mdtraj.Topology.from_openmm(flow.beads.topology)
    whole = mdtraj.load(str(beads), top=topology).xyz
    for stride, start, stop in ((1, 0, None), (3, 0, None), (2, 5, 17), (1, 20, 100), (4, 1, 2)):
        pieces = list(read_pieces(beads, topology, 4, stride, start, stop))
        assert np.array_equal(np.concatenate([piece.xyz for piece in pieces]), whole[start:stop:stride])
        assert max(len(piece) for piece in pieces) <= 4
        assert count_frames(beads, stride, start, stop) == len(whole[start:stop:stride])


@pytest.mark.parametrize("suffix", WRITTEN)
def test_frames_are_written_in_every_format(flow, tmp_path, suffix):
    topology, x = mdtraj.Topology.from_openmm(flow.topology), flow.sample(5, seed=1).positions
    path = tmp_path / f"frames{suffix}"
    times = 0.5 * np.arange(5)
    assert write_frames(path, topology, iter([(x[:3], times[:3]), (x[3:], times[3:])])) == 5
    again = mdtraj.load(str(path), **({} if suffix == ".pdb" else {"top": topology}))
    np.testing.assert_allclose(again.xyz, x, atol=6e-4)
    if suffix in (".xtc", ".trr", ".nc"):
        np.testing.assert_allclose(again.time, times)
    assert list(tmp_path.iterdir()) == [path]
    for stride, start, stop in ((1, 0, None), (2, 1, None), (3, 1, 4), (1, 4, 9)):
        pieces = list(read_pieces(path, topology, 2, stride, start, stop))
        np.testing.assert_allclose(np.concatenate([p.xyz for p in pieces]), x[start:stop:stride], atol=6e-4)


def test_a_file_is_backmapped_as_its_frames_are(flow, beads, tmp_path):
    result = backmap_file(flow, beads, tmp_path / "atoms.dcd", n=3, seed=7, chunk=10)
    assert (result.frames, result.structures) == (FRAMES, 3 * FRAMES)
    x = mdtraj.load(str(result.written[0]), top=str(result.written[2])).xyz.reshape(FRAMES, 3, 22, 3)
    given = mdtraj.load(str(beads), top=mdtraj.Topology.from_openmm(flow.beads.topology)).xyz
    np.testing.assert_allclose(x[:, :, flow.beads.atoms], np.repeat(given[:, None], 3, 1), atol=2e-6)
    with np.load(result.written[1]) as data:
        energies, log_weights = data["reduced_energies"], data["log_weights"]
        assert data["check_clashes"].shape == (3 * FRAMES,)
    own = flow.target.potential.energy(flow.compute.tensor(x.reshape(-1, 22, 3))).numpy() / flow.target.kT
    fine = np.isfinite(energies.ravel())
    assert fine.mean() > 0.9
    assert np.median(np.abs(own[fine] - energies.ravel()[fine])) < 0.05  # positions in single precision
    assert 0.3 < result.ess < 1
    assert np.isfinite(log_weights).mean() > 0.9
    assert not (tmp_path / "atoms.dcd.parts").exists()


def test_processes_give_what_one_gives(beads, tmp_path):
    one, two = (
        backmap_file(MODEL, beads, tmp_path / f"{workers}.xtc", 4, True, seed=1, stride=2, chunk=4, workers=workers)
        for workers in (1, 2)
    )
    assert one.structures == two.structures == -(-FRAMES // 2)
    first, second = (np.load(result.written[1]) for result in (one, two))
    np.testing.assert_allclose(first["reduced_energies"], second["reduced_energies"], rtol=1e-4)


def test_a_cluster_gives_what_one_process_gives(beads, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        result = backmap_file(MODEL, beads, tmp_path / "many.xtc", seed=1, chunk=8, scheduler=cluster.scheduler_address)
    alone = backmap_file(MODEL, beads, tmp_path / "one.xtc", seed=1, chunk=8)
    first, second = (np.load(each.written[1]) for each in (result, alone))
    np.testing.assert_allclose(first["reduced_energies"], second["reduced_energies"], rtol=1e-4)


def test_an_interrupted_run_goes_on(flow, beads, tmp_path, monkeypatch):
    output, done, do = tmp_path / "atoms.xtc", [], long_files._do

    def dies(own, piece, number, task):
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)
        return do(own, piece, number, task)

    def lives(own, piece, number, task):
        done.append(number)
        return do(own, piece, number, task)

    monkeypatch.setattr(long_files, "_do", dies)
    with pytest.raises(KeyboardInterrupt):
        backmap_file(flow, beads, output, chunk=5)
    assert not output.exists()
    assert json.loads((tmp_path / "atoms.xtc.parts" / "run.json").read_text())["seed"] >= 0
    monkeypatch.setattr(long_files, "_do", lives)
    with pytest.raises(cgf.InvalidInputError, match="another model, file or options"):
        backmap_file(flow, beads, output, n=2, chunk=5)
    result = backmap_file(flow, beads, output, chunk=5)
    assert sorted(done) == list(range(5))
    assert result.frames == FRAMES
    assert output.exists()


def test_a_run_that_did_nothing_leaves_nothing(flow, beads, tmp_path):
    """A folder of no pieces stayed behind, with which the next run, of the right file, was refused."""
    wrong = tmp_path / "wrong.xtc"
    wrong.write_bytes(b"nothing")
    with pytest.raises(cgf.InvalidInputError, match="cannot be read"):
        backmap_file(flow, wrong, tmp_path / "atoms.dcd")
    topology = mdtraj.Topology.from_openmm(flow.topology)
    mdtraj.Trajectory(flow.positions._value, topology).save(str(wrong))  # all atoms, where beads are wanted
    with pytest.raises(cgf.CGFlowError):
        backmap_file(flow, wrong, tmp_path / "atoms.dcd")
    assert list(tmp_path.iterdir()) == [wrong]
    backmap_file(flow, beads, tmp_path / "atoms.dcd", frames=(0, 1))


def test_a_folder_of_others_is_left_alone(flow, beads, tmp_path):
    theirs = tmp_path / "atoms.dcd.parts" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(cgf.InvalidInputError, match=r"cannot use .*atoms\.dcd\.parts"):
        backmap_file(flow, beads, tmp_path / "atoms.dcd")
    assert theirs.read_text() == "mine"


def test_a_file_beside_the_output_that_is_read_is_not_written_over(flow, tmp_path):
    """What `simulate` writes, `beads.topology.pdb`, would be written over by `backmap -o beads.dcd`."""
    beads = tmp_path / "beads.topology.pdb"
    topology = mdtraj.Topology.from_openmm(flow.beads.topology)
    mdtraj.Trajectory(flow.positions._value[flow.beads.atoms], topology).save(str(beads))
    before = beads.read_bytes()
    with pytest.raises(cgf.InvalidInputError, match="would be written, and is a file that is read"):
        backmap_file(flow, beads, tmp_path / "beads.dcd")
    with pytest.raises(cgf.InvalidInputError, match="would be written, and is a file that is read"):
        backmap_file(flow, beads, beads)
    assert beads.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"stride": -1}, "stride is -1"),
        ({"workers": 2}, "path of its file"),
        ({"scheduler": "tcp://nowhere:1"}, "path of its file"),
        ({"output": "atoms.gro"}, "written as"),
        ({"beads": "absent.xtc"}, "no file absent"),
        ({"frames": (1000, None)}, "no frames"),
        ({"frames": (-2, None)}, "frames is"),
        ({"frames": None}, "frames is None"),
        ({"frames": "0:5"}, "frames is '0:5'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(flow, beads, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cgf.InvalidInputError, match=message):
        backmap_file(**({"flow": flow, "beads": beads, "output": "atoms.xtc"} | change))


def test_numbers_of_an_input_are_not_written_over(tmp_path):
    """Those of `atoms.xtc` were, by `backmap atoms.xtc -o atoms.pdb`."""
    read, output = tmp_path / "atoms.xtc", tmp_path / "atoms.pdb"
    assert outputs_beside(output, [read])[1] == tmp_path / "atoms.npz"
    (tmp_path / "atoms.npz").touch()
    with pytest.raises(cgf.InvalidInputError, match=r"atoms\.npz would be written, and is of a file that is read"):
        outputs_beside(output, [read])
    output.touch()  # a run is made again, whose numbers these are
    outputs_beside(output, [read])


def test_pieces_of_another_version_are_not_taken(flow, beads, tmp_path, monkeypatch):
    output = tmp_path / "atoms.dcd"

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(long_files, "_join", dies)
    with pytest.raises(KeyboardInterrupt):
        backmap_file(flow, beads, output, seed=0)
    monkeypatch.setattr(long_files, "__version__", "0.0")
    with pytest.raises(cgf.InvalidInputError, match="or of another version"):
        backmap_file(flow, beads, output, seed=0)


def test_a_model_that_was_saved_anew_is_read_anew(beads, tmp_path):
    model, found = tmp_path / "model.cgflow", []
    for name in ("alanine_dipeptide", "aldp_vacuum"):
        model.write_bytes((MODELS / f"{name}.cgflow").read_bytes())
        result = backmap_file(model, beads, tmp_path / f"{name}.xtc", seed=0)
        with np.load(result.written[1]) as data:
            found.append(data["log_densities"])
        times = mdtraj.load(str(result.written[0]), top=str(result.written[2])).time
        assert np.array_equal(times, np.arange(FRAMES))
    assert not np.allclose(*found)


def test_a_process_that_dies_is_told_and_the_run_goes_on(beads, tmp_path, monkeypatch):
    output = tmp_path / "atoms.xtc"

    def dies(*arguments):
        raise BrokenProcessPool("gone")

    with monkeypatch.context() as patched:
        patched.setattr("openmm_cgflow.backmapping.pieces._Done.result", dies)
        with pytest.raises(cgf.CGFlowError, match="goes on"):
            backmap_file(MODEL, beads, output, seed=0, chunk=8)
    assert backmap_file(MODEL, beads, output, seed=0, chunk=8).frames == FRAMES


def test_a_broken_frame_is_named_with_its_piece(flow, tmp_path):
    x = flow.sample(9, seed=4).positions[:, flow.beads.atoms].copy()
    x[7, 2] += 1.0
    path = tmp_path / "broken.xtc"
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(flow.beads.topology)).save(str(path))
    with pytest.raises(cgf.InvalidInputError, match=r"in piece 1 of the file.*frame 2"):
        backmap_file(flow, path, tmp_path / "atoms.xtc", chunk=5)


@pytest.mark.parametrize("suffix", [".xtc", ".pdb"])
def test_files_of_atoms_are_read_by_pieces(flow, tmp_path, monkeypatch, suffix):
    samples = flow.sample(7, seed=2)
    path = tmp_path / f"atoms{suffix}"
    samples.trajectory.save(str(path))
    monkeypatch.setattr("openmm_cgflow.trained.molecule.FRAMES_AT_ONCE", 3)
    np.testing.assert_allclose(np.cos(flow.slowVariables(path) - samples.slow), 1, atol=1e-3)
    log_density = flow.logDensity(str(path))
    assert log_density.shape == (7,)
    assert np.isfinite(log_density).all()
    with pytest.raises(cgf.InvalidInputError, match="no file"):
        flow.slowVariables("absent.xtc")
    x = samples.positions.copy()
    x[5, 3] += 1.0
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(flow.topology)).save(str(path))
    with pytest.raises(cgf.InvalidInputError, match=r"number 3 of the file on: .*frame 2"):
        flow.slowVariables(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TypeError("'dict' object is not callable")])
def test_a_full_disk_leaves_what_was_there(flow, tmp_path, monkeypatch, error):
    samples, path = flow.sample(3, seed=0), tmp_path / "frames.dcd"
    path.write_bytes(b"before")

    def full(self, name, **options):
        Path(name).write_bytes(b"half of")
        raise error

    monkeypatch.setattr(mdtraj.Trajectory, "save", full)
    with pytest.raises(cgf.InvalidInputError, match=r"cannot write .*frames\.dcd.*stays") as refused:
        samples.save(path)
    assert "not callable" not in str(refused.value)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["5", "a:b", "7:7", "9:2", "-1:4", ":0"])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(cgf.InvalidInputError, match="FIRST:LAST"):
        frame_range(text)


def test_a_file_that_is_no_trajectory_is_refused(flow, tmp_path):
    path = tmp_path / "beads.xtc"
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(cgf.InvalidInputError, match="cannot be read"):
        backmap_file(flow, path, tmp_path / "atoms.xtc")


def test_command(beads, tmp_path):
    command = [sys.executable, "-m", "openmm_cgflow", "backmap", str(MODEL), str(beads), "-o", "atoms.nc"]
    options = ["-n", "4", "--resample", "--frames", "3:20", "--stride", "4", "--seed", "3"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert "5 around 5 frames" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "atoms.nc",
        "atoms.npz",
        "atoms.topology.pdb",
    ]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_paths_need_not_be_ascii(flow, tmp_path, suffix):
    folder = tmp_path / "zwölf körner"
    folder.mkdir()
    path, x = folder / f"häufig{suffix}", flow.sample(3, seed=1).positions
    beads = mdtraj.Topology.from_openmm(flow.beads.topology)
    write_frames(path, beads, [(x[:, flow.beads.atoms], np.arange(3.0))])
    assert backmap_file(flow, path, folder / f"auf{suffix}", seed=1).structures == 3
    assert flow.backmap(path, seed=1).positions.shape == (3, 1, 22, 3)
    assert len(flow.slowVariables(folder / f"auf{suffix}")) == 3
    assert len(BeadModel.fromTopology(flow.topology, flow.beads.atoms).read(path)) == 3
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_a_package_that_a_format_needs_is_named(flow, tmp_path, monkeypatch):
    path = tmp_path / "beads.h5"
    path.write_bytes(b"not looked at")
    monkeypatch.setitem(sys.modules, "tables", None)
    for read in (flow.backmap, flow.slowVariables, BeadModel.fromTopology(flow.topology, flow.beads.atoms).read):
        with pytest.raises(cgf.InvalidInputError, match="pip install tables"):
            read(path)


def test_a_scheduler_that_is_not_there_is_named(beads, tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(cgf.InvalidInputError, match=r"no dask scheduler at 'nowhere'.*tcp://HOST"):
        backmap_file(MODEL, beads, tmp_path / "atoms.dcd", scheduler="nowhere")


def test_a_file_with_brackets_in_its_name_is_written(tmp_path):
    """They are a pattern to those who look for files."""
    path = tmp_path / "out[1].txt"
    with whole_file(path) as temporary:
        temporary.write_text("here")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "here"


def test_a_link_stays_one_and_the_file_it_leads_to_is_written(tmp_path):
    place, link = tmp_path / "scratch" / "store", tmp_path / "o.npz"
    place.parent.mkdir()
    link.symlink_to(place)
    for value in (1, 2):
        save_arrays(link, {"a": np.array(value)})
    assert link.is_symlink()
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    with np.load(place) as data:
        assert data["a"] == 2


def test_cif_files_are_read(flow, tmp_path):
    x = flow.sample(1, seed=4).positions[:, flow.beads.atoms]
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(flow.beads.topology)).save(str(tmp_path / "b.cif"))
    assert backmap_file(flow, tmp_path / "b.cif", tmp_path / "o.dcd", seed=0).frames == 1


def test_numbers_of_numpy_are_numbers(flow, beads, tmp_path):
    done = backmap_file(flow, beads, tmp_path / "o.dcd", n=np.int64(2), frames=(0, 3), seed=0, relax=np.int64(0))
    assert done.structures == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relax": -5}, "relax is -5"),
        ({"relax": 2.5}, "relax is 2.5"),
        ({"output": "o.XTC"}, "choose one of these"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(flow, beads, tmp_path, change, message):
    output = tmp_path / change.pop("output", "o.dcd")
    with pytest.raises(cgf.InvalidInputError, match=message):
        backmap_file(flow, beads, output, **change)


def test_the_topology_of_the_beads_is_not_written_over(flow, tmp_path):
    """`simulate -o t.dcd` writes t.topology.pdb, and `backmap t.dcd -o t.xtc` wrote that of all atoms there."""
    x = flow.sample(2, seed=4).positions[:, flow.beads.atoms]
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(flow.beads.topology)).save(str(tmp_path / "t.dcd"))
    (tmp_path / "t.topology.pdb").write_text("of the beads")
    with pytest.raises(cgf.InvalidInputError, match=r"t\.topology\.pdb would be written"):
        backmap_file(flow, tmp_path / "t.dcd", tmp_path / "t.xtc")
    assert (tmp_path / "t.topology.pdb").read_text() == "of the beads"
