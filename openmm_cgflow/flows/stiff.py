"""The unimodal density of stiff variables given their context: a conditional Gaussian under smooth couplings."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.by_hand import Gradients, tanh
from openmm_cgflow.flows.coupling import CouplingTape, SinhArcsinhCoupling, log_slope_of_inverses
from openmm_cgflow.flows.factor import Decoded, Encoded, Factor
from openmm_cgflow.flows.networks import MLP, MLPTape

__all__ = ["Pushed", "StiffDensity", "StiffTape"]

_LOG_2PI = math.log(2 * math.pi)


class StiffTape(NamedTuple):
    """What `StiffDensity` remembers of a pass.

    Attributes:
        context: `(n_context, batch)`.
        rows: indices of those rows of the context by which scores and cotangents are wanted.
        couplings: tapes of the couplings.
        bend, mixing: tapes of the networks.
        shares: `(batch, rank)` of the matrices in `B`.
        matrices, diagonals: these, `(rank, n, n)` strictly lower triangular, and `(rank, n)`.
        factor: `L (n, n)`.
        mixed: `B (batch, n, n)`.
        log_diagonal: of `B`, `(batch, n)`.
        y: `(batch, n)`, with `B y = w`.
        applied: each of the matrices applied to `y`, `(batch, rank, n)`.
    """

    context: Tensor
    rows: Tensor
    couplings: list[CouplingTape]
    bend: MLPTape
    mixing: MLPTape
    shares: Tensor
    matrices: Tensor
    diagonals: Tensor
    factor: Tensor
    mixed: Tensor
    log_diagonal: Tensor
    y: Tensor
    applied: Tensor


class Pushed(NamedTuple):
    """What `StiffDensity.push` makes of a latent.

    Attributes:
        values: `(batch, n)`.
        whitened: the same, whitened.
        log_prob: log-density `(batch,)` of the values.
        score: gradient `(n, batch)` of the log-density of the whitened variables with respect to them.
        context_score: and with respect to rows of the context, `(rows, batch)`.
        tape: of the pass.
    """

    values: Tensor
    whitened: Tensor
    log_prob: Tensor
    score: Tensor
    context_score: Tensor
    tape: StiffTape


class StiffDensity(Factor):
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
        self.n = self.n_noise = self.n_features = reference.numel()
        self.gaussian = False  # whether the couplings are left out
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

    @torch.no_grad()
    def reset_couplings(self) -> None:
        """Make the couplings the identity, as they are at the start."""
        for coupling in self.couplings:
            assert isinstance(coupling, SinhArcsinhCoupling)
            coupling.network.head.weight.zero_()
            coupling.network.head.bias.zero_()

    def nonlinear_parameters(self) -> list[nn.Parameter]:
        """All but the linear term of the mean and `L`."""
        return [*self.bend.parameters(), *self.mixing.parameters(), self.mixed, *self.couplings.parameters()]

    def mean(self, context: Tensor) -> Tensor:
        """The mean `(batch, n)`, from `reference` in units of `scale`: a network plus a linear term."""
        return self.bend(context) + self.linear(context)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """What `B` is mixed of: strictly lower triangular matrices `(rank, n, n)`, and diagonals `(rank, n)`."""
        matrices = self.mixed.reshape(self.mixed.shape[0], self.n, self.n)
        return torch.tril(matrices, -1), torch.diagonal(matrices, dim1=1, dim2=2)

    def _bends(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What makes `B`: shares `(batch, rank)` of the matrices, the matrices `(rank, n, n)`, and the log-diagonal."""
        shares = torch.tanh(self.mixing(context))
        matrices, diagonals = self._matrices()
        return shares, matrices, 2 * torch.tanh(0.5 * (shares @ diagonals))

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
        torch.diagonal(bent, dim1=1, dim2=2).copy_(torch.exp(log_diagonal))
        y = torch.linalg.solve_triangular(bent, w.unsqueeze(2), upper=False).squeeze(2) if self.n else w
        f = self.reference + self.scale * (self.mean(context) + y @ self.factor.T)
        return f, self._log_scale() - log_diagonal.sum(1)

    def encode(self, value: Tensor, context: Tensor) -> Encoded:
        """Log-density of `value (batch, n)`; what others see of it are its whitened variables."""
        whitened, logdet = self.whiten(value, context)
        if self.gaussian:
            return Encoded(self.log_prob_latent(whitened) + logdet, whitened)
        latent, change = self.unbend(whitened, context)
        return Encoded(self.log_prob_latent(latent) + logdet + change, whitened)

    def features(self, value: Tensor, context: Tensor) -> Tensor:
        """The whitened variables `(batch, n)`."""
        return self.whiten(value, context)[0]

    def decode(self, noise: Tensor, context: Tensor) -> Decoded:
        """Values `(batch, n)` of a standard normal latent."""
        whitened, logdet = noise, noise[:, :0].sum(1)
        for coupling in () if self.gaussian else self.couplings:
            whitened, change = coupling(whitened, context)
            logdet = logdet + change
        value, change = self.colour(whitened, context)
        return Decoded(value, self.log_prob_latent(noise) - logdet - change, whitened)

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """A standard normal latent `(batch, n)`."""
        return torch.randn(batch, self.n, generator=generator, dtype=self.reference.dtype, device="cpu")

    def log_prob_latent(self, latent: Tensor) -> Tensor:
        """Log-density `(batch,)` of the standard normal latent."""
        return -0.5 * (latent * latent).sum(1) - 0.5 * self.n * _LOG_2PI

    def unbend(self, whitened: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The couplings alone: the latent `(batch, n)` of whitened variables, and `log |det dlatent/dwhitened|`."""
        latent, inverses = whitened, []
        for layer in range(len(self.couplings) - 1, -1, -1):
            coupling = self.couplings[layer]
            assert isinstance(coupling, SinhArcsinhCoupling)
            inverses.append(coupling.inverse(latent, context))
            latent = inverses[-1].x
        return latent, log_slope_of_inverses(inverses) if inverses else whitened[:, :0].sum(1)

    def push(self, latent: Tensor, context: Tensor, columns: Tensor) -> Pushed:
        """`decode` with the score of the whitened variables, by hand (see `by_hand`); the rest is `colour_score`.

        Arguments:
            latent: `(batch, n)` standard normal.
            context: what the values are conditioned on, `(batch, n_context)`.
            columns: indices of those columns of the context by which scores and cotangents are wanted.
        """
        assert not self.gaussian
        log_prob, seen = self.log_prob_latent(latent), context.T.contiguous()
        x = latent.T.contiguous()
        score, context_score = -x, seen.index_select(0, columns).zero_()
        tapes = []
        for coupling in self.couplings:
            assert isinstance(coupling, SinhArcsinhCoupling)
            x, logdet, score, change, tape = coupling.push(x, seen, score, columns)
            log_prob, context_score = log_prob - logdet, context_score + change
            tapes.append(tape)
        raw, mixing = self.mixing.push(seen)
        shares, (matrices, diagonals) = tanh(raw.T), self._matrices()
        log_diagonal = 2 * tanh(0.5 * (shares @ diagonals))
        mixed = (shares @ matrices.flatten(1)).unflatten(1, (self.n, self.n))
        torch.diagonal(mixed, dim1=1, dim2=2).copy_(torch.exp(log_diagonal))
        whitened = x.T.contiguous()
        y = torch.linalg.solve_triangular(mixed, whitened.unsqueeze(2), upper=False).squeeze(2) if self.n else whitened
        applied = (y @ matrices.flatten(0, 1).T).unflatten(1, (shares.shape[1], self.n))
        bent, bend = self.bend.push(seen)
        factor = self.factor
        mean = bent.T + context @ self.linear.weight.T
        values = self.reference + self.scale * torch.addmm(mean, y, factor.T)
        log_prob = log_prob + log_diagonal.sum(1) - self._log_scale()
        memory = StiffTape(
            seen, columns, tapes, bend, mixing, shares, matrices, diagonals, factor, mixed, log_diagonal, y, applied
        )
        return Pushed(values, whitened, log_prob, score, context_score, memory)

    def colour_score(self, tape: StiffTape, score: Tensor) -> tuple[Tensor, Tensor]:
        """The score of the values for that of their whitened variables.

        With `f = reference + scale * v`, `v = mean + L y` and `B y = w`: `G_y = B^T G_w`, `G_v = L^-T G_y`, and by the
        context `H -= (dmean/dc)^T G_v`, `H += (dB/dc)^T : (G_w y^T) + dlogdet B/dc`.

        Arguments:
            tape: from `push`.
            score: of the whitened variables, `(n, batch)`.

        Returns:
            the score of the values `(batch, n)`, and what is to be added to that by the context, `(rows, batch)`.
        """
        score = score.T.contiguous()
        score_y = torch.bmm(score.unsqueeze(1), tape.mixed).squeeze(1)
        score_v = torch.linalg.solve_triangular(tape.factor, score_y, upper=False, left=False) if self.n else score_y
        if not tape.rows.numel():
            return score_v / self.scale, tape.context[:0]
        towards = self._to_mixing(tape, score, 1 + score * tape.y * torch.exp(tape.log_diagonal))
        change = self.mixing.pull(tape.mixing, towards, tape.rows)
        change = change - self.bend.pull(tape.bend, score_v.T, tape.rows)
        change = change - self.linear.weight.index_select(1, tape.rows).T @ score_v.T
        return score_v / self.scale, change

    def pull(self, tape: StiffTape, values: Tensor, whitened: Tensor | None = None) -> tuple[Tensor, Gradients]:
        """The way back from cotangents `(batch, n)` of the values, and of the whitened variables.

        With `g_v = scale * g_f`: `g_y = L^T g_v` and `g_w += B^-T g_y`; the matrices get `-shares g_w y^T` of each row,
        which is of rank one, so that no gradient `(batch, n, n)` is made.

        Returns:
            the cotangent of the context's columns, `(batch, columns)`, and the gradients of all parameters.
        """
        towards = values * self.scale
        change, gradients = self.bend.gradients(tape.bend, towards.T, tape.rows)
        change = change + self.linear.weight.index_select(1, tape.rows).T @ towards.T
        gradients[self.linear.weight] = towards.T @ tape.context.T
        by_factor = torch.tril(towards.T @ tape.y)
        gradients[self.log_diagonal] = torch.diagonal(by_factor) * torch.diagonal(tape.factor)
        gradients[self.strictly_lower] = torch.tril(by_factor, -1)
        towards = towards @ tape.factor
        if self.n:
            towards = torch.linalg.solve_triangular(tape.mixed, towards.unsqueeze(1), upper=False, left=False)
            towards = towards.squeeze(1)
        by_diagonal = -towards * tape.y * torch.exp(tape.log_diagonal)
        outer = (tape.shares.unsqueeze(2) * -towards.unsqueeze(1)).flatten(1)
        mixed = torch.tril((outer.T @ tape.y).reshape(tape.matrices.shape), -1)
        torch.diagonal(mixed, dim1=1, dim2=2).copy_(tape.shares.T @ self._inside(tape, by_diagonal))
        gradients[self.mixed] = mixed.flatten(1)
        seen, found = self.mixing.gradients(tape.mixing, self._to_mixing(tape, -towards, by_diagonal), tape.rows)
        change, gradients = change + seen, gradients | found
        cotangent = (towards if whitened is None else whitened + towards).T.contiguous()
        for coupling, memory in zip(reversed(self.couplings), reversed(tape.couplings), strict=True):
            assert isinstance(coupling, SinhArcsinhCoupling)
            cotangent, seen, found = coupling.pull(memory, cotangent)
            change, gradients = change + seen, gradients | found
        return change.T, gradients

    def _to_mixing(self, tape: StiffTape, left: Tensor, by_diagonal: Tensor) -> Tensor:
        """The cotangent `(rank, batch)` of the mixing network for `left y^T` of `B`, and one of its log-diagonal."""
        towards = torch.bmm(tape.applied, left.unsqueeze(2)).squeeze(2)
        towards = towards + self._inside(tape, by_diagonal) @ tape.diagonals.T
        return (towards * (1 - tape.shares * tape.shares)).T.contiguous()

    @staticmethod
    def _inside(tape: StiffTape, by_diagonal: Tensor) -> Tensor:
        """The cotangent of what the bounded log-diagonal is made of."""
        return by_diagonal * (1 - 0.25 * tape.log_diagonal * tape.log_diagonal)


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
