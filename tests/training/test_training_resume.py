"""A training that goes on: from a model file, from a checkpoint, with other settings; and one seed, one result."""

import copy
import csv
import dataclasses
import functools
import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from fuzz.mutate import put
from molecules import MODELS, TESTS, load, small_networks

import openmm_cgflow as cgf
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import DoubleWell, Potential, TorchPotential, torch_potential
from openmm_cgflow.storage import read_file, write_file
from openmm_cgflow.training import AdaptiveTempering, GeometricTempering, Metrics, Parallel, Trainer, TrainSettings
from openmm_cgflow.training.metrics_file import drop_rows_after
from openmm_cgflow.training.stages import Start

SMALL = FlowSettings(components=8, slow_hidden=16, hidden=16, atom_couplings=2, rank=2)
QUICK = TrainSettings(points=64, sweeps=4, fit_steps=20, buffer=1000, buffer_steps=4, soft_buffers=3, batch=256)


def well(seed: int = 0) -> cgf.VectorFlow:
    return cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, settings=SMALL, seed=seed)


class Killed(BaseException):
    """As by a signal."""


def killed(flow, after: int, **arguments) -> None:
    """Train until so many energies were asked for, then die without a chance to do anything."""
    energy, asked = flow.potential.energy, [0]

    def fatal(x):
        asked[0] += len(x)
        if asked[0] > after:
            raise Killed
        return energy(x)

    flow.potential.energy = fatal
    with pytest.raises(Killed):
        flow.train(progress=False, **arguments)


# -- with other settings


TEMPERED = dataclasses.replace(QUICK, tempering=AdaptiveTempering(beta=0.01, steps=50), tempering_buffer=500)


def test_a_start_after_unfinished_tempering_begins_anew(monkeypatch):
    """The couplings, which it takes for the identity, were those of the tempering, and so were samples that it kept."""
    flow = well().train(evaluations=9_000, progress=False, settings=TEMPERED)
    task, noise = flow._trainer.task, flow.flow.draw_noise(50, torch.Generator().manual_seed(0))
    assert flow._trainer.loop.stage == "tempering"
    assert task.replay.buffers
    before = flow.flow.sample_from(noise)[0]
    with pytest.raises(cgf.InvalidInputError, match="Nothing was changed"):
        flow.train(evaluations=5, progress=False, settings=QUICK)
    torch.testing.assert_close(flow.flow.sample_from(noise)[0], before, rtol=0, atol=0)

    def look(*_):
        assert not task.replay.buffers
        with flow.flow.gaussian():
            expected = flow.flow.sample_from(noise)[0]
        torch.testing.assert_close(flow.flow.sample_from(noise)[0], expected)
        raise Killed

    monkeypatch.setattr(Start, "_laplace", look)
    with pytest.raises(Killed):
        flow.train(evaluations=5000, progress=False, settings=QUICK)


def test_stored_settings_that_cannot_be_are_replaced_by_those_that_are_given(tmp_path):
    """Numbers that an earlier version took."""
    well().train(evaluations=2000, progress=False, settings=QUICK).save(tmp_path / "w")
    for change, name in (
        ({"average": 1.0}, "average"),
        ({"tempering": {"kind": "AdaptiveTempering", "largest": 2.0}}, "largest"),
    ):
        flow = cgf.VectorFlow.load(tmp_path / "w", DoubleWell())
        flow._training["settings"] |= change
        with pytest.raises(cgf.ModelFileError, match=f"{name} is"):
            flow.train(evaluations=500, progress=False)
        flow.train(evaluations=500, progress=False, settings=QUICK)
        assert flow.history[-1]["stage"] == "refine"


def test_factors_and_average_of_settings_are_those_in_use(tmp_path):
    flow = well().train(evaluations=3000, progress=False, settings=dataclasses.replace(QUICK, average=0.5))
    file = tmp_path / "state"
    slower = dataclasses.replace(QUICK, average=0.5, soft_factor=0.25)
    flow.train(evaluations=500, progress=False, settings=slower, checkpoint=file)
    assert [group["factor"] for group in flow._trainer.loop.optimizer.param_groups] == [1.0, 0.25]
    flow.save(tmp_path / "w")
    loaded = cgf.VectorFlow.load(tmp_path / "w", DoubleWell()).train(evaluations=500, progress=False)
    resumed = well().train(evaluations=500, progress=False, checkpoint=file)
    for each in (flow, loaded, resumed):
        assert each._trainer.loop.decay == 0.5


