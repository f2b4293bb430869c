"""Toy targets whose normalisation is known: vectors instead of atoms, energies already in units of kT."""

import math

import torch
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.base import Potential

__all__ = ["DoubleWell", "GaussianMixture", "ManyWell"]

_LOG_2PI = math.log(2 * math.pi)


class _VectorPotential(Potential):
    """A potential of vectors `x` (batch, dim).

    Attributes:
        dim: The dimension (the same number as `n_atoms`).
        log_z: log of the integral of exp(-U), in units of kT.
    """

    log_z: float
    recordable = True

    def __init__(self, dim: int, log_z: float) -> None:
        super().__init__(dim)
        self.dim = dim
        self.log_z = log_z

    def energy(self, x: Tensor) -> Tensor:
        """Energies (batch,) of `x` (batch, dim), differentiable any number of times.

        Raises:
            InvalidInputError: `x` has another shape.
        """
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise InvalidInputError(f"x has shape {tuple(x.shape)}, but this target needs (batch, {self.dim})")
        self.count(x.shape[0])
        return self._energy(x)

    def _energy(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def _log_integral_of_quartic(fourth: float, second: float, first: float) -> float:
    """Log of the integral of exp(-(fourth x^4 + second x^2 + first x)) over the line, by the trapezoidal rule.

    For an analytic integrand that vanishes at both ends the rule converges exponentially: this is exact to rounding.
    """
    x = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    return float(torch.logsumexp(-(fourth * x**4 + second * x**2 + first * x), 0)) + math.log(24.0 / 200_000)


class DoubleWell(_VectorPotential):
    """U = x1^4/4 - 3 x1^2 + x1 + x2^2/2 (Stupp and Koutsourelakis, arXiv 2504.20940).

    Example:
        >>> DoubleWell().energy(torch.tensor([[1.0, 2.0]])).item()
        0.25
    """

    def __init__(self) -> None:
        super().__init__(2, _log_integral_of_quartic(0.25, -3.0, 1.0) + 0.5 * _LOG_2PI)

    def _energy(self, x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        return 0.25 * a**4 - 3 * a**2 + a + 0.5 * b**2


class ManyWell(_VectorPotential):
    """Sum over pairs of U = a^4 - 6 a^2 - a/2 + b^2/2 (Midgley et al., FAB): 2^(dim/2) modes.

    log Z of a pair is log 11784.50927 + log(2 pi)/2.

    Raises:
        InvalidInputError: The dimension is odd or not positive.
    """

    def __init__(self, dim: int = 32) -> None:
        if dim <= 0 or dim % 2:
            raise InvalidInputError(f"the dimension of a ManyWell is {dim}; give an even number above 0")
        super().__init__(dim, dim // 2 * (_log_integral_of_quartic(1.0, -6.0, -0.5) + 0.5 * _LOG_2PI))

    def _energy(self, x: Tensor) -> Tensor:
        a, b = x[:, 0::2], x[:, 1::2]
        return (a**4 - 6 * a**2 - 0.5 * a + 0.5 * b**2).sum(1)


class GaussianMixture(_VectorPotential):
    """Minus the log of a normalised mixture of Gaussians; log Z is 0.

    Arguments:
        means: (components, dim).
        scale_tril: (components, dim, dim), Cholesky factors of the covariances.
        weights: (components,), equal if None; normalised here.

    Raises:
        InvalidInputError: Shapes that do not fit.
    """

    means: Tensor
    inverse: Tensor
    log_norm: Tensor

    def __init__(self, means: Tensor, scale_tril: Tensor, weights: Tensor | None = None) -> None:
        k, dim = means.shape
        if scale_tril.shape != (k, dim, dim) or (weights is not None and weights.shape != (k,)):
            raise InvalidInputError(f"means {tuple(means.shape)}, factors {tuple(scale_tril.shape)}: shapes do not fit")
        super().__init__(dim, 0.0)
        weights = torch.ones_like(means[:, 0]) if weights is None else weights
        identity = torch.eye(dim, dtype=means.dtype).expand(k, dim, dim)
        log_det = scale_tril.diagonal(dim1=1, dim2=2).log().sum(1)
        self.register_buffer("means", means)
        self.register_buffer("scale_tril", scale_tril)
        self.register_buffer("inverse", torch.linalg.solve_triangular(scale_tril, identity, upper=False))
        self.register_buffer("log_norm", (weights / weights.sum()).log() - log_det - 0.5 * dim * _LOG_2PI)

    @classmethod
    def paper(cls, seed: int = 0, dim: int = 20, components: int = 3) -> "GaussianMixture":
        """The mixture of arXiv 2504.20940: slow half N(m, 0.1^2), m uniform in [-1, 1]; fast half N(B slow, 0.01 I).

        B has independent standard normal entries; `dim` is even.
        """
        generator = torch.Generator().manual_seed(seed)
        half = dim // 2
        slow = 2 * torch.rand(components, half, generator=generator, dtype=torch.float64) - 1
        b = torch.randn(half, half, generator=generator, dtype=torch.float64)
        identity = torch.eye(half, dtype=torch.float64)
        # x = (m + 0.1 e, B (m + 0.1 e) + 0.1 e'): the factor is block lower triangular.
        factor = torch.cat(
            [torch.cat([0.1 * identity, torch.zeros_like(identity)], 1), torch.cat([0.1 * b, 0.1 * identity], 1)]
        )
        means = torch.cat([slow, slow @ b.T], 1)
        return cls(means.float(), factor.expand(components, -1, -1).float())

    @classmethod
    def forty(cls, seed: int = 0) -> "GaussianMixture":
        """GMM-40 of FAB (Midgley et al., arXiv 2208.01893): 40 modes in the plane, their means in [-40, 40]^2."""
        generator = torch.Generator().manual_seed(seed)
        means = 80 * torch.rand(40, 2, generator=generator) - 40
        scale = math.log1p(math.e)  # softplus(1)
        return cls(means, (scale * torch.eye(2)).expand(40, -1, -1))

    def component_of(self, x: Tensor) -> Tensor:
        """The component `(batch,)` to which each `x (batch, dim)` most likely belongs."""
        return self._terms(x).argmax(1)

    def _terms(self, x: Tensor) -> Tensor:
        apart = x[:, None] - self.means  # in the better precision of the two
        z = torch.einsum("kij,nkj->nki", self.inverse.to(apart), apart)
        return self.log_norm - 0.5 * (z * z).sum(-1)

    def _energy(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self._terms(x), 1)
