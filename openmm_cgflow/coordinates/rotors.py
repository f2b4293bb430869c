"""Equivalent leaves of symmetric rotors: which cyclic relabelling brings the rotor into its domain."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from openmm_cgflow.coordinates.geometry import wrap
from openmm_cgflow.coordinates.layout import Layout

__all__ = ["Relabelling"]


class Relabelling(torch.nn.Module):
    """Cyclic relabelling of the three leaves of each symmetric rotor.

    With the mean angle `theta = t1 + (d2 + d3) / 3`, moving the labels on by one place is exactly `theta ->
    theta +- 2 pi / 3`
    with all else permuted, so that one third of the circle holds every state once.
    """

    _rows: Tensor
    _atoms: Tensor
    _others: Tensor
    _middle: Tensor
    _sign: Tensor
    _back: Tensor
    _means: Tensor
    _with_means: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.count = len(layout.triples)
        rows = [row for triple in layout.triples for row in triple]
        slots = [layout.torsion_slots[row - 3] for row in rows]
        reference = [layout.coordinates[slot].reference for slot in slots]
        others = [reference[3 * g + 1 : 3 * g + 3] for g in range(self.count)]
        self._keep("_rows", [row - 3 for row in rows])
        self._keep("_atoms", [layout.order[row] for row in rows])
        self._keep("_others", [[[second], [third]] for second, third in others], torch.float64)
        self._keep("_middle", [[layout.coordinates[slot].middle] for slot in slots[::3]], torch.float64)
        self._keep("_sign", [[int(math.copysign(1, second))] for second, _ in others])
        n = len(layout.order) - 3
        moved = {row: n + k for k, row in enumerate(rows)}
        self._keep("_back", [moved.get(row + 3, row) for row in range(n)])
        dof = len(layout.coordinates)
        mean = {slot: dof + g for g, slot in enumerate(slots[::3])}
        self._keep("_means", [*slots[::3], *slots[1::3], *slots[2::3]])
        self._keep("_with_means", [mean.get(slot, slot) for slot in range(dof)])

    def _keep(self, name: str, values: Sequence, dtype: torch.dtype = torch.int64) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def sources(self, torsions: Tensor) -> Tensor:
        """For each rotor and place 0, 1, 2: the old place of the leaf that belongs there, `(rotors, 3, batch)` int.

        Arguments:
            torsions: plain torsions of rows 3 on, `(rows, batch)`, rad.
        """
        t = torsions.detach().index_select(0, self._rows).unflatten(0, (self.count, 3))
        others = self._others.to(t.dtype)
        offsets = others + wrap(t[:, 1:] - t[:, :1] - others)
        theta = t[:, 0] + offsets.sum(1) / 3
        turns = torch.floor(wrap(theta - self._middle.to(t.dtype)) * (1.5 / math.pi) + 0.5).long()
        places = torch.arange(3, device=t.device)[None, :, None]
        return torch.remainder(places - (self._sign * turns)[:, None], 3)

    def random_sources(self, batch: int, generator: torch.Generator) -> Tensor:
        """As `sources`, with the labels of each rotor moved on by a random number of places."""
        turns = torch.randint(3, (self.count, 1, batch), generator=generator)
        return torch.remainder(torch.arange(3)[None, :, None] + turns, 3)

    def rows(self, values: Tensor, sources: Tensor) -> Tensor:
        """Values of rows 3 on with the leaves relabelled, `(rows, batch)`."""
        leaves = values.index_select(0, self._rows).unflatten(0, (self.count, 3))
        return torch.cat([values, leaves.gather(1, sources).flatten(0, 1)]).index_select(0, self._back)

    def atoms(self, x: Tensor, sources: Tensor) -> Tensor:
        """Positions `(batch, atoms, 3)` with the leaves relabelled."""
        atoms = self._atoms.unflatten(0, (self.count, 3))[:, :, None].expand_as(sources)
        index = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0], 1)
        index = index.index_copy(1, self._atoms, atoms.gather(1, sources).flatten(0, 1).t())
        return x.gather(1, index[:, :, None].expand_as(x))

    def add_means(self, q: Tensor) -> Tensor:
        """The torsion of the first leaf replaced by the mean angle; q is `(dof, batch)`."""
        first, second, third = q.index_select(0, self._means).split(self.count)
        return torch.cat([q, first + (second + third) / 3]).index_select(0, self._with_means)
