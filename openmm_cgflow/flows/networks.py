"""The small networks that condition the flow, and what they are fed with."""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "fourier_features"]


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
