"""The free energy of the slow torsions as one TorchScript module of positions."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from openmm_cgflow.flows import SoftVariables
from openmm_cgflow.flows.mixture import MAX_CIRCULAR_SCALE

__all__ = ["SlowFreeEnergy"]


class SlowFreeEnergy(nn.Module):
    """`-kT log q(s(x))` of the slow torsions of positions, times a scale; to be scripted.

    The same numbers as `CGFlow.freeEnergy`, from positions, in double precision, on the device of the module's buffers.

    Arguments:
        slow: the flow's slow density, of torsions alone.
        torsions: the four atoms of each.
        kT: thermal energy in kJ/mol.
    """

    atoms: Tensor
    harmonics: Tensor
    images: Tensor
    centre: Tensor

    def __init__(self, slow: SoftVariables, torsions: list[tuple[int, int, int, int]], kT: float) -> None:
        super().__init__()
        density = slow.density
        if slow.n != slow.n_circular or slow.n != len(torsions):
            raise ValueError("only a density of torsions is a function of positions")
        self.register_buffer("atoms", torch.tensor(torsions).reshape(-1, 4).T.reshape(-1).contiguous())
        self.register_buffer("harmonics", torch.arange(1, density.harmonics + 1, dtype=torch.float64))
        self.register_buffer("images", 2 * math.pi * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
        self.register_buffer("centre", slow.centre.double())
        networks: Any = copy.deepcopy(density.conditioners).double()
        self.conditioners = nn.ModuleList(nn.Sequential(network.body, network.head) for network in networks)
        self.components, self.kT = density.components, kT
        self.min_scale: float = density.min_scale
        self.scale_range: float = MAX_CIRCULAR_SCALE - density.min_scale
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, positions: Tensor, scale: Tensor) -> Tensor:
        """Energy in kJ/mol, a scalar.

        Arguments:
            positions: `(atoms, 3)` in nm, of any precision.
            scale: the factor, a scalar.
        """
        angles = self.torsions(positions.to(torch.float64))
        y = angles - self.centre
        y = y - 2 * math.pi * torch.floor(y / (2 * math.pi) + 0.5)
        phases = y.unsqueeze(1) * self.harmonics
        sines, cosines = torch.sin(phases), torch.cos(phases)
        log_prob = torch.zeros_like(y[0])
        one = torch.ones_like(y[:1]).unsqueeze(0)
        for k, conditioner in enumerate(self.conditioners):
            features = one if k == 0 else torch.cat([sines[:k].flatten(), cosines[:k].flatten()]).unsqueeze(0)
            log_prob = log_prob + self.log_factor(y[k], conditioner(features)[0])
        return (-self.kT * log_prob * scale.to(torch.float64)).to(positions.dtype)

    def log_factor(self, y: Tensor, raw: Tensor) -> Tensor:
        """Log-density of one torsion, given the raw parameters of its mixture."""
        m = self.components
        log_weights = torch.log_softmax(torch.cat([raw[:m], torch.clamp(raw[3 * m :], min=-12.0)]), dim=0)
        widths = self.min_scale + self.scale_range * torch.sigmoid(raw[2 * m : 3 * m])
        deviation = y - raw[m : 2 * m]
        nearest = deviation - 2 * math.pi * torch.floor(deviation / (2 * math.pi) + 0.5)
        exponents = -0.5 * ((nearest.unsqueeze(1) + self.images) / widths.unsqueeze(1)) ** 2
        normal = torch.logsumexp(exponents, dim=1) - torch.log(widths) - 0.5 * math.log(2 * math.pi)
        flat = log_weights[m:] - math.log(2 * math.pi)
        return torch.logsumexp(torch.cat([log_weights[:m] + normal, flat]), dim=0)

    def torsions(self, x: Tensor) -> Tensor:
        """The torsions `(n,)` in radians of positions `(atoms, 3)`."""
        a, b, c, d = torch.chunk(x.index_select(0, self.atoms), 4)
        b1, b2, b3 = b - a, c - b, d - c
        n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        return torch.atan2(torch.linalg.vector_norm(b2, dim=1) * (b1 * n2).sum(1), (n1 * n2).sum(1))
