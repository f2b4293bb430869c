"""The density of beads that makes frames of them likeliest: a teacher."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mdtraj
import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.beads import BeadParticles
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.compute import BATCH, plain_torch, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.counts import indices, seed_number
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.likelihood import Fitted
from openmm_cgflow.forcematching.density.mixture import BeadMixture
from openmm_cgflow.forcematching.density.splits import MemberFits
from openmm_cgflow.forcematching.frames.bead_model import BeadModel
from openmm_cgflow.forcematching.frames.checked import check_finite, warn_of_duplicates
from openmm_cgflow.forcematching.frames.force_map import generalised_forces, reduced_forces
from openmm_cgflow.structures import CONSTRAINT_TOLERANCE
from openmm_cgflow.units import PositionsLike, real_array

__all__ = [
    "FittedBeads",
    "checked_frames",
    "fit_beads",
    "frames_needed",
]


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

    @property
    def particles(self) -> BeadParticles:
        """The beads, as a System or a force field has them."""
        return BeadParticles(self.model.topology, self.positions, self.model.masses, self.constraints)

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


@plain_torch
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
    began, settings, seed = time.perf_counter(), settings or FitSettings(), seed_number(seed)
    if not isinstance(settings, FitSettings):
        raise InvalidInputError(f"fit_beads: settings is a {type(settings).__name__}; give FitSettings(...)")
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
    fixed = _checked_pairs(fixed, x, model)
    effective = float(1 / (share @ share))
    _enough(model, len(x), effective, len(fixed))
    warn_of_duplicates(x)
    coordinates = model.coordinates(x, share, fixed)
    q = coordinates.to_internal(torch.as_tensor(x))[0]
    n_slow = coordinates.sizes[0]
    pulled = None
    if forces is not None:
        pulled = _forces_on_coordinates(coordinates, x, forces, temperature, fixed)[:, n_slow:]
    fit = MemberFits(coordinates, settings, q[:, :n_slow], q[:, n_slow:], torch.as_tensor(share), effective, seed)
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
        fit = MemberFits(coordinates, FitSettings(), q[:, :n_slow], q[:, n_slow:], share, len(x), 0)
        fit.check_forces(pulled[:, n_slow:])
    return x, coordinates, q


def _shares(weights: Sequence[float] | np.ndarray | None, n: int) -> np.ndarray:
    """Weights of sum 1."""
    if weights is None:
        return np.full(n, 1 / n)
    values = real_array(weights, "weights are", "one number for each frame")
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


def _checked_pairs(fixed: Iterable[Any], x: np.ndarray, model: BeadModel) -> list[tuple[int, int]]:
    """Pairs of beads, whose distances are the same in all frames."""
    pairs = [tuple(indices(pair, "fit_beads: fixed")) for pair in fixed]
    for pair in pairs:
        if len(set(pair)) != 2 or len(pair) != 2 or not all(0 <= k < model.n_beads for k in pair):
            raise InvalidInputError(f"fit_beads: fixed has {pair}; give pairs of beads, from 0 to {model.n_beads - 1}")
        length = np.linalg.norm(x[:, pair[0]] - x[:, pair[1]], axis=1)
        if np.ptp(length) > 2 * CONSTRAINT_TOLERANCE:
            raise InvalidInputError(
                f"fit_beads: fixed has the beads {model.labels[pair[0]]} and {model.labels[pair[1]]}, whose distance "
                f"is {length.min():.4f} to {length.max():.4f} nm in these frames: leave this pair out"
            )
    return [(i, j) for i, j in pairs]


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
