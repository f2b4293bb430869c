"""A recorded graph written with the operations that numpy does quickest; the same numbers, but for rounding."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import functionalize

from openmm_cgflow.compute import record
from openmm_cgflow.openmm_plugin.recorded.compiled_forces import fold_constants

__all__ = ["hidden_layer", "written_for_numpy"]

_ATEN = torch.ops.aten
_WITH_NUMBERS = {_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor}
_WITH_NUMBERS |= {_ATEN.rsub.Scalar, _ATEN.remainder.Scalar}


def written_for_numpy(function: Callable[[Tensor], Tensor], example: Tensor) -> fx.GraphModule:
    """The operations of ATen of which a function consists, and `hidden_layer`.

    Arguments:
        function: of one tensor, without a gradient.
        example: a tensor of the shape and type of all that come later.
    """
    with torch.no_grad():
        recorded = record(functionalize(lambda x: function(x)), example, decompositions=_OTHERWISE)
        kept = _Constants(recorded)
        for node in list(recorded.graph.nodes):
            _make_constant(node, kept)
        fold_constants(recorded)
        for node in list(recorded.graph.nodes):
            _fit_constants(node, kept)
            _fuse_layer(node, kept)
    recorded.graph.eliminate_dead_code()
    return recorded


def hidden_layer(half_bias: np.ndarray, left: np.ndarray, half_right: np.ndarray) -> np.ndarray:
    """`silu(bias + left @ right)`, given half of the bias and of the matrix: `silu(2 h) = h + h tanh(h)`."""
    half: np.ndarray = left.dot(half_right)
    half += half_bias
    result: np.ndarray = np.tanh(half)
    result *= half
    result += half
    return result


def _sum(x: Tensor, axes: Sequence[int], keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """As a product with ones, which numpy does in half the time, where the numbers stand together."""
    axis = axes[0] % x.ndim
    if dtype or keepdim or len(axes) > 1 or x.shape[axis + 1 :].numel() != 1 or not x.is_floating_point():
        return NotImplemented
    rows = x.reshape(x.shape[:axis].numel(), x.shape[axis])
    return (rows @ torch.ones(x.shape[axis], dtype=x.dtype)).reshape(x.shape[:axis] + x.shape[axis + 1 :])


def _gather(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """By places in the memory of `x`."""
    axis %= x.dim()
    step, places = x.shape[axis + 1 :].numel(), torch.arange(x.numel()).reshape(x.shape).narrow(axis, 0, 1)
    places = places[tuple(slice(n) for n in index.shape[:axis])]
    return torch.take(x, places.expand_as(index) + index * step)


_OTHERWISE: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.gather.default: _gather,
}


class _Constants:
    """New constants of a graph, equal ones once.

    Arguments:
        recorded: the graph.
    """

    def __init__(self, recorded: fx.GraphModule) -> None:
        self._recorded = recorded
        self._names: dict[Any, str] = {}

    def __getitem__(self, node: fx.Node) -> Tensor:
        value = getattr(self._recorded, str(node.target))
        assert isinstance(value, Tensor)
        return value

    def add(self, value: Tensor, before: fx.Node) -> fx.Node:
        """A node for a constant."""
        value = value.detach().contiguous()
        key = (value.dtype, value.shape, value.numpy().tobytes())
        name = self._names.setdefault(key, f"constant{len(self._names)}")
        self._recorded.register_buffer(name, value)
        with self._recorded.graph.inserting_before(before):
            return self._recorded.graph.get_attr(name)


def _make_constant(node: fx.Node, kept: _Constants) -> None:
    """What depends on nothing, or has no elements."""
    value = node.meta.get("val")
    if isinstance(node.target, torch._ops.OpOverload) and isinstance(value, Tensor):
        if not node.all_input_nodes:
            node.replace_all_uses_with(kept.add(node.target(*node.args, **node.kwargs), node))
        elif not value.numel():
            node.replace_all_uses_with(kept.add(torch.empty(value.shape, dtype=value.dtype), node))


def _fit_constants(node: fx.Node, kept: _Constants) -> None:
    """Numbers beside arrays become arrays, and constants have their shape: numpy takes longer to match others."""
    if node.target not in (*_WITH_NUMBERS, _ATEN.addmm.default) or node.kwargs:
        return
    value = node.meta["val"]
    for k, other in enumerate(node.args[:1] if node.target is _ATEN.addmm.default else node.args):
        if isinstance(other, int | float):
            node.update_arg(k, kept.add(torch.tensor(other, dtype=value.dtype), node))
        elif isinstance(other, fx.Node) and other.op == "get_attr" and kept[other].ndim:
            node.update_arg(k, kept.add(kept[other].expand(value.shape), node))


def _fuse_layer(node: fx.Node, kept: _Constants) -> None:
    """An activation and the linear map with constants before it are one."""
    before: Any = node.args[0] if node.target is _ATEN.silu.default else node
    if before.target is _ATEN.addmm.default and before is not node:
        bias, left, right = before.args
        if bias.op == right.op == "get_attr":
            node.target = hidden_layer
            node.args = (kept.add(0.5 * kept[bias], node), left, kept.add(0.5 * kept[right], node))
