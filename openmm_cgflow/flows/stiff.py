"""The unimodal density of stiff variables given their context: a conditional Gaussian under smooth couplings."""

import math

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.networks import MLP

__all__ = ["SinhArcsinhCoupling", "StiffDensity"]

_LOG_2PI = math.log(2 * math.pi)


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

    def __init__(self, mask: Tensor, n_context: int, hidden: int) -> None:
        super().__init__()
        moved, kept = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("back", torch.argsort(torch.cat([kept, moved])), persistent=False)
        self.network = MLP(kept.numel() + n_context, 4 * moved.numel(), hidden)

    def _shape(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shift, scale, skew, tail = self.network(torch.cat([kept, context], dim=1)).chunk(4, dim=1)
        return shift, 1.5 * torch.tanh(scale), torch.tanh(skew), 0.5 * torch.tanh(tail)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], dim=1).index_select(1, self.back)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """`y` and `log |det dy/dx|` of `x (batch, n)`."""
        kept, moved = x.index_select(1, self.kept), x.index_select(1, self.moved)
        shift, log_scale, skew, log_tail = self._shape(kept, context)
        bent = torch.sinh((torch.asinh(moved) + skew) * torch.exp(log_tail))
        y = shift + torch.exp(log_scale) * bent
        log_slope = log_scale + log_tail + 0.5 * (torch.log1p(bent * bent) - torch.log1p(moved * moved))
        return self._join(kept, y), log_slope.sum(1)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """`x` and `log |det dx/dy|` of `y (batch, n)`."""
        kept, moved = y.index_select(1, self.kept), y.index_select(1, self.moved)
        shift, log_scale, skew, log_tail = self._shape(kept, context)
        bent = (moved - shift) * torch.exp(-log_scale)
        x = torch.sinh(torch.asinh(bent) * torch.exp(-log_tail) - skew)
        log_slope = 0.5 * (torch.log1p(x * x) - torch.log1p(bent * bent)) - log_scale - log_tail
        return self._join(kept, x), log_slope.sum(1)


