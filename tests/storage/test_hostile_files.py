"""Damaged and hostile files end in one error; files are written whole, and by one at a time."""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from fuzz.mutate import put
from fuzz.seeds import SMALL, model, peroxide
from fuzz.targets import Files, Input, make_input, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import openmm_cgflow as cgf
from openmm_cgflow import storage
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.potentials.terms.lepton import Expression
from openmm_cgflow.trained.stored import StoredModel
from openmm_cgflow.training.reporter import Metrics


@pytest.fixture(scope="module")
def files() -> Files:
    return Files.make()


@pytest.fixture(scope="module")
def good(files) -> bytes:
    return files.models[0]


def changed(data: bytes, change) -> bytes:
    """A model with something done to its tensors and description."""
    tensors, header = storage.unpack(data, "model")
    change(tensors, header)
    return storage.pack("model", tensors, header)


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(cgf.ModelFileError) as caught:
        cgf.CGFlow.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- what a model says ----------------------------------------------------------------------------------------------


def test_hostile_tests_begin_with_a_file_that_is_fine(tmp_path, good):
    path = tmp_path / "m.cgflow"
    path.write_bytes(good)
    flow = cgf.CGFlow.load(path)
    assert flow.sample(3).reduced_energies.shape == (3,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("settings", "hidden", value=10**9), "larger networks than it holds"),
        (put("settings", "bead_couplings", value=10**9), "larger networks than it holds"),
        (put("settings", "components", value=10**8), "larger networks than it holds"),
        (put("settings", "rank", value=10**9), "larger networks than it holds"),
        (put("settings", "harmonics", value=10**9), "larger networks than it holds"),
        (put("settings", "hidden", value=8), "belongs there"),
        (put("settings", "hidden", value=-4), "hidden is -4"),
        (put("settings", "hidden", value=4.0), "not a whole number"),
        (put("settings", "hidden", value=True), "not a whole number"),
        (put("settings", "hidden", value="4"), "not a whole number"),
        (put("settings", "depth", value=1), "unknown field 'depth'"),
        (put("settings", value=[]), "not an object"),
        (put("temperature", value=math.nan), "not a finite number"),
        (put("temperature", value=math.inf), "not a finite number"),
        (put("temperature", value=-300.0), "temperature -300"),
        (put("temperature", value=None), "not a number"),
        (put("temperature", value="300"), "not a number"),
        (put("seed", value=2**64), "whole number"),
        (put("seconds", value=-1.0), "negative seconds"),
        (put("history", value=[{"stage": "laplace"}]), "lacks 'seconds'"),
        (put("history", value=[{"stage": 1, "seconds": 1, "evaluations": 1}]), "not text"),
        (put("history", value=[{"stage": "a", "seconds": 1, "evaluations": 1, "pickle": "b"}]), "unknown field"),
        (put("system", value=7), "not text"),
        (put("system", value="<System/>"), "System"),
        (put("topology", "bonds", value=[[0, 4]]), "names atom 4 of 4"),
        (put("topology", "bonds", value=[[0, -1]]), "names atom -1 of 4"),
        (put("topology", "atoms", 0, value=[0, "X", "Xx", "1"]), "unknown element"),
        (put("topology", "atoms", value=[]), "names atom"),
        (put("coordinates", "version", value=3), "version 3"),
        (put("coordinates", "order", value=[0, 1, 2, 2]), "'order'"),
        (put("coordinates", "order", value=[0, 1, 2, -1]), "'order'"),
        (put("coordinates", "refs", value=[[0, 1, 3]]), "'refs'"),
        (put("coordinates", "refs", value=[[0, 1, -1]]), "'refs'"),
        (put("coordinates", "levels", value=[10**9]), "'levels'"),
        (put("coordinates", "bond_slots", value=[0, 1, -1]), "'bond_slots'"),
        (put("coordinates", "siblings", value=[0]), "'siblings'"),
        (put("coordinates", "primary_slots", value=[99]), "'primary_slots'"),
        (put("coordinates", "beads", value=[0, 7]), "'beads'"),
        (put("coordinates", "slow_torsions", value=[]), "'slow_torsions'"),
        (put("coordinates", "coordinates", 0, "scale", value=0.0), "'coordinates'"),
        (put("coordinates", "coordinates", 0, "reference", value=math.nan), "not a finite number"),
        (put("coordinates", "coordinates", 0, "period", value=1e-300), "'coordinates'"),
        (put("coordinates", "coordinates", 0, "block", value=9), "'coordinates'"),
        (put("coordinates", "coordinates", value=None), "not a list"),
        (put("layers", value=3), "unknown field 'layers'"),
        (lambda t, h: h.pop("system"), "lacks 'system'"),
        (lambda t, h: t.pop("positions"), "'positions'"),
        (lambda t, h: t.update(positions=torch.zeros(5, 3, dtype=torch.float64)), "the positions 5"),
        (lambda t, h: t.update(positions=t["positions"].float()), "double precision"),
        (lambda t, h: t.update(positions=t["positions"] * math.nan), "NaN, infinite or huge"),
        (lambda t, h: t.update(positions=t["positions"] * 1e12), "NaN, infinite or huge"),
        (lambda t, h: t.update({"flow.extra": torch.zeros(1)}), "unknown"),
        (lambda t, h: t.update({"other": torch.zeros(1)}), "unknown"),
        (lambda t, h: t.popitem(), "missing"),
        (lambda t, h: t.update({k: v.double() for k, v in t.items()}), "belongs there"),
        (lambda t, h: t.update({k: v * math.nan for k, v in t.items() if k != "positions"}), "NaN or infinite"),
        (lambda t, h: t.update({k: v[..., :0] for k, v in t.items() if k != "positions"}), "belongs there"),
    ],
)  # fmt: skip
def test_hostile_model_is_refused_by_what_is_wrong(tmp_path, good, change, match):
    message = refused(tmp_path / "m.cgflow", changed(good, change))
    assert match in message


