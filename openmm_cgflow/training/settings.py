"""How a flow is trained."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.training.tempering import AdaptiveTempering, GeometricTempering, Tempering

__all__ = ["TrainSettings"]


@dataclass(frozen=True)
class TrainSettings:
    """How a flow is trained: a recipe, which never changes, and may be used for any number of flows.

    Attributes:
        shares: of the budget, by which the fit and the training of the soft densities are to end.
        points: values of the soft variables at which the Laplace start is made; fewer where the budget is small, as
            with the other numbers of points, moves and rows.
        sweeps: moves by which these values are annealed.
        flattening: temperature to which they are annealed, relative to the target's own, so that barriers are covered.
        fit_steps: maximum-likelihood steps on the Laplace start.
        start_blur: width by which the soft variables of the start's points are spread out, in radians of their own
            period: what is learned from a thousand points in many dimensions must be smooth.
        batch: rows of a step. A GPU takes little longer for 4096 than for 1024: worth it where time is the limit.
        soft_buffers: buffers on which the soft densities are trained alone.
        buffer: own samples that are weighed together.
        buffer_steps: steps on each buffer while the soft densities are trained alone.
        kept: buffers that are learned from together, so that few effective samples are not learned by heart.
        blurred: share of the rows from which the soft densities learn with one variable spread out, so that they do
            not vanish where the flow was never seen; it falls to nothing during the refinement.
        blur: by how much, in radians of its own period.
        defended: share of the slow variables that are drawn from the broad density of the start in the refinement; of
            the rotors, too, where one of them turns on a whole circle.
        learning_rates: of the fit, the tempering and the refinement.
        soft_factor: by which the soft densities learn faster than the rest during the refinement.
        rotation_factor: by which the slow variables of vectors are learned faster than the rest.
        average: decay of the running average of the parameters that is returned.
        clip: share of the largest weights that is levelled before resampling.
        least_ess: weights are raised to a power below one until this share of them is effective.
        least_path_ess: the same where the stiff densities learn from the weights of a single batch.
        tempering: instead of the Laplace start, reverse KL at these inverse temperatures.
        joint: temper by the reverse KL of all variables, as the paper does; without, that of the stiff ones, while the
            soft densities learn by weights, which keeps the modes.
        tempering_buffer: own samples that are weighed together while tempering.

    Raises:
        InvalidInputError: for a number that cannot be, by its name.

    Example:
        >>> TrainSettings(batch=512).batch
        512
    """

    shares: tuple[float, float] = (0.35, 0.6)
    points: int = 512
    sweeps: int = 20
    flattening: float = 3.0
    fit_steps: int = 150
    start_blur: float = 0.4
    batch: int = 1024
    soft_buffers: int = 12
    buffer: int = 20_000
    buffer_steps: int = 12
    kept: int = 8
    blurred: float = 0.05
    blur: float = 0.7
    defended: float = 0.1
    learning_rates: tuple[float, float, float] = (2e-3, 1e-3, 2e-3)
    soft_factor: float = 1.0
    rotation_factor: float = 5.0
    average: float = 0.97
    clip: float = 1e-3
    least_ess: float = 0.1
    least_path_ess: float = 0.3
    tempering: Tempering | None = None
    joint: bool = False
    tempering_buffer: int = 8192

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise InvalidInputError(f"TrainSettings: {name} is {value!r}; give a whole number, {least} or more.")
            object.__setattr__(self, name, int(value))  # numpy's numbers cannot be stored
        for name, largest in _LARGEST.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), largest))
        for name, n, largest in (("shares", 2, 1.0), ("learning_rates", 3, math.inf)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != n:
                raise InvalidInputError(f"TrainSettings: {name} is {values!r}; give {n} numbers.")
            object.__setattr__(self, name, tuple(_number(name, value, largest) for value in values))
        for name, bound, fix in (("flattening", 0, "above 0"), ("average", 1, "below 1"), ("defended", 1, "below 1")):
            if getattr(self, name) == bound:
                raise InvalidInputError(f"TrainSettings: {name} is {bound}; give a number {fix}.")
        schedule = self.tempering
        if schedule is not None and (isinstance(schedule, type) or not hasattr(schedule, "advance")):
            raise InvalidInputError(
                f"TrainSettings: tempering is {schedule!r}; give a schedule, such as AdaptiveTempering()."
            )

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold; of a schedule of the user's own only its name."""
        values = vars(self) | {"tempering": None}
        if self.tempering is not None:
            schedule: Any = self.tempering
            fields = asdict(schedule) if type(schedule) in _SCHEDULES.values() else {}
            values["tempering"] = {"kind": type(self.tempering).__name__, **fields}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], given: "TrainSettings | None" = None) -> Self:
        """The settings that `as_dict` described.

        Arguments:
            values: from `as_dict`.
            given: whose schedule is taken where it cannot be described.

        Raises:
            InvalidInputError: if it cannot, and none is given.
        """
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        schedule = dict(values["tempering"] or {})
        kind = schedule.pop("kind") if schedule else None
        if kind is not None and kind not in _SCHEDULES:
            if given is None:
                raise InvalidInputError(f"train: this training has a schedule {kind}: give its settings again.")
            values["tempering"] = given.tempering
        try:
            if kind in _SCHEDULES:
                values["tempering"] = _SCHEDULES[kind](**schedule)
            return cls(**values)
        except InvalidInputError as error:  # it is not the user who gave them
            raise ValueError(str(error)) from error


_LEAST = dict.fromkeys(("points", "batch", "buffer", "buffer_steps", "kept", "tempering_buffer"), 1)
_LEAST |= dict.fromkeys(("sweeps", "fit_steps", "soft_buffers"), 0)
_LARGEST = dict.fromkeys(("blurred", "defended", "average", "clip", "least_ess", "least_path_ess"), 1.0)
_LARGEST |= dict.fromkeys(("flattening", "start_blur", "blur", "soft_factor", "rotation_factor"), math.inf)


def _number(name: str, value: Any, largest: float) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= largest:
        upper = "" if largest == math.inf else f" and at most {largest:g}"
        raise InvalidInputError(f"TrainSettings: {name} is {value!r}; give a number of at least 0{upper}.")
    if not math.isfinite(value):
        raise InvalidInputError(f"TrainSettings: {name} is {value!r}; give a finite number.")
    return float(value)


_SCHEDULES: dict[str, Any] = {kind.__name__: kind for kind in (AdaptiveTempering, GeometricTempering)}
