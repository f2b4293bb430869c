"""What a flow is trained on: the Boltzmann density of internal coordinates, at any inverse temperature."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.potentials import Potential
from openmm_cgflow.training.budget import Budget

__all__ = ["BoltzmannTarget", "BudgetedTarget"]

_SETTLING = 90.0  # seconds that must be left for the potential to be compiled


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

    def settle(self) -> None:
        """To be called between batches: how energies are computed changes here, if at all, and not within a batch."""
        self.potential.settle()

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


class BudgetedTarget(BoltzmannTarget):
    """A target whose energies are paid from a budget: asking for more than it has raises Spent.

    Arguments:
        target: the same without a budget.
        budget: pays.
        at_once: inside it, what cannot look at the budget is left when somebody asks for an end.
    """

    def __init__(
        self,
        target: BoltzmannTarget,
        budget: Budget,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(target.potential, target.coordinates, target.kT)
        self._budget, self._at_once = budget, at_once

    def reduced(self, x: Tensor) -> Tensor:
        """As without a budget, after paying for it: piece by piece, where that makes no difference."""
        pieces = x.split(self.potential.piece or max(1, len(x)))
        return torch.cat([self._paid(piece) for piece in pieces])

    def _paid(self, x: Tensor) -> Tensor:
        self._budget.spend(len(x))
        return super().reduced(x)

    def settle(self) -> None:
        """As without a budget, if there is time."""
        seconds = self._budget.seconds
        if seconds is None or seconds - self._budget.elapsed > _SETTLING:
            with self._at_once():
                super().settle()
