"""The free energy of the beads as one module of their positions."""

import copy

import torch
from torch import Tensor, nn

from openmm_cgflow.trained import KnownRegion, TrainedFlow

__all__ = ["BeadFreeEnergy"]

_MARGIN = 0.5  # by which that region is widened, in thermal widths
_SLOPE = 8.0  # of the energy outside, kT for each thermal width


class BeadFreeEnergy(nn.Module):
    """`-kT log q(beads)` in Cartesian positions of the beads, times a scale; for `compile_forces`.

    `q` is the flow's density of the beads' internal coordinates divided by their Jacobian, so that molecular dynamics
    in this energy samples `q`. Each stiff coordinate, whitened by the flow, is followed as far as the flow's own
    samples go; beyond, the energy goes on from there with a constant slope, twice continuously differentiable, so that
    beads in a geometry that the flow has never seen are driven back by forces of ordinary size.

    Arguments:
        flow: a flow with at least four beads.
    """

    low: Tensor
    high: Tensor
    widest: Tensor
    narrowest: Tensor

    def __init__(self, flow: TrainedFlow) -> None:
        super().__init__()
        self.coordinates = flow.coordinates.bead_coordinates()
        known = KnownRegion.of(flow)
        self.bead_flow = copy.deepcopy(known.bead_flow)
        self.kT = flow.target.kT
        self.register_buffer("low", known.whitened.low - _MARGIN)
        self.register_buffer("high", known.whitened.high + _MARGIN)
        self.register_buffer("narrowest", self._in_widths(known.stiff.low) - _MARGIN)
        self.register_buffer("widest", self._in_widths(known.stiff.high) + _MARGIN)

    def _in_widths(self, stiff: Tensor) -> Tensor:
        return (stiff - self.bead_flow.stiff.reference) / self.bead_flow.stiff.scale

    def forward(self, positions: Tensor, scale: Tensor) -> Tensor:
        """Energy in kJ/mol, a scalar in double precision.

        Arguments:
            positions: of the beads, `(beads, 3)` in nm, of any precision.
            scale: the factor, a scalar.
        """
        x = positions.to(torch.float64).unsqueeze(0)
        slow, stiff = self.bead_flow.split(self.coordinates.to_internal(x)[0])
        density = self.bead_flow.stiff
        context = self.bead_flow.slow.features(slow)
        whitened, logdet = density.whiten(stiff, context)
        whitened, excess = _bounded(whitened, self.low, self.high)
        latent, change = density.unbend(whitened, context)
        widths, _ = _bounded(self._in_widths(stiff), self.narrowest, self.widest)
        stiff = density.reference + density.scale * widths
        log_prob = self.bead_flow.slow.log_prob(slow) + density.log_prob_latent(latent) + logdet + change
        log_prob = log_prob - self.coordinates.log_measure(torch.cat([slow, stiff], dim=1))
        energy = self.kT * (_SLOPE * excess.sum() - log_prob.sum())
        return energy * scale.to(torch.float64)


def _bounded(value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The value, followed by less than one unit beyond its bounds, and what is cut off: both C2."""
    over, under = torch.relu(value - high), torch.relu(low - value)
    over, under = over - torch.tanh(over), under - torch.tanh(under)
    return value - over + under, over + under
