"""The chain of planes given the trace: exact samples, normaliser and densities by sums forward and backward.

phi, psi and the angle N-CA-C of a residue are functions of the turns of the planes before and after it and of the trace
alone. So `p(gamma | CA) ~ prod_j f_j(gamma_j-1, gamma_j)` with `f_j = exp(-F(phi, psi) / kT - (theta - theta_0)^2 / 2
sigma^2)`, times what keeps oxygens of neighbours apart: a chain of circles, each a grid of 72 points here, within whose
bins gamma is uniform.
"""

import math
from copy import copy

import torch
from torch import Tensor

from openmm_cgflow.proteins.chain.geometry import place_planes
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.contacts import squared_distances
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.units import KB

__all__ = ["PlaneChain", "grid", "interpolated", "local_factors", "turns_of"]

_BROADER = math.radians(2.5)
"""By which stiff coordinates that planes do not have (bends, twists of omega) broaden N-CA-C, added in squares."""

_TOUCHING = 0.252
"""nm between oxygens of neighbouring planes at which they cost 1 kT, growing with the 12th power: on strained traces,
free energies of phi and psi do not keep them apart."""

_FARTHEST = math.radians(32.0)
"""Of the mean angle N-CA-C; what is beyond has the factor of `_NEVER`."""

_NEVER = -80.0
_ENTRIES = 200_000
_TINY = 1e-30


def grid(like: Tensor, bins: int = BINS) -> Tensor:
    """The middles of the bins, `(bins,)` rad."""
    return (torch.arange(bins, dtype=like.dtype, device=like.device) + 0.5) * (2 * math.pi / bins) - math.pi


def turns_of(bins: Tensor, generator: torch.Generator) -> Tensor:
    """Turns that are uniform within bins, `(batch, planes)` rad."""
    within = torch.rand(bins.shape, generator=generator, device=bins.device) - 0.5
    return grid(within)[bins] + within * (2 * math.pi / BINS)


