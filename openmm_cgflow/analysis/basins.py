"""Basins of a free energy on a circle or torus, and how many samples are in each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmm_cgflow.analysis.free_energy import Array, normalised, wrap

__all__ = ["Basin", "basin_labels", "basins", "populations"]

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Basin:
    """One basin of a free-energy surface."""

    minimum: tuple[float, ...]
    """Angles of its lowest grid point, rad."""
    free_energy: float
    """Free energy there, kJ/mol above the lowest basin."""
    population: float
    """Share of the weighted samples in it, 0 to 1."""
    error: float
    """Standard error of the population."""


def basin_labels(values: ArrayLike, barrier: float) -> Labels:
    """Cut a periodic table of free energies into basins.

    The table is flooded from below; two pools that meet stay apart if the shallower one is deeper than `barrier`
    (zero-dimensional persistence), else they become one.

    Arguments:
        values: any number of periodic dimensions, kJ/mol; infinite where unknown.
        barrier: least depth of a basin below its lowest saddle, kJ/mol.

    Returns:
        Labels of the shape of `values`: 0 for the deepest basin, 1 for the next, ..., -1 where unknown.
    """
    table = np.asarray(values, dtype=np.float64)
    flat = table.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[np.isfinite(flat[order])]
    neighbours = _neighbours(table.shape)
    owner = np.full(flat.size, -1, dtype=np.int64)  # the pool's lowest point, as a union-find forest

    def root(point: int) -> int:
        while owner[point] != point:
            owner[point] = owner[owner[point]]
            point = int(owner[point])
        return point

    for point in order:
        pools = sorted({root(int(p)) for p in neighbours[point] if owner[p] >= 0}, key=lambda p: (flat[p], p))
        owner[point] = pools[0] if pools else point
        for shallow in pools[1:]:
            if flat[point] - flat[shallow] < barrier:
                owner[shallow] = pools[0]
    roots = np.array([root(int(p)) if owner[p] >= 0 else -1 for p in range(flat.size)])
    labels = np.full(flat.size, -1, dtype=np.int64)
    for label, lowest in enumerate(sorted(set(roots[roots >= 0].tolist()), key=lambda p: (flat[p], p))):
        labels[roots == lowest] = label
    return labels.reshape(table.shape)


def populations(labels: Labels, angles: ArrayLike, weights: ArrayLike | None = None) -> tuple[Array, Array]:
    """Share of weighted samples in each basin, and its standard error.

    Arguments:
        labels: a periodic table from `basin_labels`, whose points are `-pi + 2 pi i / bins`.
        angles: `(n, dimensions of labels)`, rad.
        weights: `(n,)`, or None for equal weights.

    Returns:
        Populations and standard errors, `(basins,)` each; samples at label -1 belong to none.

    Raises:
        InvalidInputError: as `normalised`.
    """
    x = np.asarray(angles, dtype=np.float64)
    w = normalised(weights, len(x))
    index = tuple(
        np.rint((wrap(x[:, k]) + np.pi) / (2 * np.pi) * bins).astype(int) % bins for k, bins in enumerate(labels.shape)
    )
    label = labels[index]
    count = int(labels.max()) + 1
    share = np.bincount(label[label >= 0], weights=w[label >= 0], minlength=count)
    squares = np.bincount(label[label >= 0], weights=w[label >= 0] ** 2, minlength=count)
    variance = squares * (1 - share) ** 2 + (np.sum(w**2) - squares) * share**2
    return np.asarray(share, dtype=np.float64), np.sqrt(np.maximum(variance, 0))


def basins(
    values: Array, grid: Array, angles: ArrayLike, barrier: float, weights: ArrayLike | None = None
) -> list[Basin]:
    """Basins of a free energy with their populations, the deepest first.

    Arguments:
        values: free energy on a periodic grid, one or more dimensions, kJ/mol.
        grid: grid points along every dimension, `(bins,)`, rad, evenly spaced around the circle; bin centres too.
        angles: `(n, dimensions)`, rad.
        barrier: least depth of a basin, kJ/mol.
        weights: `(n,)`, or None for equal weights.

    Returns:
        One `Basin` for each.

    Raises:
        InvalidInputError: as `normalised`.
    """
    labels = basin_labels(values, barrier)
    beyond = grid[0] + np.pi  # of the grid that `populations` knows: half a bin where these points are bin centres
    share, error = populations(labels, np.asarray(angles, dtype=np.float64) - beyond, weights)
    found = []
    for label in range(len(share)):
        lowest = int(np.argmin(np.where(labels == label, values, np.inf)))
        point = np.unravel_index(lowest, values.shape)
        found.append(
            Basin(
                minimum=tuple(float(grid[k]) for k in point),
                free_energy=float(values[point]),
                population=float(share[label]),
                error=float(error[label]),
            )
        )
    return found


def _neighbours(shape: tuple[int, ...]) -> Labels:
    """Flat indices of the nearest points along each axis, `(points, 2 * dimensions)`."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    shifted = [np.roll(index, step, axis) for axis in range(len(shape)) for step in (1, -1)]
    return np.stack([s.ravel() for s in shifted], axis=1)
