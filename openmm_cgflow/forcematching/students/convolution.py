"""The convolution of SchNet: what neighbours give to a bead, through filters that depend on the distance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["FilterConvolution", "Pairs", "shifted_softplus"]


def shifted_softplus(x: Tensor) -> Tensor:
    """`log(0.5 exp(x) + 0.5)`, the activation of SchNet."""
    return nn.functional.softplus(x) - math.log(2.0)


class Pairs(NamedTuple):
    """Every pair of beads, once.

    Attributes:
        first, second: `(pairs,)`, the beads.
        distances: `(n, pairs)`, nm.
    """

    first: Tensor
    second: Tensor
    distances: Tensor


class FilterConvolution(nn.Module):
    """`y_i = sum_j x_j * filter(|r_i - r_j|)` over neighbours within a cutoff, feature by feature.

    The filter is `(W2 ssp(W1 g + b1) + b2) (1 + cos(pi r / cutoff)) / 2`, with `g` Gaussians of the distance whose
    centres go from 0 to the cutoff in equal steps, and whose standard deviation is a step. It and its slope are zero at
    the cutoff. This is what NNPOps calls `CFConv` with the activation "ssp".

    With the few beads of a molecule nearly all pairs are within the cutoff, so that all are computed, without a list
    of neighbours.

    Arguments:
        width: number of features.
        gaussians: how many, two at least.
        cutoff: nm.

    Source: Schütt et al. 2017 (arXiv 1706.08566); the cosine is Behler's.

    Example:
        >>> convolution = FilterConvolution(width=4, gaussians=8, cutoff=1.0)
        >>> pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5], [1.0]]).double())
        >>> y = convolution(torch.ones(2, 2, 4).double(), pairs).detach()
        >>> y.shape, float(y[1].abs().max())  # nothing comes from beyond the cutoff
        (torch.Size([2, 2, 4]), 0.0)
    """

    centres: Tensor

    def __init__(self, width: int, gaussians: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.step = cutoff, cutoff / (gaussians - 1)
        self.first = nn.Linear(gaussians, width, dtype=torch.float64)
        self.second = nn.Linear(width, width, dtype=torch.float64)
        centres = self.step * torch.arange(gaussians, dtype=torch.float64)
        self.register_buffer("centres", centres, persistent=False)

    def filters(self, distances: Tensor) -> Tensor:
        """The filter `(n, pairs, width)` of distances `(n, pairs)`, nm."""
        away = (distances.unsqueeze(2) - self.centres) / self.step
        made = self.second(shifted_softplus(self.first(torch.exp(-0.5 * away * away))))
        fade = 0.5 + 0.5 * torch.cos((math.pi / self.cutoff) * distances.clamp(max=self.cutoff))
        return made * fade.unsqueeze(2)

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """What each bead gets, `(n, beads, width)`, of features `x` of the same shape."""
        filters = self.filters(pairs.distances)
        given = torch.zeros_like(x)
        given = given.index_add(1, pairs.first, filters * x.index_select(1, pairs.second))
        return given.index_add(1, pairs.second, filters * x.index_select(1, pairs.first))
