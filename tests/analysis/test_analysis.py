"""Free energies, densities and basins against analytic answers.

All draws are seeded. The tolerances are multiples of the stated standard errors; another seed would break a bound of
4.5 standard errors (two-sided, at most 72 bins) once in 2,000 runs.
"""

import numpy as np
import pytest

from openmm_cgflow.analysis import (
    basin_labels,
    basins,
    curve,
    free_energy_1d,
    free_energy_2d,
    populations,
    weighted_histogram,
)
from openmm_cgflow.analysis.free_energy import effective_size, wrap
from openmm_cgflow.analysis.style import pretty
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.units import KB

T = 300.0
KT = KB * T
KAPPA, MEAN = 4.0, 2.8  # its basin straddles the border at pi


def von_mises(x, kappa=KAPPA, mean=MEAN):
    return np.exp(kappa * np.cos(x - mean)) / (2 * np.pi * np.i0(kappa))


def bin_density(bins, kappa=KAPPA, mean=MEAN, fine=200):
    """Mean density in each bin of the circle, by the midpoint rule."""
    x = (np.arange(bins * fine) + 0.5) * 2 * np.pi / (bins * fine) - np.pi
    return von_mises(x, kappa, mean).reshape(bins, fine).mean(1)


def draws(n, weighted, seed=0):
    """Samples of the von Mises density: its own, or those of a broader one with weights."""
    rng = np.random.default_rng(seed)
    if not weighted:
        return rng.vonmises(MEAN, KAPPA, n), None
    x = rng.vonmises(MEAN, 1.0, n)
    return x, 17.0 * von_mises(x) / von_mises(x, 1.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_free_energy_1d_is_that_of_von_mises(weighted):
    x, w = draws(40_000, weighted)
    f = free_energy_1d(x + 4 * np.pi, T, w)
    exact = -KT * np.log(bin_density(72))
    density, _ = weighted_histogram(wrap(x), np.linspace(-np.pi, np.pi, 73), w)
    offset = -KT * np.log(density.max())  # values are relative to the fullest bin
    seen = f.errors < 0.3 * KT
    z = (f.values + offset - exact)[seen] / f.errors[seen]
    assert seen.sum() > 45
    assert np.abs(z).max() < 4.5
    assert 0.5 < np.mean(z**2) < 1.6
    assert f.values.min() == 0
    assert np.isinf(f.values[np.isnan(f.errors)]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_stated_errors_are_the_scatter_of_repeats(weighted):
    """The standard deviation of 300 repeats is known to 4 %; the bound of 20 % is 5 of those."""
    repeats = [free_energy_1d(*_with_temperature(draws(2000, weighted, seed)), bins=24) for seed in range(300)]
    middle = int(np.argmax(bin_density(24)))
    for k in (middle - 3, middle, middle - 20):  # flank, minimum, other flank across the border
        density = [
            weighted_histogram(wrap(x), np.linspace(-np.pi, np.pi, 25), w)[0][k]
            for x, w in (draws(2000, weighted, seed) for seed in range(300))
        ]
        scatter = np.std(-KT * np.log(density))
        assert np.mean([f.errors[k] for f in repeats]) == pytest.approx(scatter, rel=0.2)


def _with_temperature(drawn):
    return drawn[0], T, drawn[1]


@pytest.mark.parametrize("weighted", [False, True])
def test_free_energy_2d_is_that_of_smoothed_von_mises(weighted):
    n, bins, width = 30_000, 90, 0.15
    rng = np.random.default_rng(3)
    x, w = draws(n, weighted, 1)
    y = rng.vonmises(0.5, 2.0, n)
    surface = free_energy_2d(x, y, T, w, bins=bins, width=width)

    def smoothed(kappa, mean):
        density = von_mises(surface.grid, kappa, mean)
        kernel = np.exp(-0.5 * (np.fft.fftfreq(bins, 1 / bins) * width) ** 2)
        # depositing on the nearest grid point is one more convolution, with a box of one cell
        box = np.sinc(np.fft.fftfreq(bins, 1 / bins) / bins)
        return np.fft.ifft(np.fft.fft(density) * kernel * box).real

    exact = np.outer(smoothed(KAPPA, MEAN), smoothed(2.0, 0.5))
    relative = surface.density / exact - 1
    spread = np.sqrt(1 / (4 * np.pi * width**2 * exact * (effective_size(w) if weighted else n)))
    probable = exact > 0.05 * exact.max()
    assert surface.density.mean() * (2 * np.pi) ** 2 == pytest.approx(1)
    assert np.abs(relative / spread)[probable].max() < 5
    expected = -KT * np.log(exact / exact.max())
    assert np.abs(surface.values - expected)[probable].max() < 5 * KT * spread[probable].max()


def test_unvisited_places_are_unknown():
    surface = free_energy_2d(np.zeros(500), np.zeros(500), T, width=0.1)
    far = np.abs(surface.grid) > 1
    assert np.isinf(surface.values[far][:, far]).all()
    assert surface.values[60, 60] == 0
    assert surface.visits[60, 60] == pytest.approx(500)


def test_a_single_distant_sample_counts_as_one_visit():
    x = np.append(np.zeros(50), 2.0)
    surface = free_energy_2d(x, x, T, width=0.1)
    k = np.argmin(np.abs(surface.grid - 2.0))
    assert surface.visits[k, k] == pytest.approx(1, abs=1e-6)
    assert surface.values[k, k] == pytest.approx(KT * np.log(50), rel=1e-6)


def test_a_surface_keeps_its_values():
    surface = free_energy_2d([0.0, 1.0], [0.0, 1.0], T)
    assert not surface.smooth.flags.writeable
    assert not surface.values.flags.writeable


def mixture(n, seed=0):
    """Three von Mises modes with known shares, one across the corner of the torus."""
    rng = np.random.default_rng(seed)
    means, shares = np.array([[-1.3, 2.4], [np.pi, np.pi - 0.1], [1.0, 0.7]]), np.array([0.55, 0.4, 0.05])
    means[1] = [np.pi, -0.6]
    proposal = np.array([0.3, 0.4, 0.3])
    which = rng.choice(3, n, p=proposal)
    return wrap(rng.vonmises(means[which], 20.0)), (shares / proposal)[which], shares, means, proposal


def test_basins_of_a_mixture():
    x, w, shares, means, proposal = mixture(20_000)
    surface = free_energy_2d(x[:, 0], x[:, 1], T, w)
    found = [b for b in basins(surface.values, surface.grid, x, KT, w) if b.population > 0.002]
    assert len(found) == 3
    for basin, share, mean in zip(found, shares, means, strict=True):  # deepest first is the order of the shares
        assert abs(basin.population - share) < 4.5 * basin.error
        weights = shares / proposal  # of each mode, so that this is the error of a weighted mean of 20,000 draws
        exact = np.sqrt((proposal * weights**2 * ((shares == share) - share) ** 2).sum() / 20_000)
        assert basin.error == pytest.approx(exact, rel=0.05)  # known to 1 %, and 0.5 % of draws lie in the next basin
        assert np.abs(wrap(np.array(basin.minimum) - mean)).max() < 0.2
    # equal widths: depths differ by -kT log of the shares' ratio; 0.5 kJ/mol is about 4 s.e. of the kernel estimate
    assert found[2].free_energy == pytest.approx(KT * np.log(0.55 / 0.05), abs=0.5)


@pytest.mark.parametrize("bins", [24, 36])
def test_basins_along_one_angle_hold_the_samples_of_their_bins(bins):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-0.35, 0.12, 3_000), rng.normal(0.35, 0.12, 7_000)])
    along = free_energy_1d(x, T, bins=bins)
    labels = basin_labels(along.values, KT)
    counts, _ = np.histogram(x, np.linspace(-np.pi, np.pi, bins + 1))
    expected = [counts[labels == k].sum() / len(x) for k in range(labels.max() + 1)]
    assert [b.population for b in basins(along.values, along.grid, x[:, None], KT)] == pytest.approx(expected)


