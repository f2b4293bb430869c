"""The judge of bead energies: what any of them gives at equilibrium, by importance sampling instead of dynamics."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.compute import Parallel, plain_torch, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import BeadFlow
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.ridge import Penalty, fit_ridge, set_start
from openmm_cgflow.forcematching.density.splits import build_density
from openmm_cgflow.units import in_radians, real_array, scalar_in

__all__ = ["BeadMarginal", "judge_beads", "reweighted_histogram", "torsion_histogram"]

_EACH = 16  # points that every cell has, however unlikely
_KCAL = 4.184  # kJ
_FINE = 5  # parts of a bin on each axis, at whose middles a density is taken
_LEAST = 2e-5  # probability of a bin below which its free energy is not compared
_FIRST, _WIDER, _SECTORS = 30_000, 1.3, 12  # points by which a density is made of the energy itself


@dataclass(frozen=True)
class BeadMarginal:
    """The equilibrium of a bead energy over one or two torsions, and how it lies to the flow that judged it.

    Attributes:
        probabilities: of the cells of a grid from -pi to pi, `(bins,)` or `(bins, bins)`; their sum is 1.
        log_z: log of the integral of `exp(-u)` over all shapes, in nm and rad.
        kl: KL(flow || energy) of all coordinates of the beads, nats.
        ess: Kish's effective sample size over n of the weights within a cell, averaged over the distribution.
        kT: thermal energy, kJ/mol.
    """

    probabilities: np.ndarray
    log_z: float
    kl: float
    ess: float
    kT: float

    def population(self, axis: int = 0) -> float:
        """The probability that the torsion of this axis is above zero: with phi, the rare half plane.

        Raises:
            InvalidInputError: for an odd number of bins, or an axis that is not there.
        """
        bins = len(self.probabilities)
        if bins % 2 or not 0 <= axis < self.probabilities.ndim:
            raise InvalidInputError(
                f"population: axis is {axis} of {self.probabilities.ndim} with {bins} bins; give an axis that is "
                "there, and judge on an even number of bins"
            )
        return float(np.moveaxis(self.probabilities, axis, 0)[bins // 2 :].sum())

    def js(self, reference: np.ndarray) -> float:
        """Jensen-Shannon divergence, nats, from the probabilities (or counts) of a reference on the same grid."""
        p, q = self._like(reference), self.probabilities
        return 0.5 * (_kl(p, 0.5 * (p + q)) + _kl(q, 0.5 * (p + q)))

    def kl_from(self, reference: np.ndarray) -> float:
        """KL(reference || energy), nats, of the probabilities (or counts) of a reference on the same grid."""
        return _kl(self._like(reference), self.probabilities)

    def free_energy_mse(self, reference: np.ndarray) -> float:
        """Mean squared error of `-kT log p`, (kcal/mol)^2, over the bins where the reference has p of at least 2e-5."""
        p, q = self._like(reference), self.probabilities
        seen = p >= _LEAST
        with np.errstate(divide="ignore"):
            return float((((np.log(q[seen]) - np.log(p[seen])) * self.kT / _KCAL) ** 2).mean())

    def _like(self, reference: np.ndarray) -> np.ndarray:
        """The reference, normalised.

        Raises:
            MismatchError: for one on another grid.
            InvalidInputError: for negative or no probabilities.
        """
        p = np.asarray(reference, dtype=float)
        if p.shape != self.probabilities.shape:
            raise MismatchError(
                f"the reference has shape {p.shape}, the energy was judged on {self.probabilities.shape}: give the "
                "same bins, for instance those of torsion_histogram"
            )
        if not np.isfinite(p).all() or (p < 0).any() or p.sum() <= 0:
            raise InvalidInputError("the reference holds negative, infinite or no probabilities; give a histogram")
        return p / p.sum()


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    seen = p > 0
    with np.errstate(divide="ignore"):
        return float((p[seen] * (np.log(p[seen]) - np.log(q[seen]))).sum())


def torsion_histogram(torsions: np.ndarray, weights: np.ndarray | None = None, bins: int = 60) -> np.ndarray:
    """Probabilities of torsions on the grid of `judge_beads`: the reference for its divergences.

    Arguments:
        torsions: `(n,)`, `(n, 1)` or `(n, 2)`, rad, in any window.
        weights: `(n,)`; all the same by default.
        bins: on each axis.

    Returns:
        `(bins,)` or `(bins, bins)`, of sum 1.

    Raises:
        InvalidInputError: for another shape, or weights of sum zero.

    Example:
        >>> torsion_histogram(np.array([[0.5, 0.5], [-0.5, 0.5]]), bins=2).tolist()
        [[0.0, 0.5], [0.0, 0.5]]
    """
    angles = real_array(in_radians(torsions), "torsions are", "(n, 1) or (n, 2) values in rad")
    angles = angles[:, None] if angles.ndim == 1 else angles
    if angles.ndim != 2 or angles.shape[1] not in (1, 2):
        raise InvalidInputError(f"torsion_histogram: torsions have shape {angles.shape}; give (n, 1) or (n, 2), rad")
    wrapped = (angles + math.pi) % (2 * math.pi) - math.pi
    edges = [np.linspace(-math.pi, math.pi, bins + 1)] * angles.shape[1]
    table = np.histogramdd(wrapped, bins=edges, weights=weights)[0]
    if not table.sum() > 0:
        raise InvalidInputError("torsion_histogram: the weights have no positive sum; give at least one frame")
    return table / table.sum()


@torch.no_grad()
def reweighted_histogram(flow: BeadFlow, torsions: np.ndarray, weights: np.ndarray, bins: int = 60) -> np.ndarray:
    """Probabilities of the torsions, as `torsion_histogram` gives them, by samples of a flow whose density is exact.

    In each bin the flow's own probability times the mean weight of its samples there. How many samples fell into a bin
    by chance does not matter, so that the noise is that of the weights alone: with an ESS of 99 % a hundredth of the
    variance of counts. Where there is no sample the flow's own probability stands.

    Arguments:
        flow: of which the samples are; with one or two slow torsions.
        torsions: `(n,)`, `(n, 1)` or `(n, 2)`, rad, samples of it.
        weights: `(n,)`, up to a factor.
        bins: on each axis.

    Returns:
        `(bins,)` or `(bins, bins)`, of sum 1.

    Raises:
        InvalidInputError: for other torsions than the flow's, or weights of sum zero.

    Source: the samples' count is a control variate whose mean is known.

    Example:
        samples = flow.sample(100_000)
        reference = reweighted_histogram(flow.flow.bead_flow, samples.slow, samples.weights)
    """
    weighted, count = torsion_histogram(torsions, weights, bins), torsion_histogram(torsions, bins=bins)
    n_slow = flow.slow.n
    if weighted.ndim != n_slow:
        raise InvalidInputError(
            f"reweighted_histogram: there are {weighted.ndim} torsions, but the flow has {n_slow}; give all of its "
            "slow ones, at most two"
        )
    fine = bins * _FINE
    axis = -math.pi + 2 * math.pi * (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    grid = torch.cartesian_prod(*[axis] * n_slow).reshape(-1, n_slow)
    parameter = next(flow.parameters())
    parts = [flow.slow.log_prob(part.to(parameter)).double().cpu() for part in grid.split(20_000)]
    shape = [size for _ in range(n_slow) for size in (bins, _FINE)]
    own = torch.softmax(torch.cat(parts), 0).reshape(shape).sum(tuple(range(1, 2 * n_slow, 2))).numpy()
    p = own * np.divide(weighted, count, out=np.ones_like(own), where=count > 0)
    return p / p.sum()


@plain_torch
def judge_beads(
    energy: Callable[[Tensor], Tensor],
    flow: BeadFlow | None,
    coordinates: InternalCoordinates,
    kT: float,
    bins: int = 60,
    n: int = 120_000,
    axes: tuple[int, ...] | None = None,
    seed: int = 0,
) -> BeadMarginal:
    """The equilibrium of an energy of bead positions, exact but for the noise of a sum, without dynamics.

    With one or two slow torsions these are uniform within each cell of a grid, so that a rare cell is known as well as
    any; all else comes from the flow's conditional density, and is weighed by `exp(-u) |det dx/dq| / q`. Each cell has
    16 points, and the others go where the flow has its probability. With more torsions, points are drawn from the flow.

    Arguments:
        energy: of positions `(n, beads, 3)`, nm, gives `(n,)` in kJ/mol; plus infinity where nothing can be.
        flow: a density of the same beads, near the energy's own; it decides the noise, not the result, and is large
            where the flow calls torsions rare that are not. None: one is made of the energy itself, for one or two slow
            torsions; `kl` is then the divergence from that, and of no interest.
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.
        bins: of the grid on each axis.
        n: points beside those that every cell has.
        axes: slow torsions by number, one or two, of whose distribution the marginal is; the first two by default.
        seed: of the points.

    Returns:
        the marginal over the torsions, log Z, the divergence from the flow, and the ESS, by which it is to be trusted.

    Raises:
        InvalidInputError: without slow torsions, for axes that are not there, or an energy that is NaN.

    Source: stratified importance sampling; the ESS is Kish's.

    Example:
        flow = cgf.CGFlow.load("model.cgflow")
        beads = flow.coordinates.bead_coordinates()
        found = judge_beads(student, flow.flow.bead_flow, beads, flow.target.kT)
        print(found.js(torsion_histogram(samples.slow, samples.weights)), found.population(), found.ess)
    """
    n_slow = coordinates.sizes[0]
    axes = tuple(range(min(2, n_slow))) if axes is None else axes
    if len(axes) not in (1, 2) or len(set(axes)) != len(axes) or not all(0 <= axis < n_slow for axis in axes):
        raise InvalidInputError(
            f"judge_beads: axes is {axes}, but there are {n_slow} slow torsions; give one or two of their numbers"
        )
    if bins < 1 or n < 1:
        raise InvalidInputError(f"judge_beads: bins is {bins} and n {n}; give positive numbers")
    if flow is None and n_slow > 2:
        raise InvalidInputError(
            f"judge_beads: with {n_slow} slow torsions a density near the energy's own is needed: give a flow"
        )
    kT = scalar_in(kT, unit.kilojoule_per_mole, "judge_beads: kT")
    coordinates = copy.deepcopy(coordinates).cpu()
    generator = seeded(seed)
    share = None
    if flow is None:
        flow = _own_density(energy, coordinates, kT, generator)
        share = torch.as_tensor(judge_beads(energy, flow, coordinates, kT, bins, 1, None, seed).probabilities)
    flow = copy.deepcopy(flow).cpu().double().requires_grad_(False)
    with Parallel() as parallel, torch.no_grad():
        if n_slow <= 2:
            slow, cell, log_share = _stratified(flow, share, n_slow, bins, n, generator)
        else:
            slow = flow.slow.sample(n, generator).value
            cell = _cells(slow[:, list(axes)], bins)
            log_share = -flow.slow.log_prob(slow) - math.log(n)

        def weigh(slow: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            decoded = flow.stiff.decode(noise, flow.slow.features(slow, slow[:, :0]))
            q = torch.cat([slow, decoded.value], dim=1)
            x, log_measure = coordinates.to_cartesian(q)
            log_weight = log_measure - _energies(energy, x) / kT - decoded.log_prob
            outside = torch.where(torch.isnan(log_weight), log_weight, -torch.inf)
            return torch.where(coordinates.in_domain(q), log_weight, outside), flow.slow.log_prob(slow)

        log_weight, log_slow = parallel.map(weigh, slow, flow.stiff.draw_noise(len(slow), generator))
    if bool(torch.isnan(log_weight).any()) or not bool(torch.isfinite(log_weight).any()):
        wrong, fine = int(torch.isnan(log_weight).sum()), int(torch.isfinite(log_weight).sum())
        raise InvalidInputError(
            f"judge_beads: the energy is NaN at {wrong:,} of {len(log_weight):,} points, and finite at {fine:,}; it "
            "must be a number, or infinite where nothing can be"
        )
    log_total = log_weight + log_share  # of each point, of the whole integral
    log_z = float(torch.logsumexp(log_total, 0))
    share = torch.exp(log_total - log_z)
    shape = (bins,) * (n_slow if n_slow <= 2 else len(axes))
    cells = math.prod(shape)
    first = torch.zeros(cells, dtype=share.dtype).index_add_(0, cell, share)
    second = torch.zeros(cells, dtype=share.dtype).index_add_(0, cell, share * share)
    count = torch.bincount(cell, minlength=cells)
    seen = second > 0
    ess = (first**3 / (second * count))[seen].sum()
    # by the flow's own weights, whose sum is one but for noise: log q - log p of all coordinates
    own = torch.softmax(log_share + log_slow, 0)
    kl = (own * (log_slow - log_weight + log_z))[own > 0].sum()
    probabilities = first.reshape(shape)
    if n_slow == 2 and axes != (0, 1):
        probabilities = probabilities.T if axes == (1, 0) else probabilities.sum(1 - axes[0])
    return BeadMarginal(probabilities.numpy(), log_z, float(kl), float(ess), kT)


@torch.no_grad()
def _own_density(
    energy: Callable[[Tensor], Tensor], coordinates: InternalCoordinates, kT: float, generator: torch.Generator
) -> BeadFlow:
    """A density near that of an energy: torsions nearly uniform, all else normal around a mean that follows them.

    Mean and covariance are those of points with uniform torsions and broad stiff coordinates, weighed by the energy
    within each twelfth of a turn, so that all torsions count alike.
    """
    n_slow = coordinates.sizes[0]
    flow = build_density(coordinates, FitSettings(), 0, 0).double()
    slow = 2 * math.pi * torch.rand(_FIRST, n_slow, generator=generator, dtype=torch.float64) - math.pi
    noise = torch.randn(_FIRST, coordinates.dof - n_slow, generator=generator, dtype=torch.float64)
    rest, scale = coordinates.reference[n_slow:], coordinates.scale[n_slow:]
    q = torch.cat([slow, rest + _WIDER * scale * noise], dim=1)
    x, log_measure = coordinates.to_cartesian(q)
    log_weight = log_measure - _energies(energy, x) / kT + 0.5 * (noise * noise).sum(1)
    log_weight = torch.where(coordinates.in_domain(q) & torch.isfinite(log_weight), log_weight, -torch.inf)
    sector = _cells(slow, _SECTORS)
    largest = torch.full((_SECTORS**n_slow,), -torch.inf).double().scatter_reduce(0, sector, log_weight, "amax")
    weight = torch.exp(log_weight - largest[sector]).nan_to_num(0.0)
    weight = weight / torch.zeros_like(largest).index_add(0, sector, weight)[sector].clamp(min=1e-300)
    effective = weight.sum() ** 2 / (weight * weight).sum()
    features = flow.slow.features(slow)
    ridge = fit_ridge(_WIDER * noise, features, weight * (effective / weight.sum()), Penalty())
    set_start(flow.stiff, ridge)
    return flow


def _stratified(
    flow: BeadFlow, share: Tensor | None, n_slow: int, bins: int, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Torsions `(m, n_slow)` uniform within cells, the cell of each, and the log of what each stands for.

    Cells have points by their share of the probability, by default the flow's.
    """
    width = 2 * math.pi / bins
    axis = -math.pi + width * (torch.arange(bins, dtype=torch.float64) + 0.5)
    centres = torch.cartesian_prod(*[axis] * n_slow).reshape(-1, n_slow)
    share = torch.softmax(flow.slow.log_prob(centres), 0) if share is None else share.flatten()
    count = _EACH + torch.round(n * share).long()
    cell = torch.repeat_interleave(torch.arange(len(centres)), count)
    jitter = torch.rand(len(cell), n_slow, generator=generator, dtype=torch.float64) - 0.5
    return centres[cell] + width * jitter, cell, n_slow * math.log(width) - torch.log(count[cell].double())


def _cells(torsions: Tensor, bins: int) -> Tensor:
    """The cell of each row of torsions, rad, on the grid."""
    place = torch.remainder(torsions + math.pi, 2 * math.pi) * (bins / (2 * math.pi))
    rows = place.long().clamp(max=bins - 1)
    return rows[:, 0] if rows.shape[1] == 1 else rows[:, 0] * bins + rows[:, 1]


def _energies(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Energies `(rows,)` of beads `(rows, beads, 3)`, in double precision."""
    found = energy(x.contiguous())
    if found.shape != x.shape[:1]:
        raise InvalidInputError(
            f"judge_beads: the energy of {len(x)} rows of beads has shape {tuple(found.shape)}; it must be one number "
            "for each, (rows,)"
        )
    return found.double()