def test_a_resume_that_is_refused_afterwards_leaves_a_whole_flow(tmp_path):
    trained = well().train(evaluations=3000, progress=False, settings=QUICK, checkpoint=tmp_path / "state")
    flow = well()
    with pytest.raises(cgf.InvalidInputError, match="metrics"):
        flow.train(evaluations=500, checkpoint=tmp_path / "state", metrics=tmp_path / "no" / "m.csv", progress=False)
    assert flow.history == trained.history
    flow.save(tmp_path / "w")
    loaded = cgf.VectorFlow.load(tmp_path / "w", DoubleWell()).train(evaluations=500, progress=False)
    assert {row["stage"] for row in loaded.history[len(trained.history) :]} == {"refine"}


def test_a_call_that_is_refused_leaves_the_metrics_of_before(tmp_path):
    (tmp_path / "m.csv").write_text("of before\n")
    with pytest.raises(cgf.InvalidInputError, match="Nothing was changed"):
        well().train(evaluations=5, metrics=tmp_path / "m.csv", progress=False)
    assert (tmp_path / "m.csv").read_text() == "of before\n"
    with pytest.raises(cgf.InvalidInputError, match="Nothing was changed"):
        well().train(evaluations=5, metrics=tmp_path / "n.csv", progress=False)
    flow = well().train(evaluations=2000, metrics=os.devnull, progress=False, settings=QUICK)
    flow.train(evaluations=500, metrics=tmp_path / "n.csv", progress=False)  # where nothing but a name was left
    assert (tmp_path / "n.csv").read_text().startswith("stage,")
    well().train(evaluations=2000, metrics=tmp_path / "m.csv", progress=False, settings=QUICK)
    assert (tmp_path / "m.csv").read_text().startswith("stage,")


def test_a_copy_of_a_trained_flow_goes_on_by_itself():
    flow = well().train(evaluations=2000, progress=False, settings=QUICK)
    made = copy.deepcopy(flow)
    before = flow.sample(50, seed=0).positions
    assert np.array_equal(made.sample(50, seed=0).positions, before)
    made.train(evaluations=1000, progress=False)
    assert {row["stage"] for row in made.history[len(flow.history) :]} == {"refine"}
    assert np.array_equal(flow.sample(50, seed=0).positions, before)


class Quartic(Potential):
    """With a number that is no tensor."""

    def __init__(self, k: float) -> None:
        super().__init__(1)
        self.k = k

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        self.count(len(x))
        return self.k * (0.25 * x[:, 0] ** 4 - x[:, 0] ** 2)


def test_a_checkpoint_of_another_potential_of_the_same_class_is_refused(tmp_path):
    for k in (1.0, 1.0):
        flow = cgf.VectorFlow(Quartic(k), slow=[0], width=2.0, settings=SMALL)
        flow.train(evaluations=1500, progress=False, settings=QUICK, checkpoint=tmp_path / "state")
    with pytest.raises(cgf.MismatchError, match="another System"):
        cgf.VectorFlow(Quartic(8.0), slow=[0], width=2.0, settings=SMALL).train(
            evaluations=1500, progress=False, checkpoint=tmp_path / "state"
        )


# -- after load


def test_resume_after_load_refines_and_gets_no_worse(butane_file):
    """Butane, which began anew at the Laplace start once."""
    flow, loaded = (cgf.CGFlow.load(butane_file) for _ in range(2))
    before, spent = flow.sample(5000, seed=0).ess, flow.provenance["evaluations"]
    loaded.train(evaluations=4000, progress=False)
    assert {row["stage"] for row in loaded.history[len(flow.history) :]} == {"refine"}
    assert loaded.history[: len(flow.history)] == flow.history
    assert loaded.provenance["evaluations"] == pytest.approx(spent + 4000, abs=32)
    assert loaded.provenance["seconds"] > flow.provenance["seconds"]
    assert loaded._trainer.task.broad is not None
    # the standard error of an ESS of 80 % of 5,000 samples is some 1 %
    assert loaded.sample(5000, seed=0).ess > before - 0.04