def with_declaration(data: bytes, change) -> bytes:
    """A file whose safetensors header was changed as text."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = change(data[8:end].decode()).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"F32"', '"F16"', 1),
        lambda text: text.replace('"F32"', '"F64"', 1),
        lambda text: text.replace('"shape":[', '"shape":[1000000000,', 1),
        lambda text: text.replace('"shape":[', '"shape":[-1,', 1),
        lambda text: text.replace('"shape":[', '"shape":[1e3,', 1),
        lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[4,'),
        lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[9999999999999999999999,'),
        lambda text: text.replace('"kind":"model"', '"kind":"model","kind":"model"'),
        lambda text: text.replace('"version":"1"', '"version":"one"'),
        lambda text: text.replace('"version":"1"', '"version":""'),
        lambda text: text.replace('"version":"1"', '"version":"\u00b2"'),
        lambda text: text.replace('"version":"1"', '"version":1'),
        lambda text: text.replace('"header":"', '"other":"'),
        lambda text: text.replace('"header":"{', '"header":"['),
        lambda text: text.replace('"header":"{', '"header":"{' + "[" * 100_000),
        lambda text: "[" * 1_000_000,
        lambda text: "[" * 500 + "]" * 500,
        lambda text: "{}",
        lambda text: "",
        lambda text: '{"__metadata__":{"format":"openmm_cgflow"}}',
        lambda text: '{"__metadata__":7}',
    ],
    ids=range(21),
)
def test_hostile_declaration_of_tensors_is_refused(tmp_path, good, change):
    made = with_declaration(good, change)
    assert made != good
    refused(tmp_path / "m.cgflow", made)


def test_hostile_length_of_the_header_asks_for_no_memory(tmp_path, good):
    for length in (2**63, 2**40, len(good), 0):
        refused(tmp_path / "m.cgflow", length.to_bytes(8, "little") + good[8:])
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write((2**40).to_bytes(8, "little"))
        file.truncate(2**41)
    with pytest.raises(cgf.ModelFileError, match="bytes"):
        cgf.CGFlow.load(path)


@pytest.mark.parametrize("what", ["folder", "pipe", "unreadable"])
def test_hostile_things_that_are_no_files(tmp_path, what):
    path = tmp_path / "m"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"a" * 10)
        path.chmod(0)
    with pytest.raises(cgf.ModelFileError):
        cgf.CGFlow.load(path)


def test_hostile_file_of_vectors_is_refused(tmp_path):
    path = tmp_path / "v.cgflow"
    flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, settings=SMALL)
    flow.save(path)
    cgf.VectorFlow.load(path, DoubleWell())
    for keys, value in (
        (("layout", "dim"), "2"), (("layout", "slow"), [5]), (("layout", "slow"), -1), (("layout", "slow"), [[0]]),
        (("layout", "width"), math.inf), (("layout", "width"), 0.0), (("layout",), {}), (("settings", "hidden"), 10**9),
        (("seed",), "a"), (("temperature",), 0),
    ):  # fmt: skip
        tensors, header = storage.read_file(path, "vector model")
        put(*keys, value=value)(tensors, header)
        bad = tmp_path / "bad.cgflow"
        bad.write_bytes(storage.pack("vector model", tensors, header))
        with pytest.raises(cgf.ModelFileError, match=r"bad\.cgflow"):
            cgf.VectorFlow.load(bad, DoubleWell())


def test_hostile_checkpoint_is_refused(tmp_path):
    """Each piece of a checkpoint damaged in turn: refused with the one error, or read."""
    path = tmp_path / "c"
    quick = cgf.TrainSettings(points=32, sweeps=1, fit_steps=5, buffer=200, buffer_steps=2, soft_buffers=2, batch=64)

    def flow() -> cgf.VectorFlow:
        return cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, settings=SMALL)

    flow().train(evaluations=9000, checkpoint=path, settings=quick, progress=False)
    good = path.read_bytes()
    tensors, header = storage.unpack(good, "checkpoint")
    rng, outcomes = random.Random(0), []
    for k in range(20):
        name, key = rng.choice(list(tensors)), rng.choice([key for key in header if key != "identity"])
        changes = (
            lambda t, h, name=name: t.pop(name),
            lambda t, h, name=name: t.update({name: torch.zeros(3, 5, dtype=torch.int64)}),
            lambda t, h, name=name: t.update({name: t[name].double()}),
            lambda t, h, key=key: h.pop(key),
            lambda t, h, key=key: h.update({key: rng.choice([None, -1, "x", [], {"a": 1}, 10**30, [[]]])}),
        )
        made, said = dict(tensors), json.loads(json.dumps(header))
        changes[k % 5](made, said)
        path.write_bytes(storage.pack("checkpoint", made, said))
        try:
            flow().train(evaluations=200, checkpoint=path, settings=quick, progress=False)
            outcomes.append("read")
        except cgf.ModelFileError:
            outcomes.append("refused")
    assert outcomes.count("refused") >= 8  # at least two of five kinds cannot be read by anything


def test_hostile_state_of_monte_carlo_is_refused(tmp_path):
    from openmm import VerletIntegrator, app

    topology, system, x = peroxide()
    simulation = app.Simulation(topology, system, VerletIntegrator(0.001))
    simulation.context.setPositions(x)
    moves = cgf.FlowMonteCarlo(simulation, cgf.CGFlow(topology, system, x), seed=1)
    path = tmp_path / "s"
    moves.saveState(path)
    good = json.loads(path.read_text())
    moves.loadState(path)
    texts = ["", "[" * 100_000, "7", "{}", json.dumps(good)[:-5], "\x00"]
    bad = {"batch": [10**12, -1, "1", 1.5, None], "next": [-1, 10**12, "0"], "generator": [None, {}, 7]}
    texts += [json.dumps({**good, key: value}) for key, values in bad.items() for value in values]
    for text in texts:
        path.write_text(text)
        with pytest.raises(cgf.ModelFileError, match="is not a state that FlowMonteCarlo"):
            moves.loadState(path)


# -- many of them ---------------------------------------------------------------------------------------------------


def test_hostile_inputs_by_the_thousand(files):
    """The first of those that `python tests/fuzz/run.py --n 1000000` reads."""
    from fuzz.run import rng_of

    bad = []
    for number in range(3000):
        result = outcome(make_input(files, rng_of(0, number)))
        if result not in ("loaded", "refused"):
            bad.append((number, result))
    assert not bad, "python tests/fuzz/run.py --only NUMBER shows one"


def test_hostile_inputs_that_surprise_are_noticed():
    """What the test above is worth."""
    import openmm
    from fuzz.seeds import hostile_system

    assert outcome(Input("", "", lambda: {}["a"])) == "KeyError: 'a'"
    assert outcome(Input("", "", lambda: openmm.XmlSerializer.deserialize(hostile_system()))).startswith("code that")
    assert outcome(Input("", "", lambda: 1)) == "loaded"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["stage", "seconds", "evaluations", "beta", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(JSON)
def test_hostile_json_becomes_what_is_declared_or_one_error(value):
    for declared in (Metrics, list[Metrics], StoredModel, dict[str, int], tuple[int, ...], int | list[int], float):
        try:
            read = storage.read_as(declared, value, "it")
        except cgf.ModelFileError:
            continue
        if declared is float:
            assert math.isfinite(read)
        if declared is Metrics:
            assert isinstance(read.evaluations, int)
            assert isinstance(read.stage, str)
            assert math.isfinite(read.seconds)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="ab12.e+-*/^();=, \n<>[]{}'\"#@!:sincoxpqrt_\x00\u00e9", max_size=60))
def test_hostile_text_is_a_formula_or_one_error(text):
    try:
        names = Expression(text).names
    except cgf.UnsupportedForceError:
        return
    assert all(isinstance(name, str) for name in names)


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_hostile_free_permissions_are_those_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        storage.write_whole(tmp_path / "a", b"1")
    finally:
        assert os.umask(before) == mask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    (tmp_path / "a").chmod(0o604)
    storage.write_whole(tmp_path / "a", b"2")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


def test_hostile_free_umask_is_never_touched(tmp_path, monkeypatch):
    """Not even for a moment: another thread might write a file then."""

    def touched(mask: int) -> int:
        raise AssertionError("the umask is the user's")

    monkeypatch.setattr(os, "umask", touched)
    storage.write_file(tmp_path / "a", "model", {}, {})


def test_hostile_free_links_stay_links(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    for text in (b"1", b"2"):
        storage.write_whole(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "file").read_bytes() == text
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["file"]


def test_hostile_places_are_not_written_to(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path / "folder",
        tmp_path / "pipe",
        tmp_path / "none" / "a",
        Path("/dev/null"),
        tmp_path / ("a" * 300),
    ):
        with pytest.raises(cgf.ModelFileError, match="could not be written"):
            storage.write_whole(path, b"1")
    assert not stat.S_ISREG(Path("/dev/null").stat().st_mode)


def fill_up(path: str, connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        storage.write_whole(path, b"new" * 10_000)
    except cgf.ModelFileError as error:
        connection.send(str(error))


def test_hostile_full_disk_leaves_the_old_file(tmp_path):
    """The size of files is limited in a process of its own, so that the write fails in its middle."""
    storage.write_whole(tmp_path / "a", b"old")
    _, connection = started(fill_up, tmp_path / "a")
    assert "could not be written (File too large)" in connection.recv()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def started(function, path: Path):
    """A process that does this, and our end of a pipe to it. Forked, for all that it does is writing files."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(str(path), theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def hold(path: str, connection) -> None:
    with storage.locked(path):
        connection.send("locked")
        connection.poll(300)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the file locked."""
    process, ours = started(hold, tmp_path / "a")
    assert ours.recv() == "locked"
    yield process
    process.kill()
    process.join(60)


def test_hostile_second_process_is_told_who_was_first(tmp_path, holder):
    with pytest.raises(cgf.ModelFileError, match=f"is being written by process {holder.pid} on "):
        storage.write_whole(tmp_path / "a", b"1")
    flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, settings=SMALL)
    with pytest.raises(cgf.ModelFileError, match=f"is being written by process {holder.pid} on "):
        flow.train(evaluations=1000, checkpoint=tmp_path / "a", progress=False)
    assert flow.evaluations == 0
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    storage.write_whole(tmp_path / "a", b"1")  # no lock outlives its process
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_hostile_second_command_is_told_who_was_first(tmp_path, holder):
    """Before it has worked for minutes on what it could not keep."""
    from openmm import XmlSerializer, app
    from typer.testing import CliRunner

    from openmm_cgflow import cli

    topology, system, x = peroxide()
    (tmp_path / "s.xml").write_text(XmlSerializer.serialize(system))
    with (tmp_path / "m.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, 10 * x, file)
    command = ["train", str(tmp_path / "s.xml"), str(tmp_path / "m.pdb"), "-o", str(tmp_path / "a"), "--time", "100"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2
    assert f"is being written by process {holder.pid} on " in result.output


def test_hostile_second_thread_is_told_too(tmp_path):
    caught: list[Exception] = []

    def write() -> None:
        try:
            storage.write_whole(tmp_path / "a", b"2")
        except cgf.ModelFileError as error:
            caught.append(error)

    with storage.locked(tmp_path / "a"):
        storage.write_whole(tmp_path / "a", b"1")  # by the one who holds it
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(caught) == 1
    assert (tmp_path / "a").read_bytes() == b"1"
    write()
    assert (tmp_path / "a").read_bytes() == b"2"


def add_ones(path: str, connection) -> None:
    for _ in range(100):
        while True:
            try:
                with storage.locked(path):
                    number = int(Path(path).read_text())
                    storage.write_whole(path, str(number + 1).encode())
                break
            except cgf.ModelFileError:
                time.sleep(0.001)


def test_hostile_race_for_a_lock_is_won_by_one(tmp_path):
    """Three processes count in one file; locks whose files are removed let two in if that is done wrongly."""
    path = tmp_path / "a"
    path.write_text("0")
    processes = [started(add_ones, path)[0] for _ in range(3)]
    for process in processes:
        process.join(300)
    assert path.read_text() == "300"


def test_hostile_model_of_a_flow_is_what_it_was(tmp_path):
    """Written, read and written again: the same bytes."""
    data = model(*peroxide())
    (tmp_path / "a").write_bytes(data)
    cgf.CGFlow.load(tmp_path / "a").save(tmp_path / "b")
    first, second = (storage.unpack((tmp_path / name).read_bytes(), "model") for name in "ab")
    assert first[1]["system"] == second[1]["system"]
    assert first[1]["coordinates"] == second[1]["coordinates"]
    assert all(torch.equal(t, second[0][name]) for name, t in first[0].items())
