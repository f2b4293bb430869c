"""The smooth coupling layer of the stiff densities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.by_hand import Gradients, asinh
from openmm_cgflow.flows.networks import MLP, MLPTape

__all__ = ["CouplingTape", "Inverted", "SinhArcsinhCoupling", "log_slope_of_inverses"]

_LOG_SCALE, _LOG_TAIL = 1.5, 0.5  # how far both can go; the skew goes to 1


class CouplingTape(NamedTuple):
    """What a coupling remembers of a pass.

    Attributes:
        network: the same of its network.
        seen: indices of those inputs of the network by which cotangents are wanted.
        slope: `dy/dx` of the moved variables, `(n_moved, batch)`.
        effect: `dy` of each by the network's outputs but the shift, `(3, n_moved, batch)`.
    """

    network: MLPTape
    seen: Tensor
    slope: Tensor
    effect: Tensor


class Inverted(NamedTuple):
    """What `SinhArcsinhCoupling.inverse` gives.

    Attributes:
        x: `(batch, n)`.
        moved: the moved variables of `x`, `(batch, n_moved)`.
        bent: and before they were bent, `(batch, n_moved)`: `sinh(asinh(bent) / d - e)` is `moved`.
        log_factor: `log a + log d`, `(batch, n_moved)`.
    """

    x: Tensor
    moved: Tensor
    bent: Tensor
    log_factor: Tensor


class SinhArcsinhCoupling(nn.Module):
    """Shift, scale, skew and tails of one half of the variables, as told by the other half and the context.

    `y = m + a sinh((asinh(x) + e) d)` (Jones and Pewsey 2009, doi:10.1093/biomet/asp053), elementwise, with `m, log a,
    e, log d` from a network: smooth to all orders, analytic both ways, the identity at the start.

    Arguments:
        mask: `(n,)` bool, the variables that are transformed.
        n_context: width of the context.
        hidden: width of the network.
    """

    moved: Tensor
    kept: Tensor
    back: Tensor
    width: Tensor

    def __init__(self, mask: Tensor, n_context: int, hidden: int) -> None:
        super().__init__()
        moved, kept = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("back", torch.argsort(torch.cat([kept, moved])), persistent=False)
        width = 2 * torch.tensor([_LOG_SCALE, 1.0, _LOG_TAIL])
        self.register_buffer("width", width.reshape(3, 1, 1), persistent=False)
        self.network = MLP(kept.numel() + n_context, 4 * moved.numel(), hidden)

    def _shape(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = self.moved.numel()
        shift, raw = self.network(torch.cat([kept, context], dim=1)).split([n, 3 * n], dim=1)
        bounds = (0.5 * self.width).flatten().repeat_interleave(n)
        log_scale, skew, log_tail = (torch.tanh(raw) * bounds).split(n, dim=1)
        return shift, log_scale, skew, log_tail

    def _split(self, x: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        return x.index_select(dim, self.kept), x.index_select(dim, self.moved)

    def _join(self, kept: Tensor, moved: Tensor, dim: int = 1) -> Tensor:
        return torch.cat([kept, moved], dim=dim).index_select(dim, self.back)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """`y` and `log |det dy/dx|` of `x (batch, n)`."""
        kept, moved = self._split(x)
        shift, log_scale, skew, log_tail = self._shape(kept, context)
        bent = torch.sinh((torch.asinh(moved) + skew) * torch.exp(log_tail))
        y = shift + torch.exp(log_scale) * bent
        log_slope = log_scale + log_tail + 0.5 * (torch.log1p(bent * bent) - torch.log1p(moved * moved))
        return self._join(kept, y), log_slope.sum(1)

    def inverse(self, y: Tensor, context: Tensor) -> Inverted:
        """`x` of `y (batch, n)`; its log-determinant is that of `log_slope_of_inverses`."""
        kept, moved = self._split(y)
        shift, log_scale, skew, log_tail = self._shape(kept, context)
        bent = (moved - shift) / torch.exp(log_scale)
        x = torch.sinh(torch.asinh(bent) / torch.exp(log_tail) - skew)
        return Inverted(self._join(kept, x), x, bent, log_scale + log_tail)

    def push(
        self, x: Tensor, context: Tensor, score: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, CouplingTape]:
        """`forward` with the score, by hand (see `by_hand`).

        With `u = (asinh(x) + e) d` and `w` what the network gives, `G_moved = (G_moved - dlogdet/dx) / (dy/dx)` first,
        and then, since `x` is `y` for the others, `G_kept -= (dw/dkept)^T (G_moved dy/dw + dlogdet/dw)`, where

            dy/dx = a cosh(u) d / sqrt(1 + x^2)         dlogdet/dx = (tanh(u) d - x / sqrt(1 + x^2)) / sqrt(1 + x^2)
            dy/dm = 1                                   dlogdet/dm = 0
            dy/dlog a = a sinh(u)                       dlogdet/dlog a = 1
            dy/de = a cosh(u) d                         dlogdet/de = tanh(u) d
            dy/dlog d = a cosh(u) u                     dlogdet/dlog d = 1 + tanh(u) u

        Arguments:
            x: `(n, batch)`.
            context: `(n_context, batch)`.
            score: `(n, batch)`, of `x`.
            rows: indices of those rows of the context by which the score is wanted.

        Returns:
            `y`, `log |det dy/dx|`, the score of `y`, what is to be added to that by the context, `(rows, batch)`, and
            the tape.
        """
        (kept, moved), (score_kept, score) = self._split(x, 0), self._split(score, 0)
        split = kept.shape[0]
        seen = torch.cat([torch.arange(split, device=rows.device), rows + split])
        raw, network = self.network.push(torch.cat([kept, context]))
        shift, *_ = raw = raw.unflatten(0, (4, moved.shape[0]))
        gate, one = torch.sigmoid(2 * raw[1:]), raw.new_ones(())  # tanh(w) = 2 sigmoid(2 w) - 1, but for a digit of 1
        log_scale, skew, log_tail = ((gate - 0.5) * self.width).unbind()
        scale, tail = torch.exp(log_scale), torch.exp(log_tail)
        square = moved * moved
        root = torch.sqrt(square + 1)
        u = (asinh(moved, square, root) + skew) * tail
        up = torch.exp(u)
        down = up.reciprocal()
        sinh, cosh, half = up - down, up.add_(down), 0.5 * scale  # twice these, and half that
        lean, bent, rise = sinh / cosh, half * sinh, half * cosh
        lean_tail, rise_tail = lean * tail, rise * tail
        slope = rise_tail / root
        score = (score - (lean_tail - moved / root) / root) / slope
        inner = torch.addcmul(gate, gate, gate, value=-1).mul_(2 * self.width)  # by what is within the tanh
        effect = torch.stack([bent, rise_tail, rise * u]).mul_(inner)
        inner[1].mul_(lean_tail)
        inner[2].mul_(torch.addcmul(one, lean, u))
        towards = torch.cat([score, torch.addcmul(inner, effect, score).flatten(0, 1)])
        change = self.network.pull(network, towards, seen)
        return (
            self._join(kept, shift + bent, 0),
            torch.log(slope).sum(0),
            self._join(score_kept - change[:split], score, 0),
            change[split:].neg_(),
            CouplingTape(network, seen, slope, effect),
        )

    def pull(self, tape: CouplingTape, cotangent: Tensor) -> tuple[Tensor, Tensor, Gradients]:
        """The cotangents of `x` and of some rows of the context for that of `y`, and the parameters' gradients."""
        kept, moved = self._split(cotangent, 0)
        towards = torch.cat([moved, (tape.effect * moved).flatten(0, 1)])
        change, gradients = self.network.gradients(tape.network, towards, tape.seen)
        split = kept.shape[0]
        return self._join(kept + change[:split], moved * tape.slope, 0), change[split:], gradients


def log_slope_of_inverses(inverses: Sequence[Inverted]) -> Tensor:
    """`log |det dx/dy|` `(batch,)` of inverses one after another: of all at once, in few operations."""
    _, moved, bent, log_factor = (torch.cat(parts, dim=1) for parts in zip(*inverses, strict=True))
    return (0.5 * (torch.log1p(moved * moved) - torch.log1p(bent * bent)) - log_factor).sum(1)
