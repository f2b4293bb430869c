"""Classical force matching: the student that has the forces of the frames, the baseline of flow-matching."""

import time
from typing import Any

import torch
from openmm import unit
from torch import Tensor, nn

from openmm_cgflow.compute import Parallel, plain_torch
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.forcematching.baselines.members import (
    Matched,
    MatchSettings,
    batch_of,
    fit_members,
    student_of_members,
)
from openmm_cgflow.forcematching.density.fitting import checked_frames
from openmm_cgflow.forcematching.density.likelihood import Fitted
from openmm_cgflow.forcematching.frames.bead_model import BeadModel
from openmm_cgflow.forcematching.frames.force_map import internal_slopes, reduced_forces
from openmm_cgflow.forcematching.students.descent import descend
from openmm_cgflow.forcematching.students.lessons import energy_and_gradient, features_at, units
from openmm_cgflow.units import KB, PositionsLike, in_kelvin

__all__ = ["fit_forces"]


@plain_torch
def fit_forces(
    frames: PositionsLike,
    model: BeadModel,
    forces: Any,  # noqa: ANN401
    temperature: unit.Quantity | float,
    settings: MatchSettings | None = None,
    seed: int = 0,
) -> Matched:
    """A student whose forces are as near as can be to those on the beads of frames, in the mean of squares.

    The forces of one frame are mostly noise about their mean, which is what a force field is to have. Networks are
    fitted to four splits of the frames; each is left as it was when its error on the frames that were held out was
    least, and the student is their mean.

    Arguments:
        frames: of the beads, or of the atoms that they were chosen from, what `BeadModel.read` takes.
        model: the beads.
        forces: on the beads, `(frames, beads, 3)`, kJ/mol/nm or a Quantity, of a `ForceMap`.
        temperature: of the frames, K or a Quantity.
        settings: budgets and sizes.
        seed: of splits, start weights and batches.

    Returns:
        the student; its losses are mean squares of a component of the forces, (kT/nm)^2.

    Raises:
        InvalidInputError: too few frames, NaN, coordinates that do not change, no forces, or what are none.
        MismatchError: frames of other beads, forces of another number, unit or map.

    Source: Izvekov and Voth 2005 (doi:10.1021/jp044629q); the network and its springs are those of CGnet, Wang et al.
    2019 (arXiv 1812.01736).

    Example:
        forces = aggregated_map(model)(forces_of_atoms)
        student = fit_forces("md.xtc", model, forces, 300).student
    """
    began, settings = time.perf_counter(), settings or MatchSettings()
    if not isinstance(settings, MatchSettings):
        raise InvalidInputError(f"fit_forces: settings is a {type(settings).__name__}; give MatchSettings(...)")
    if forces is None:
        raise InvalidInputError("fit_forces: there are no forces; give those on the beads, for instance of a ForceMap")
    x, coordinates, q = checked_frames(frames, model, forces, temperature)
    student = student_of_members(coordinates, KB * in_kelvin(temperature), q, settings)
    force = torch.as_tensor(reduced_forces(forces, temperature)).flatten(1)
    seen, by_x = features_at(student, q), internal_slopes(coordinates, x).transpose(1, 2)
    slopes = (by_x / units(student)).float() @ seen.slopes  # of features by positions
    left = (-force - (by_x @ seen.pull.unsqueeze(2)).squeeze(2)).float()  # to be the gradient of the network

    def fit(network: nn.Sequential, mine: Tensor, others: Tensor, generator: torch.Generator) -> Fitted:
        def error(index: Tensor) -> Tensor:
            return (energy_and_gradient(network, seen.z[index], slopes[index])[1] - left[index]).square().mean()

        def loss() -> Tensor:
            return error(mine[batch_of(len(mine), settings.batch, generator)])

        def judge() -> float:
            return float(error(others).detach())

        return descend(network, loss, settings.rate, settings.decay, settings.steps, judge)

    with Parallel():  # one thread in each operation, so that sums have one order
        ended = fit_members(student, len(x), settings, seed, fit)
    return Matched(student, ended, len(x), time.perf_counter() - began)