def test_resume_after_load_of_a_training_that_defended_slow_variables_alone(butane_file):
    """Of 0.2.0: without the rotors' densities."""
    flow = cgf.CGFlow.load(butane_file)
    state = flow._training["task"]["broad"]
    slow = {name.removeprefix("slow."): value for name, value in state.items() if name.startswith("slow.")}
    flow._training["task"]["broad"] = slow
    flow.train(evaluations=1000, progress=False, audit=False)
    assert flow._trainer.task.broad.rotors is None
    assert flow._trainer.task.broad.slow.state_dict().keys() == slow.keys()


def test_resume_after_load_of_an_old_file_refines(tmp_path):
    """Models that were saved before files told how far a training had come."""
    flow = cgf.CGFlow.load(MODELS / "aldp_vacuum.cgflow")
    assert "training" not in read_file(MODELS / "aldp_vacuum.cgflow", "model")[1]
    before, rows = flow.sample(2000, seed=0).ess, len(flow.history)
    flow.train(evaluations=2000, progress=False)
    assert {row["stage"] for row in flow.history[rows:]} == {"refine"}
    assert flow.sample(2000, seed=0).ess > before - 0.04
    flow.save(tmp_path / "again.cgflow")
    assert cgf.CGFlow.load(tmp_path / "again.cgflow").provenance == flow.provenance


def test_resume_after_load_is_as_if_training_had_gone_on(tmp_path):
    """But for what is not stored: the moments of the optimizer, and the samples that were kept."""
    flow = well().train(evaluations=3000, progress=False, settings=QUICK)
    flow.save(tmp_path / "w")
    loaded = cgf.VectorFlow.load(tmp_path / "w", DoubleWell())
    for trained in (flow, loaded):
        trained.train(evaluations=1500, progress=False)
    assert loaded._trainer.task.settings == QUICK
    assert loaded.evaluations == pytest.approx(flow.evaluations, abs=32)
    assert loaded.sample(2000, seed=0).ess == pytest.approx(flow.sample(2000, seed=0).ess, abs=0.1)


def test_resume_of_a_model_that_was_not_trained_starts(tmp_path):
    well().save(tmp_path / "w")
    loaded = cgf.VectorFlow.load(tmp_path / "w", DoubleWell()).train(evaluations=2000, progress=False, settings=QUICK)
    assert loaded.history[0]["stage"] == "laplace"


def test_two_flows_of_one_potential_count_their_own_evaluations(tmp_path):
    potential = DoubleWell()
    first = cgf.VectorFlow(potential, slow=[0], settings=SMALL).train(evaluations=2000, progress=False, settings=QUICK)
    first.save(tmp_path / "w")
    count = potential.evaluations
    second = cgf.VectorFlow.load(tmp_path / "w", potential)
    assert potential.evaluations == count
    assert second.evaluations == first.provenance["evaluations"]


# -- from checkpoints


@pytest.mark.parametrize("after", [1500, 4000], ids=["in the soft stage", "in the refinement"])
def test_resume_of_a_killed_call_spends_what_was_left_of_it(tmp_path, after, monkeypatch):
    monkeypatch.setattr("openmm_cgflow.training.checkpoint._SECONDS", 0.0)
    call = {"evaluations": 5000, "checkpoint": tmp_path / "c"}
    killed(well(), after, settings=QUICK, **call)
    _, header = read_file(tmp_path / "c", "checkpoint")
    assert 0 < header["evaluations"] <= after
    assert header["call"][1] == header["evaluations"]
    again = well().train(progress=False, **call)
    assert again.evaluations == pytest.approx(5000, abs=32)
    assert [row["stage"] for row in again.history].count("laplace") == 1
    assert again._trainer.task.settings == QUICK  # without being told again
    assert read_file(tmp_path / "c", "checkpoint")[1]["call"] is None


def test_resume_of_a_killed_call_leaves_each_row_of_its_metrics_once(tmp_path):
    path = tmp_path / "m.csv"
    call = {"evaluations": 3000, "checkpoint": tmp_path / "c", "metrics": path}

    def rows() -> list[tuple[str, int]]:
        return [(row["stage"], int(row["evaluations"])) for row in csv.DictReader(path.read_text().splitlines())]

    killed(well(), 2700, settings=QUICK, **call)
    assert len(rows()) > len(read_file(tmp_path / "c", "checkpoint")[1]["history"])
    again = well().train(progress=False, **call)
    assert rows() == [(row["stage"], row["evaluations"]) for row in again.history]