def local_factors(backbone: Backbone, sequence: ProteinSequence, library: FragmentLibrary, bins: int = BINS) -> Tensor:
    """`log f` of each residue, `(batch, residues, bins, bins)`: by the bins of the planes before and after it."""
    trace = backbone.trace
    batch, n = trace.shape[:2]
    classes = sorted(library.free_energy)
    kT = KB * library.temperature
    energies = torch.stack([library.free_energy[name] for name in classes]).to(trace) / -kT
    angles = torch.stack([library.angle[name] for name in classes]).to(trace)
    of = torch.tensor([classes.index(name) for name in library.classes(sequence)], device=trace.device)
    gamma = grid(trace, bins)
    made = trace.new_empty(batch, n, bins, bins)
    for rows in torch.arange(n).split(max(1, _ENTRIES // (batch * bins**2))):
        before, after = backbone.planes.before[rows], backbone.planes.after[rows]
        kind = of[rows.to(of.device)]
        made[:, rows] = _log_factor(backbone, before, after, gamma, energies, angles[kind], kind)
    return made


def _log_factor(
    backbone: Backbone, before: Tensor, after: Tensor, gamma: Tensor, energies: Tensor, angles: Tensor, kind: Tensor
) -> Tensor:
    ca = backbone.starts[:, after][:, :, None, :]
    c_before, o_before, n, _ = _on_grid(backbone, before, gamma)
    c, o, n_after, _ = _on_grid(backbone, after, gamma)
    to_n, n_to_c = n - ca, c_before - ca
    to_c, c_to_n = c - ca, n_after - ca
    unit_n, unit_c = (torch.nn.functional.normalize(v, dim=-1) for v in (to_n, to_c))
    first, second = _beside(unit_n, n_to_c), _beside(unit_c, c_to_n)
    theta = torch.acos(_dots(unit_n, unit_c).clamp(-0.99999, 0.99999))
    phi = torch.atan2(-_dots(torch.linalg.cross(unit_n, first), to_c), _dots(first, to_c))
    psi = -torch.atan2(_dots(to_n, torch.linalg.cross(unit_c, second)), _dots(to_n, second))
    mean, spread = angles[:, 0][:, None, None], angles[:, 1][:, None, None]
    off = theta - mean
    log_f = interpolated(energies, kind, phi, psi) - 0.5 * off**2 / (spread**2 + _BROADER**2)
    apart = squared_distances(o_before, o).clamp_min_(_TOUCHING**2 / 1.6).reciprocal_().mul_(_TOUCHING**2)
    log_f = log_f - apart.pow(6)
    return torch.where(off.abs() < _FARTHEST, log_f, log_f.clamp(max=_NEVER / 2) - 40 * off.abs()).clamp_min(2 * _NEVER)


def _on_grid(backbone: Backbone, planes: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    """C, O, N and H of planes at every point of the grid, `(batch, planes, bins, 3)` each."""
    start = backbone.starts[:, planes][:, :, None]
    axes = tuple(axis[:, planes][:, :, None] for axis in backbone.axes)
    shape = backbone.shape[:, planes][:, :, None]
    return place_planes(start, axes, shape, gamma.expand(*start.shape[:2], -1)).unbind(-2)  # type: ignore[arg-type]


def _beside(axis: Tensor, vector: Tensor) -> Tensor:
    """The unit vector of what is normal to the axis."""
    return torch.nn.functional.normalize(vector - (vector * axis).sum(-1, keepdim=True) * axis, dim=-1)


def _dots(first: Tensor, second: Tensor) -> Tensor:
    """`(..., 72, 72)` of `(..., 72, 3)` and `(..., 72, 3)`."""
    return first @ second.transpose(-1, -2)


def interpolated(tables: Tensor, kind: Tensor, phi: Tensor, psi: Tensor) -> Tensor:
    """Bilinear between the points of periodic tables.

    Arguments:
        tables: `(classes, 72, 72)`.
        kind: `(residues,)`, the class of each.
        phi: `(batch, residues, ..., ...)` rad.
        psi: the same.
    """
    padded = torch.nn.functional.pad(tables[:, None], (0, 1, 0, 1), mode="circular")[:, None]
    made = torch.empty_like(phi)
    for one in torch.unique(kind).tolist():
        rows = (kind == one).nonzero().flatten()
        points = torch.stack([psi[:, rows], phi[:, rows]], -1) / math.pi  # the last axis of a table first
        flat = points.reshape(1, -1, 1, 2)
        found = torch.nn.functional.grid_sample(padded[one], flat, padding_mode="border", align_corners=True)
        made = made.index_copy(1, rows, found.reshape(points.shape[:-1]))
    return made


class PlaneChain:
    """`p(bins) ~ prod_p exp(unary_p) prod_j f_j(bin_p, bin_p+1)`, for each trace of a batch.

    Arguments:
        log_factors: `(batch, residues, bins, bins)`.
        link: the residue between each plane and the next one; -1 for none.
        unary: `(batch, planes, bins)`, log of a factor of each plane.
        factors: the exponentials of the first, if they are known.
    """

    def __init__(self, log_factors: Tensor, link: list[int], unary: Tensor, factors: Tensor | None = None) -> None:
        self.log_factors, self.link, self.unary = log_factors, link, unary
        self.factors = torch.exp(log_factors) if factors is None else factors
        self.n_planes, self.bins = unary.shape[1:]
        self.messages, self.log_z = self._backward()

    def __getitem__(self, rows: slice | Tensor) -> "PlaneChain":
        """The chains of some traces of the batch."""
        made = copy(self)
        for name in ("log_factors", "unary", "factors", "messages", "log_z"):
            setattr(made, name, getattr(self, name)[rows])
        return made

    def _backward(self) -> tuple[Tensor, Tensor]:
        """What all planes after one say of it, `(batch, planes, bins)`, log, and the log of the sum over all bins."""
        messages = torch.zeros_like(self.unary)
        for p in reversed(range(self.n_planes - 1)):
            coming = self.unary[:, p + 1] + messages[:, p + 1]
            top = coming.amax(-1, keepdim=True)
            weight = torch.exp(coming - top)
            if self.link[p] < 0:
                messages[:, p] = top + weight.sum(-1, keepdim=True).log()
            else:
                total = (self.factors[:, self.link[p]] @ weight[..., None])[..., 0]
                messages[:, p] = top + total.clamp_min(_TINY).log()
        return messages, torch.logsumexp(self.unary[:, 0] + messages[:, 0], -1)

    def marginals(self) -> Tensor:
        """Probability of each bin of each plane, `(batch, planes, bins)`."""
        forward = torch.zeros_like(self.unary)
        for p in range(1, self.n_planes):
            coming = self.unary[:, p - 1] + forward[:, p - 1]
            top = coming.amax(-1, keepdim=True)
            weight = torch.exp(coming - top)
            if self.link[p - 1] < 0:
                forward[:, p] = top + weight.sum(-1, keepdim=True).log()
            else:
                total = (weight[:, None] @ self.factors[:, self.link[p - 1]])[:, 0]
                forward[:, p] = top + total.clamp_min(_TINY).log()
        return torch.softmax(self.unary + forward + self.messages, -1)

    def step(self, p: int, before: Tensor | None) -> Tensor:
        """Log-probabilities of the bins of plane `p` given that of the plane before it, not normalised.

        Arguments:
            p: the plane.
            before: `(batch, particles)`, bins of plane `p - 1`; None for the first one.

        Returns:
            `(batch, particles or 1, bins)`.
        """
        here = (self.unary[:, p] + self.messages[:, p])[:, None]
        if before is None or self.link[p - 1] < 0:
            return here if before is None else here.expand(-1, before.shape[1], -1)
        rows = self.log_factors[:, self.link[p - 1]]
        return here + rows.gather(1, before[..., None].expand(-1, -1, self.bins))

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw for each trace.

        Returns:
            bins `(batch, planes)`, and the log of their probability `(batch,)`.
        """
        bins, log_p, before = [], torch.zeros_like(self.log_z), None
        for p in range(self.n_planes):
            logits = torch.log_softmax(self.step(p, before)[:, 0], -1)
            drawn = torch.multinomial(torch.exp(logits), 1, generator=generator)
            log_p = log_p + logits.gather(1, drawn)[:, 0]
            bins.append(drawn)
            before = drawn
        return torch.cat(bins, 1), log_p

    def log_prob(self, bins: Tensor) -> Tensor:
        """Log of the probability of bins `(batch, planes)`: `(batch,)`."""
        return self.log_weight(bins) - self.log_z

    def log_weight(self, bins: Tensor) -> Tensor:
        """The log of the product of all factors at bins `(batch, planes)`."""
        total = self.unary.gather(2, bins[..., None]).sum((1, 2))
        rows = torch.arange(len(bins))
        for p, residue in enumerate(self.link):
            if residue >= 0:
                total = total + self.log_factors[rows, residue, bins[:, p], bins[:, p + 1]]
        return total
