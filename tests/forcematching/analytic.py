"""Densities of beads that are known in closed form, for the tests of this room."""

import math

import torch
from molecules import load

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.flows import BeadFlow, FlowSettings, JointFlow

KT = 2.494338785445972  # kJ/mol at 300 K
SMALL = FlowSettings(components=8, slow_hidden=8, bead_couplings=2, hidden=8, rank=2)


def beads_of(name: str) -> InternalCoordinates:
    """Coordinates of the beads of a molecule of the tests."""
    molecule = load(name)
    return InternalCoordinates.fromTopology(*molecule).bead_coordinates()


def flow_of(beads: InternalCoordinates) -> BeadFlow:
    """An untrained flow of these beads: broad in the torsions, normal in all else."""
    return JointFlow.build(beads.sizes, beads.centre, beads.scale, beads.period, SMALL).bead_flow.double()


class Analytic(torch.nn.Module):
    """Torsions by `exp(sum of cosines)`, normalised on a grid; all else normal, its mean bent by the first torsion."""

    GRID = 180

    def __init__(self, beads: InternalCoordinates) -> None:
        super().__init__()
        self.n_slow = beads.sizes[0]
        self.register_buffer("centre", beads.reference[self.n_slow :].clone())
        self.register_buffer("width", 0.8 * beads.scale[self.n_slow :])
        axis = 2 * math.pi * (torch.arange(self.GRID, dtype=torch.float64) + 0.5) / self.GRID - math.pi
        self.register_buffer("nodes", torch.cartesian_prod(*[axis] * self.n_slow).reshape(-1, self.n_slow))
        self.register_buffer("log_z", torch.zeros((), dtype=torch.float64))
        cell = (2 * math.pi / self.GRID) ** self.n_slow
        self.log_z += torch.logsumexp(-self.torsional(self.nodes), 0) + math.log(cell)

    def torsional(self, slow: torch.Tensor) -> torch.Tensor:
        """Two basins in the first torsion, the rarer one at positive angles; in kT."""
        first, last = slow[:, 0], slow[:, -1]
        return -1.3 * torch.cos(first + 1.8) - 1.6 * torch.cos(2 * first + 0.4) - torch.cos(last - 2.0 - first)

    def mean(self, slow: torch.Tensor) -> torch.Tensor:
        return self.centre + 0.3 * self.width * torch.cos(slow[:, :1] + torch.arange(len(self.width)))

    def log_prob(self, q: torch.Tensor) -> torch.Tensor:
        slow, stiff = q[:, : self.n_slow], q[:, self.n_slow :]
        z = (stiff - self.mean(slow)) / self.width
        normal = -0.5 * (z * z).sum(1) - torch.log(self.width).sum() - 0.5 * len(self.width) * math.log(2 * math.pi)
        return normal - self.torsional(slow) - self.log_z

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor]:
        weights = torch.exp(-self.torsional(self.nodes))
        slow = self.nodes[torch.multinomial(weights, n, replacement=True, generator=generator)]
        jitter = torch.rand(slow.shape, generator=generator, dtype=slow.dtype) - 0.5
        slow = slow + jitter * (2 * math.pi / self.GRID)
        noise = torch.randn(n, len(self.width), generator=generator, dtype=slow.dtype)
        return (torch.cat([slow, self.mean(slow) + self.width * noise], dim=1),)

    def probabilities(self, bins: int) -> torch.Tensor:
        """Of the cells of a grid; `bins` divides 180."""
        share = torch.softmax(-self.torsional(self.nodes), 0)
        if self.n_slow == 1:
            return share.reshape(bins, -1).sum(1)
        return share.reshape(bins, self.GRID // bins, bins, -1).sum((1, 3))


class CartesianEnergy(torch.nn.Module):
    """The energy of positions, kJ/mol, whose equilibrium is a density of internal coordinates."""

    def __init__(self, density: torch.nn.Module, beads: InternalCoordinates) -> None:
        super().__init__()
        self.density, self.beads = density, beads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, log_measure = self.beads.to_internal(x)
        return -KT * (self.density.log_prob(q) - log_measure)
