"""All on one device: `--device fake-cuda` (the default) refuses to mix devices, `--device cuda` is in earnest."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import OnCuda
from molecules import load
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app
from openmm_cgflow.compute import Compute, Graphs, Parallel, choose, seeded
from openmm_cgflow.openmm_plugin.forces.bead_free_energy import BeadFreeEnergy
from openmm_cgflow.openmm_plugin.moves.structure_density import StructureDensity
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.training import AdaptiveTempering, Budget, Reporter, Trainer, TrainSettings

MODEL = Path(__file__).resolve().parents[2] / "examples" / "models" / "alanine_dipeptide.cgflow"
QUICK = {"points": 6, "sweeps": 1, "fit_steps": 2, "buffer": 64, "buffer_steps": 1, "soft_buffers": 1, "batch": 64}


@pytest.fixture(scope="module")
def on_cpu() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL, device="cpu")


@pytest.fixture
def flow(device) -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL, device=device)


def is_on(device: str, *modules: torch.nn.Module) -> bool:
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return len(tensors) > 0 and {t.device for t in tensors} == {torch.device(device)}


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """The same but for rounding, which another device, or other ways to multiply matrices, do in other ways."""
    return np.allclose(a, b, rtol=0, atol=tolerance)


def test_device_fake_cuda_refuses_what_a_gpu_refuses(device):
    if device == "cpu" or torch.cuda.is_available():
        pytest.skip("of the fake GPU")
    x, y = torch.ones(2, 2, device=device), torch.ones(2, 2)
    assert isinstance(x, OnCuda)
    assert x.device.type == "cuda"
    assert (x + torch.tensor(1.0)).sum().item() == 8
    for mix in (
        lambda: x + y,
        lambda: torch.cat([x, y]),
        lambda: x @ y,
        lambda: x.index_add(0, torch.tensor([0]), x[:1]),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mix()
    with pytest.raises(RuntimeError, match="generator"):
        torch.multinomial(x[0], 2, generator=seeded(0))
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_device_flow_coordinates_and_energies_live_there(flow, device):
    assert is_on(device, flow.flow, flow.coordinates, flow.potential)


def test_device_samples_and_densities_are_those_of_the_cpu(flow, on_cpu):
    here, there = flow.sample(20, seed=1), on_cpu.sample(20, seed=1)
    assert close(here.positions, there.positions, 1e-4)
    assert close(here.log_weights, there.log_weights, 0.02)
    x = there.positions
    assert close(flow.logDensity(x), on_cpu.logDensity(x), 0.02)
    assert close(flow.slowVariables(x), on_cpu.slowVariables(x), 1e-5)
    assert close(flow.freeEnergy(there.slow)._value, on_cpu.freeEnergy(there.slow)._value, 0.01)


def test_device_atoms_are_put_around_beads(flow, on_cpu):
    beads = on_cpu.sample(3, seed=2).positions[:, on_cpu.coordinates.bead_atoms]
    here, there = flow.backmap(beads, n=2, seed=1), on_cpu.backmap(beads, n=2, seed=1)
    assert close(here.positions, there.positions, 1e-4)
    assert close(here.log_weights, there.log_weights, 0.02)
    assert close(here.outside, there.outside, 0)


def test_device_forces_and_monte_carlo_take_a_copy_on_the_cpu(flow, on_cpu):
    assert is_on("cpu", BeadFreeEnergy(flow))
    scale, x = torch.tensor(1.0), torch.as_tensor(on_cpu.positions._value[on_cpu.coordinates.bead_atoms])
    assert close(BeadFreeEnergy(flow)(x, scale).numpy(), BeadFreeEnergy(on_cpu)(x, scale).numpy(), 1e-3)
    here, there = StructureDensity.of(flow).draw(4, 1), StructureDensity.of(on_cpu).draw(4, 1)
    assert close(here[0], there[0], 1e-6)
    assert close(here[1], there[1], 1e-3)


@pytest.mark.parametrize(
    ("slow", "settings", "stages"),
    [
        ([0], TrainSettings(**QUICK), ["laplace", "soft", "refine"]),
        (1, TrainSettings(**QUICK), ["laplace", "soft", "refine"]),
        (1, TrainSettings(**QUICK, tempering=AdaptiveTempering(beta=0.9, steps=1)), ["tempering", "refine"]),
    ],
    ids=["laplace", "directions", "tempering"],
)
def test_device_every_stage_of_training_takes_a_step(device, slow, settings, stages):
    def trained(where: str) -> cgf.VectorFlow:
        flow = cgf.VectorFlow(DoubleWell(), slow=slow, width=2.0, device=where)
        trainer = Trainer(flow.flow, flow.target, settings)
        budget = Budget(evaluations=2000, ended=lambda: any(row.stage == "refine" for row in trainer.history))
        with flow.compute.parallel() as parallel, Reporter(False) as reporter:
            trainer.run(budget, parallel, reporter, lambda force=False: None)
        assert list(dict.fromkeys(row.stage for row in trainer.history)) == stages
        assert is_on(where, flow.flow, flow.coordinates)
        assert all(q.device == torch.device(where) for q, _ in trainer.task.replay.buffers)
        return flow

    here, there = trained(device).flow.state_dict(), trained("cpu").flow.state_dict()
    assert all(close(here[name].cpu().numpy(), there[name].numpy(), 0.05) for name in there)


@pytest.fixture
def gpu(request) -> str:
    """A GPU in earnest."""
    if request.config.getoption("--device") != "cuda" or not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    return "cuda:0"


def test_device_training_by_cuda_graphs_is_that_without(gpu):
    def trained(graphs: Graphs | None) -> dict[str, torch.Tensor]:
        flow = cgf.CGFlow.load(MODEL, device=gpu)
        trainer = Trainer(flow.flow, flow.target, TrainSettings(**QUICK), 0)
        trainer.trained()
        with Parallel(device=torch.device(gpu), graphs=graphs) as parallel, Reporter(False) as reporter:
            trainer.run(Budget(evaluations=1000), parallel, reporter, lambda force=False: None)
        assert 900 < trainer.loop.evaluations <= 1000
        return flow.flow.state_dict()

    graphs = Graphs()
    plain, recorded = trained(None), trained(graphs)
    assert any(not isinstance(known, int) for known in graphs._known.values())
    assert all(close(plain[name].cpu().numpy(), recorded[name].cpu().numpy(), 2e-3) for name in plain)


def test_device_what_waits_for_the_gpu_is_not_recorded(gpu, caplog):
    def positive(x: torch.Tensor) -> torch.Tensor:
        return x if bool((x > 0).all()) else -x

    graphs = Graphs()
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        for k in range(-3, 3):
            x = torch.full((4,), k + 0.5, device=gpu)
            assert graphs("positive", positive, x).tolist() == [abs(k + 0.5)] * 4
    assert "going on without" in caplog.text
    assert graphs("double", lambda x: 2 * x, torch.ones(3, device=gpu)).sum().item() == 6


def test_device_molecule_is_refined_and_saved(flow, device, tmp_path):
    before = flow.provenance["evaluations"]
    flow.train(evaluations=200, progress=False, settings=TrainSettings(**QUICK), audit=False, checkpoint=tmp_path / "c")
    assert flow.provenance["evaluations"] > before
    assert is_on(device, flow.flow)
    flow.save(tmp_path / "m.cgflow")
    again = cgf.CGFlow.load(tmp_path / "m.cgflow", device="cpu")
    assert is_on("cpu", again.flow)
    assert close(flow.sample(5, seed=0).positions, again.sample(5, seed=0).positions, 1e-4)


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", 3.5, "meta", torch.device("meta"), "privateuseone"])
def test_device_that_is_not_there_or_cannot_compute_is_named(name):
    with pytest.raises(cgf.InvalidInputError, match=r"device is .* give \"cpu\"") as error:
        Compute.on(name)
    assert len(str(error.value)) < 400


def test_device_that_cannot_compute_is_refused_at_every_door():
    """Tensors of "meta" have no values: a flow was made of them, and ended in torch's errors."""
    for door in (
        lambda: cgf.CGFlow(*load("butane"), device="meta"),
        lambda: cgf.VectorFlow(DoubleWell(), slow=[0], device="meta"),
        lambda: cgf.CGFlow.load(MODEL, device="meta"),
        lambda: TrainedFlow.load(MODEL, device="meta"),
    ):
        with pytest.raises(cgf.InvalidInputError, match="device is 'meta', which cannot be used here"):
            door()