def test_population_errors_are_the_scatter_of_repeats():
    labels = np.zeros(36, dtype=int)
    labels[18:] = 1
    results = []
    for seed in range(300):
        x, w, *_ = mixture(1000, seed)
        results.append(populations(labels, x[:, :1], w))
    share, error = np.array([r[0] for r in results]), np.array([r[1] for r in results])
    assert share.sum(1) == pytest.approx(np.ones(300))
    assert error.mean(0) == pytest.approx(share.std(0), rel=0.2)


def test_barriers_decide_what_a_basin_is():
    x = np.linspace(-np.pi, np.pi, 48, endpoint=False)
    table = 5 * np.cos(2 * x) + 0.3 * np.cos(12 * x)
    assert basin_labels(table, 2.0).max() == 1
    assert basin_labels(table, 0.1).max() == 3  # the ripple has a top in the middle of either well: four minima
    assert basin_labels(table, 100.0).max() == 0


def test_a_basin_across_the_border_is_one():
    x = np.linspace(-np.pi, np.pi, 60, endpoint=False)
    labels = basin_labels(np.cos(x)[:, None] + np.cos(x)[None, :], 0.5)  # minimum at (pi, pi)
    assert labels.max() == 0


def test_unknown_points_separate_basins():
    table = np.full(12, np.inf)
    table[[1, 2, 7]] = [0.0, 1.0, 0.5]
    assert basin_labels(table, 3.0).tolist() == [-1, 0, 0, -1, -1, -1, -1, 1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("angles", "weights", "message"),
    [
        ([], None, "no samples"),
        ([0.1, 0.2], [1.0], "one weight a sample"),
        ([0.1, 0.2], [1.0, -1.0], "not negative"),
        ([0.1, 0.2], [0.0, 0.0], "not all zero"),
        ([0.1, 0.2], [1.0, np.nan], "finite"),
        ([0.1, np.nan], None, "finite"),
        ([[0.1], [0.2]], None, "one-dimensional"),
    ],
)
def test_bad_samples(angles, weights, message):
    with pytest.raises(InvalidInputError, match=message):
        free_energy_1d(angles, T, weights)


