"""Recorded operations replayed by numpy: for one structure torch needs longer to start an operation than to do it."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dtrtrs, strtrs
from torch import Tensor, fx

from openmm_cgflow.openmm_plugin.recorded.gathered_moves import gather_moves
from openmm_cgflow.openmm_plugin.recorded.written_for_numpy import written_for_numpy

__all__ = ["replayed_by_numpy"]

_ATEN = torch.ops.aten
_DTYPES = {torch.float64: np.float64, torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}
_HALF = {np.dtype(t): np.array(0.5, t) for t in (np.float32, np.float64)}

Array = np.ndarray
_REDUCE: Callable[..., Any] = np.add.reduce
_LARGEST: Callable[..., Any] = np.maximum.reduce


def replayed_by_numpy(function: Callable[[Tensor], Tensor], example: Tensor) -> fx.GraphModule:
    """A graph that does what a function does, with each operation done by numpy; it takes and returns arrays.

    What is not in the table below is done by torch itself, which is as right and takes longer.

    Arguments:
        function: of one tensor, without a gradient; its operations are recorded once.
        example: a tensor of the shape and type of all that come later.

    Example:
        >>> graph = replayed_by_numpy(lambda x: x.exp().sum(0), torch.zeros(4))
        >>> float(graph(np.zeros(4)))
        4.0
    """
    recorded = written_for_numpy(function, example)
    gather_moves(recorded)
    for node in recorded.graph.nodes:
        if node.op == "get_attr":
            value = getattr(recorded, node.target)
            node.target = f"array_{node.target}"
            setattr(recorded, node.target, value.numpy())
        elif isinstance(node.target, torch._ops.OpOverload):
            known = _TABLE.get(node.target) if "alpha" not in node.kwargs else None
            node.target = known or _by_torch(node.target)
            node.op = "call_method" if isinstance(known, str) else node.op
    for name in list(recorded._buffers):
        delattr(recorded, name)
    _drop_repetitions(recorded.graph)
    _keep_slices(recorded)
    recorded.recompile()
    return recorded


def _keep_slices(recorded: fx.GraphModule) -> None:
    """Slices are made once."""
    for node in list(recorded.graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[1], tuple):
            name = f"part_{node.args[1][-1].start}_{node.args[1][-1].stop}"
            setattr(recorded, name, node.args[1])
            with recorded.graph.inserting_before(node):
                node.update_arg(1, recorded.graph.create_node("get_attr", name))


def _drop_repetitions(graph: fx.Graph) -> None:
    """What was computed before with the same arguments is not computed again; what changes nothing is left out."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))  # nodes by their names, which are unique
        if seen.setdefault(key, node) is not node:
            node.replace_all_uses_with(seen[key])
    graph.eliminate_dead_code()


def _by_torch(operation: Callable[..., Any]) -> Callable[..., Any]:
    def array(value: Any) -> Any:  # noqa: ANN401
        return value.numpy() if isinstance(value, Tensor) else value

    def tensor(value: Any) -> Any:  # noqa: ANN401
        return torch.as_tensor(np.asarray(value)) if isinstance(value, Array | np.generic) else value

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        args, kwargs = fx.node.map_aggregate(args, tensor), fx.node.map_aggregate(kwargs, tensor)
        result = operation(*args, **kwargs)
        return fx.node.map_aggregate(result, array)

    call.__name__ = str(operation).replace(".", "_").replace("::", "_")
    return call


# -- the operations, with the arguments that ATen gives them ---------------------------------------------------------


def _addmm(bias: Array, left: Array, right: Array) -> Array:
    product: Array = left.dot(right)
    product += bias
    return product


def _baddbmm(bias: Array, left: Array, right: Array) -> Array:
    product: Array = left @ right
    product += bias
    return product


def _index_select(a: Array, axis: int, index: Array) -> Array:
    return a.take(index, axis)


def _sum(a: Array, axes: Sequence[int] | int, keepdims: bool = False, dtype: Any = None) -> Array:  # noqa: ANN401
    total: Array = _REDUCE(a, axes if isinstance(axes, int) else tuple(axes), None, None, keepdims)
    return total


def _silu(a: Array) -> Array:
    half = a * _HALF[a.dtype]
    result: Array = np.tanh(half)
    result *= half
    result += half
    return result


def _sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def _softplus(a: Array) -> Array:
    return np.logaddexp(a, 0)


