"""A start that costs almost nothing: a Gaussian of the stiff variables around the minimum at fixed soft ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_cgflow.compute import Parallel
from openmm_cgflow.sampling import BoltzmannTarget

__all__ = ["LaplaceMixture", "curvature_factor", "laplace", "minimise"]

_STEP = 0.5  # of the differences, in thermal widths


@dataclass(frozen=True)
class LaplaceMixture:
    """Gaussians `N(minimum_i, factor_i factor_i^T)` of the stiff coordinates at given values of the soft ones.

    Attributes:
        minima: `(points, dof)` coordinates, the soft ones as given.
        factors: `(points, n_stiff, n_stiff)` lower-triangular factors of the covariances, in coordinate units.
        log_partition: `(points,)` log of the integral over the stiff coordinates, by Laplace's formula.
        stiff: `(n_stiff,)` indices of the stiff coordinates among the `dof`.
    """

    minima: Tensor
    factors: Tensor
    log_partition: Tensor
    stiff: Tensor

    def place(self, chosen: Tensor, noise: Tensor) -> Tensor:
        """Samples `(batch, dof)` of the `chosen (batch,)` Gaussians, made of normal noise `(batch, n_stiff)`."""
        q = self.minima[chosen]
        q[:, self.stiff] += torch.bmm(self.factors[chosen], noise.unsqueeze(2)).squeeze(2)
        return q

    def log_prob(self, q: Tensor, chosen: Tensor) -> Tensor:
        """Log-density `(batch,)` of the stiff coordinates of `q (batch, dof)` under the `chosen (batch,)` Gaussians."""
        deviation = (q - self.minima[chosen])[:, self.stiff].unsqueeze(2)
        factor = self.factors[chosen]
        white = torch.linalg.solve_triangular(factor, deviation, upper=False).squeeze(2)
        return torch.distributions.Normal(0.0, 1.0).log_prob(white).sum(1) - _log_diagonal(factor)


def _log_diagonal(factor: Tensor) -> Tensor:
    return torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)


def curvature_factor(
    target: BoltzmannTarget,
    structure: Tensor,
    stiff: Tensor,
    scale: Tensor,
    parallel: Parallel,
    descents: Sequence[int] = (80, 40, 40),
) -> tuple[Tensor, Tensor]:
    """The minimum next to one structure, and the factor of its inverse curvature, which preconditions everything else.

    Arguments:
        target: gives the action.
        structure: `(1, dof)`, near a minimum: the user's own.
        stiff: `(n_stiff,)` indices of the coordinates to minimise over.
        scale: `(dof,)` rough thermal widths.
        parallel: over which evaluations are spread.
        descents: iterations of each minimisation; the curvature is measured between any two of them, each time in units
            of the one before.

    Returns:
        `(1, dof)` and `(n_stiff, n_stiff)`.
    """
    factor = torch.diag(scale[stiff])
    structure, _ = minimise(target, structure, stiff, factor, parallel, descents[0])
    for iterations in descents[1:]:
        factor = _factors(target, structure, stiff, factor, parallel)[0]
        structure, _ = minimise(target, structure, stiff, factor, parallel, iterations)
    return structure, factor


def laplace(
    target: BoltzmannTarget,
    points: Tensor,
    stiff: Tensor,
    factor: Tensor,
    parallel: Parallel,
    iterations: int = 25,
    measured: int | None = None,
) -> LaplaceMixture:
    """Minimise the action over the stiff coordinates at each point and take its curvature there.

    The curvature is that of central differences over half a thermal width, which averages over the anharmonicity that a
    sample sees, and its eigenvalues are kept within a factor 30 of those of the preconditioner.

    Arguments:
        target: gives the action.
        points: `(points, dof)` start values.
        stiff: `(n_stiff,)` indices of the coordinates to minimise over.
        factor: `(n_stiff, n_stiff)` preconditioner, from `curvature_factor`.
        parallel: over which the evaluations are spread.
        iterations: of the minimisation.
        measured: at how many of the points the curvature is measured: all by default. The others have that of the
            nearest of these; it is that of `factor` everywhere if there are none.
    """
    minima, action = minimise(target, points, stiff, factor, parallel, iterations)
    if measured == 0:
        factors = factor.expand(len(minima), -1, -1)
    else:
        some = minima[:measured]
        factors = _factors(target, some, stiff, factor, parallel)[_nearest(target, minima, some, stiff)]
    constant = 0.5 * stiff.numel() * math.log(2 * math.pi)
    return LaplaceMixture(minima, factors, -action + _log_diagonal(factors) + constant, stiff)


def _nearest(target: BoltzmannTarget, minima: Tensor, some: Tensor, stiff: Tensor) -> Tensor:
    """For each of the minima the index of the nearest of `some`, by all but the stiff coordinates."""
    if len(some) == len(minima):
        return torch.arange(len(minima), device=minima.device)
    others = torch.ones(minima.shape[1], dtype=torch.bool, device=minima.device)
    others[stiff] = False
    period = target.coordinates.period[others].to(minima)
    apart = minima[:, None, others] - some[None, :, others]
    apart = torch.where(period > 0, apart - period * torch.round(apart / period.clamp(min=1e-9)), apart)
    return (apart * apart).sum(2).argmin(1)


def minimise(
    target: BoltzmannTarget, points: Tensor, stiff: Tensor, factor: Tensor, parallel: Parallel, iterations: int
) -> tuple[Tensor, Tensor]:
    """Descend with the preconditioner `factor factor^T`; each point has its own trust radius, and never goes up.

    Returns:
        `(points, dof)` and their actions `(points,)`.
    """
    q = points.clone()
    action, gradient = parallel.map(target.action_and_gradient, q)
    radius = q.new_full((len(q),), 3.0)
    for _ in range(iterations):
        if target.settle():
            parallel.forget()
        downhill = -gradient[:, stiff] @ factor  # in whitened units
        length = downhill.norm(dim=1)
        move = downhill * torch.clamp(radius / length.clamp(min=1e-12), max=1.0).unsqueeze(1)
        trial = q.clone()
        trial[:, stiff] += move @ factor.T
        trial_action, trial_gradient = parallel.map(target.action_and_gradient, trial)
        better = trial_action <= action
        moved = move.norm(dim=1)
        radius = torch.where(better, torch.maximum(radius, 1.5 * moved), 0.3 * torch.minimum(radius, moved))
        q = torch.where(better.unsqueeze(1), trial, q)
        gradient = torch.where(better.unsqueeze(1), trial_gradient, gradient)
        action = torch.where(better, trial_action, action)
    return q, action


def _factors(target: BoltzmannTarget, minima: Tensor, stiff: Tensor, factor: Tensor, parallel: Parallel) -> Tensor:
    """Lower-triangular factors `(points, n, n)` of the inverse curvature, measured along the columns of `factor`."""
    n = stiff.numel()
    if not n:
        return minima.new_zeros(len(minima), 0, 0)
    steps = _STEP * factor.T  # row j: the j-th whitened direction

    def curvature(q: Tensor) -> tuple[Tensor]:
        moves = q.new_zeros(2 * n, q.shape[1])
        moves[:n, stiff], moves[n:, stiff] = steps, -steps
        shifted = (q.unsqueeze(1) + moves).flatten(0, 1)
        gradient = target.action_and_gradient(shifted)[1][:, stiff].reshape(q.shape[0], 2, n, n)
        white = (gradient[:, 0] - gradient[:, 1]) @ factor / (2 * _STEP)
        return (0.5 * (white + white.transpose(1, 2)),)

    hessian = parallel.map(curvature, minima, chunk=max(1, parallel.rows // (2 * n)))[0]
    values, vectors = torch.linalg.eigh(hessian.double())
    inverse = vectors @ torch.diag_embed(1 / values.clamp(1 / 30, 30.0)) @ vectors.transpose(1, 2)
    covariance = factor.double() @ inverse @ factor.double().T
    return torch.linalg.cholesky(covariance).to(minima.dtype)