def test_pairs_must_match():
    with pytest.raises(InvalidInputError, match="give pairs"):
        free_energy_2d([0.1, 0.2], [0.1], T)


def test_wrap_stays_below_pi():
    x = wrap([np.pi, -np.pi, 3 * np.pi, -1e-17, 7.0])
    assert x == pytest.approx([-np.pi, -np.pi, -np.pi, 0, 7 - 2 * np.pi])
    assert (x < np.pi).all()


def test_histogram_counts_outsiders_in_the_norm_only():
    density, error = weighted_histogram([0.5, 0.5, 1.5, 9.0], [0, 1, 2], [1, 1, 1, 1])
    assert density == pytest.approx([0.5, 0.25])
    assert error == pytest.approx(np.sqrt(np.array([0.25, 0.1875]) / 4))


def test_curve_leaves_gaps_out():
    history = [
        {"seconds": 1, "ess": None},
        {"seconds": 2, "ess": 0.5},
        {"seconds": 3, "ess": float("nan")},
        {"ess": 0.7},
    ]
    x, y = curve(history, "seconds", "ess")
    assert x.tolist() == [2.0]
    assert y.tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("phi", r"$\phi$"),
        ("chi1", r"$\chi_{1}$"),
        ("ALA2:psi", r"$\psi$ ALA2"),
        ("A:LYS2:chi_3", r"$\chi_{3}$ A:LYS2"),
        ("phi_2", r"$\phi_{2}$"),
        ("phin", "phin"),
        ("C1-C2-C3-C4", "C1-C2-C3-C4"),
    ],
)
def test_pretty_names(name, written):
    assert pretty(name) == written
