"""Free energies and densities of weighted samples on circles, by histograms and by circular kernels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.units import KB, read_only

__all__ = [
    "KNOWN",
    "Array",
    "FreeEnergy1D",
    "FreeEnergy2D",
    "effective_size",
    "free_energy_1d",
    "free_energy_2d",
    "normalised",
    "weighted_histogram",
    "wrap",
]

Array = NDArray[np.float64]

KNOWN = 0.5
"""Least smoothed number of samples that a free energy is given for."""

MODE_WIDTH = 0.45
"""A typical standard deviation of a torsion inside one basin, rad: the scale of the kernel width."""

WIDEST = 0.17
"""Widest kernel that is chosen, rad: few samples shall look like few samples."""


@dataclass(frozen=True)
class FreeEnergy1D:
    """A free energy along one angle, on bins that cover the circle."""

    grid: Array
    """Bin centres in [-pi, pi), `(bins,)`, rad."""
    values: Array
    """Free energy, `(bins,)`, kJ/mol; its minimum is 0, empty bins are infinite."""
    errors: Array
    """Standard error of each value, `(bins,)`, kJ/mol; NaN in empty bins."""


@dataclass(frozen=True)
class FreeEnergy2D:
    """A free energy over two angles, on a square grid that covers the torus."""

    grid: Array
    """Grid points along either axis in [-pi, pi), `(bins,)`, rad."""
    density: Array
    """Smoothed density, `(bins, bins)`, rad^-2; first axis is the first angle. Its mean is 1 / (2 pi)^2."""
    visits: Array
    """Smoothed number of samples, weights aside, `(bins, bins)`; 1 at a sample with no other near."""
    width: float
    """Standard deviation of the kernel, rad."""
    temperature: float
    """K."""

    @cached_property
    def smooth(self) -> Array:
        """Free energy, `(bins, bins)`, kJ/mol, read-only, with the kernel's tails; its minimum is 0."""
        with np.errstate(divide="ignore"):
            return read_only(-KB * self.temperature * np.log(self.density / self.density.max()))

    @cached_property
    def values(self) -> Array:
        """Free energy, `(bins, bins)`, kJ/mol, read-only; infinite where less than half a sample is near."""
        return read_only(np.where(self.visits > KNOWN, self.smooth, np.inf))


def wrap(angles: ArrayLike) -> Array:
    """Bring angles into [-pi, pi).

    Arguments:
        angles: any shape, rad.

    Returns:
        The same shape, rad.
    """
    wrapped = (np.asarray(angles, dtype=np.float64) + np.pi) % (2 * np.pi) - np.pi
    return np.where(wrapped >= np.pi, -np.pi, wrapped)  # -1e-17 % 2 pi rounds up to 2 pi


def normalised(weights: ArrayLike | None, n: int) -> Array:
    """Weights that sum to one.

    Arguments:
        weights: `(n,)`, non-negative, or None for equal weights.
        n: number of samples.

    Returns:
        `(n,)` weights.

    Raises:
        InvalidInputError: no samples, another number of weights, negative or not finite weights, or all of them zero.
    """
    if n == 0:
        raise InvalidInputError("there are no samples: draw at least one")
    if weights is None:
        return np.full(n, 1.0 / n)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise InvalidInputError(f"weights have shape {w.shape}, but there are {n} samples: give one weight a sample")
    if not np.all(np.isfinite(w)) or np.any(w < 0) or w.sum() <= 0:
        raise InvalidInputError("weights must be finite, not negative and not all zero")
    return w / w.sum()


def effective_size(weights: ArrayLike) -> float:
    """Kish's effective number of samples, `(sum w)^2 / sum w^2`.

    Arguments:
        weights: `(n,)`, non-negative.

    Returns:
        A number between 1 and n.
    """
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / np.sum(w**2))


def weighted_histogram(values: ArrayLike, edges: ArrayLike, weights: ArrayLike | None = None) -> tuple[Array, Array]:
    """Density of weighted samples in bins, and its standard error.

    The share of a bin is `p = sum w_i 1_i` with normalised weights; its variance is that of a self-normalised
    importance sampling mean, `sum w_i^2 (1_i - p)^2` (Owen, Monte Carlo theory, eq. 9.9).

    Arguments:
        values: `(n,)`; those outside the edges count in the normalisation only.
        edges: `(bins + 1,)`, increasing.
        weights: `(n,)`, or None for equal weights.

    Returns:
        Density and standard error, `(bins,)` each, in 1 / (unit of the values).

    Raises:
        InvalidInputError: as `normalised`.
    """
    x, e = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    w = normalised(weights, len(x))
    share, _ = np.histogram(x, e, weights=w)
    squares, _ = np.histogram(x, e, weights=w**2)
    variance = squares * (1 - share) ** 2 + (np.sum(w**2) - squares) * share**2
    return share / np.diff(e), np.sqrt(np.maximum(variance, 0)) / np.diff(e)


