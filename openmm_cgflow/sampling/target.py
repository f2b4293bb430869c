"""The Boltzmann density of internal coordinates, at any inverse temperature; samples of others are weighed by it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.potentials import Potential

__all__ = ["BoltzmannTarget", "Drawn"]


class Drawn(NamedTuple):
    """Structures that were drawn from a density and placed, with what weighs them.

    A tuple of tensors with the same rows, as `Parallel.map` takes it.
    """

    q: Tensor
    """`(batch, dof)`, internal coordinates."""
    x: Tensor
    """`(batch, atoms, 3)` nm, or vectors `(batch, dim)`."""
    log_q: Tensor
    """`(batch,)`, log-density of the internal coordinates."""
    log_measure: Tensor
    """`(batch,)`, `log |det dx/dq|`."""
    inside: Tensor
    """`(batch,)` bool, whether q is in the domain of the coordinates: what is not has no weight."""
    u: Tensor
    """`(batch,)`, reduced energies `U / kT`, as they are; NaN where nobody asked for them."""

    @classmethod
    def of(
        cls,
        coordinates: InternalCoordinates | LinearCoordinates,
        q: Tensor,
        log_q: Tensor,
        energies: Callable[[Tensor], Tensor] | None = None,
        moved: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> "Drawn":
        """Places rows of q that were drawn with log-density `log_q`.

        Arguments:
            coordinates: place atoms.
            q: `(batch, dof)`.
            log_q: `(batch,)`.
            energies: reduced ones `(batch,)` of positions.
            moved: turns and moves the positions before that.
        """
        x, log_measure = coordinates.to_cartesian(q)
        x = moved(x)
        u = torch.full_like(log_measure, torch.nan) if energies is None else energies(x)
        return cls(q, x, log_q, log_measure, coordinates.in_domain(q), u)

    @property
    def log_density(self) -> Tensor:
        """`(batch,)`, log-density of the positions with rigid motion taken out, in double precision."""
        return self.log_q.double() - self.log_measure.double()

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """`(batch,)`, log of `exp(-beta u)` over the density; minus infinity outside the domain and without an energy.

        Arguments:
            beta: inverse temperature relative to that of `u`.
        """
        log_weights = -(beta * self.u - self.log_measure) - self.log_q
        return torch.where(self.inside & torch.isfinite(log_weights), log_weights, -torch.inf)


class BoltzmannTarget(nn.Module):
    """`p(q) = exp(-beta u(x(q))) |det dx/dq| / Z` with `u = U / kT`.

    `Z` is the configuration integral with rigid motion taken out, over the input's chirality and isomers and over one
    of the equivalent labellings of each symmetric rotor.

    Arguments:
        potential: energies in kJ/mol.
        coordinates: the map between internal coordinates and positions.
        kT: thermal energy in kJ/mol.
    """

    def __init__(self, potential: Potential, coordinates: InternalCoordinates | LinearCoordinates, kT: float) -> None:
        super().__init__()
        self.potential, self.coordinates, self.kT = potential, coordinates, kT

    def reduced(self, x: Tensor) -> Tensor:
        """Reduced energies `(batch,)` of positions: the one place from which training gets energies."""
        return self.potential.energy(x) / self.kT

    def settle(self) -> bool:
        """To be called between batches: how energies are computed changes here, if at all, and not within a batch."""
        return self.potential.settle()

    def weigh(self, q: Tensor, log_q: Tensor, moved: Callable[[Tensor], Tensor] = lambda x: x) -> Drawn:
        """Places rows of q `(batch, dof)` that were drawn with log-density `log_q (batch,)`, with their energies.

        Arguments:
            q: internal coordinates.
            log_q: of these.
            moved: turns and moves positions before their energies are computed.
        """
        return Drawn.of(self.coordinates, q, log_q, self.reduced, moved)

    def parts(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energies `u (batch,)` and `log |det dx/dq| (batch,)` of `q (batch, dof)`; NaN becomes +inf."""
        x, logdet = self.coordinates.to_cartesian(q)
        u = self.reduced(x)
        return torch.where(torch.isfinite(u), u, torch.inf), logdet

    def action(self, q: Tensor, beta: float = 1.0) -> Tensor:
        """`beta u - log |det dx/dq|`, `(batch,)`, differentiable; +inf outside the domain of the coordinates."""
        u, logdet = self.parts(q)
        action = beta * u - logdet
        return torch.where(self.coordinates.in_domain(q) & torch.isfinite(action), action, torch.inf)

    def action_and_gradient(self, q: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """The action and its gradient `(batch, dof)`; the gradient is zero where it is not finite."""
        with torch.enable_grad():
            leaf = q.detach().requires_grad_(True)
            x, logdet = self.coordinates.to_cartesian(leaf)
            action = beta * self.reduced(x) - logdet
            (gradient,) = torch.autograd.grad(action.sum(), leaf)
        action = action.detach()
        fine = torch.isfinite(action) & torch.isfinite(gradient).all(1) & self.coordinates.in_domain(q)
        return torch.where(fine, action, torch.inf), torch.where(fine.unsqueeze(1), gradient, 0.0)