class StiffDensity(nn.Module):
    """`q(f | context)`: `f = reference + scale * (mean + L y)`, `B y = w`, `w` a normal latent under couplings.

    The mean and `B` are networks of the context; `L` is a constant. Both matrices are lower triangular with a positive
    diagonal, so that any leading block of variables has its own density. The whitened variables `w` are near standard
    normal, and are what other densities should be conditioned on.

    Arguments:
        reference: `(n,)` start value of the mean.
        scale: `(n,)` rough thermal width of each variable, which sets the units in which the networks work.
        n_context: width of the context.
        couplings: number of coupling layers.
        hidden: width of their networks.
        rank: number of matrices of which the context mixes `B`.
        seed: of the choice of masks.
    """

    reference: Tensor
    scale: Tensor
    couplings: nn.ModuleList

    def __init__(
        self,
        reference: Tensor,
        scale: Tensor,
        n_context: int,
        couplings: int = 8,
        hidden: int = 128,
        rank: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n = reference.numel()
        self.register_buffer("reference", reference.clone())
        self.register_buffer("scale", scale.clone())
        self.bend = MLP(n_context, self.n, hidden)
        self.linear = nn.Linear(n_context, self.n, bias=False)
        self.linear.weight.data.zero_()
        self.log_diagonal = nn.Parameter(torch.zeros(self.n))
        self.strictly_lower = nn.Parameter(torch.zeros(self.n, self.n))
        self.mixing = MLP(n_context, rank, hidden, bias=0.1 * torch.randn(rank))
        self.mixing.head.weight.data.normal_(std=hidden**-0.5)
        self.mixed = nn.Parameter(torch.zeros(rank, self.n * self.n))
        self.couplings = nn.ModuleList()
        for mask in _masks(self.n, couplings, seed):
            self.couplings.append(SinhArcsinhCoupling(mask, n_context, hidden))

    @property
    def factor(self) -> Tensor:
        """The lower-triangular factor `L (n, n)`, in units of `scale`."""
        return torch.tril(self.strictly_lower, -1) + torch.diag(torch.exp(self.log_diagonal))

    @torch.no_grad()
    def set_factor(self, factor: Tensor) -> None:
        """Set `L` (lower triangular, positive diagonal, in units of `scale`)."""
        self.strictly_lower.copy_(torch.tril(factor, -1))
        self.log_diagonal.copy_(torch.log(torch.diagonal(factor)))

    def nonlinear_parameters(self) -> list[nn.Parameter]:
        """All but the linear term of the mean and `L`."""
        return [*self.bend.parameters(), *self.mixing.parameters(), self.mixed, *self.couplings.parameters()]

    def mean(self, context: Tensor) -> Tensor:
        """The mean `(batch, n)`, from `reference` in units of `scale`: a network plus a linear term."""
        return self.bend(context) + self.linear(context)

    def _bends(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What makes `B`: shares `(batch, rank)` of the matrices, the matrices `(rank, n, n)`, and the log-diagonal."""
        shares = torch.tanh(self.mixing(context))
        matrices = self.mixed.reshape(self.mixed.shape[0], self.n, self.n)
        log_diagonal = shares @ torch.diagonal(matrices, dim1=1, dim2=2)
        return shares, torch.tril(matrices, -1), 2 * torch.tanh(0.5 * log_diagonal)

    def _log_scale(self) -> Tensor:
        return self.log_diagonal.sum() + torch.log(self.scale).sum()

    def whiten(self, f: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The whitened variables `w (batch, n)` of `f (batch, n)`, and `log |det dw/df|`."""
        centred = (f - self.reference) / self.scale - self.mean(context)
        y = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T
        shares, matrices, log_diagonal = self._bends(context)
        # B is never formed here: each matrix is applied to y, which is less work for a small rank.
        mixed = (y @ matrices.flatten(0, 1).T).reshape(y.shape[0], shares.shape[1], self.n)
        w = torch.exp(log_diagonal) * y + torch.bmm(shares.unsqueeze(1), mixed).squeeze(1)
        return w, log_diagonal.sum(1) - self._log_scale()

    def colour(self, w: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `whiten`: `f`, and `log |det df/dw|`."""
        shares, matrices, log_diagonal = self._bends(context)
        bent = (shares @ matrices.flatten(1)).reshape(w.shape[0], self.n, self.n)
        bent = bent + torch.diag_embed(torch.exp(log_diagonal))
        y = torch.linalg.solve_triangular(bent, w.unsqueeze(2), upper=False).squeeze(2) if self.n else w
        f = self.reference + self.scale * (self.mean(context) + y @ self.factor.T)
        return f, self._log_scale() - log_diagonal.sum(1)

    def log_prob(self, f: Tensor, context: Tensor, gaussian: bool = False) -> tuple[Tensor, Tensor]:
        """Log-density `(batch,)` of `f (batch, n)`, and its whitened variables.

        Arguments:
            f: values.
            context: what they are conditioned on.
            gaussian: leave the couplings out, as if they were the identity.
        """
        if gaussian:
            whitened, logdet = self.whiten(f, context)
            return self.log_prob_latent(whitened) + logdet, whitened
        latent, whitened, logdet = self.to_latent(f, context)
        return self.log_prob_latent(latent) + logdet, whitened

    def log_prob_latent(self, latent: Tensor) -> Tensor:
        """Log-density `(batch,)` of the standard normal latent."""
        return -0.5 * (latent * latent).sum(1) - 0.5 * self.n * _LOG_2PI

    def place(self, latent: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values `(batch, n)` of a normal latent, their whitened variables, and their log-density."""
        values, whitened, logdet = self.from_latent(latent, context)
        return values, whitened, self.log_prob_latent(latent) - logdet

    def to_latent(self, f: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normal latent `(batch, n)` of `f`, the whitened variables, and `log |det dlatent/df|`."""
        whitened, logdet = self.whiten(f, context)
        latent, change = self.unbend(whitened, context)
        return latent, whitened, logdet + change

    def unbend(self, whitened: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The couplings alone: the latent `(batch, n)` of whitened variables, and `log |det dlatent/dwhitened|`."""
        latent, logdet = whitened, whitened[:, :0].sum(1)
        for layer in range(len(self.couplings) - 1, -1, -1):
            coupling = self.couplings[layer]
            assert isinstance(coupling, SinhArcsinhCoupling)
            latent, change = coupling.inverse(latent, context)
            logdet = logdet + change
        return latent, logdet

    def from_latent(self, latent: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`f (batch, n)` of a normal latent, its whitened variables, and `log |det df/dlatent|`."""
        logdet = torch.zeros_like(latent[:, 0]) if self.n else latent.sum(1)
        whitened = latent
        for coupling in self.couplings:
            whitened, change = coupling(whitened, context)
            logdet = logdet + change
        f, change = self.colour(whitened, context)
        return f, whitened, logdet + change


def _masks(n: int, layers: int, seed: int) -> list[Tensor]:
    """Random halves, each followed by its complement, so that every pair of layers moves every variable."""
    generator = torch.Generator().manual_seed(seed)
    masks: list[Tensor] = []
    if n < 2:
        return [torch.ones(n, dtype=torch.bool)] * min(layers, n)
    for _ in range((layers + 1) // 2):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.randperm(n, generator=generator)[: n // 2]] = True
        masks += [mask, ~mask]
    return masks[:layers]