def test_device_option_of_the_command_line(tmp_path):
    command = ["sample", str(MODEL), "-o", str(tmp_path / "s.npz"), "-n", "4", "--seed", "0", "--device"]
    for name in ("nonsense", "meta"):
        wrong = CliRunner().invoke(app, [*command, name])
        assert wrong.exit_code == 2
        assert f"device is '{name}'" in wrong.output
    assert CliRunner().invoke(app, [*command, "cpu"]).exit_code == 0
    assert np.load(tmp_path / "s.npz")["positions"].shape[0] == 4


def test_device_choice_by_weights_is_made_on_the_cpu(device):
    weights = torch.tensor([0.1, 0.0, 0.7, 0.2])
    chosen = choose(weights.to(device), 50, seeded(3))
    assert chosen.device.type == "cpu"
    assert torch.equal(chosen, torch.multinomial(weights, 50, True, generator=seeded(3)))
    assert torch.arange(4.0, device=device)[chosen].device == torch.device(device)


def test_device_out_of_memory_halves_the_batch_and_says_so(caplog):
    sizes = []

    def hungry(x: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.append(len(x))
        if len(x) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (2 * x,)

    x = torch.arange(700.0)
    with caplog.at_level(logging.WARNING, "openmm_cgflow"), Parallel(1) as parallel:
        assert torch.equal(parallel.map(hungry, x)[0], 2 * x)
        assert "too small for 512 rows at once: going on with 256" in caplog.text
        assert "going on with 64" in caplog.text
        sizes.clear()
        parallel.map(hungry, x)  # it remembers
        assert max(sizes) == 64
        parameter = torch.nn.Parameter(torch.ones(1))
        value, gradients, _ = parallel.gradients(lambda rows: (hungry(rows)[0] * parameter).mean(), [parameter], x)
        assert value == pytest.approx(699)
        assert gradients[0].item() == pytest.approx(699)

    def always(x: torch.Tensor) -> tuple[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Parallel(1) as parallel, pytest.raises(torch.OutOfMemoryError):
        parallel.map(always, x)