def test_metrics_of_another_training_are_left_as_they_are(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("stage,seconds,evaluations\nrefine,3.5,200\n")
    drop_rows_after(path, [Metrics("refine", 3.5, 100)])
    assert path.read_text().count("\n") == 2
    drop_rows_after(tmp_path / "none.csv", [])


def test_resume_of_a_call_that_was_killed_in_the_start_does_it_again(tmp_path):
    flow = well()
    killed(flow, 300, evaluations=3000, checkpoint=tmp_path / "c", settings=QUICK)
    assert torch.isfinite(flow.flow.state_dict()["bead_flow.slow.centre"]).all()
    again = well().train(evaluations=3000, progress=False, checkpoint=tmp_path / "c", settings=QUICK)
    assert again.history[0]["stage"] == "laplace"
    assert again.evaluations <= 3000


@pytest.mark.parametrize("given", [True, False], ids=["same settings", "no settings"])
@pytest.mark.parametrize(
    "schedule", [AdaptiveTempering(0.2, delta=2.0, steps=4), GeometricTempering(0.2, levels=8, steps=4)]
)
def test_resume_of_tempering_goes_on_at_its_temperature(tmp_path, schedule, given, monkeypatch):
    monkeypatch.setattr("openmm_cgflow.training.checkpoint._SECONDS", 0.0)
    settings = dataclasses.replace(QUICK, tempering=schedule, tempering_buffer=256)
    killed(well(), 6000, evaluations=30_000, checkpoint=tmp_path / "c", settings=settings)
    reached = read_file(tmp_path / "c", "checkpoint")[1]["stages"]["tempering"]["level"]["beta"]
    assert 0.2 < reached < 1
    flow = well()
    flow.train(None, 30_000, tmp_path / "c", progress=False, settings=settings if given else None)
    betas = [row["beta"] for row in flow.history if row["stage"] == "tempering"]
    assert betas == sorted(betas)
    assert len(set(betas)) == len(betas)
    assert betas[0] == 0.2
    assert betas[-1] == 1.0
    assert "laplace" not in [row["stage"] for row in flow.history]


def test_resume_with_a_schedule_of_ones_own_needs_its_settings(tmp_path, monkeypatch):
    class Mine:
        beta, steps = 0.5, 2

        def advance(self, level, u, log_density):
            return dataclasses.replace(level, beta=min(1.0, level.beta + 0.05))

    monkeypatch.setattr("openmm_cgflow.training.checkpoint._SECONDS", 0.0)
    settings = dataclasses.replace(QUICK, tempering=Mine(), tempering_buffer=256)
    killed(well(), 3000, evaluations=20_000, checkpoint=tmp_path / "c", settings=settings)
    with pytest.raises(cgf.InvalidInputError, match="schedule Mine: give its settings again"):
        well().train(evaluations=20_000, checkpoint=tmp_path / "c", progress=False)
    flow = well().train(evaluations=20_000, checkpoint=tmp_path / "c", progress=False, settings=settings)
    assert next(row["beta"] for row in flow.history if row["stage"] == "tempering") == 0.5


def test_alias_free_settings_serve_two_flows():
    """One TrainSettings for two flows: the second one begins at the first temperature too."""
    settings = dataclasses.replace(QUICK, tempering=AdaptiveTempering(0.2, largest=0.4, steps=3), tempering_buffer=256)
    first, second = (well().train(evaluations=6000, progress=False, settings=settings) for _ in range(2))
    assert first.history[0]["beta"] == second.history[0]["beta"] == 0.2
    np.testing.assert_array_equal(first.sample(20, seed=0).positions, second.sample(20, seed=0).positions)


def test_resume_from_a_checkpoint_of_another_training_is_refused(tmp_path):
    well().train(evaluations=2000, progress=False, settings=QUICK, checkpoint=tmp_path / "c")
    other = well().train(evaluations=1500, progress=False, settings=QUICK)
    before = other.sample(50, seed=0).positions
    with pytest.raises(cgf.MismatchError, match="checkpoint of another training than this flow's"):
        other.train(evaluations=500, progress=False, checkpoint=tmp_path / "c")
    np.testing.assert_array_equal(other.sample(50, seed=0).positions, before)
    other.train(evaluations=500, progress=False, checkpoint=tmp_path / "c", resume=False)
    assert other.provenance["evaluations"] == pytest.approx(2000, abs=32)


def test_resume_from_a_loaded_model_that_was_killed(tmp_path, monkeypatch):
    """A script that loads a model and trains it with a checkpoint: killed, it goes on when it runs again."""
    monkeypatch.setattr("openmm_cgflow.training.checkpoint._SECONDS", 0.0)
    well().train(evaluations=2000, progress=False, settings=QUICK).save(tmp_path / "w")
    killed(cgf.VectorFlow.load(tmp_path / "w", DoubleWell()), 2500, evaluations=4000, checkpoint=tmp_path / "c")
    again = cgf.VectorFlow.load(tmp_path / "w", DoubleWell())
    again.train(evaluations=4000, progress=False, checkpoint=tmp_path / "c")
    assert again.provenance["evaluations"] == pytest.approx(6000, abs=48)


def _without(*path):
    def change(tensors, header):
        place = header
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return change


def _half_a_tensor(tensors, header):
    # sorted: safetensors gives them in any order; some are empty, of which a half is the whole
    name = next(n for n in sorted(tensors) if n.startswith("module/") and tensors[n].dim() == 2 and len(tensors[n]) > 1)
    tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()


@pytest.mark.parametrize(
    "damage",
    [
        _without("stage"),
        _without("history"),
        _without("task", "dropped"),
        put("stage", value="nonsense"),
        put("history", value=[{"a": 1}]),
        put("stages", value=None),
        put("settings", value=7),
        put("settings", "tempering", value={"kind": "AdaptiveTempering", "gamma": 3}),
        put("call", value=[1]),
        _half_a_tensor,
        lambda tensors, header: tensors.pop(next(name for name in tensors if name.startswith("average/"))),
        lambda tensors, header: tensors.update({"no/such/place": torch.zeros(1)}),
    ],
)
def test_resume_from_a_damaged_checkpoint_is_one_error_and_changes_nothing(tmp_path, damage):
    well().train(evaluations=1500, progress=False, settings=QUICK, checkpoint=tmp_path / "c")
    tensors, header = read_file(tmp_path / "c", "checkpoint")
    damage(tensors, header)
    write_file(tmp_path / "c", "checkpoint", tensors, header)
    flow = well()
    before = {name: t.clone() for name, t in flow.flow.state_dict().items()}
    with pytest.raises(cgf.ModelFileError, match=r"damaged, or of another version .* resume=False"):
        flow.train(evaluations=1000, progress=False, checkpoint=tmp_path / "c")
    assert all(torch.equal(before[name], t) for name, t in flow.flow.state_dict().items())
    flow.train(evaluations=1000, progress=False, checkpoint=tmp_path / "c", resume=False, settings=QUICK)


# -- one seed, one result


def digests() -> list[str]:
    """Of samples of two trained flows, with batches of several parts; also called in a process of its own."""
    quick = TrainSettings(points=32, sweeps=1, fit_steps=5, buffer=1000, buffer_steps=2, soft_buffers=1)
    vectors = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0)
    found = []
    with small_networks():
        butane = cgf.CGFlow(*load("butane"), seed=3)
    for flow, n in ((butane, 2000), (vectors, 3000)):
        samples = flow.train(evaluations=n, progress=False, settings=quick).sample(500, seed=0)
        found.append(hashlib.sha256(samples.positions.tobytes() + samples.log_weights.tobytes()).hexdigest())
    return found


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:]
from openmm_cgflow.compute import parallel
parallel.CHUNK = 100
from test_training_resume import digests
print(*digests())
"""


@pytest.mark.slow
def test_one_seed_gives_one_result_for_any_number_of_threads(monkeypatch):
    """In two processes: one worker here and two there, one thread for an operation or two."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TESTS), str(TESTS / "training")],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    monkeypatch.setattr("openmm_cgflow.compute.parallel.available_cores", lambda: 1)
    monkeypatch.setattr("openmm_cgflow.compute.parallel.CHUNK", 100)
    assert digests() == done.stdout.split()[-2:]