def free_energy_1d(
    angles: ArrayLike, temperature: float, weights: ArrayLike | None = None, bins: int = 72
) -> FreeEnergy1D:
    """Free energy `-kT log p` along one angle, by a histogram on the circle.

    Arguments:
        angles: `(n,)`, rad; any multiple of 2 pi may be added.
        temperature: K.
        weights: `(n,)`, or None for equal weights.
        bins: number of bins.

    Returns:
        The free energy with the standard error of each bin (first order in the error of the bin's share).

    Raises:
        InvalidInputError: angles that are not finite, and as `normalised`.
    """
    x = _finite(angles)
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    density, error = weighted_histogram(wrap(x), edges, weights)
    kT = KB * temperature
    with np.errstate(divide="ignore", invalid="ignore"):
        values = -kT * np.log(density / density.max())
        errors = np.where(density > 0, kT * error / density, np.nan)
    return FreeEnergy1D(grid=(edges[:-1] + edges[1:]) / 2, values=values, errors=errors)


def free_energy_2d(
    first: ArrayLike,
    second: ArrayLike,
    temperature: float,
    weights: ArrayLike | None = None,
    bins: int = 120,
    width: float | None = None,
) -> FreeEnergy2D:
    """Free energy `-kT log p` over two angles, by a kernel density estimate on the torus.

    The kernel is a wrapped Gaussian, applied to a histogram by Fourier transform.

    Arguments:
        first: `(n,)`, rad.
        second: `(n,)`, rad.
        temperature: K.
        weights: `(n,)`, or None for equal weights.
        bins: grid points along each axis.
        width: standard deviation of the kernel, rad; None takes 0.45 n_eff^(-1/6) (Scott's rule for one
            basin), at most 0.17.

    Returns:
        The free energy and what it rests on.

    Raises:
        InvalidInputError: angles that are not finite or not of one length, and as `normalised`.
    """
    x, y = _finite(first), _finite(second)
    if x.shape != y.shape:
        raise InvalidInputError(f"the two angles have {x.shape} and {y.shape} values: give pairs")
    w = normalised(weights, len(x))
    sigma = min(WIDEST, MODE_WIDTH * effective_size(w) ** (-1 / 6)) if width is None else float(width)
    i, j = (np.rint((wrap(a) + np.pi) / (2 * np.pi) * bins).astype(int) % bins for a in (x, y))
    density = _smooth(_deposit(i, j, w, bins), sigma)
    visits = _smooth(_deposit(i, j, np.ones(len(x)), bins), sigma)
    single = np.zeros((bins, bins))
    single[0, 0] = 1
    return FreeEnergy2D(
        grid=np.linspace(-np.pi, np.pi, bins, endpoint=False),
        density=density * (bins / (2 * np.pi)) ** 2,
        visits=visits / _smooth(single, sigma).max(),
        width=sigma,
        temperature=temperature,
    )


def _finite(angles: ArrayLike) -> Array:
    x = np.asarray(angles, dtype=np.float64)
    if x.ndim != 1 or not np.all(np.isfinite(x)):
        raise InvalidInputError(f"angles of shape {x.shape} must be one-dimensional and finite")
    return x


def _deposit(i: NDArray[np.int64], j: NDArray[np.int64], amounts: Array, bins: int) -> Array:
    table = np.zeros((bins, bins))
    np.add.at(table, (i, j), amounts)
    return table


def _smooth(table: Array, sigma: float) -> Array:
    """Convolve a periodic table with a wrapped Gaussian; its Fourier coefficients are exp(-k^2 sigma^2 / 2)."""
    modes = np.fft.fftfreq(len(table), 1 / len(table))
    kernel = np.exp(-0.5 * (modes * sigma) ** 2)
    smooth = np.fft.ifft2(np.fft.fft2(table) * kernel[:, None] * kernel[None, :]).real
    smooth[smooth < 1e-12 * smooth.max()] = 0  # rounding of the transform
    return smooth
