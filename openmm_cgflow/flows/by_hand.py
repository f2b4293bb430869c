"""Derivatives that a layer works out itself: what it hands on beside its values, and what it hands to autograd.

A layer maps `x` to `y = T(x; c)` given a context `c`. The *score* of a sample is the gradient of its log-density: with
respect to the sample, `G = d log q(x | c) / dx`, and with respect to the context, `H = d log q(x | c) / dc`. A layer
takes the scores of what comes in to those of what goes out,

    G_y = (dT/dx)^-T (G_x - d logdet/dx)
    H_y = H_x - d logdet/dc - (dT/dc)^T G_y            where logdet = log |det dT/dx|,

so that one pass gives a sample, its log-density and its score, and the layers need not be inverted (Vaitl, Nicoli,
Nakajima and Kessel 2024, arXiv 2403.15881). That is `push`, which also returns a tape; with it, `pull` takes a
cotangent of `y` back to `x`, to `c` and to the parameters, which is the gradient along the path of the sample.

What is made by hand has the batch last: variables are then picked and joined, and outputs of networks cut apart, in
whole pieces of memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Gradients", "asinh", "differentiable", "tanh"]

Gradients = dict[Tensor, Tensor]
"""Gradients by parameter."""

Pull = Callable[..., tuple[Sequence[Tensor | None], Mapping[Tensor, Tensor]]]


class _ByHand(torch.autograd.Function):
    """Values that are there already, with their way back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        back: Callable[..., tuple[Tensor | None, ...]],
        values: Sequence[Tensor],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.back = back
        return tuple(value.detach() for value in values)  # other objects than those on the tape, which is in `back`

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, *ctx.back(*upstream)


def differentiable(
    pull: Pull, values: Sequence[Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`values` as autograd sees them: made of `inputs` and `parameters`, with a gradient by `pull`.

    Arguments:
        pull: takes a cotangent for each value; returns one for each input, and gradients by parameter.
        values: computed without autograd.
        inputs: what they were made of.
        parameters: and by which.
    """

    def back(*upstream: Tensor) -> tuple[Tensor | None, ...]:
        cotangents, gradients = pull(*upstream)
        return *cotangents, *(gradients.get(parameter) for parameter in parameters)

    result: tuple[Tensor, ...] = _ByHand.apply(back, values, *inputs, *parameters)
    return result


def asinh(x: Tensor, square: Tensor, root: Tensor) -> Tensor:
    """`asinh(x)`, given `x^2` and `sqrt(1 + x^2)`: five times faster than torch's own (2.9.1, CPU), as accurate."""
    return torch.log1p(torch.addcdiv(x.abs(), square, root + 1)).copysign(x)


def tanh(x: Tensor) -> Tensor:
    """`tanh(x)` but for a digit of 1, which its argument's own last digits outweigh: faster than torch's own."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)
