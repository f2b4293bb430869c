"""The closed-form start of the beads' stiff density: a linear mean in harmonics of the torsions, and one covariance."""

from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.flows import StiffDensity

__all__ = ["Ridge", "choose_penalty", "fit_ridge", "set_start"]

_PENALTIES = (2.0, 10.0, 50.0, 200.0, 1000.0)
_SHRINKAGE = 20.0  # frames that stand for a covariance without correlations
_FOLDS = 5


class Ridge(NamedTuple):
    """A Gaussian whose mean is linear in features.

    Attributes:
        intercept: `(n,)`.
        slopes: `(n, n_features)`.
        factor: `(n, n)`, lower triangular: of the covariance of what is left.
    """

    intercept: Tensor
    slopes: Tensor
    factor: Tensor

    def log_prob(self, values: Tensor, features: Tensor) -> Tensor:
        """Log-density `(rows,)` of values `(rows, n)`, without the constant."""
        left = values - self.intercept - features @ self.slopes.T
        y = torch.linalg.solve_triangular(self.factor, left.T, upper=False)
        return -0.5 * (y * y).sum(0) - torch.log(torch.diagonal(self.factor)).sum()


def fit_ridge(values: Tensor, features: Tensor, weights: Tensor, penalty: float) -> Ridge:
    """Ridge regression, and the covariance of its residuals with shrunk correlations.

    Arguments:
        values: `(rows, n)` about unit scale, double precision.
        features: `(rows, n_features)`.
        weights: `(rows,)`, whose sum is the effective number of rows.
        penalty: of the squared slopes, in rows.
    """
    total = weights.sum()
    share = weights / total
    mean_values, mean_features = share @ values, share @ features
    v, c = values - mean_values, features - mean_features
    weighted = weights.unsqueeze(1) * c
    gram = weighted.T @ c + penalty * torch.eye(c.shape[1], dtype=c.dtype)
    slopes = torch.linalg.solve(gram, weighted.T @ v).T
    left = v - c @ slopes.T
    used = torch.linalg.solve(gram, weighted.T @ c).diagonal().sum()  # degrees of freedom that the slopes have taken
    covariance = (share.unsqueeze(1) * left).T @ left * (total / (total - used - 1).clamp(min=0.5 * total))
    kept = total / (total + _SHRINKAGE)
    covariance = kept * covariance + (1 - kept) * torch.diag(covariance.diagonal())
    return Ridge(mean_values - slopes @ mean_features, slopes, torch.linalg.cholesky(covariance))


def choose_penalty(values: Tensor, features: Tensor, weights: Tensor, folds: Tensor) -> float:
    """The penalty under which rows that were left out are likeliest.

    Arguments:
        values: `(rows, n)`.
        features: `(rows, n_features)`.
        weights: `(rows,)`, as for `fit_ridge`.
        folds: `(rows,)` int, which part each row is in.
    """
    scores = []
    for penalty in _PENALTIES:
        score = 0.0
        for fold in folds.unique().tolist():
            out = folds == fold
            ridge = fit_ridge(values[~out], features[~out], weights[~out], penalty)
            score += float(weights[out] @ ridge.log_prob(values[out], features[out]))
        scores.append(score)
    return _PENALTIES[max(range(len(scores)), key=scores.__getitem__)]


@torch.no_grad()
def set_start(density: StiffDensity, ridge: Ridge) -> None:
    """Let a density of `(values - reference) / scale` start as the ridge."""
    density.reference += density.scale * ridge.intercept.to(density.reference)
    density.linear.weight.copy_(ridge.slopes)
    density.set_factor(ridge.factor.to(density.reference))
