"""Densities of beads that are known in closed form, for the tests of this room."""

import math

import numpy as np
import torch
from molecules import load

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.flows import BeadFlow, FlowSettings, JointFlow
from openmm_cgflow.forcematching import BeadModel, FittedBeads
from openmm_cgflow.units import KB

KELVIN = 300.0
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


class Known:
    """A density of four beads: a torsion of two modes, and bonds and angles that follow it linearly.

    `log q` and its slopes are exact.
    """

    def __init__(self) -> None:
        self.model = BeadModel.fromSequence("GGGG")
        line = np.array([[0, 0.3, 0], [0, 0, 0], [0.38, 0, 0], [0.5, 0.3, 0.2]])
        rough = line + np.random.default_rng(0).normal(0, 0.02, (50, 4, 3))
        self.coordinates = InternalCoordinates.from_state(self.model.coordinates(rough).state())
        self.middle = torch.tensor([0.38, 0.37, 1.8, 0.39, 1.7], dtype=torch.float64)
        self.width = torch.tensor([0.01, 0.01, 0.08, 0.01, 0.08], dtype=torch.float64)
        self.slopes = self.width.unsqueeze(1) * torch.tensor(
            [[0.5, 0.0], [0.0, 0.5], [0.6, 0.3], [0.0, -0.4], [-0.5, 0.2]], dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(0)
        lower = 0.3 * torch.randn(5, 5, generator=generator, dtype=torch.float64).tril(-1) + torch.eye(5)
        self.factor = self.width.unsqueeze(1) * lower
        self.modes, self.spread, self.share = (-1.3, 1.1), (0.3, 0.25), (0.8, 0.2)

    def draw(self, n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        second = torch.rand(n, generator=generator, dtype=torch.float64) < self.share[1]
        normal = torch.randn(n, generator=generator, dtype=torch.float64)
        torsion = torch.where(second, self.modes[1] + self.spread[1] * normal, self.modes[0] + self.spread[0] * normal)
        noise = torch.randn(n, 5, generator=generator, dtype=torch.float64)
        return torch.cat([torsion.unsqueeze(1), self.mean(torsion) + noise @ self.factor.T], dim=1)

    def mean(self, torsion: torch.Tensor) -> torch.Tensor:
        return self.middle + torch.stack([torch.sin(torsion), torch.cos(torsion)], dim=1) @ self.slopes.T

    def log_prob_slow(self, torsion: torch.Tensor) -> torch.Tensor:
        terms = [
            math.log(share / spread) - 0.5 * math.log(2 * math.pi) - 0.5 * ((torsion - mode) / spread) ** 2
            for mode, spread, share in zip(self.modes, self.spread, self.share, strict=True)
        ]
        return torch.logsumexp(torch.stack(terms), 0)

    def log_prob(self, q: torch.Tensor) -> torch.Tensor:
        y = torch.linalg.solve_triangular(self.factor, (q[:, 1:] - self.mean(q[:, 0])).T, upper=False)
        gaussian = -0.5 * (y * y).sum(0) - self.factor.diagonal().log().sum() - 2.5 * math.log(2 * math.pi)
        return self.log_prob_slow(q[:, 0]) + gaussian

    def frames(self, q: torch.Tensor) -> np.ndarray:
        return self.coordinates.to_cartesian(q)[0].numpy()

    def forces(self, q: torch.Tensor, noise: float = 0.0) -> np.ndarray:
        """Forces on the beads, kJ/mol/nm: minus the slope of `-kT (log q - log measure)` by positions."""
        x = torch.as_tensor(self.frames(q)).clone().requires_grad_(True)
        inner, log_measure = self.coordinates.to_internal(x)
        (slope,) = torch.autograd.grad((self.log_prob(inner) - log_measure).sum(), x)
        return KB * KELVIN * (slope.numpy() + np.random.default_rng(0).normal(0, noise, slope.shape))

    def divergence(self, teacher: FittedBeads, n: int = 4000) -> tuple[float, float]:
        """Kullback-Leibler divergences of the fit, of torsions and of the stiff coordinates given these."""
        q = self.draw(n, 99)
        with torch.no_grad():
            slow = self.log_prob_slow(q[:, 0]) - teacher.density.log_prob_slow(q[:, :1].float())
            whole = self.log_prob(q) - teacher.density.log_prob(q.float())
        return float(slow.mean()), float((whole - slow).mean())
