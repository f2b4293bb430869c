"""Recorded operations give the same numbers by numpy, in fewer steps."""

import operator

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from openmm_cgflow.flows.networks import MLP
from openmm_cgflow.openmm_plugin.recorded.compiled_forces import fold_constants
from openmm_cgflow.openmm_plugin.recorded.gathered_moves import gather_moves
from openmm_cgflow.openmm_plugin.recorded.numpy_graph import replayed_by_numpy
from openmm_cgflow.openmm_plugin.recorded.written_for_numpy import hidden_layer

ATEN = torch.ops.aten
ORDERS = torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
BACK = ORDERS.argsort(1)
WEIGHTS = torch.linspace(-1, 1, 4)


def halves(x):
    """A coupling's way: two halves are taken, changed in turn, and joined in another order; twice."""
    for order, back in zip(ORDERS, BACK, strict=True):
        kept, moved = x.index_select(1, order).split(2, dim=1)
        x = torch.cat([kept, moved * kept.exp()], dim=1).index_select(1, back)
    return x


def mixed_joins(x):
    """Pieces of a join that is itself computed with, of one that is not, and of none."""
    a, b = x.exp(), x.sin()
    joined = torch.cat([a, b, x[:, :0]], dim=1)
    return joined * 2 + torch.cat([joined[:, 4:], joined.flip(1)[:, :4].neg() * 0], dim=1)[:, [1, 0, 3, 2, 7, 6, 5, 4]]


def rotors(x):
    """Places that depend on numbers."""
    leaves = torch.stack([x, 2 * x, 3 * x]).reshape(3, 2, -1)
    turns = torch.floor(leaves[:, :1] * 2).long()
    return leaves.gather(1, torch.remainder(torch.arange(2)[None, :, None] - turns, 2))


def in_place(x):
    """What is changed after it was moved."""
    y = x.exp()
    first, rest = y[:, :1], y[:, 1:]
    rest += first
    y[:, -1] = 2
    return y.mul_(3) - rest.t().flip(0).sum(0, keepdim=True).t()


FUNCTIONS = {
    "in place": in_place,
    "halves": halves,
    "mixed joins": mixed_joins,
    "rotors": rotors,
    "cross product": lambda x: torch.stack([a * b for a, b in zip(x.unbind(1), x.exp().unbind(1), strict=True)], 1),
    "moves alone": lambda x: x.t().unsqueeze(0).expand(3, -1, -1).permute(2, 0, 1)[:, 1:],
    "the same": lambda x: x.reshape(-1).reshape(x.shape),
    "empty": lambda x: x[:, :0].sum(1) + x[:, 0],
    "sums": lambda x: x.sum(1) + x.sum(0).sum() + x[:, :, None].sum(1)[:, 0] + x.sum(1, keepdim=True)[:, 0] + x.sum(),
    "whole numbers": lambda x: x * (torch.floor(x).long().sum(1) * 2 - 1)[:, None],
    "numbers": lambda x: 3 - x / 7 + torch.remainder(x - 0.25, 0.5) * 2 + 1.5,
    "numbers before": lambda x: torch.rsub(x, 2, alpha=3) + torch.add(x, x.exp(), alpha=2),
    "constants": lambda x: WEIGHTS * x + (2 - WEIGHTS.sum()) - x * WEIGHTS.exp()[None] + torch.ones(1),
    "activations": lambda x: torch.nn.functional.silu(x) - x.tanh() * torch.nn.functional.softplus(x),
    "side by side": lambda x: torch.baddbmm(WEIGHTS.to(x), x + ORDERS[:, None], (WEIGHTS * ORDERS[:, :, None]).to(x)),
    "logarithms": lambda x: torch.logsumexp(torch.cat([x, x[:, :1].clamp(min=-0.1)], 1), 1) + x.sigmoid().log().sum(1),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_torch(name, rows, dtype):
    function, generator = FUNCTIONS[name], torch.Generator().manual_seed(1)
    first, second = torch.randn(2, rows, 4, generator=generator, dtype=dtype)
    graph = replayed_by_numpy(function, first)
    for x in (first, second):
        expected, before = function(x), x.clone()
        torch.testing.assert_close(torch.as_tensor(graph(x.numpy())), expected, check_dtype=False)
        assert torch.equal(x, before)


def test_moves_between_computations_are_one():
    graph = make_fx(halves)(torch.zeros(1, 4))
    fold_constants(graph)
    gather_moves(graph)
    graph.recompile()
    found = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert found.count(ATEN.exp.default) == found.count(ATEN.mul.Tensor) == 2
    assert len(found) <= 4 + 7  # without this pass it would be 4 + 12
    assert set(found) <= {ATEN.exp.default, ATEN.mul.Tensor, ATEN.cat.default, ATEN.take.default, operator.getitem}
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(graph(x), halves(x), rtol=0, atol=0)


def test_moves_to_places_that_depend_on_numbers_are_computations():
    def pick(x):
        return x.index_select(1, x[0].argsort()).exp()

    graph = replayed_by_numpy(pick, torch.zeros(2, 4))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(torch.as_tensor(graph(x.numpy())), pick(x))


def test_a_network_is_a_product_a_layer():
    network = MLP(5, 3, hidden=16, depth=2).requires_grad_(False)
    network.head.weight.normal_(generator=torch.Generator().manual_seed(4))
    graph = replayed_by_numpy(network, torch.zeros(1, 5))
    calls = [node.target for node in graph.graph.nodes if node.op.startswith("call")]
    assert calls.count(hidden_layer) == 2
    assert len(calls) == 3
    x = 30 * torch.randn(50, 1, 5, generator=torch.Generator().manual_seed(5))  # activations far out as well
    found = np.stack([graph(row.numpy()) for row in x])
    np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-5, atol=1e-5)
