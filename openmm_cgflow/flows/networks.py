"""The small networks that condition the flow, and what they are fed with."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.by_hand import Gradients

__all__ = ["MLP", "MLPTape", "fourier_features"]


class MLPTape(NamedTuple):
    """What a network remembers of a pass.

    Attributes:
        inputs: of each linear map, `(width, batch)`.
        slopes: of each activation, `(hidden, batch)`.
    """

    inputs: list[Tensor]
    slopes: list[Tensor]


class MLP(nn.Module):
    """A perceptron with SiLU activations whose last layer starts at zero.

    It starts as the constant `bias`, so that a flow built from it starts as the map that its author chose.
    With `n_in = 0` it is a learnable constant, which is fed a one so that it learns as fast as the others.

    Arguments:
        n_in: number of inputs.
        n_out: number of outputs.
        hidden: width of each hidden layer.
        depth: number of hidden layers.
        bias: start value of the outputs, `(n_out,)`; zeros if not given.
    """

    one: Tensor

    def __init__(self, n_in: int, n_out: int, hidden: int, depth: int = 2, bias: Tensor | None = None) -> None:
        super().__init__()
        self.n_in = n_in
        widths = [max(n_in, 1)] + [hidden] * depth
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], n_out)
        self.register_buffer("one", torch.ones(1, 1), persistent=False)
        self.head.weight.data.zero_()
        self.head.bias.data.zero_()
        if bias is not None:
            self.head.bias.data.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `(batch, n_out)` for inputs `(batch, n_in)`."""
        if self.n_in:
            return self.head(self.body(x))
        return self.head(self.body(self.one)).expand(x.shape[0], -1)

    def push(self, x: Tensor) -> tuple[Tensor, MLPTape]:
        """`forward` by hand (see `by_hand`): outputs `(n_out, batch)` for inputs `(n_in, batch)`, and the tape."""
        x = x if self.n_in else x.new_ones(1, x.shape[1])
        inputs, slopes, one = [x], [], x.new_ones(())
        for linear in self.linear()[:-1]:
            h = torch.addmm(linear.bias.unsqueeze(1), linear.weight, x)
            gate = torch.sigmoid(h)
            x = h.mul_(gate)
            slopes.append(torch.lerp(x, one, gate))  # of h s(h) with the sigmoid s: s + h s (1 - s)
            inputs.append(x)
        return torch.addmm(self.head.bias.unsqueeze(1), self.head.weight, x), MLPTape(inputs, slopes)

    def pull(self, tape: MLPTape, cotangent: Tensor, rows: Tensor) -> Tensor:
        """The cotangent of some inputs for that of the outputs, `(n_out, batch)`.

        Arguments:
            tape: from `push`.
            cotangent: of the outputs.
            rows: indices of the inputs.
        """
        first, *others = self.linear()
        for linear, slope in zip(reversed(others), reversed(tape.slopes), strict=True):
            cotangent = (linear.weight.T @ cotangent).mul_(slope)
        return first.weight.index_select(1, rows).T @ cotangent

    def gradients(self, tape: MLPTape, cotangent: Tensor, rows: Tensor) -> tuple[Tensor, Gradients]:
        """The same, and the gradients of the parameters."""
        first, *others = self.linear()
        found: Gradients = {}
        for k, linear in reversed(list(enumerate(others, 1))):
            found[linear.weight], found[linear.bias] = cotangent @ tape.inputs[k].T, cotangent.sum(1)
            cotangent = (linear.weight.T @ cotangent).mul_(tape.slopes[k - 1])
        found[first.weight], found[first.bias] = cotangent @ tape.inputs[0].T, cotangent.sum(1)
        return first.weight.index_select(1, rows).T @ cotangent, found

    def linear(self) -> list[nn.Linear]:
        """Its linear maps, in their order."""
        return [layer for layer in (*self.body, self.head) if isinstance(layer, nn.Linear)]


def fourier_features(y: Tensor, n_circular: int, harmonics: int) -> Tensor:
    """What a network sees of soft variables: smooth, and periodic where they are.

    Arguments:
        y: `(batch, n)`, circular entries in radians of their own period (2 pi once around), others about unit scale.
        n_circular: how many of the entries are circular; they come first.
        harmonics: number of sine and cosine pairs for each of them.

    Returns:
        `(batch, 2 * harmonics * n_circular + n - n_circular)`

    Example:
        >>> fourier_features(torch.zeros(1, 2), n_circular=1, harmonics=2)
        tensor([[0., 0., 1., 1., 0.]])
    """
    phases = y[:, :n_circular, None].expand(-1, -1, harmonics).cumsum(2).flatten(1)
    return torch.cat([torch.sin(phases), torch.cos(phases), y[:, n_circular:]], dim=1)
