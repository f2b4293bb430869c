"""What a minimum weighs, by its curvature in internal coordinates."""

import math

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.compute import Parallel
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.potentials import Potential

__all__ = ["cost", "log_partition"]

_WIDEST = 0.3  # rad, the scale of soft torsions
_STEP = 0.3  # of the differences, in scales
_FLATTEST = 0.1  # the smallest curvature, in scales


def cost(coordinates: InternalCoordinates) -> int:
    """Evaluations for one minimum."""
    return 2 * coordinates.dof


def log_partition(
    potential: Potential, coordinates: InternalCoordinates, x: np.ndarray, kT: float, parallel: Parallel
) -> float:
    """Log of the configuration integral of one minimum in internal coordinates (nm, rad), by Laplace's formula.

    Arguments:
        potential: energies in kJ/mol.
        coordinates: in whose measure.
        x: `(atoms, 3)` nm, a minimum, in the domain of the coordinates or not.
        kT: thermal energy, kJ/mol.
        parallel: over which evaluations are spread.
    """
    q, _ = coordinates.to_internal(torch.as_tensor(x, dtype=torch.float64, device=parallel.device)[None])
    scale = coordinates.scale.clamp(max=_WIDEST)
    moves = _STEP * torch.diag(scale)
    _, gradient = _action(potential, coordinates, kT, parallel, torch.cat([q + moves, q - moves]))
    above, below = (part * scale for part in gradient.chunk(2))
    hessian = (above - below) / (2 * _STEP)
    values = torch.linalg.eigvalsh(0.5 * (hessian + hessian.T)).clamp(min=_FLATTEST)
    action, _ = _action(potential, coordinates, kT, parallel, q)
    size = scale.log().sum() - 0.5 * values.log().sum() + 0.5 * coordinates.dof * math.log(2 * math.pi)
    return float(size - action[0])


def _action(
    potential: Potential, coordinates: InternalCoordinates, kT: float, parallel: Parallel, q: Tensor
) -> tuple[Tensor, Tensor]:
    """`u - log |det dx/dq|` and its gradient, whether or not q is in the domain."""

    def part(q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = q.detach().requires_grad_(True)
            x, logdet = coordinates.to_cartesian(leaf)
            action = potential.energy(x).to(leaf) / kT - logdet
            (gradient,) = torch.autograd.grad(action.sum(), leaf)
        return action.detach(), gradient

    action, gradient = parallel.map(part, q)
    return action, gradient
