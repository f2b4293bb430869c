"""Networks of equal widths in one product a layer, with gradients by hand (see `by_hand`)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.by_hand import Gradients
from openmm_cgflow.flows.networks import MLP

__all__ = ["SideBySideTape", "gradients_side_by_side", "outputs_side_by_side", "push_side_by_side"]


class SideBySideTape(NamedTuple):
    """What networks remember of a pass.

    Attributes:
        first: inputs of each network, `(n_in, batch)`.
        inputs: of their other linear maps, `(networks, hidden, batch)`.
        slopes: of their activations, `(networks, hidden, batch)`.
    """

    first: list[Tensor]
    inputs: list[Tensor]
    slopes: list[Tensor]


def push_side_by_side(networks: Sequence[MLP], first: Sequence[Tensor]) -> tuple[Tensor, SideBySideTape]:
    """Outputs `(networks, n_out, batch)` of networks that differ in their inputs at most, and the tape.

    Arguments:
        networks: as many as there are inputs.
        first: their inputs, `(n_in, batch)` each.
    """
    ours = _fed(networks, first)
    layers = _layers(networks)
    x = torch.stack([torch.addmm(f.bias.unsqueeze(1), f.weight, x) for f, x in zip(layers[0], ours, strict=True)])
    inputs, slopes, one = [], [], x.new_ones(())
    for linear in layers[1:]:
        gate = torch.sigmoid(x)
        x = x.mul_(gate)
        slopes.append(torch.lerp(x, one, gate))
        inputs.append(x)
        x = _apply(linear, x)
    return x, SideBySideTape(ours, inputs, slopes)


def outputs_side_by_side(networks: Sequence[MLP], first: Sequence[Tensor]) -> Tensor:
    """The outputs alone, `(networks, n_out, batch)`."""
    layers = _layers(networks)
    ours = zip(layers[0], _fed(networks, first), strict=True)
    x = torch.stack([torch.addmm(f.bias.unsqueeze(1), f.weight, x) for f, x in ours])
    for linear in layers[1:]:
        x = _apply(linear, torch.nn.functional.silu(x))
    return x


def gradients_side_by_side(networks: Sequence[MLP], tape: SideBySideTape, cotangent: Tensor) -> Gradients:
    """The gradients of the parameters for a cotangent `(networks, n_out, batch)` of the outputs."""
    found: Gradients = {}
    first, *others = _layers(networks)
    for linear, x, slope in zip(reversed(others), reversed(tape.inputs), reversed(tape.slopes), strict=True):
        by_weight, by_bias = torch.bmm(cotangent, x.mT), cotangent.sum(2)
        for k, f in enumerate(linear):
            found[f.weight], found[f.bias] = by_weight[k], by_bias[k]
        cotangent = torch.bmm(torch.stack([f.weight for f in linear]).mT, cotangent).mul_(slope)
    by_bias = cotangent.sum(2)
    for k, (f, x) in enumerate(zip(first, tape.first, strict=True)):
        found[f.weight], found[f.bias] = cotangent[k] @ x.T, by_bias[k]
    return found


def _fed(networks: Sequence[MLP], first: Sequence[Tensor]) -> list[Tensor]:
    return [x if f.n_in else f.one.expand(1, x.shape[1]) for f, x in zip(networks, first, strict=True)]


def _apply(linear: Sequence[nn.Linear], x: Tensor) -> Tensor:
    return torch.baddbmm(torch.stack([f.bias for f in linear]).unsqueeze(2), torch.stack([f.weight for f in linear]), x)


def _layers(networks: Sequence[MLP]) -> list[tuple[nn.Linear, ...]]:
    return list(zip(*(network.linear() for network in networks), strict=True))
