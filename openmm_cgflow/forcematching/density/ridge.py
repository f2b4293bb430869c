"""The closed-form start of the beads' stiff density: a linear mean in harmonics of the torsions, and one covariance."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.flows import StiffDensity
from openmm_cgflow.forcematching.density.slots import beads_of_coordinates

__all__ = ["Penalty", "Ridge", "choose_penalty", "fit_ridge", "near_torsions", "set_start"]

_PENALTIES = (2.0, 10.0, 50.0, 200.0, 1000.0)
_SHRINKAGES = (20.0, 100.0, 500.0, 2500.0)


@dataclass(frozen=True)
class Penalty:
    """How far a ridge is held back, both in rows.

    Attributes:
        slopes: of the squared slopes.
        shrinkage: rows that stand for a covariance without correlations.
    """

    slopes: float = 100.0
    shrinkage: float = 20.0


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

    def left(self, values: Tensor, features: Tensor) -> Tensor:
        """What the mean does not say of values `(rows, n)`."""
        return values - self.intercept - features @ self.slopes.T

    def log_prob(self, values: Tensor, features: Tensor) -> Tensor:
        """Log-density `(rows,)` of values `(rows, n)`, without the constant."""
        y = torch.linalg.solve_triangular(self.factor, self.left(values, features).T, upper=False)
        return -0.5 * (y * y).sum(0) - torch.log(torch.diagonal(self.factor)).sum()


def near_torsions(coordinates: InternalCoordinates) -> Tensor:
    """Which torsions each stiff coordinate depends on at first: those that share a bead with it, `(n_stiff, n_slow)`.

    Arguments:
        coordinates: of the beads alone.
    """
    n_slow, beads = coordinates.sizes[0], [set(own) for own in beads_of_coordinates(coordinates)]
    return torch.tensor([[bool(own & torsion) for torsion in beads[:n_slow]] for own in beads[n_slow:]]).reshape(
        len(beads) - n_slow, n_slow
    )


def fit_ridge(values: Tensor, features: Tensor, weights: Tensor, penalty: Penalty, near: Tensor | None = None) -> Ridge:
    """Ridge regression, and the covariance of its residuals with shrunk correlations.

    Arguments:
        values: `(rows, n)` about unit scale, double precision.
        features: `(rows, n_features)`.
        weights: `(rows,)`, whose sum is the effective number of rows.
        penalty: how far it is held back.
        near: `(n, n_features)` bool, the slopes that may differ from 0; all by default.
    """
    total = weights.sum()
    share = weights / total
    mean_values, mean_features = share @ values, share @ features
    v, c = values - mean_values, features - mean_features
    weighted = weights.unsqueeze(1) * c
    gram, towards = weighted.T @ c, weighted.T @ v
    near = torch.ones(v.shape[1], c.shape[1], dtype=torch.bool) if near is None else near
    slopes, used = torch.zeros(near.shape, dtype=v.dtype), torch.zeros(len(near), dtype=v.dtype)
    for pattern in near.unique(dim=0):
        mine, seen = torch.nonzero((near == pattern).all(1)).flatten(), torch.nonzero(pattern).flatten()
        inner = gram[seen][:, seen]
        held = inner + penalty.slopes * torch.eye(len(seen), dtype=v.dtype)
        slopes[mine[:, None], seen] = torch.linalg.solve(held, towards[seen][:, mine]).T
        used[mine] = torch.linalg.solve(held, inner).diagonal().sum()  # degrees of freedom that the slopes have taken
    left = v - c @ slopes.T
    grown = torch.sqrt(total / (total - used - 1).clamp(min=0.5 * total))
    covariance = (share.unsqueeze(1) * left).T @ left * torch.outer(grown, grown)
    kept = total / (total + penalty.shrinkage)
    covariance = kept * covariance + (1 - kept) * torch.diag(covariance.diagonal())
    return Ridge(mean_values - slopes @ mean_features, slopes, torch.linalg.cholesky(covariance))


def choose_penalty(
    values: Tensor, features: Tensor, weights: Tensor, folds: Tensor, near: Tensor | None = None
) -> Penalty:
    """The penalty under which rows that were left out are likeliest: first that of the slopes, then the shrinkage.

    Arguments:
        values: `(rows, n)`.
        features: `(rows, n_features)`.
        weights: `(rows,)`, as for `fit_ridge`.
        folds: `(rows,)` int, which part each row is in.
        near: as for `fit_ridge`.
    """

    def score(penalty: Penalty) -> float:
        total = 0.0
        for fold in folds.unique().tolist():
            out = folds == fold
            ridge = fit_ridge(values[~out], features[~out], weights[~out], penalty, near)
            total += float(weights[out] @ ridge.log_prob(values[out], features[out]))
        return total

    best = max((Penalty(slopes) for slopes in _PENALTIES), key=score)
    return max((Penalty(best.slopes, shrinkage) for shrinkage in _SHRINKAGES), key=score)


@torch.no_grad()
def set_start(density: StiffDensity, ridge: Ridge) -> None:
    """Let a density of `(values - reference) / scale` start as the ridge."""
    density.reference += density.scale * ridge.intercept.to(density.reference)
    density.linear.weight.copy_(ridge.slopes)
    density.set_factor(ridge.factor.to(density.reference))
