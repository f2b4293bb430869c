"""Torsions and basins of alanine dipeptide, and the analysis of replica exchange.

Shared by the replica-exchange references beside it, and by the benchmarks that use these.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

KB = 0.00831446261815324  # kJ/mol/K
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
"""Atoms of phi and psi in the atom order of openmmtools."""

ALDP_BASINS = {
    "C7eq/C5": "phi outside [0, 125) and psi outside [-125, 10)",
    "alpha_R": "phi outside [0, 125) and psi in [-125, 10)",
    "alpha_L/C7ax": "phi in [0, 125)",
}
"""The basins of alanine dipeptide, in degrees with both torsions in [-180, 180).

The bounds are the ridges of the reweighted histogram (ff96, OBC1, 300 K): more than 20 kJ/mol at phi = 0 and 125; at
negative phi 12 kJ/mol at psi = 10 and 11 at psi = -125. The minimum of alpha_R is at psi = -60 in ff96.
"""


def basin_labels(phi: ArrayLike, psi: ArrayLike) -> NDArray[np.int64]:
    """Basin of each frame, as an index into `ALDP_BASINS`.

    Arguments:
        phi: degrees, of any period, `(n,)`.
        psi: the same.

    Returns:
        `(n,)`, each 0, 1 or 2.
    """
    phi = (np.asarray(phi, dtype=np.float64) + 180) % 360 - 180
    psi = (np.asarray(psi, dtype=np.float64) + 180) % 360 - 180
    positive = (phi >= 0) & (phi < 125)
    helical = (psi >= -125) & (psi < 10)
    return np.where(positive, 2, np.where(helical, 1, 0)).astype(np.int64)


def basin_populations(phi: ArrayLike, psi: ArrayLike, weights: ArrayLike | None = None) -> dict[str, float]:
    """Population of each of `ALDP_BASINS`.

    Arguments:
        phi: degrees, `(n,)`.
        psi: the same.
        weights: `(n,)`, need not be normalised; None for equal weights.

    Returns:
        Shares between 0 and 1 that sum to 1, by basin name.
    """
    labels = basin_labels(phi, psi)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = np.bincount(labels, weights=weights, minlength=len(ALDP_BASINS)) / weights.sum()
    return dict(zip(ALDP_BASINS, share.tolist(), strict=True))


def mbar_weights(energy: Array, temperatures: Array, fitted_to: int = 1) -> Array:
    """Weights at the lowest temperature of the frames of all temperatures (MBAR, doi:10.1063/1.2978177).

    Arguments:
        energy: potential energies, `(frames, temperatures)`, kJ/mol.
        temperatures: `(temperatures,)`, K, the target first.
        fitted_to: the free energies of the temperatures are fitted to every so many-th frame.

    Returns:
        Normalised weights, `(frames, temperatures)`.
    """
    reduced = (energy - energy.mean())[..., None] / (KB * temperatures)  # (frames, temperatures, temperatures)
    few, free = reduced[::fitted_to].reshape(-1, len(temperatures)), np.zeros(len(temperatures))
    for _ in range(1000):
        log_terms = -few - _log_sum(free - few, 1)[:, None]
        new = -_log_sum(log_terms, 0)
        new -= new[0]
        change = np.abs(new - free).max()
        free = new
        if change < 1e-9:
            break
    log_weights = -reduced[..., 0] - _log_sum(free - reduced, -1)
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _log_sum(x: Array, axis: int) -> Array:
    peak = x.max(axis=axis, keepdims=True)
    return np.squeeze(peak, axis) + np.log(np.exp(x - peak).sum(axis=axis))


def torsions(x: Array) -> tuple[Array, Array]:
    """Phi and psi of configurations, `(..., 22, 3)`, in degrees, each `(...)`."""
    angles = []
    for atoms in (PHI, PSI):
        i, j, k, m = (x[..., a, :] for a in atoms)
        b1, b2, b3 = j - i, k - j, m - k
        n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
        sine = (b1 * n2).sum(axis=-1) * np.linalg.norm(b2, axis=-1)
        angles.append(np.degrees(np.arctan2(sine, (n1 * n2).sum(axis=-1))))
    return angles[0], angles[1]


def round_trips(replica: NDArray[np.uint8]) -> int:
    """How often a replica went from the lowest temperature to the highest and back; `replica` is `(frames, n)`."""
    trips = 0
    for r in np.unique(replica):
        cold, hot = replica[:, 0] == r, replica[:, -1] == r
        ends = np.where(cold, 1, np.where(hot, 2, 0))
        ends = ends[ends > 0]
        trips += max(0, int(np.count_nonzero(np.diff(ends) == -1)) - (0 if len(ends) and ends[0] == 1 else 1))
    return trips
