"""Planes with energies between them: sequential Monte Carlo along the chain, twisted by what is to come.

Each particle places one plane after the other, fully adapted: the next bin is drawn from all 72, by the chain's
factors, by the pairs with planes that are placed, and by what the chain and a mean field of later planes say of it
(the twist). The mean field is taken out again when its plane is placed, so that the mean of the weights is an unbiased
estimate of the normaliser (Guarniero, Johansen and Lee 2017, doi:10.1080/01621459.2016.1222291).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.proteins.placing.contacts import COARSE, PlanePairs, grouped
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain

__all__ = ["DrawnPlanes", "draw_planes"]

_RESAMPLE_BELOW = 0.5
_ROUNDS = 2


class DrawnPlanes(NamedTuple):
    """What `draw_planes` gives, for each trace."""

    bins: Tensor
    """`(batch, planes)`, one particle, drawn by weight."""
    log_evidence: Tensor
    """`(batch,)`, log of the unbiased estimate of the sum over all bins."""
    ess: Tensor
    """`(batch, planes)`, effective share of the particles when each plane was placed."""


def draw_planes(
    chain: PlaneChain, pairs: PlanePairs, kT: float, particles: int, generator: torch.Generator
) -> DrawnPlanes:
    """Draw the planes of each trace.

    Arguments:
        chain: factors of residues and planes.
        pairs: energies between planes.
        kT: kJ/mol.
        particles: for each trace.
        generator: of everything random.
    """
    log_pairs = -pairs.energy / kT
    twisted, onto_second, onto_first = _twisted(chain, pairs, log_pairs)
    batch, n, bins = chain.unary.shape
    coarse = torch.arange(bins, device=log_pairs.device) * COARSE // bins
    history = torch.zeros(batch, particles, n, dtype=torch.long, device=log_pairs.device)
    log_w = twisted.unary.new_zeros(batch, particles)
    log_evidence = twisted.unary.new_zeros(batch)
    ess = twisted.unary.new_ones(batch, n)
    of_second = grouped(pairs.second, n)
    for p in range(n):
        before = history[:, :, p - 1] if p else None
        logits = twisted.step(p, before).expand(-1, particles, -1)
        gain = -twisted.messages[:, p - 1].gather(1, before) if before is not None else 0.0
        rows = of_second[p]
        if len(rows):
            frame = pairs.frame[rows]
            there = coarse[_bins_of(history, pairs, rows)]
            table = log_pairs[rows].gather(1, there[..., None].expand(-1, -1, COARSE)) - onto_second[rows][:, None]
            seen = logits.new_zeros(batch, particles, COARSE).index_add_(0, frame, table)
            logits = logits + seen[..., coarse]
            taken = onto_first[rows].gather(1, there)
            gain = gain - logits.new_zeros(batch, particles).index_add_(0, frame, taken)
        total = torch.logsumexp(logits, -1)
        log_w = log_w + total + gain
        history[:, :, p] = _drawn(logits, generator)
        share = torch.softmax(log_w, -1)
        ess[:, p] = 1 / share.square().sum(-1) / particles
        poor = (ess[:, p] < _RESAMPLE_BELOW).nonzero().flatten()
        if len(poor) and p < n - 1:
            log_evidence[poor] += torch.logsumexp(log_w[poor], -1) - math.log(particles)
            chosen = _systematic(share[poor], generator)
            history[poor] = history[poor].gather(1, chosen[..., None].expand(-1, -1, n))
            log_w[poor] = 0.0
    log_evidence = log_evidence + torch.logsumexp(log_w, -1) - math.log(particles)
    one = torch.multinomial(torch.softmax(log_w, -1), 1, generator=generator)[:, 0]
    return DrawnPlanes(history[torch.arange(batch), one], log_evidence, ess)


def _bins_of(history: Tensor, pairs: PlanePairs, rows: Tensor) -> Tensor:
    """Bins of the first planes of pairs in every particle, `(rows, particles)`."""
    return history.transpose(1, 2)[pairs.frame[rows], pairs.first[rows]]


def _twisted(chain: PlaneChain, pairs: PlanePairs, log_pairs: Tensor) -> tuple[PlaneChain, Tensor, Tensor]:
    """The chain with a mean field in place of pairs, and the field of each pair on its second and its first plane."""
    batch, n, bins = chain.unary.shape
    fine = bins // COARSE
    current = chain
    onto_second = onto_first = log_pairs.new_zeros(len(log_pairs), COARSE)
    for _ in range(_ROUNDS if len(log_pairs) else 0):
        share = current.marginals().reshape(batch, n, COARSE, fine).sum(-1)
        onto_second = (share[pairs.frame, pairs.first][:, None] @ log_pairs)[:, 0]
        onto_first = (log_pairs @ share[pairs.frame, pairs.second][..., None])[..., 0]
        field = log_pairs.new_zeros(batch * n, COARSE)
        field.index_add_(0, pairs.frame * n + pairs.second, onto_second)
        field.index_add_(0, pairs.frame * n + pairs.first, onto_first)
        unary = chain.unary + field.reshape(batch, n, COARSE).repeat_interleave(fine, -1)
        current = PlaneChain(chain.log_factors, chain.link, unary, chain.factors)
    return current, onto_second, onto_first


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A bin of each row of `(..., bins)`, by inversion."""
    below = torch.softmax(logits, -1).cumsum(-1)
    point = torch.rand(*below.shape[:-1], 1, generator=generator, device=below.device) * below[..., -1:]
    return torch.searchsorted(below, point, right=True)[..., 0].clamp_(max=below.shape[-1] - 1)


def _systematic(share: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling, `(rows, particles)` indices of `share (rows, particles)`."""
    rows, n = share.shape
    points = (torch.arange(n, device=share.device) + torch.rand(rows, 1, generator=generator, device=share.device)) / n
    return torch.searchsorted(share.cumsum(-1).contiguous(), points).clamp(max=n - 1)
