"""Graphs: the same numbers as without, and the same effects. CUDA's own are tested by `--device cuda`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import openmm_cgflow as cgf
from openmm_cgflow.compute import Graphs, Parallel, on_host
from openmm_cgflow.compute.graphs import _here
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.training import AdaptiveTempering, Budget, Reporter, Trainer, TrainSettings
from openmm_cgflow.training.budget import Spent

QUICK = {"points": 6, "sweeps": 1, "fit_steps": 8, "buffer": 64, "buffer_steps": 6, "soft_buffers": 2, "batch": 64}


def repeated(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What a graph does, without a GPU: the same tensors are read and written each time, and nothing else is done."""
    results = function()

    def again() -> None:
        _here.effects = []  # a graph holds kernels alone
        try:
            renewed = function()
        finally:
            _here.effects = None
        with torch.no_grad():
            for old, new in zip(tree_leaves(results), tree_leaves(renewed), strict=True):
                old.copy_(new)

    return again, results


def test_graphs_repeat_a_function_with_its_effects():
    calls, counted, graphs = [], [], Graphs(repeated)

    def square(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        calls.append(len(x))
        on_host(counted.append, len(x))
        return x * x, [x + 1]

    kept = []
    for k in range(6):
        x = torch.full((3,), float(k))
        kept.append((x, *graphs("square", square, x)))
    assert counted == [3] * 6
    for x, squared, (more,) in kept:  # each result has memory of its own
        assert torch.equal(squared, x * x)
        assert torch.equal(more, x + 1)
    graphs("square", square, torch.ones(5))  # another shape
    assert counted[-1] == calls[-1] == 5
    graphs.forget()
    before = len(calls)
    graphs("square", square, torch.ones(3))
    assert len(calls) == before + 1


def test_graphs_go_on_with_what_cannot_be_recorded(caplog):
    def refused(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    counted, graphs = [], Graphs(refused)

    def double(x: torch.Tensor) -> torch.Tensor:
        on_host(counted.append, 1)
        return 2 * x

    with caplog.at_level("INFO", "openmm_cgflow"):
        for k in range(5):
            assert graphs("double", double, torch.full((2,), float(k))).tolist() == [2.0 * k] * 2
    assert counted == [1] * 5  # the attempt itself does not count
    assert caplog.text.count("going on without") == 1


def test_graphs_let_what_an_effect_raises_pass():
    graphs = Graphs(repeated)
    budget = Budget(evaluations=10)

    def spend(x: torch.Tensor) -> torch.Tensor:
        on_host(budget.spend, len(x))
        return x

    for _ in range(5):
        graphs("spend", spend, torch.ones(2))
    with pytest.raises(Spent):
        graphs("spend", spend, torch.ones(2))
    assert budget.used == 10


@pytest.mark.parametrize(
    "settings",
    [TrainSettings(**QUICK), TrainSettings(**QUICK, tempering=AdaptiveTempering(beta=0.9, steps=6))],
    ids=["laplace", "tempering"],
)
def test_graphs_train_bit_for_bit_as_without(settings):
    def trained(graphs: Graphs | None) -> tuple[dict[str, torch.Tensor], list[Any]]:
        flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, seed=3, device="cpu")
        trainer = Trainer(flow.flow, flow.target, settings, 3)
        with Parallel(1, graphs=graphs) as parallel, Reporter(False) as reporter:
            trainer.run(Budget(evaluations=4000), parallel, reporter, lambda force=False: None)
        rows = [(row.stage, row.evaluations, row.loss, row.ess) for row in trainer.history]
        return flow.flow.state_dict(), rows

    plain, recorded = trained(None), trained(Graphs(repeated))
    assert plain[1] == recorded[1]
    assert {row[0] for row in plain[1]} > {"refine"}
    assert all(torch.equal(plain[0][name], recorded[0][name]) for name in plain[0])


def test_graphs_are_made_anew_when_the_energies_are_computed_in_another_way():
    flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0, device="cpu")
    trainer, graphs = Trainer(flow.flow, flow.target, TrainSettings(**QUICK)), Graphs(repeated)
    forgotten = []
    graphs.forget = lambda: forgotten.append(flow.potential.evaluations)
    changes = iter([False] * 5 + [True])
    flow.potential.settle = lambda: next(changes, False)
    with Parallel(1, graphs=graphs) as parallel, Reporter(False) as reporter:
        trainer.run(Budget(evaluations=4000), parallel, reporter, lambda force=False: None)
    assert len(forgotten) == 1
