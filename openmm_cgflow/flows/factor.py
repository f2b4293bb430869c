"""The contract of every density: its value seen by those after it (`encode`), and made of noise (`decode`)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Chain", "Decoded", "Encoded", "Factor"]


class Encoded(NamedTuple):
    """What a density says of values.

    Attributes:
        log_prob: their log-density `(batch,)`.
        features: what densities after this one see of them, `(batch, n_features)`.
    """

    log_prob: Tensor
    features: Tensor


class Decoded(NamedTuple):
    """What a density makes of noise.

    Attributes:
        value: `(batch, n)`.
        log_prob: log-density `(batch,)` of the values.
        features: what densities after this one see of them, `(batch, n_features)`.
    """

    value: Tensor
    log_prob: Tensor
    features: Tensor


class Factor(nn.Module):
    """A density `q(value | context)` of a block of variables.

    A new one says what `encode` and `decode` are; all else follows.

    Attributes:
        n: variables.
        n_noise: numbers of noise that make one value.
        n_features: width of what densities after this one see.
    """

    n: int
    n_noise: int
    n_features: int

    def encode(self, value: Tensor, context: Tensor) -> Encoded:
        """Log-density and features of `value (batch, n)` given `context (batch, n_context)`, differentiable."""
        raise NotImplementedError

    def decode(self, noise: Tensor, context: Tensor) -> Decoded:
        """Values made of `noise (batch, n_noise)` given `context (batch, n_context)`, differentiable."""
        raise NotImplementedError

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """What `decode` makes `batch` values of: `(batch, n_noise)`, on the CPU, where the generator is."""
        raise NotImplementedError

    def features(self, value: Tensor, context: Tensor) -> Tensor:
        """The features that `encode` gives, without the log-density."""
        return self.encode(value, context).features

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density `(batch,)` of `value (batch, n)`; the context may be left out where there is none."""
        return self.encode(value, value[:, :0] if context is None else context).log_prob

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Decoded:
        """`n` independent values of a density without a context."""
        noise = self.draw_noise(n, generator).to(next(self.buffers()).device)
        return self.decode(noise, noise[:, :0])


class Chain(Factor):
    """The product of densities each of which sees the features of all before it; values and noise stand side by side.

    Arguments:
        parts: factors, or chains of them, by name, in their order.
    """

    def __init__(self, **parts: Factor) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        factors = list(self.factors())
        self.sizes = tuple(factor.n for factor in factors)
        self.n, self.n_noise, self.n_features = (
            sum(getattr(factor, name) for factor in factors) for name in ("n", "n_noise", "n_features")
        )

    def factors(self) -> Iterator[Factor]:
        """Its densities one by one, also those within chains."""
        for part in self.children():
            if isinstance(part, Chain):
                yield from part.factors()
            elif isinstance(part, Factor):
                yield part

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The block of each factor in `value (batch, n)`."""
        return torch.split(value, list(self.sizes), dim=1)

    def split_noise(self, noise: Tensor) -> tuple[Tensor, ...]:
        """The noise of each factor in `noise (batch, n_noise)`."""
        return torch.split(noise, [factor.n_noise for factor in self.factors()], dim=1)

    def encode(self, value: Tensor, context: Tensor) -> Encoded:
        """Log-density and features of `value (batch, n)`: the sum of those of its factors, and theirs side by side."""
        total, seen = value[:, :0].sum(1), [context]
        for factor, block in zip(self.factors(), self.split(value), strict=True):
            log_prob, features = factor.encode(block, torch.cat(seen, dim=1))
            total = total + log_prob
            seen.append(features)
        return Encoded(total, torch.cat(seen[1:], dim=1))

    def features(self, value: Tensor, context: Tensor) -> Tensor:
        """The features that `encode` gives, without the log-density."""
        seen = [context]
        for factor, block in zip(self.factors(), self.split(value), strict=True):
            seen.append(factor.features(block, torch.cat(seen, dim=1)))
        return torch.cat(seen[1:], dim=1)

    def decode(self, noise: Tensor, context: Tensor, learned: type[Factor] = Factor) -> Decoded:
        """Values made of `noise (batch, n_noise)`, factor by factor.

        Arguments:
            noise: from `draw_noise`.
            context: `(batch, n_context)`.
            learned: the kind of factors that are differentiable, if gradients are on; the others are drawn as they are.
        """
        learning, total = torch.is_grad_enabled(), noise[:, :0].sum(1)
        blocks, seen = [noise[:, :0]], [context]
        for factor, piece in zip(self.factors(), self.split_noise(noise), strict=True):
            with torch.set_grad_enabled(learning and isinstance(factor, learned)):
                value, log_prob, features = factor.decode(piece, torch.cat(seen, dim=1))
            total = total + log_prob
            blocks.append(value)
            seen.append(features)
        return Decoded(torch.cat(blocks, dim=1), total, torch.cat(seen[1:], dim=1))

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """What `decode` makes `batch` values of: the noise of its factors side by side."""
        return torch.cat([factor.draw_noise(batch, generator) for factor in self.factors()], dim=1)
