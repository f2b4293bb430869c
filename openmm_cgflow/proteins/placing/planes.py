"""The planes of a batch of traces: their virtual bonds, the ghosts beyond termini, which are cis."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.proteins.chain.geometry import axes_of, place_planes, plane_shape
from openmm_cgflow.proteins.chain.sequence import ProteinSequence

__all__ = ["CIS_BELOW", "Backbone", "Planes", "guessed_cb"]

CIS_BELOW = 0.335
"""nm: alpha carbons before a proline that are nearer have a cis peptide bond between them."""

_VIRTUAL_BOND = 0.381
_GHOST_ANGLES = (95.0, 110.0, 125.0)
_GHOST_TURNS = 24
_CB_ALONG, _CB_BESIDE = 0.0934, 0.1211  # nm, out of the bend of the trace, and normal to it


@dataclass(frozen=True)
class Planes:
    """Which planes a protein has. A chain of `n` residues has `n + 1`: one before its first residue and one after each.

    The first and the last plane of a chain lead to a ghost, a virtual alpha carbon beyond the terminus. Of these planes
    only the atoms of the residue itself are real.

    Attributes:
        before: `(residues,)`, the plane that ends at each residue.
        after: `(residues,)`, the one that begins there.
        start: `(planes,)`, index of its first point among trace and ghosts (trace first, then two ghosts a chain).
        end: `(planes,)`, of its second point.
        ghost: `(planes,)` bool, whether one of them is a ghost.
        before_proline: `(planes,)` bool.
        link: `(planes - 1,)`, the residue between a plane and the next one; -1 between chains.
        first: `(planes,)`, the residue that has its C and O; -1 for a ghost.
        second: `(planes,)`, the residue that has its N and H; -1 for a ghost.
    """

    before: Tensor
    after: Tensor
    start: Tensor
    end: Tensor
    ghost: Tensor
    before_proline: Tensor
    link: list[int]
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, sequence: ProteinSequence) -> "Planes":
        """The planes of a protein."""
        n = len(sequence)
        before, after, start, end, first, second, link = [], [], [], [], [], [], []
        for k, residue in enumerate(sequence.residues):
            if sequence.is_first(k):
                link += [-1] * (k > 0)
                start.append(n + 2 * residue.chain)
                end.append(k)
                first.append(-1)
                second.append(k)
            before.append(len(start) - 1)
            last = sequence.is_last(k)
            start.append(k)
            end.append(n + 2 * residue.chain + 1 if last else k + 1)
            first.append(k)
            second.append(-1 if last else k + 1)
            after.append(len(start) - 1)
            link.append(k)
        proline = [
            j >= 0 and i >= 0 and sequence.residues[j].variant == "PRO" for i, j in zip(first, second, strict=True)
        ]
        return cls(
            torch.tensor(before),
            torch.tensor(after),
            torch.tensor(start),
            torch.tensor(end),
            torch.tensor([i < 0 or j < 0 for i, j in zip(first, second, strict=True)]),
            torch.tensor(proline),
            link,
            torch.tensor(first),
            torch.tensor(second),
        )

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Backbone:
    """Planes on the traces of a batch.

    Attributes:
        planes: which there are.
        trace: `(batch, residues, 3)` nm.
        starts: `(batch, planes, 3)` nm, where virtual bonds begin.
        ends: `(batch, planes, 3)` nm, where they end.
        axes: three axes of each, `(batch, planes, 3)`.
        shape: `(batch, planes, 4, 2)` nm.
        cis: `(batch, planes)` bool.
    """

    planes: Planes
    trace: Tensor
    starts: Tensor
    ends: Tensor
    axes: tuple[Tensor, Tensor, Tensor]
    shape: Tensor
    cis: Tensor

    @classmethod
    def of(cls, planes: Planes, trace: Tensor) -> "Backbone":
        """Planes on traces `(batch, residues, 3)`, nm."""
        points = torch.cat([trace, _ghosts(planes, trace)], dim=1)
        start, end = points[:, planes.start], points[:, planes.end]
        length = (end - start).norm(dim=-1)
        cis = planes.before_proline.to(trace.device) & (length < CIS_BELOW)
        beside = points[:, planes.end].roll(-1, 1) - start  # any vector that turns with the trace
        return cls(planes, trace, start, end, axes_of(start, end, beside), plane_shape(length, cis), cis)

    def moved(self, trace: Tensor) -> "Backbone":
        """The same planes on a trace that is near; ghosts go with their termini, and what is cis stays so."""
        n, shift = trace.shape[1], trace - self.trace
        real = [
            torch.where(here < n, here, other)
            for here, other in ((self.planes.start, self.planes.end), (self.planes.end, self.planes.start))
        ]
        start, end = self.starts + shift[:, real[0]], self.ends + shift[:, real[1]]
        shape = plane_shape((end - start).norm(dim=-1), self.cis)
        return Backbone(self.planes, trace, start, end, axes_of(start, end, end.roll(-1, 1) - start), shape, self.cis)

    def put(self, rows: Tensor, other: "Backbone") -> None:
        """Other traces in place of some of the batch."""
        ours, theirs = ((b.trace, b.starts, b.ends, *b.axes, b.shape, b.cis) for b in (self, other))
        for old, new in zip(ours, theirs, strict=True):
            old[rows] = new

    def __getitem__(self, rows: Tensor | slice) -> "Backbone":
        """Some traces of the batch."""
        axes = (self.axes[0][rows], self.axes[1][rows], self.axes[2][rows])
        return Backbone(
            self.planes, self.trace[rows], self.starts[rows], self.ends[rows], axes, self.shape[rows], self.cis[rows]
        )

    def atoms(self, gamma: Tensor) -> Tensor:
        """C, O, N and H of all planes at `gamma (batch, planes)`: `(batch, planes, 4, 3)` nm."""
        return place_planes(self.starts, self.axes, self.shape, gamma)

    @cached_property
    def virtual_cb(self) -> Tensor:
        """Where the trace alone puts the beta carbons, `(batch, residues, 3)` nm."""
        return guessed_cb(self.trace, self.starts[:, self.planes.before], self.ends[:, self.planes.after])


def guessed_cb(ca: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Beta carbons from three alpha carbons in a row, `(..., 3)` nm."""
    first = torch.nn.functional.normalize(ca - before, dim=-1)
    second = torch.nn.functional.normalize(after - ca, dim=-1)
    outward = torch.nn.functional.normalize(first - second, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(first, second), dim=-1)
    return ca + _CB_ALONG * outward - _CB_BESIDE * normal  # of L residues