def test_threads_do_not_decide_when_energies_are_compiled(monkeypatch):
    """Compiled energies differ in their last bits: they are used from a number of evaluations on, between batches."""
    molecule, counts = load("butane"), []
    monkeypatch.setattr(torch_potential, "_AUTO_WORK", 1)

    def compile_it(function, example):
        counts[-1].append(potential.evaluations)
        return function

    monkeypatch.setattr(torch_potential, "compile_energy_gradient", compile_it)
    monkeypatch.setattr(torch_potential, "compiler_available", lambda device: True)
    x = torch.as_tensor(np.repeat(molecule.positions[None], 2000, 0), dtype=torch.float32)
    for workers in (1, 3):
        counts.append([])
        potential = TorchPotential.fromSystem(molecule.system, positions=molecule.positions)
        with Parallel(workers) as parallel:
            for _ in range(3):
                parallel.map(potential.energy_and_forces, x)
                if potential.evaluations >= 4000:
                    potential.settle()
    assert counts == [[4000], [4000]]


def test_one_seed_gives_one_result_whatever_the_workers(monkeypatch):
    results = []
    for workers in (1, 3):
        monkeypatch.setattr("openmm_cgflow.compute.parallel.available_cores", lambda n=workers: n)
        monkeypatch.setattr("openmm_cgflow.compute.parallel.CHUNK", 24)
        flow = well().train(evaluations=1500, progress=False, settings=QUICK)
        assert flow.history[-1]["stage"] == "refine"
        results.append(flow.sample(500, seed=0))
    for other in results[1:]:
        np.testing.assert_array_equal(other.positions, results[0].positions)
        np.testing.assert_array_equal(other.log_weights, results[0].log_weights)


