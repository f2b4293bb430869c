"""The multimodal density of soft variables: slow torsions and rotors, in their own units."""

import math

import torch
from torch import Tensor

from openmm_cgflow.flows.factor import Decoded, Encoded, Factor
from openmm_cgflow.flows.mixture import MixtureDensity
from openmm_cgflow.flows.networks import fourier_features

__all__ = ["SoftVariables"]


class SoftVariables(Factor):
    """A multimodal density of soft variables in their own units, and the features that show them to other densities.

    Arguments:
        centre: `(n,)` the middle of each variable's range.
        period: `(n,)` its period, 0 for variables on the real line, which come last.
        n_context: width of the context.
        components: mixture components of each factor.
        hidden: width of the networks.
        harmonics: Fourier pairs for each circular variable.
    """

    centre: Tensor
    factor: Tensor

    def __init__(
        self,
        centre: Tensor,
        period: Tensor,
        n_context: int = 0,
        components: int = 16,
        hidden: int = 64,
        harmonics: int = 4,
    ) -> None:
        super().__init__()
        circular = period > 0
        n_circular = int(circular.sum())
        if not bool(circular[:n_circular].all()):
            raise ValueError("circular variables must come before those on the real line")
        self.register_buffer("centre", centre.clone())
        factor = torch.where(circular, 2 * math.pi / period.clamp(min=1e-9), torch.ones_like(period))
        self.register_buffer("factor", factor)
        self.n, self.n_circular, self.harmonics = period.numel(), n_circular, harmonics
        self.density = MixtureDensity(n_circular, self.n - n_circular, n_context, components, hidden, harmonics)
        self.n_noise, self.n_features = 2 * self.n, 2 * harmonics * n_circular + self.n - n_circular

    def scaled(self, q: Tensor) -> Tensor:
        """`q (batch, n)` with circular entries in radians of their own period, in [-pi, pi)."""
        y = (q - self.centre) * self.factor
        wrapped = torch.remainder(y[:, : self.n_circular] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([wrapped, y[:, self.n_circular :]], dim=1)

    def encode(self, value: Tensor, context: Tensor) -> Encoded:
        """Log-density and features of `value (batch, n)` in its own units."""
        scaled = self.scaled(value)
        log_prob = self.density.log_prob(scaled, context) + torch.log(self.factor).sum()
        return Encoded(log_prob, self._shown(scaled))

    def decode(self, noise: Tensor, context: Tensor) -> Decoded:
        """Values `(batch, n)` made of noise, differentiable."""
        value = self.draw(noise, context)
        return Decoded(value, *self.encode(value, context))

    def draw(self, noise: Tensor, context: Tensor) -> Tensor:
        """The values that `decode` gives, alone."""
        return self.density.sample(noise, context) / self.factor + self.centre

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """What `decode` makes values of, `(batch, 2 n)`."""
        return self.density.draw_noise(batch, generator, self.centre)

    def features(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """`(batch, n_features)`: sines and cosines of the circular variables, and the others.

        A symmetric rotor is shown by its angle, not by its multiple: its leaves change places where its range ends, so
        that what depends on them has different values at both ends.
        """
        return self._shown(self.scaled(value))

    def _shown(self, scaled: Tensor) -> Tensor:
        return fourier_features(scaled / self.factor, self.n_circular, self.harmonics)

    def learned_log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density `(batch,)`, differentiable by the parameters alone, and faster."""
        context = value[:, :0] if context is None else context
        return self.density.learned_log_prob(self.scaled(value), context) + torch.log(self.factor).sum()
