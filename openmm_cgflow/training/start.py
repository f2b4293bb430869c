"""Where the Laplace start is made: soft variables from an annealed walk over energies minimised in the stiff ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from openmm_cgflow.compute import Parallel, choose
from openmm_cgflow.sampling import BoltzmannTarget, effective_sample_size
from openmm_cgflow.training.laplace import curvature_factor, minimise

__all__ = ["anneal_soft", "separating_directions", "soft_and_stiff"]

DESCENT = 60  # iterations in search of the slow directions of vectors
FIRST, MOVED = 15, 6  # iterations of each walker at the start, and after a move


def soft_and_stiff(sizes: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the soft (slow, rotors) and of the stiff coordinates, in blocks of slow, bead, rotor and atom."""
    slow, bead, rotor, atom = torch.arange(sum(sizes), device=device).split(list(sizes))
    return torch.cat([slow, rotor]), torch.cat([bead, atom])


def anneal_soft(
    target: BoltzmannTarget,
    start: Tensor,
    soft: Tensor,
    stiff: Tensor,
    factor: Tensor,
    parallel: Parallel,
    generator: torch.Generator,
    sweeps: int,
    temperature: float,
) -> Tensor:
    """Walkers over the soft variables, cooled to `temperature` times the target's own.

    The energy of a walker is the smallest action over the stiff coordinates, kept nearly minimised by a few steps after
    each move. A move turns one soft variable to anywhere on its circle, or all of them a little.

    Arguments:
        target: gives the action.
        start: `(walkers, dof)`, soft variables spread evenly.
        soft: `(n_soft,)` indices of the soft variables.
        stiff: `(n_stiff,)` indices of the stiff coordinates.
        factor: `(n_stiff, n_stiff)` preconditioner of the minimisation.
        parallel: over which evaluations are spread.
        generator: of the moves.
        sweeps: number of moves of each walker.
        temperature: the last one, relative to the target's own.

    Returns:
        `(walkers, dof)`: walkers distributed about as `exp(-action / temperature)` in the soft variables.
    """
    q, action = minimise(target, start, stiff, factor, parallel, FIRST)
    highest = _first_temperature(action, temperature)
    span = target.coordinates.span[soft].to(q)
    for sweep in range(sweeps):
        hot = highest * (temperature / highest) ** min(1.0, 1.5 * sweep / max(1, sweeps))
        if sweep == 0:
            chosen = choose(torch.softmax(-action / hot, 0), len(q), generator)
            q, action = q[chosen], action[chosen]
        trial = q.clone()
        trial[:, soft] += _moves(len(q), span, generator)
        trial, trial_action = minimise(target, trial, stiff, factor, parallel, MOVED)
        accepted = torch.rand(len(q), generator=generator).to(q) < torch.exp((action - trial_action) / hot)
        q = torch.where(accepted.unsqueeze(1), trial, q)
        action = torch.where(accepted, trial_action, action)
    return q


def _first_temperature(action: Tensor, lowest: float) -> float:
    """The temperature at which a quarter of the walkers counts."""
    temperature = lowest
    while temperature < 1e4 and effective_sample_size(-action / temperature) < 0.25:
        temperature *= 1.2
    return temperature


def _moves(walkers: int, span: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the walkers turn one variable to anywhere, the others all variables by a fifteenth of a turn or so."""
    n = span.numel()
    anywhere = span * (torch.rand(walkers, n, generator=generator).to(span) - 0.5)
    one = torch.nn.functional.one_hot(torch.randint(n, (walkers,), generator=generator), n).to(span.device)
    little = span * torch.randn(walkers, n, generator=generator).to(span) / (15 * math.sqrt(n))
    return torch.where(torch.rand(walkers, 1, generator=generator).to(span) < 0.5, anywhere * one, little)


def separating_directions(
    target: BoltzmannTarget,
    starts: int,
    parallel: Parallel,
    generator: torch.Generator,
    descent: int = DESCENT,
    descents: Sequence[int] = (80, 40, 40),
) -> Tensor:
    """Directions along which the minima differ most, measured by the curvature of the lowest: where barriers are.

    For a mixture of normals of one covariance these are Fisher's discriminants, given which all else is unimodal.

    Arguments:
        target: gives the action.
        starts: descents from everywhere in the span of the coordinates.
        parallel: over which the evaluations are spread.
        generator: of the starts.
        descent: iterations of each of the two descents.
        descents: iterations for the curvature of the lowest minimum, as `curvature_factor` takes them.

    Returns:
        orthonormal rows `(k, dof)`, the most important first; `k` below `dof` where fewer separate the minima.
    """
    coordinates = target.coordinates
    scale = coordinates.scale.float()
    everything = torch.arange(coordinates.dof, device=scale.device)
    q = (torch.rand(starts, coordinates.dof, generator=generator).to(scale) - 0.5) * coordinates.span.float()
    q, action = minimise(target, q, everything, torch.diag(0.1 * scale), parallel, descent)
    lowest = q[action.argmin()].unsqueeze(0)
    lowest, factor = curvature_factor(target, lowest, everything, 0.1 * scale, parallel, descents)
    q, action = minimise(target, q, everything, factor, parallel, descent)
    apart = torch.linalg.solve_triangular(factor, (q - lowest).T, upper=False)  # in units of the curvature
    left, widths, _ = torch.linalg.svd(apart / math.sqrt(starts), full_matrices=False)
    separating = left[:, widths > 1.0]
    return torch.linalg.qr(torch.linalg.solve_triangular(factor.T, separating, upper=True)).Q.T
