"""The members of a teacher: a density for each split of the frames."""

import math
import warnings

import torch
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import MismatchError
from openmm_cgflow.flows import BeadFlow, SoftVariables, StiffDensity
from openmm_cgflow.forcematching.density.chain_torsions import ChainTorsions
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.likelihood import Fitted, Rows, minimise_held_out
from openmm_cgflow.forcematching.density.ridge import choose_penalty, fit_ridge, near_torsions, set_start

__all__ = ["MemberFits", "build_density", "held_out_pieces"]

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


class MemberFits:
    """Frames as the members of a teacher learn from them, each from another split.

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
