"""What a teacher is, where its student is to learn from it, and what it says there."""

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from openmm_cgflow.compute import Parallel
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import TrainingError

__all__ = ["Points", "Teacher", "cartesian_gradients", "labels", "training_points"]

_FEWEST = 10  # samples
_ROUNDS = 50  # of drawing flattened points, after which there are fewer
_TURNED = 2  # torsions of a point that are flattened at once


class Teacher(Protocol):
    """A normalised density of the beads' internal coordinates, such as a `BeadFlow` or a mixture of them."""

    def log_prob(self, value: Tensor, /) -> Tensor:
        """Log-density `(n,)` of `value (n, dof)`, differentiable."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """`n` independent samples `(n, dof)`, first in a tuple."""


class Points(NamedTuple):
    """Where the student learns.

    Attributes:
        own: `(m, dof)`, drawn from the teacher.
        flat: `(k, dof)`, with uniform torsions.
    """

    own: Tensor
    flat: Tensor

    @property
    def q(self) -> Tensor:
        """All of them, `(m + k, dof)`."""
        return torch.cat([self.own, self.flat])


@torch.no_grad()
def training_points(
    teacher: Teacher,
    coordinates: InternalCoordinates,
    n: int,
    flat: float,
    floor: float,
    generator: torch.Generator,
) -> Points:
    """Samples of the teacher, and points with uniform torsions wherever the teacher knows anything.

    The samples say nothing of barriers, and forces alone nothing of how deep the basins are beside one another. A
    flattened point has uniform torsions (with more than two, two of those of a sample are made uniform) and the stiff
    coordinates of the sample that is nearest in the torsions. It is kept where the teacher's log-density is at most
    `floor` below its mean over samples: what is less likely is not known to the teacher either.

    Arguments:
        teacher: in double precision.
        coordinates: of the beads alone.
        n: how many in all.
        flat: the share of flattened ones; there are fewer where the floor leaves too little room.
        floor: kT.
        generator: of everything random.

    Raises:
        TrainingError: if hardly a sample is of the isomer that the coordinates describe.
    """
    n_slow = coordinates.sizes[0]
    n_flat = round(flat * n) if n_slow else 0
    own = teacher.sample(n - n_flat, generator)[0]
    own = own[coordinates.in_domain(own)]
    if len(own) < _FEWEST:
        raise TrainingError(
            f"only {len(own)} of {n - n_flat:,} samples of the teacher are the isomer of its coordinates; train it "
            "further"
        )
    least = teacher.log_prob(own).mean() - floor
    tree = cKDTree(_on_circle(own[:, :n_slow]), boxsize=2 * math.pi) if n_flat else None
    kept = [own[:0]]
    for _ in range(_ROUNDS):
        if tree is None or sum(len(part) for part in kept) >= n_flat:
            break
        slow = own[torch.randint(len(own), (n_flat,), generator=generator), :n_slow]
        turned = torch.rand(n_flat, n_slow, generator=generator).argsort(1)[:, :_TURNED]
        uniform = 2 * math.pi * torch.rand(turned.shape, generator=generator, dtype=own.dtype) - math.pi
        slow = slow.scatter(1, turned, uniform)
        nearest = torch.as_tensor(tree.query(_on_circle(slow))[1])
        q = torch.cat([slow, own[nearest, n_slow:]], dim=1)
        kept.append(q[coordinates.in_domain(q) & (teacher.log_prob(q) > least)])
    return Points(own, torch.cat(kept)[:n_flat])


def _on_circle(angles: Tensor) -> np.ndarray:
    """Angles in [0, 2 pi)."""
    return np.mod(angles.numpy(), 2 * math.pi) % (2 * math.pi)


def labels(teacher: Teacher, coordinates: InternalCoordinates, q: Tensor, parallel: Parallel) -> tuple[Tensor, Tensor]:
    """The energy that the student is to have at `q`, and its gradient there.

    The density of Cartesian positions is `q(q) / |det dx/dq|`, so that the energy is `-log q + log |det dx/dq|`.

    Arguments:
        teacher: in double precision.
        coordinates: of the beads alone.
        q: `(n, dof)`.
        parallel: over which rows are spread.

    Returns:
        energies `(n,)` in kT, and gradients `(n, dof)` in kT per nm or rad.
    """

    def at(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            energy = coordinates.log_measure(rows) - teacher.log_prob(rows)
            (gradient,) = torch.autograd.grad(energy.sum(), rows)
        return energy.detach(), gradient

    energy, gradient = parallel.map(at, q)
    return energy, gradient


def cartesian_gradients(
    coordinates: InternalCoordinates, q: Tensor, gradient: Tensor, parallel: Parallel
) -> tuple[Tensor, Tensor]:
    """Gradients by internal coordinates as gradients by positions, `(dq/dx)^T` times them.

    Arguments:
        coordinates: of the beads alone.
        q: `(n, dof)`.
        gradient: `(n, dof)`, of an energy by `q`, such as `labels` gives it.
        parallel: over which rows are spread.

    Returns:
        positions and gradients by them, both `(n, beads, 3)`.
    """

    def at(rows: Tensor, by_q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = coordinates.to_cartesian(rows)[0].contiguous().requires_grad_()
            (by_x,) = torch.autograd.grad(coordinates.to_internal(x)[0], x, by_q)
        return x.detach(), by_x

    x, by_x = parallel.map(at, q, gradient)
    return x, by_x
