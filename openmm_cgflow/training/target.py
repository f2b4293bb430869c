"""What a flow is trained on: the Boltzmann density of internal coordinates, at any inverse temperature."""

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.potentials import Potential

__all__ = ["BoltzmannTarget"]


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

    @property
    def evaluations(self) -> int:
        """Energies of single configurations computed so far."""
        return self.potential.evaluations

    def parts(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energies `u (batch,)` and `log |det dx/dq| (batch,)` of `q (batch, dof)`; NaN becomes +inf."""
        x, logdet = self.coordinates.to_cartesian(q)
        u = self.potential.energy(x) / self.kT
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
            action = beta * self.potential.energy(x) / self.kT - logdet
            (gradient,) = torch.autograd.grad(action.sum(), leaf)
        action = action.detach()
        fine = torch.isfinite(action) & torch.isfinite(gradient).all(1) & self.coordinates.in_domain(q)
        return torch.where(fine, action, torch.inf), torch.where(fine.unsqueeze(1), gradient, 0.0)