def test_metadata_of_model_files_holds_the_state_of_the_training(tmp_path):
    well().train(evaluations=1500, progress=False, settings=QUICK).save(tmp_path / "w")
    with safetensors.safe_open(tmp_path / "w", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["training"]["stage"] == "refine"
    assert header["training"]["settings"]["points"] == 64


# -- what a damaged description may do

DAMAGED = (None, "x", -1, 1e300, math.nan, 2**60, [], {}, True, [1, 2])


def paths_in(value, path=()) -> list[tuple]:
    """Every place in a description, the first few of long lists."""
    if isinstance(value, dict):
        inner = [p for name, entry in value.items() for p in paths_in(entry, (*path, name))]
    elif isinstance(value, list):
        inner = [p for k, entry in enumerate(value[:2]) for p in paths_in(entry, (*path, k))]
    else:
        inner = []
    return [path, *inner] if path else inner


def test_every_damaged_value_of_a_checkpoint_is_refused_or_harmless(tmp_path, monkeypatch):
    """One by one, left out or another in its place, in turn: a ModelFileError, or a state that is sound."""
    path = tmp_path / "c"
    well().train(evaluations=1500, progress=False, settings=QUICK, checkpoint=path)
    tensors, header = read_file(path, "checkpoint")
    monkeypatch.setattr(Trainer, "run", lambda *arguments: None)
    flow, refused, harmless = well(), 0, 0
    for k, place in enumerate(paths_in(header)):  # tests/fuzz has more of them
        damage = ("left out", DAMAGED[k % 10], DAMAGED[(k + 4) % 10])[k % 3]
        changed = copy.deepcopy(header)
        parent = functools.reduce(lambda inner, name: inner[name], place[:-1], changed)
        if damage == "left out":
            del parent[place[-1]]
        else:
            parent[place[-1]] = damage
        write_file(path, "checkpoint", tensors, changed)
        try:
            flow.train(evaluations=1000, progress=False, checkpoint=path)
        except (cgf.ModelFileError, cgf.MismatchError):
            refused += 1
            continue
        harmless, loop, flow = harmless + 1, flow._trainer.loop, well()
        assert 0 <= loop.seconds < math.inf, (place, damage)
        assert loop.evaluations >= 0, (place, damage)
        assert all(isinstance(row.evaluations, int) for row in loop.history), (place, damage)
    assert refused > 2 * harmless
