"""The density of beads that makes frames of them likeliest: a teacher."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mdtraj
import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.compute import BATCH, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import BeadFlow, SoftVariables, StiffDensity
from openmm_cgflow.forcematching.bead_model import BeadModel
from openmm_cgflow.forcematching.chain_torsions import ChainTorsions
from openmm_cgflow.forcematching.force_map import generalised_forces, reduced_forces
from openmm_cgflow.forcematching.frames import check_finite, warn_of_duplicates
from openmm_cgflow.forcematching.likelihood import Fitted, Rows, minimise_held_out
from openmm_cgflow.forcematching.mixture import BeadMixture
from openmm_cgflow.forcematching.ridge import choose_penalty, fit_ridge, near_torsions, set_start
from openmm_cgflow.units import PositionsLike

__all__ = [
    "FitSettings",
    "FittedBeads",
    "build_density",
    "checked_frames",
    "fit_beads",
    "frames_needed",
    "held_out_pieces",
]

_MANY = 5_000  # frames from which the learning rate may be higher
_VERY_MANY = 10_000  # frames above which the stiff density has couplings
_BLOCKS = 50  # pieces of the trajectory that are held out as a whole
_FOLDS = 5  # a fifth of which is held out of each member
_PATIENCE = 150
_AGREES = (0.8, 1.25)  # slope of forces on the density's own, within which they belong to the frames
_SIGNIFICANT = 4.0  # standard errors by which it must be off to be refused
_FACTORS = {
    1 / 4.184: "in kcal/mol/nm",
    1 / 41.84: "in kcal/mol/Angstrom",
    0.1: "in kJ/mol/Angstrom",
    1 / 2.494: "in kT/nm",
    -1.0: "gradients of the energy, which are minus the forces",
}


@dataclass(frozen=True)
class FitSettings:
    """How the density of beads is fitted.

    Attributes:
        members: splits of the frames, each of which one density is fitted to.
        components: mixture components of each torsion.
        hidden: width of the networks.
        harmonics: Fourier pairs by which torsions are shown.
        own_networks: torsions up to which each has a network of its own; more share one (see `ChainTorsions`).
        couplings: coupling layers of the stiff coordinates; by default 4 above 10,000 frames, else none.
        rank: number of matrices of which their covariance is mixed.
        rate: learning rate; by default 5e-4, and 1e-3 from 5,000 frames on.
        steps: at most, of each member and part; by default 600 sqrt(frames / 1,000), from 400 to 6,000.
        force_weight: of forces beside the likelihood of the stiff coordinates.

    Raises:
        InvalidInputError: for a number that cannot be, by its name.

    Example:
        >>> FitSettings(members=2).members
        2
    """

    members: int = 4
    components: int = 16
    hidden: int = 64
    harmonics: int = 3
    own_networks: int = 4
    couplings: int | None = None
    rank: int = 8
    rate: float | None = None
    steps: int | None = None
    force_weight: float = 10.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("couplings", "own_networks", "steps", "force_weight") else 1
            whole = name not in ("rate", "force_weight")
            if value is None and name in ("couplings", "rate", "steps"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise InvalidInputError(f"FitSettings: {name} is {value!r}; give a {'whole ' if whole else ''}number")
            if not math.isfinite(value) or (value < least if name != "rate" else not 0 < value < 1):
                wanted = "between 0 and 1" if name == "rate" else f"of {least} or more"
                raise InvalidInputError(f"FitSettings: {name} is {value!r}; give one {wanted}")


@dataclass(frozen=True)
class FittedBeads:
    """A density of beads that was fitted to frames of them.

    Attributes:
        model: the beads.
        coordinates: their internal coordinates, slow torsions first.
        density: of these coordinates.
        positions: `(beads, 3)`, nm, the likeliest of the frames.
        constraints: lengths (nm) of the bonds that are no coordinates, by pairs of beads.
        frames: how many there were.
        effective: how many they are by their weights (Kish).
        torsions: how the fit of each member ended.
        stiff: the same of the stiff coordinates; nothing for those that are of the closed form.
        seconds: that the fit took.
    """

    model: BeadModel
    coordinates: InternalCoordinates
    density: BeadMixture
    positions: np.ndarray
    constraints: Mapping[tuple[int, int], float]
    frames: int
    effective: float
    torsions: tuple[Fitted, ...]
    stiff: tuple[Fitted, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`n` independent frames of the beads, `(n, beads, 3)` in nm, and their log-densities as `logDensity` has them.

        Arguments:
            n: how many.
            generator: of the draw.
        """
        parts = [self.density.sample(min(BATCH, n - k), generator) for k in range(0, n, BATCH)]
        x, log_measure = self.coordinates.to_cartesian(torch.cat([part.value for part in parts]).double())
        return x.contiguous(), torch.cat([part.log_prob for part in parts]).double() - log_measure

    def sample(self, n: int, seed: int | None = None) -> np.ndarray:
        """`n` independent frames of the beads, `(n, beads, 3)` in nm, without a simulation.

        Arguments:
            n: how many.
            seed: of the draw; a new one each call by default.

        Raises:
            InvalidInputError: if `n` is not a positive integer.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0:
            raise InvalidInputError(f"sample: n is {n!r}; give a positive number of frames.")
        return self.draw(n, seeded(seed))[0].numpy()

    @torch.no_grad()
    def logDensity(self, frames: PositionsLike) -> np.ndarray:
        """Log-density `(frames,)` of positions of the beads, per nm^(3 beads - 6), rigid motion taken out.

        Arguments:
            frames: what `BeadModel.read` takes.
        """
        x = torch.as_tensor(self.model.read(frames), dtype=torch.float64)
        q, log_measure = self.coordinates.to_internal(x)
        dtype = next(self.density.parameters()).dtype
        return (self.density.log_prob(q.to(dtype)).double() - log_measure).numpy()


def frames_needed(dof: int) -> int:
    """How many independent frames the fit of so many internal coordinates needs, at least.

    Example:
        >>> frames_needed(9)
        60
    """
    return max(60, 5 * dof)


def build_density(coordinates: InternalCoordinates, settings: FitSettings, couplings: int, seed: int) -> BeadFlow:
    """A density of beads before any fit: torsions nearly uniform, the stiff coordinates Gaussian.

    Arguments:
        coordinates: of the beads.
        settings: sizes of the networks.
        couplings: layers of the stiff coordinates.
        seed: of start weights.
    """
    n_slow = coordinates.sizes[0]
    centre, scale, period = (t.float() for t in (coordinates.centre, coordinates.scale, coordinates.period))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        torch.manual_seed(seed)
        sizes = settings.components, settings.hidden, settings.harmonics
        slow = (
            ChainTorsions(centre[:n_slow], *sizes)
            if n_slow > settings.own_networks
            else SoftVariables(centre[:n_slow], period[:n_slow], 0, *sizes)
        )
        stiff = StiffDensity(
            centre[n_slow:], scale[n_slow:], slow.n_features, couplings, settings.hidden, settings.rank, seed
        )
    return BeadFlow(slow, stiff)


def fit_beads(
    frames: PositionsLike,
    model: BeadModel | None = None,
    forces: Any = None,  # noqa: ANN401
    temperature: unit.Quantity | float | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    settings: FitSettings | None = None,
    fixed: Sequence[tuple[int, int]] = (),
    seed: int = 0,
) -> FittedBeads:
    """Fit a density of beads to frames of them, by maximum likelihood.

    Torsions are fitted by Adam, with early stopping on a fifth of the frames; stiff coordinates given the torsions in
    closed form, and by Adam too where there are more than 10,000 frames, or forces. This is done for four splits of the
    frames, and the mean of the four densities is the teacher. One seed gives one result.

    Source: Köhler et al. 2023 (arXiv 2203.11167) for the likelihood of frames as the first stage of a force field.
    Forces on the stiff coordinates in the same loss are this package's own: they have hardly any noise there.

    Arguments:
        frames: of the beads or of the atoms that they were chosen from, what `BeadModel.read` takes.
        model: the beads; may be left out for an mdtraj Trajectory of beads alone.
        forces: on the beads, `(frames, beads, 3)`, kJ/mol/nm or a Quantity, of a `ForceMap`.
        temperature: of the frames, K or a Quantity; needed with forces.
        weights: `(frames,)` of biased frames, not negative; all the same by default.
        settings: sizes and steps.
        fixed: bonds between beads of one length (constraints), pairs of beads.
        seed: of splits, start weights and batches.

    Raises:
        InvalidInputError: too few frames, NaN, coordinates that do not change, weights that cannot be, forces without a
            temperature or that are not forces.
        MismatchError: frames of other beads, forces or weights of another number, forces of another unit or map.

    Example:
        >>> model = BeadModel.fromSequence("GGGG")
        >>> noise = np.random.default_rng(0).normal(0, 0.02, (80, 4, 3))
        >>> x = [[0, 0, 0], [0.38, 0, 0], [0.38, 0.38, 0], [0.38, 0.38, 0.38]] + noise
        >>> teacher = fit_beads(x, model, settings=FitSettings(members=2, steps=20))
        >>> teacher.density.sample(3, torch.Generator().manual_seed(0)).value.shape
        torch.Size([3, 6])
    """
    began, settings = time.perf_counter(), settings or FitSettings()
    if model is None:
        if not isinstance(frames, mdtraj.Trajectory):
            raise InvalidInputError(
                "fit_beads: there is no model; give a BeadModel, or an mdtraj Trajectory of the beads alone"
            )
        model = BeadModel.fromBeads(frames.topology)
    x = model.read(frames)
    share = _shares(weights, len(x))
    counted = share > 0  # the others say nothing
    x, share, forces = x[counted], share[counted], _of_frames(forces, counted)
    effective = float(1 / (share @ share))
    _enough(model, len(x), effective, len(fixed))
    warn_of_duplicates(x)
    coordinates = model.coordinates(x, share, fixed)
    q = coordinates.to_internal(torch.as_tensor(x))[0]
    n_slow = coordinates.sizes[0]
    pulled = None
    if forces is not None:
        pulled = _forces_on_coordinates(coordinates, x, forces, temperature, fixed)[:, n_slow:]
    fit = _Fit(coordinates, settings, q[:, :n_slow], q[:, n_slow:], torch.as_tensor(share), effective, seed)
    if pulled is not None:
        fit.check_forces(pulled)
    members, torsions, stiff = [], [], []
    for k in range(settings.members):
        member, of_torsions, of_stiff = fit.member(k, pulled)
        members.append(member.requires_grad_(False))
        torsions.append(of_torsions)
        stiff += [] if of_stiff is None else [of_stiff]
    density = BeadMixture(members)
    with torch.no_grad():
        likely = density.log_prob(q.float()) - coordinates.log_measure(q)
    return FittedBeads(
        model,
        coordinates,
        density,
        x[int(likely.argmax())],
        {bond_key(i, j): float(np.linalg.norm(x[:, i] - x[:, j], axis=1).mean()) for i, j in fixed},
        len(x),
        effective,
        tuple(torsions),
        tuple(stiff),
        time.perf_counter() - began,
    )


def checked_frames(
    frames: PositionsLike,
    model: BeadModel,
    forces: Any = None,  # noqa: ANN401
    temperature: unit.Quantity | float | None = None,
) -> tuple[np.ndarray, InternalCoordinates, Tensor]:
    """Frames of beads for what is fitted to them without a density; refused as `fit_beads` refuses them.

    Arguments:
        frames: what `BeadModel.read` takes.
        model: the beads.
        forces: on the beads, if they are to be looked at.
        temperature: of the frames, needed with forces.

    Returns:
        positions `(frames, beads, 3)`, nm, their coordinates, and the values of these, `(frames, dof)`.
    """
    x = model.read(frames)
    _enough(model, len(x), len(x), 0)
    warn_of_duplicates(x)
    coordinates = model.coordinates(x)
    q, n_slow = coordinates.to_internal(torch.as_tensor(x))[0], coordinates.sizes[0]
    if forces is not None:
        pulled = _forces_on_coordinates(coordinates, x, forces, temperature, ())
        share = torch.full((len(x),), 1 / len(x), dtype=q.dtype)
        fit = _Fit(coordinates, FitSettings(), q[:, :n_slow], q[:, n_slow:], share, len(x), 0)
        fit.check_forces(pulled[:, n_slow:])
    return x, coordinates, q


class _Fit:
    """The frames as they are learned from.

    Arguments:
        coordinates: of the beads.
        settings: of the fit.
        slow: `(frames, n_slow)`.
        stiff: `(frames, n_stiff)`.
        share: `(frames,)` weights of sum 1.
        effective: number of frames.
        seed: of everything random.
    """

    def __init__(
        self,
        coordinates: InternalCoordinates,
        settings: FitSettings,
        slow: Tensor,
        stiff: Tensor,
        share: Tensor,
        effective: float,
        seed: int,
    ) -> None:
        self.coordinates, self.settings, self.share, self.effective, self.seed = (
            coordinates,
            settings,
            share,
            effective,
            seed,
        )
        self.slow, self.stiff = slow, stiff
        many = effective >= _MANY
        self.couplings = settings.couplings
        if self.couplings is None:
            self.couplings = 4 if round(effective) > _VERY_MANY else 0
        self.rate = settings.rate or (1e-3 if many else 5e-4)
        steps = settings.steps
        self.steps = round(min(max(600 * math.sqrt(effective / 1000), 400), 6000)) if steps is None else steps
        blocks = min(_BLOCKS, len(slow))  # of the same weight, not of as many frames
        self.blocks = ((torch.cumsum(share, 0) - share / 2) * blocks).long().clamp(max=blocks - 1)
        features = build_density(coordinates, settings, 0, 0).slow.features(slow.float())
        n_slow = coordinates.sizes[0]
        self.reference, self.scale = coordinates.reference[n_slow:], coordinates.scale[n_slow:]
        self.values, self.features = (stiff - self.reference) / self.scale, features.double()
        # sines of all torsions come first, then cosines
        self.near = near_torsions(coordinates).repeat_interleave(settings.harmonics, dim=1).repeat(1, 2)
        weight, folds = share * effective, self.blocks % _FOLDS
        self.penalty = choose_penalty(self.values, self.features, weight, folds, self.near)

    def _held_out(self, k: int) -> Tensor:
        """Which frames are held out of member k, `(frames,)` bool: whole pieces of the trajectory."""
        return held_out_pieces(self.blocks, k, self.seed)

    def member(self, k: int, pulled: Tensor | None) -> tuple[BeadFlow, Fitted, Fitted | None]:
        """The density of one split, and how its parts were fitted.

        Arguments:
            k: number of the split.
            pulled: `(frames, n_stiff)` forces on the stiff coordinates, kT/nm and kT/rad, if there are any.
        """
        assert self.couplings is not None
        seed = 1009 * self.seed + k
        generator = torch.Generator().manual_seed(seed)
        flow = build_density(self.coordinates, self.settings, self.couplings, seed)
        out = self._held_out(k)
        mine, others = torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()
        rows = Rows((self.slow.float(),), self.share.float())
        torsions = minimise_held_out(
            flow.slow,
            lambda slow: -flow.slow.learned_log_prob(slow),
            rows.take(mine),
            rows.take(others),
            self.rate,
            self.steps if self.slow.shape[1] else 0,
            _PATIENCE,
            generator,
        )
        refined = bool(self.couplings) or (pulled is not None and self.settings.force_weight > 0)
        # what is not judged by held-out frames may learn from all
        used = mine if refined else torch.arange(len(self.share))
        weight = self.share[used] / self.share[used].sum() * self.effective * len(used) / len(self.share)
        set_start(flow.stiff, fit_ridge(self.values[used], self.features[used], weight, self.penalty, self.near))
        if not refined:
            return flow, torsions, None
        return flow, torsions, self._refine(flow, mine, others, pulled, generator)

    def _refine(
        self, flow: BeadFlow, mine: Tensor, others: Tensor, pulled: Tensor | None, generator: torch.Generator
    ) -> Fitted:
        """Adam on the likelihood of the stiff coordinates, with forces if there are any."""
        pull = torch.zeros_like(self.stiff) if pulled is None else pulled
        weight = 0.0 if pulled is None else self.settings.force_weight
        measure = self._slope_of_measure()
        rows = Rows(tuple(t.float() for t in (self.stiff, self.features, pull + measure)), self.share.float())
        scale = flow.stiff.scale

        def loss(stiff: Tensor, features: Tensor, score: Tensor) -> Tensor:
            if not weight:
                return -flow.stiff.log_prob(stiff, features)
            with torch.enable_grad():
                leaf = stiff.detach().requires_grad_(True)
                log_prob = flow.stiff.log_prob(leaf, features)
                (own,) = torch.autograd.grad(log_prob.sum(), leaf, create_graph=True)
            return -log_prob + weight * (((own - score) * scale) ** 2).mean(1)

        return minimise_held_out(
            flow.stiff, loss, rows.take(mine), rows.take(others), self.rate, self.steps, _PATIENCE, generator
        )

    def _slope_of_measure(self) -> Tensor:
        """The gradient of `log |det dx/dq|` by the stiff coordinates, `(frames, n_stiff)`."""
        q = torch.cat([self.slow, self.stiff], dim=1).clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.coordinates.log_measure(q).sum(), q)
        return slope[:, self.slow.shape[1] :]

    def check_forces(self, pulled: Tensor) -> None:
        """See that forces are those of the frames, by the slope of their regression on the closed-form density's own.

        That is 1 for the forces of any density whose mean and covariance are right, whatever its shape (Stein's
        identity), so that the check needs no good fit.

        Raises:
            MismatchError: they are of another unit, sign or map, or of other frames.
        """
        ridge = fit_ridge(self.values, self.features, self.share * self.effective, self.penalty, self.near)
        left = ridge.left(self.values, self.features)
        own = -torch.cholesky_solve(left.T, ridge.factor).T - self._slope_of_measure() * self.scale
        given = pulled * self.scale
        square = (self.share.unsqueeze(1) * own * own).sum()
        slope = float((self.share.unsqueeze(1) * own * given).sum() / square)
        rest = (own * (given - slope * own)).sum(1)
        error = float(torch.sqrt((self.share * rest).square().sum()) / square)
        if _AGREES[0] < slope < _AGREES[1] or min(abs(slope - bound) for bound in _AGREES) < _SIGNIFICANT * error:
            return
        near = min(_FACTORS, key=lambda factor: abs(slope / factor - 1))
        if abs(slope / near - 1) < 0.25 and abs(slope) > _SIGNIFICANT * error:
            reason = f"they look like {'forces ' if near > 0 else ''}{_FACTORS[near]}"
        else:
            reason = "they are in another unit, of another map or temperature, or their frames are in another order"
        raise MismatchError(
            f"the forces on bonds and angles are on average {slope:.3g} (+- {error:.2g}) times those that the "
            f"distribution of the frames has: {reason}; give forces in kJ/mol/nm (or a Quantity) on these beads, frame "
            "by frame, for instance aggregated_map(model)(forces of the atoms)"
        )


def held_out_pieces(pieces: Tensor, k: int, seed: int) -> Tensor:
    """Which frames are held out of member k, `(frames,)` bool: a fifth of the pieces of the trajectory.

    Arguments:
        pieces: `(frames,)` int, the piece that each is in.
        k: number of the member.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed + 7919 * (k // _FOLDS))
    order = torch.randperm(int(pieces.max()) + 1, generator=generator)
    return (torch.argsort(order) % _FOLDS == k % _FOLDS)[pieces]


def _shares(weights: Sequence[float] | np.ndarray | None, n: int) -> np.ndarray:
    """Weights of sum 1."""
    if weights is None:
        return np.full(n, 1 / n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise MismatchError(f"weights have shape {values.shape}; give one for each of the {n} frames")
    check_finite(values, "weight of frame")
    if (values < 0).any() or not values.sum() > 0:
        raise InvalidInputError(
            f"weights reach from {values.min():g} to {values.max():g}; give numbers of 0 or more that are not all 0 "
            "(np.exp(log_weights - log_weights.max()) of log-weights)"
        )
    return values / values.sum()


def _of_frames(forces: Any, counted: np.ndarray) -> Any:  # noqa: ANN401
    """Forces of some frames; of another number of frames they are refused later."""
    if forces is None or counted.all() or len(forces) != len(counted):
        return forces
    return forces[counted] if unit.is_quantity(forces) else np.asarray(forces)[counted]


def _enough(model: BeadModel, n: int, effective: float, n_fixed: int) -> None:
    """Refuse so few frames that nothing can be learned of them."""
    dof = 3 * model.n_beads - 6 - n_fixed
    needed = frames_needed(dof)
    if effective < needed:
        what = f"{n} frames" if effective > n - 0.5 else f"{n} frames, of which {effective:.0f} count by their weights,"
        raise InvalidInputError(
            f"{what} are too few to fit the {dof} internal coordinates of {model.n_beads} beads: at least {needed} "
            "independent ones are needed (some hundred for a useful density); give more, or choose fewer beads"
        )


def _forces_on_coordinates(
    coordinates: InternalCoordinates,
    x: np.ndarray,
    forces: Any,  # noqa: ANN401
    temperature: unit.Quantity | float | None,
    fixed: Sequence[tuple[int, int]],
) -> Tensor:
    """Forces on the internal coordinates, kT/nm and kT/rad."""
    if temperature is None:
        raise InvalidInputError("there are forces, but no temperature by which they are put into kT; give it, in K")
    reduced = reduced_forces(forces, temperature)
    if reduced.shape != x.shape:
        raise MismatchError(
            f"forces have shape {reduced.shape}, the frames of the beads {x.shape}; give one force for each bead of "
            "each frame (forces on atoms go through aggregated_map first)"
        )
    check_finite(reduced, "force of frame")
    return generalised_forces(coordinates, x, reduced, fixed)
