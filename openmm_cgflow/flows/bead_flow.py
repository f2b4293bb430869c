"""The slow density: over the internal coordinates of the beads, torsions first."""

import math

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.mixture import MixtureDensity
from openmm_cgflow.flows.networks import fourier_features
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = ["BeadFlow", "SoftVariables"]


class SoftVariables(nn.Module):
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
        self.n_features = 2 * harmonics * n_circular + self.n - n_circular

    def scaled(self, q: Tensor) -> Tensor:
        """`q (batch, n)` with circular entries in radians of their own period, in [-pi, pi)."""
        y = (q - self.centre) * self.factor
        wrapped = torch.remainder(y[:, : self.n_circular] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([wrapped, y[:, self.n_circular :]], dim=1)

    def unscaled(self, y: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return y / self.factor + self.centre

    def features(self, q: Tensor) -> Tensor:
        """`(batch, n_features)`: sines and cosines of the circular variables, and the others.

        A symmetric rotor is shown by its angle, not by its multiple: its leaves change places where its range ends, so
        that what depends on them has different values at both ends.
        """
        return fourier_features(self.scaled(q) / self.factor, self.n_circular, self.harmonics)

    def log_prob(self, q: Tensor, context: Tensor) -> Tensor:
        """Log-density `(batch,)` of `q (batch, n)` in its own units."""
        return self.density.log_prob(self.scaled(q), context) + torch.log(self.factor).sum()

    def learned_log_prob(self, q: Tensor, context: Tensor) -> Tensor:
        """The same, differentiable by the parameters alone, and faster."""
        return self.density.learned_log_prob(self.scaled(q), context) + torch.log(self.factor).sum()

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """What `sample` makes samples of, `(batch, 2 n)`."""
        return self.density.draw_noise(batch, generator, self.centre)

    def sample(self, noise: Tensor, context: Tensor) -> Tensor:
        """Samples `(batch, n)`, differentiable."""
        return self.unscaled(self.density.sample(noise, context))

    def to_latent(self, q: Tensor, context: Tensor) -> Tensor:
        """The uniform latent of `q`."""
        return self.density.to_latent(self.scaled(q), context)

    def from_latent(self, latent: Tensor, context: Tensor) -> Tensor:
        """The inverse of `to_latent`."""
        return self.unscaled(self.density.from_latent(latent, context))


class BeadFlow(nn.Module):
    """`q(beads) = q(slow torsions) q(bead bonds, angles, stiff torsions | slow torsions)`.

    Beads are given as rows `(batch, n_slow + n_stiff)` of internal coordinates, slow torsions first.

    Arguments:
        slow: density of the slow variables.
        stiff: density of the beads' other internal coordinates given the features of the slow ones.
    """

    def __init__(self, slow: SoftVariables, stiff: StiffDensity) -> None:
        super().__init__()
        self.slow, self.stiff = slow, stiff
        self.n_context = slow.n_features + stiff.n

    def split(self, beads: Tensor) -> tuple[Tensor, Tensor]:
        """Slow variables and the other bead coordinates."""
        return beads[:, : self.slow.n], beads[:, self.slow.n :]

    def log_prob_slow(self, slow: Tensor) -> Tensor:
        """Log-density `(batch,)` of the slow variables `(batch, n_slow)` alone: minus the free energy in kT."""
        return self.slow.log_prob(slow, slow[:, :0])

    def log_prob(self, beads: Tensor) -> Tensor:
        """Log-density `(batch,)` of `beads`."""
        slow, stiff = self.split(beads)
        return self.log_prob_slow(slow) + self.log_prob_stiff(slow, stiff)[0]

    def log_prob_stiff(self, slow: Tensor, stiff: Tensor, gaussian: bool = False) -> tuple[Tensor, Tensor]:
        """`log q(stiff | slow)`, and the context that the atoms are conditioned on."""
        features = self.slow.features(slow)
        log_prob, whitened = self.stiff.log_prob(stiff, features, gaussian)
        return log_prob, torch.cat([features, whitened], dim=1)

    def sample_slow(self, noise: Tensor) -> Tensor:
        """Samples `(batch, n_slow)` of the slow variables, from noise that `slow.draw_noise` drew."""
        return self.slow.sample(noise, noise[:, :0])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`n` independent beads `(n, n_slow + n_stiff)`, and the context for their atoms; no gradients."""
        slow = self.sample_slow(self.slow.draw_noise(n, generator))
        latent = torch.randn(n, self.stiff.n, generator=generator, dtype=slow.dtype)
        beads, _, context = self.place(slow, latent)
        return beads, context

    def place(self, slow: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bead coordinates for `slow` and a normal `latent (batch, n_stiff)`, differentiable.

        Returns:
            beads `(batch, n_slow + n_stiff)`, `log q(stiff | slow)` and the context for the atoms.
        """
        features = self.slow.features(slow)
        stiff, whitened, log_prob = self.stiff.place(latent, features)
        return torch.cat([slow, stiff], dim=1), log_prob, torch.cat([features, whitened], dim=1)