def _ghosts(planes: Planes, trace: Tensor) -> Tensor:
    """Virtual alpha carbons beyond termini, where there is most room: `(batch, 2 chains, 3)`, nm."""
    n = trace.shape[1]
    found: dict[int, Tensor] = {}
    for p in torch.nonzero(planes.ghost).flatten().tolist():
        start, end = int(planes.start[p]), int(planes.end[p])
        ghost, terminal, step = (start, end, 1) if start >= n else (end, start, -1)
        origin, inner = trace[:, terminal], trace[:, terminal + step]
        beyond = trace[:, terminal + 2 * step] if 0 <= terminal + 2 * step < n else inner + 1.0
        along, second, third = axes_of(origin, inner, beyond - inner)
        angle = torch.tensor(np.radians(_GHOST_ANGLES), dtype=trace.dtype, device=trace.device).repeat_interleave(
            _GHOST_TURNS
        )
        turn = torch.arange(len(angle), device=trace.device) * (2 * np.pi / _GHOST_TURNS)
        direction = (
            torch.cos(angle)[:, None] * along[:, None]
            + (torch.sin(angle) * torch.cos(turn))[:, None] * second[:, None]
            + (torch.sin(angle) * torch.sin(turn))[:, None] * third[:, None]
        )
        place = origin[:, None] + _VIRTUAL_BOND * direction
        others = torch.cat([trace[:, :terminal], trace[:, terminal + 1 :]], dim=1)
        crowd = (0.5 / torch.cdist(place, others).clamp_min(0.1)).pow(6).sum(-1)
        found[ghost] = place[torch.arange(len(place)), crowd.argmin(-1)]
    return torch.stack([found[k] for k in sorted(found)], dim=1)
