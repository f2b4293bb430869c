"""The command line: start-up, every message, exit codes, files; one real training at the end."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
from molecules import DATA, MODELS
from openmm import app as openmm_app
from typer.testing import CliRunner

from openmm_cgflow.cli import app
from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.sampling import Samples

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


class FakeFlow:
    """A CGFlow that needs no training: records how it was called and draws made-up samples."""

    made: "list[FakeFlow]"
    on_train: "Exception | None" = None
    on_sample: "Callable[[], object] | None" = None

    def __init__(
        self, topology, system, positions, temperature=300.0, slow=None, seed=0, bonds="topology", device=None
    ):
        self.topology, self.system, self.positions = topology, system, np.asarray(positions._value)
        self.temperature, self.slow, self.seed, self.device = temperature, slow, seed, device
        self.slow_names, self.slow_torsions = ["phi", "psi"], [(4, 6, 8, 14), (6, 8, 14, 16)]
        self.history, self.coverage = [], None
        self.provenance = {"evaluations": 123_456, "seconds": 7.0}
        FakeFlow.made.append(self)

    def train(self, **options):
        self.options = options
        if FakeFlow.on_train is not None:
            raise FakeFlow.on_train

    def save(self, path):
        Path(path).write_text("model")

    def sample(self, n, seed=None):
        if FakeFlow.on_sample is not None:
            FakeFlow.on_sample()
        rng = np.random.default_rng(seed)
        return Samples(
            positions=np.repeat(self.positions[None].astype(np.float32), n, 0),
            log_weights=0.3 * rng.standard_normal(n),
            reduced_energies=rng.chisquare(60, n),
            log_densities=rng.standard_normal(n),
            slow=rng.vonmises(-1.2, 3.0, (n, 2)),
            temperature=self.temperature,
            topology=self.topology,
            slow_names=("phi", "psi"),
        )


@pytest.fixture
def fake(monkeypatch, pdb):
    def load(path, device=None):
        if not Path(path).is_file():
            raise ModelFileError(f"{path}: there is no such\nfile.")
        molecule = openmm_app.PDBFile(str(pdb))
        return FakeFlow(molecule.topology, SimpleNamespace(getNumConstraints=lambda: 0), molecule.getPositions(True))

    FakeFlow.made, FakeFlow.on_train, FakeFlow.on_sample, FakeFlow.load = [], None, None, staticmethod(load)
    monkeypatch.setitem(sys.modules, "openmm_cgflow.model", SimpleNamespace(CGFlow=FakeFlow))
    return FakeFlow


@pytest.fixture(scope="session")
def pdb(tmp_path_factory):
    from openmmtools.testsystems import AlanineDipeptideVacuum

    molecule = AlanineDipeptideVacuum(constraints=None)
    path = tmp_path_factory.mktemp("cli") / "aldp.pdb"
    with path.open("w") as file:
        openmm_app.PDBFile.writeFile(molecule.topology, molecule.positions, file)
    return path


def test_help_starts_without_torch():
    """Neither torch nor openmm nor matplotlib is loaded to print a help text."""
    code = (
        "import sys; from openmm_cgflow.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "loaded = {'torch', 'openmm', 'matplotlib', 'mdtraj'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "sample", "report"):
        assert command in done.stdout


def test_version():
    from openmm_cgflow.version import __version__

    assert run("--version").output.strip() == __version__


def test_quiet_shows_the_result_alone_and_a_log_file_keeps_what_was_told(fake, tmp_path):
    (tmp_path / "m.cgflow").write_text("model")
    logger, log = logging.getLogger("openmm_cgflow"), tmp_path / "run.log"
    fake.on_sample = lambda: (logger.info("something"), logger.debug("a detail"), logger.warning("take care"))
    command = ("sample", tmp_path / "m.cgflow", "-n", 20, "-o", tmp_path / "s.dcd")
    for _ in range(2):
        result = run("--quiet", "--log-file", log, *command)
        assert result.exit_code == 0, result.output
        assert "something" not in result.output
        assert "take care" in result.output
        assert "written" in result.output
    assert "something" in run(*command).output
    lines = log.read_text().splitlines()
    assert [line.split(" ", 3)[2:] for line in lines] == 2 * [
        ["INFO", "something"],
        ["DEBUG", "a detail"],
        ["WARNING", "take care"],
    ]


def test_train_passes_everything_on(fake, pdb, tmp_path):
    out = tmp_path / "new" / "aldp.cgflow"
    done = run(
        "train", pdb, "--forcefield", "amber96.xml", "--implicit-solvent", "OBC2", "--temperature", 310, "--time", 9,
        "--evaluations", 1000, "--slow", "phi, 6-8-14-16", "--constraints", "HBonds", "--seed", 3, "--no-resume",
        "--metrics", tmp_path / "m.csv", "-o", out, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (flow,) = fake.made
    assert (flow.temperature, flow.slow, flow.seed, flow.device) == (310.0, ["phi", [6, 8, 14, 16]], 3, "cpu")
    assert flow.system.getNumConstraints() == 12
    assert any("GB" in type(force).__name__ for force in flow.system.getForces())
    assert flow.options == {
        "time": 9.0,
        "evaluations": 1000,
        "checkpoint": out.with_name("aldp.cgflow.checkpoint"),
        "resume": False,
        "metrics": tmp_path / "m.csv",
    }
    assert out.read_text() == "model"
    ess = flow.sample(5000, seed=3).ess
    assert f"{100 * ess:.1f} %" in done.output
    for words in ("123,456", "7.0 s", "k-hat", "log Z", "clipped", str(5000)[:1] + ",000"):
        assert words in done.output


def test_train_defaults(fake, pdb, tmp_path):
    assert run("train", pdb, "-o", tmp_path / "a.cgflow").exit_code == 0
    (flow,) = fake.made
    assert flow.options["time"] is flow.options["evaluations"] is flow.slow is None
    assert flow.options["resume"] is True
    assert not any("GB" in type(force).__name__ for force in flow.system.getForces())


@pytest.mark.parametrize("suffix", [".dcd", ".xtc", ".pdb", ".npz"])
def test_sample_writes_frames_and_weights(fake, tmp_path, suffix):
    (tmp_path / "m.cgflow").write_text("model")
    out = tmp_path / f"s{suffix}"
    done = run("sample", tmp_path / "m.cgflow", "-n", 7, "-o", out, "--seed", 1)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "s.npz") as file:
        weights = dict(file)
    assert weights["log_weights"] == pytest.approx(fake.made[0].sample(7, seed=1).log_weights)
    if suffix in (".dcd", ".xtc"):
        frames = mdtraj.load(out, top=tmp_path / "s.topology.pdb")
    elif suffix == ".pdb":
        frames = mdtraj.load(out)
    else:
        frames = SimpleNamespace(xyz=weights["positions"])
    assert frames.xyz.shape == (7, 22, 3)
    assert np.abs(frames.xyz[3] - fake.made[0].positions).max() < 1e-3  # XTC and PDB round to 0.001 nm or better


def test_report_writes_the_page(fake, tmp_path):
    (tmp_path / "m.cgflow").write_text("model")
    done = run("report", tmp_path / "m.cgflow", "-n", 400, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    html = (tmp_path / "r" / "report.html").read_text()
    assert f"openmm-cgflow report {tmp_path / 'm.cgflow'} -n 400 --out {tmp_path / 'r'}" in html
    assert "report.html" in "".join(done.output.split())  # lines of a table are wrapped


@pytest.mark.parametrize(
    ("limit", "trained"),
    [
        (("--time", 3), {"time": 3.0, "evaluations": None}),
        (("--evaluations", 1000), {"time": None, "evaluations": 1000}),
        ((), {"time": 420.0, "evaluations": 3_000_000}),
    ],
)
def test_demo_leaves_everything(fake, tmp_path, limit, trained):
    done = run("demo", "--out", tmp_path / "d", "--seed", 2, *limit)
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert {"model.cgflow", "samples.npz", "samples.dcd", "samples.topology.pdb", "report.html"} <= names
    assert "free_energy_phi_psi.png" in names
    assert fake.made[0].options == trained
    assert fake.made[0].seed == 2
    with np.load(tmp_path / "d" / "samples.npz") as samples:
        assert len(samples["log_weights"]) == 10_000
    assert "whole command" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "{pdb}", "-o", "{tmp}/a", "--time", "0"), "--time is 0: give a number above 0"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--time", "nan"), "--time is nan"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--evaluations", "-5"), "--evaluations is -5"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--temperature", "-1"), "--temperature is -1"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--slow", ","), "--slow is empty"),
        (("train", "{tmp}/gone.pdb", "-o", "{tmp}/a"), "gone.pdb: there is no such file"),
        (("train", "{pdb}", "-o", "{tmp}/file/a"), "cannot write into"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--metrics", "{tmp}/file/m.csv"), "cannot write into"),
        (("train", "{pdb}", "-o", "{tmp}/a", "--implicit-solvent", "TIP3P"), "'TIP3P' is not known: use HCT"),
        (("demo", "--out", "{tmp}/file"), "cannot write into"),
        (("demo", "--out", "{tmp}/d", "--time", "-3"), "--time is -3"),
        (("demo", "--out", "{tmp}/d", "--evaluations", "0"), "--evaluations is 0"),
        (("sample", "{tmp}/m", "-n", "0", "-o", "{tmp}/s.dcd"), "-n is 0: give a number above 0"),
        (("sample", "{tmp}/m", "-n", "-4", "-o", "{tmp}/s.dcd"), "-n is -4"),
        (("sample", "{tmp}/m", "-o", "{tmp}/s.trr"), "samples are written as .dcd, .xtc, .pdb, .npz"),
        (("sample", "{tmp}/gone", "-o", "{tmp}/s.dcd"), "gone: there is no such file."),
        (("report", "{tmp}/m", "-n", "0"), "-n is 0"),
        (("report", "{tmp}/m", "-n", "1"), "needs at least 2 samples"),
        (("report", "{tmp}/gone", "--out", "{tmp}/r"), "gone: there is no such file."),
    ],
)
def test_mistakes_give_one_line_and_code_2(fake, pdb, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "m").write_text("")
    done = run(*(a.format(pdb=pdb, tmp=tmp_path) for a in arguments))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_unknown_options_give_code_2():
    assert run("train").exit_code == 2
    assert run("backmap").exit_code == 2


def test_errors_of_the_training_are_one_line(fake, pdb, tmp_path):
    fake.on_train = InvalidInputError("the System\n  is bad")
    done = run("train", pdb, "-o", tmp_path / "a")
    assert (done.exit_code, done.stderr) == (2, "error: the System is bad\n")


def test_bugs_are_not_hidden(fake, pdb, tmp_path):
    fake.on_train = ZeroDivisionError("a bug")
    assert isinstance(run("train", pdb, "-o", tmp_path / "a").exception, ZeroDivisionError)


def test_full_disk_gives_one_line(fake, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Samples, "save", full)
    (tmp_path / "m").write_text("")
    done = run("sample", tmp_path / "m", "-n", 3, "-o", tmp_path / "s.dcd")
    assert done.exit_code == 1
    assert done.stderr == f"error: {tmp_path / 's.dcd'}: No space left on device\n"


@pytest.mark.parametrize("written", [True, False])
def test_second_ctrl_c_says_where_the_state_is(fake, pdb, tmp_path, written):
    fake.on_train = KeyboardInterrupt()
    state = tmp_path / "a.cgflow.checkpoint"
    if written:
        state.write_text("")
    done = run("train", pdb, "-o", tmp_path / "a.cgflow")
    assert done.exit_code == 130
    assert ("the same command goes on" in done.stderr) == written
    assert (str(state) in done.stderr) == written


COMMAND = [sys.executable, "-c", "from openmm_cgflow.cli import main; main()"]


EAGER = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
"""Compiling takes longer than these trainings."""
BUTANE = [ROOT / "tests" / "data" / "butane.prmtop", ROOT / "tests" / "data" / "butane.inpcrd"]


def shell(*arguments):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=EAGER, check=False)


@pytest.mark.slow
def test_a_real_training_from_end_to_end(tmp_path):
    """Butane: trained, resumed, sampled, reported. Its two gauche states are mirror images: equally populated."""
    model = tmp_path / "butane.cgflow"
    command = ["train", *BUTANE, "-o", model, "--metrics", tmp_path / "m.csv", "--evaluations", 7000]
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"unclipped weights\s+([\d.]+) %", done.stdout)[1]) > 20
    assert len((tmp_path / "m.csv").read_text().splitlines()) >= 2
    again = run(*command)  # the call had come to its end: it is added once more
    assert again.exit_code == 0, again.stderr
    assert "going on from" in again.stderr
    rows = (tmp_path / "m.csv").read_text().splitlines()
    assert 10_500 < int(rows[-1].split(",")[2]) <= 14_000
    assert sum(row.startswith("laplace") for row in rows) == 1
    other = run(*command, "--temperature", 400)
    assert other.exit_code == 2
    assert "checkpoint of another System, temperature" in other.stderr

    assert run("sample", model, "-n", 3000, "-o", tmp_path / "s.npz", "--seed", 1).exit_code == 0
    with np.load(tmp_path / "s.npz") as file:
        drawn = dict(file)
    torsion, weights = drawn["slow"][:, 0], np.exp(drawn["log_weights"] - drawn["log_weights"].max())
    weights /= weights.sum()
    sides = np.array([(lo < torsion) & (torsion < lo + 2 * np.pi / 3) for lo in (0, -2 * np.pi / 3)])
    share = sides @ weights
    error = np.sqrt(np.sum(weights**2 * (sides[0].astype(float) - sides[1] - share[0] + share[1]) ** 2))
    assert 0.1 < share.sum() < 0.7
    assert abs(share[0] - share[1]) < 4 * error  # another seed: fails once in 16,000 runs

    done = run("report", model, "-n", 500, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.stderr
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"report.html", "free_energy_torsions.png", "energies.png", "log_weights.png", "training.png"} == names


@pytest.mark.slow
def test_ctrl_c_saves_the_model(tmp_path):
    model = tmp_path / "butane.cgflow"
    arguments = ["train", *BUTANE, "-o", model, "--time", 10]  # of which the start takes its share
    often = "from openmm_cgflow.training import checkpoint; checkpoint._SECONDS = 0.0"
    command = [*COMMAND[:2], f"import torch; {often}; {COMMAND[2]}", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=ROOT, env=EAGER)
    state = tmp_path / "butane.cgflow.checkpoint"
    for _ in range(600):  # the first checkpoint tells that training is under way
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"saved {model}" in out
    assert "keeping what was learned" in err
    assert model.stat().st_size > 10_000


def test_no_input_is_written_over(tmp_path):
    """`train mol.prmtop mol.inpcrd -o mol.prmtop` left a model where the topology was."""
    for name in ("butane.prmtop", "butane.inpcrd"):
        shutil.copy(DATA / name, tmp_path / name)
    prmtop, inpcrd = tmp_path / "butane.prmtop", tmp_path / "butane.inpcrd"
    before = prmtop.read_bytes()
    result = run("train", prmtop, inpcrd, "-o", tmp_path / "." / "butane.prmtop", "--evaluations", 1500)
    assert result.exit_code
    assert "would be written over" in " ".join(result.output.split())
    assert prmtop.read_bytes() == before
    result = run("train", prmtop, inpcrd, "-o", tmp_path / "a", "--metrics", tmp_path / "a", "--evaluations", 1500)
    assert "written twice" in " ".join(result.output.split())
    beads = tmp_path / "beads.dcd"
    beads.write_bytes(b"beads")
    result = run("backmap", tmp_path / "model.cgflow", beads, "-o", beads)
    assert "would be written over" in " ".join(result.output.split())
    assert beads.read_bytes() == b"beads"
    model = tmp_path / "samples.npz"
    model.write_bytes(b"model")
    result = run("sample", model, "-o", tmp_path / "samples.dcd")  # the weights go beside it
    assert "would be written over" in " ".join(result.output.split())
    assert model.read_bytes() == b"model"


def test_simulate_says_how_much_of_it_is_outside_the_trained_region(tmp_path):
    """Of a shortest run it divided by no steps; frames of a dynamics that came apart were written without a word."""
    model = MODELS / "alanine_dipeptide.cgflow"
    result = run("simulate", model, "-o", tmp_path / "short.dcd", "--time", 0.0001, "--device", "cpu")
    assert not result.exit_code
    assert "0 of 1 frames" in result.output
    result = run("simulate", model, "-o", tmp_path / "long.dcd", "--time", 1, "--timestep", 500, "--device", "cpu")
    assert "2 of 2 frames" in result.output


def test_a_device_of_a_force_field_is_refused(tmp_path):
    for command in (("simulate", "any.cgff", "-o", tmp_path / "b.dcd"), ("report", "any.cgff", "--out", tmp_path)):
        result = run(*command, "--device", "cpu")
        assert result.exit_code == 2
        assert "--device says where a flow is" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "inf"], "--time is inf"),
        (["--time", "1e12"], "GiB of memory"),
        (["--time", "1", "--interval", "2"], "longer than --time"),
        (["--time", "1e12", "--interval", "1e9"], "of more than 2,147,483,648 steps"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(tmp_path, options, message):
    result = run("simulate", MODELS / "alanine_dipeptide.cgflow", "-o", tmp_path / "b.dcd", *options, "--device", "cpu")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_more_samples_than_fit_into_memory_are_refused(tmp_path):
    result = run(
        "sample", MODELS / "alanine_dipeptide.cgflow", "-o", tmp_path / "a.dcd", "-n", 10**13, "--device", "cpu"
    )
    assert result.exit_code == 2
    assert "GiB of memory" in " ".join(result.output.split())


@pytest.mark.parametrize("form", ["--log-file {}", "--log-file={}"])
def test_a_log_is_not_written_into_a_file_of_the_command(tmp_path, form):
    model = tmp_path / "model.cgflow"
    model.write_bytes(b"model")
    result = run(*form.format(model).split(), "sample", model, "-o", tmp_path / "a.dcd")
    assert "a file of the command itself" in " ".join(result.output.split())
    assert model.read_bytes() == b"model"


@pytest.mark.parametrize("output", ["--output={}", "-o{}"])
def test_a_log_is_not_written_into_the_output_of_the_command(tmp_path, output):
    log = tmp_path / "a.dcd"
    model = MODELS / "alanine_dipeptide.cgflow"
    result = run("--log-file", log, "sample", model, output.format(log), "-n", 2, "--device", "cpu")
    assert "a file of the command itself" in " ".join(result.output.split())
    assert not log.exists()


def test_a_device_that_is_not_there_is_no_fault_of_the_file(tmp_path):
    result = run("sample", MODELS / "alanine_dipeptide.cgflow", "-o", tmp_path / "a.dcd", "--device", "nowhere")
    assert "error: device is 'nowhere'" in result.output