def _logsumexp(a: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    axis = tuple(axes)
    top = _LARGEST(a, axis, None, None, True)
    total: Array = np.log(_REDUCE(np.exp(a - top), axis, None, None, True))
    total += top
    return total if keepdims else total.squeeze(axis)


def _log_softmax(a: Array, axis: int, half: bool = False) -> Array:
    return a - _logsumexp(a, [axis], True)


def _clamp(a: Array, low: float | None = None, high: float | None = None) -> Array:
    a = a if low is None else np.maximum(a, low)
    return a if high is None else np.minimum(a, high)


def _index(a: Array, indices: Sequence[Array | None]) -> Array:
    return a[tuple(slice(None) if index is None else index for index in indices)]


def _solve_triangular(a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Array:
    if a.ndim != 2 or not left or unitriangular:
        raise NotImplementedError
    solve = dtrtrs if a.dtype == np.float64 else strtrs
    # LAPACK counts along columns first: to it, our rows are those of the transpose
    return solve(a.T, b, lower=upper, trans=1)[0] if len(a) else b


def _cast(a: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:  # noqa: ANN401
    return a if dtype is None else np.asarray(a, dtype=_DTYPES[dtype])


def _like(a: Array, value: float, dtype: torch.dtype | None = None) -> Array:
    return np.full(a.shape, value, a.dtype if dtype is None else _DTYPES[dtype])


_TABLE: dict[Any, Callable[..., Any] | str] = {
    _ATEN.add.Tensor: operator.add,
    _ATEN.sub.Tensor: operator.sub,
    _ATEN.rsub.Scalar: lambda a, b, alpha=1: b - a * alpha,
    _ATEN.mul.Tensor: operator.mul,
    _ATEN.div.Tensor: operator.truediv,
    _ATEN.neg.default: operator.neg,
    _ATEN.reciprocal.default: lambda a: 1 / a,
    _ATEN.pow.Tensor_Scalar: lambda a, power: a * a if power == 2 else a**power,
    _ATEN.mm.default: "dot",
    _ATEN.bmm.default: operator.matmul,
    _ATEN.addmm.default: _addmm,
    _ATEN.baddbmm.default: _baddbmm,
    _ATEN.linalg_solve_triangular.default: _solve_triangular,
    _ATEN.exp.default: np.exp,
    _ATEN.log.default: np.log,
    _ATEN.log1p.default: np.log1p,
    _ATEN.sqrt.default: np.sqrt,
    _ATEN.abs.default: np.abs,
    _ATEN.sin.default: np.sin,
    _ATEN.cos.default: np.cos,
    _ATEN.tanh.default: np.tanh,
    _ATEN.sinh.default: np.sinh,
    _ATEN.asinh.default: np.arcsinh,
    _ATEN.atan2.default: np.arctan2,
    _ATEN.floor.default: np.floor,
    _ATEN.remainder.Scalar: np.mod,
    _ATEN.silu.default: _silu,
    _ATEN.sigmoid.default: _sigmoid,
    _ATEN.softplus.default: _softplus,
    _ATEN.clamp.default: _clamp,
    _ATEN.logsumexp.default: _logsumexp,
    _ATEN._log_softmax.default: _log_softmax,
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.cumsum.default: lambda a, axis, **_: np.add.accumulate(a, axis),
    _ATEN.cat.default: np.concatenate,
    _ATEN.index_select.default: _index_select,
    _ATEN.view.default: "reshape",
    _ATEN.take.default: "take",
    _ATEN.mv.default: "dot",
    _ATEN.where.self: np.where,
    _ATEN.gt.Tensor: operator.gt,
    _ATEN.gt.Scalar: operator.gt,
    _ATEN.ge.Scalar: operator.ge,
    _ATEN.lt.Tensor: operator.lt,
    _ATEN.lt.Scalar: operator.lt,
    _ATEN.bitwise_and.Tensor: operator.and_,
    _ATEN.all.dim: lambda a, axis, keepdims=False: np.logical_and.reduce(a, axis=axis, keepdims=keepdims),
    _ATEN.isfinite.default: np.isfinite,
    _ATEN._to_copy.default: _cast,
    _ATEN.ones_like.default: lambda a, dtype=None, **_: _like(a, 1, dtype),
    _ATEN.zeros_like.default: lambda a, dtype=None, **_: _like(a, 0, dtype),
    _ATEN.full_like.default: lambda a, value, dtype=None, **_: _like(a, value, dtype),
    _ATEN.index.Tensor: _index,
}
