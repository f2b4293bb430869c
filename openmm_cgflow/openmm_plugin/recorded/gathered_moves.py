"""Operations of a recorded graph that only move numbers about: many of them become one `take`, or a slice."""

import operator
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["gather_moves"]

_ATEN = torch.ops.aten
_MOVES = {
    _ATEN.alias.default,
    _ATEN.cat.default,
    _ATEN.clone.default,
    _ATEN.detach.default,
    _ATEN.expand.default,
    _ATEN.index_select.default,
    _ATEN.permute.default,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.stack.default,
    _ATEN.t.default,
    _ATEN.transpose.int,
    _ATEN.unbind.int,
    _ATEN.unsqueeze.default,
    _ATEN._unsafe_view.default,
    _ATEN.view.default,
}


def gather_moves(recorded: fx.GraphModule) -> None:
    """Cuts, joins, transposes and the like between two computations are done at once.

    Every number that is computed has a label. Moves are done here, with labels: those that a computation then sees are
    the numbers that it takes. From then on the graph is for arrays of the recorded shapes.

    Arguments:
        recorded: operations of ATen, as `record` gives them, none in place.

    Example:
        >>> from openmm_cgflow.compute import record
        >>> graph = record(lambda x: torch.stack([x[1:], x[:-1]]).t().reshape(2, 2).exp(), torch.zeros(3))
        >>> gather_moves(graph)
        >>> [node.name for node in graph.graph.nodes]
        ['arg0_1', 'moved0', 'take_default', 'exp', 'output']
    """
    moves = _Moves(recorded)
    for node in list(recorded.graph.nodes):
        if moves.is_move(node):
            moves.move(node)
        else:
            for seen in node.all_input_nodes:
                if seen in moves.moved:
                    node.replace_input_with(seen, moves.taken(seen, node))
    recorded.graph.eliminate_dead_code()


class _Moves:
    """Labels of all that is computed, and of what moves make of it.

    Arguments:
        recorded: the graph.

    Attributes:
        moved: for each move its result, in labels; a list of such where it gives a list.
    """

    def __init__(self, recorded: fx.GraphModule) -> None:
        self.recorded = recorded
        self.moved: dict[fx.Node, Any] = {}
        self._labels: dict[fx.Node, Tensor] = {}
        self._sources: list[fx.Node] = []
        self._starts = [0]
        self._taken: dict[tuple[int, ...], fx.Node] = {}

    def is_move(self, node: fx.Node) -> bool:
        """Whether it does nothing but move numbers, to places that do not depend on them."""
        if node.target is operator.getitem:
            return node.args[0] in self.moved
        return node.target in _MOVES and all(n.op == "get_attr" for n in node.args[1:] if isinstance(n, fx.Node))

    def move(self, node: fx.Node) -> None:
        """Do it with labels."""
        moved, *how = node.args
        how = fx.map_arg(how, self._constant_of)
        assert callable(node.target)
        self.moved[node] = node.target(fx.map_arg(moved, self._label), *how, **node.kwargs)

    def _label(self, node: fx.Node) -> Any:  # noqa: ANN401
        if node in self.moved:
            return self.moved[node]
        value = self._constant_of(node) if node.op == "get_attr" else node.meta["val"]
        return self._label_source(node, value.shape)

    def _constant_of(self, node: fx.Node) -> Any:  # noqa: ANN401
        return getattr(self.recorded, str(node.target))

    def _label_source(self, node: fx.Node, shape: torch.Size) -> Tensor:
        if node not in self._labels:
            start = self._starts[-1]
            self._starts.append(start + shape.numel())
            self._labels[node] = torch.arange(start, self._starts[-1]).reshape(shape)
            self._sources.append(node)
        return self._labels[node]

    def taken(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """What moves gave, for a user that computes with it."""
        wanted, dtype = self.moved[node], node.meta["val"].dtype
        key = (*wanted.shape, -1, *wanted.flatten().tolist())
        with self.recorded.graph.inserting_before(user):
            if not wanted.numel():
                return self._constant(torch.empty(wanted.shape, dtype=dtype))
            if key not in self._taken:
                self._taken[key] = self._take(wanted)
        if self._taken[key] in self._labels:  # what was joined counts as computed from here on
            self.moved[node] = self._labels[self._taken[key]]
        return self._taken[key]

    def _take(self, wanted: Tensor) -> fx.Node:
        owners = [bisect_right(self._starts, label) - 1 for label in wanted.flatten().tolist()]
        sources = [self._sources[k] for k in dict.fromkeys(owners)]
        parts = [self._labels[source] for source in sources]
        if len(sources) == 1:
            return self._pick(sources[0], parts[0], wanted)
        axes = [k for k in range(parts[0].ndim) if len({(*p.shape[:k], *p.shape[k + 1 :]) for p in parts}) == 1]
        if not axes:
            sources = [self._call(_ATEN.view.default, source, [-1]) for source in sources]
            parts, axes = [part.flatten() for part in parts], [0]
        joined = [torch.cat(parts, axis) for axis in axes]
        best = max(range(len(axes)), key=lambda k: torch.equal(joined[k].flatten(), wanted.flatten()))
        result = self._pick(self._call(_ATEN.cat.default, sources, axes[best]), joined[best], wanted)
        self._label_source(result, wanted.shape)
        return result

    def _pick(self, source: fx.Node, labels: Tensor, wanted: Tensor) -> fx.Node:
        """The wanted labels, in the quickest way, of a node with these."""
        if torch.equal(labels, wanted):
            return source
        if torch.equal(labels.flatten(), wanted.flatten()):
            return self._call(_ATEN.view.default, source, list(wanted.shape))
        order = labels.flatten().argsort()
        index = order[torch.searchsorted(labels.flatten()[order], wanted.contiguous())]
        part = slice(first := int(index.flatten()[0]), first + wanted.shape[-1])
        if torch.equal(labels[..., part], wanted):
            return self._call(operator.getitem, source, (..., part))
        return self._call(_ATEN.take.default, source, self._constant(index))

    def _call(self, operation: Callable[..., Any], *args: Any) -> fx.Node:  # noqa: ANN401
        return self.recorded.graph.call_function(operation, args)

    def _constant(self, value: Tensor) -> fx.Node:
        name = f"moved{len(self.recorded._buffers)}"
        self.recorded.register_buffer(name, value)
        return self.recorded.graph.get_attr(name)
