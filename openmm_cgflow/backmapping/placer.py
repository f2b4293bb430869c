"""Putting atoms around beads: the interface, and today's one way."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from openmm_cgflow.compute import Parallel
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.sampling import Drawn
from openmm_cgflow.structures import CONSTRAINT_TOLERANCE
from openmm_cgflow.trained import KnownRegion, TrainedFlow

__all__ = ["FlowPlacer", "Placer"]

_BEYOND = 3.0  # kT by which a frame may be less likely than the least likely that the flow knows


class Placer(Protocol):
    """Puts atoms around frames of beads, which it was made for.

    Attributes:
        outside: `(frames,)` bool, whether the beads are outside the region that it knows.
    """

    outside: Tensor

    def place(self, rows: Tensor, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, Tensor, Tensor]:
        """One structure around the beads of each of the frames `rows`, which may come more than once.

        Returns:
            positions `(len(rows), atoms, 3)` in nm with the beads where they are given, log-densities of the atoms
            given the beads `(len(rows),)`, and reduced energies, infinite for what cannot be.
        """

    def reason(self, frame: int) -> str:
        """Why a frame is outside."""


class FlowPlacer:
    """The flow's own conditional density of the atoms given the beads.

    Arguments:
        flow: the flow.
        beads: `(frames, beads, 3)` nm.
    """

    def __init__(self, flow: TrainedFlow, beads: Tensor) -> None:
        self.flow, self.beads = flow, beads
        self.coordinates = flow.coordinates
        self.bead_coordinates: InternalCoordinates = flow.coordinates.bead_coordinates().to(beads.device)
        q, log_measure = self.bead_coordinates.to_internal(beads)
        self.q, self.log_measure = q.float(), log_measure
        placed = list(flow.coordinates.bead_atoms)
        self.gauge = torch.tensor([placed.index(atom) for atom in flow.coordinates.layout.order[:3]])
        self.atoms = torch.tensor(placed)
        self.known = KnownRegion.of(flow)
        with torch.no_grad():
            likely = flow.flow.bead_flow.log_prob(self.q) >= self.known.least_log_prob - _BEYOND
        self.misfit = _off_constraints(beads, flow.beads.constraints)
        self.outside = ~likely | ~self.bead_coordinates.in_domain(q) | (self.misfit > CONSTRAINT_TOLERANCE)

    def reason(self, frame: int) -> str:
        """The coordinate of a strange frame that is farthest from what the flow knows."""
        if self.misfit[frame] > CONSTRAINT_TOLERANCE:
            return f"distances that the System constrains are up to {float(self.misfit[frame]):.4f} nm off"
        n_slow, (low, high) = self.coordinates.sizes[0], self.known.stiff
        values = self.q[frame, n_slow:].cpu().double()
        beyond = torch.maximum(low - values, values - high) / (high - low)
        if not len(beyond) or beyond.max() <= 0:
            return "an unlikely combination of coordinates"
        worst = int(beyond.argmax())
        name = self.bead_coordinates.names[n_slow + worst]
        return f"{name} is {values[worst]:.3f}, between {low[worst]:.3f} and {high[worst]:.3f} where trained (nm, rad)"

    def place(self, rows: Tensor, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, Tensor, Tensor]:
        """Structures `(len(rows), atoms, 3)` around the beads of the frames `rows`, log-densities, reduced energies."""
        flow = self.flow.flow
        like = self.q[rows]
        noise = flow.atom_flow.draw_noise(len(rows), generator)

        def part(q: Tensor, log_measure: Tensor, beads: Tensor, noise: Tensor) -> Drawn:
            atoms = flow.atom_flow.decode(noise, flow.bead_flow.features(q, q[:, :0]))
            whole = torch.cat([q, atoms.value], dim=1)
            drawn = self.flow.target.weigh(whole, atoms.log_prob, lambda x: self._onto(x, beads))
            return drawn._replace(log_measure=drawn.log_measure.double() - log_measure)

        self.flow.potential.settle()
        drawn = Drawn(*parallel.map(part, like, self.log_measure[rows], self.beads[rows], noise))
        return drawn.x, drawn.log_density, torch.where(drawn.inside, drawn.u.double(), torch.inf)

    def _onto(self, x: Tensor, beads: Tensor) -> Tensor:
        """Turn and move structures from their gauge onto their beads."""
        origin, first, second = beads[:, self.gauge].unbind(1)
        along = torch.nn.functional.normalize(first - origin, dim=1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(along, second - origin), dim=1)
        frame = torch.stack([along, torch.linalg.cross(normal, along), normal], dim=1)
        x = x @ frame.to(x.dtype) + origin.to(x.dtype).unsqueeze(1)
        x[:, self.atoms] = beads.to(x.dtype)  # what is left are rounding errors
        return x


def _off_constraints(x: Tensor, constraints: Mapping[tuple[int, int], float]) -> Tensor:
    """By how much the constrained distance that is off most is off, nm, `(batch,)`."""
    if not constraints:
        return x.new_zeros(len(x))
    pairs = torch.tensor(list(constraints), device=x.device)
    lengths = torch.tensor(list(constraints.values()), dtype=x.dtype, device=x.device)
    return ((x[:, pairs[:, 0]] - x[:, pairs[:, 1]]).norm(dim=2) - lengths).abs().amax(1)
