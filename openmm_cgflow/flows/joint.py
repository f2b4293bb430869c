"""Slow and fast densities joined into one density, and one bijection, over all internal coordinates."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.atom_flow import AtomFlow
from openmm_cgflow.flows.bead_flow import BeadFlow, SoftVariables
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = ["FlowSettings", "JointFlow"]


@dataclass(frozen=True)
class FlowSettings:
    """How large the networks are.

    Attributes:
        components: mixture components of each slow variable.
        rotor_components: mixture components of each rotor.
        slow_hidden: width of the networks of the soft densities.
        harmonics: Fourier pairs of each circular variable.
        bead_couplings: coupling layers of the beads' stiff coordinates.
        atom_couplings: coupling layers of the atoms' stiff coordinates.
        hidden: width of the coupling networks.
        rank: number of matrices of which the atoms' covariance is mixed.
        seed: of the choice of masks and start weights.
    """

    components: int = 16
    rotor_components: int = 6
    slow_hidden: int = 64
    harmonics: int = 3
    bead_couplings: int = 4
    atom_couplings: int = 8
    hidden: int = 128
    rank: int = 32
    seed: int = 0

    def as_dict(self) -> dict[str, int]:
        """Settings as plain numbers, to be stored."""
        return asdict(self)


class JointFlow(nn.Module):
    """`q(beads) q(atoms | beads)` over rows of internal coordinates `[slow | bead | rotor | atom]`.

    Arguments:
        bead_flow: density of the first two blocks.
        atom_flow: conditional density of the last two.
    """

    def __init__(self, bead_flow: BeadFlow, atom_flow: AtomFlow) -> None:
        super().__init__()
        self.bead_flow, self.atom_flow = bead_flow, atom_flow
        self.n_beads = bead_flow.slow.n + bead_flow.stiff.n
        self.sizes = (bead_flow.slow.n, bead_flow.stiff.n, atom_flow.rotors.n, atom_flow.stiff.n)

    @classmethod
    def build(
        cls,
        sizes: Sequence[int],
        centre: Tensor,
        scale: Tensor,
        period: Tensor,
        settings: FlowSettings | None = None,
    ) -> "JointFlow":
        """A flow for coordinates in four blocks.

        Arguments:
            sizes: numbers of slow, bead, rotor and atom coordinates.
            centre: `(dof,)` start values, and the middle of the window of circular coordinates.
            scale: `(dof,)` rough thermal widths.
            period: `(dof,)` periods of the slow and rotor coordinates, 0 where there is none.
            settings: sizes of the networks.
        """
        settings = settings or FlowSettings()
        starts, widths, periods = (torch.split(t.float(), list(sizes)) for t in (centre, scale, period))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # blocks may be empty
            torch.manual_seed(settings.seed)
            slow = SoftVariables(
                starts[0], periods[0], 0, settings.components, settings.slow_hidden, settings.harmonics
            )
            bead_stiff = StiffDensity(
                starts[1], widths[1], slow.n_features, settings.bead_couplings, settings.hidden // 2, seed=settings.seed
            )
            bead_flow = BeadFlow(slow, bead_stiff)
            rotors = SoftVariables(
                starts[2],
                periods[2],
                bead_flow.n_context,
                settings.rotor_components,
                settings.slow_hidden,
                settings.harmonics,
            )
            context = bead_flow.n_context + rotors.n_features
            atom_stiff = StiffDensity(
                starts[3], widths[3], context, settings.atom_couplings, settings.hidden, settings.rank, settings.seed
            )
        return cls(bead_flow, AtomFlow(rotors, atom_stiff))

    def nonlinear_parameters(self) -> list[nn.Parameter]:
        """All by which the stiff densities differ from normal ones with a linear mean; they start without effect."""
        stiff = (self.bead_flow.stiff, self.atom_flow.stiff)
        return [p for density in stiff for p in density.nonlinear_parameters()]

    def split(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Beads and atoms of rows `q (batch, dof)`."""
        return q[:, : self.n_beads], q[:, self.n_beads :]

    def log_prob(self, q: Tensor, gaussian: bool = False) -> Tensor:
        """Log-density `(batch,)` of `q (batch, dof)` with respect to the internal coordinates.

        Arguments:
            q: internal coordinates.
            gaussian: leave the couplings out; the same, and faster, as long as they are the identity.
        """
        beads, atoms = self.split(q)
        slow, stiff = self.bead_flow.split(beads)
        log_prob, context = self.bead_flow.log_prob_stiff(slow, stiff, gaussian)
        return self.bead_flow.log_prob_slow(slow) + log_prob + self.atom_flow.log_prob(atoms, context, gaussian)

    def log_prob_stiff(self, q: Tensor, gaussian: bool = False) -> Tensor:
        """Log-density `(batch,)` of the stiff coordinates of `q (batch, dof)` given its soft ones."""
        beads, atoms = self.split(q)
        log_prob, context = self.bead_flow.log_prob_stiff(*self.bead_flow.split(beads), gaussian)
        return log_prob + self.atom_flow.log_prob_stiff(atoms, context, gaussian)

    def log_prob_soft(self, q: Tensor) -> Tensor:
        """`log q(slow) + log q(rotors | beads)`, `(batch,)`, of `q (batch, dof)`; only parameters have gradients."""
        beads, atoms = self.split(q)
        slow, stiff = self.bead_flow.split(beads)
        with torch.no_grad():
            _, context = self.bead_flow.log_prob_stiff(slow, stiff, gaussian=True)
        rotors, _ = self.atom_flow.split(atoms)
        log_prob = self.bead_flow.slow.learned_log_prob(slow, slow[:, :0])
        return log_prob + self.atom_flow.rotors.learned_log_prob(rotors, context)

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """What `sample_from` makes `n` samples of: `(n, 2 n_slow + 2 n_rotor + n_bead + n_atom)`."""
        slow = self.bead_flow.slow.draw_noise(n, generator)
        rotors = self.atom_flow.rotors.draw_noise(n, generator)
        return torch.cat([slow, rotors, *self.draw_latents(slow, generator)], dim=1)

    def split_noise(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is in noise: that of the slow variables and of the rotors, and the latents of beads and atoms."""
        n_slow, n_bead, n_rotor, n_atom = self.sizes
        slow, rotor, bead, atom = torch.split(noise, [2 * n_slow, 2 * n_rotor, n_bead, n_atom], dim=1)
        return slow, rotor, bead, atom

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`n` independent samples `(n, dof)` and their log-densities `(n,)`."""
        return self.sample_from(self.draw_noise(n, generator))

    @torch.no_grad()
    def sample_soft(self, noise: Tensor, slow: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Soft variables `(batch, n_slow + n_rotor)` made of noise, and the latents of the stiff ones left of it.

        Arguments:
            noise: from `draw_noise`.
            slow: `(batch, n_slow)`, if they are given.
        """
        slow_noise, rotor_noise, bead_latent, atom_latent = self.split_noise(noise)
        slow = self.bead_flow.sample_slow(slow_noise) if slow is None else slow
        _, _, context = self.bead_flow.place(slow, bead_latent)
        rotors = self.atom_flow.rotors.sample(rotor_noise, context)
        return torch.cat([slow, rotors], dim=1), torch.cat([bead_latent, atom_latent], dim=1)

    def sample_from(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Samples `(batch, dof)` made of noise, and their log-densities `(batch,)`, differentiable."""
        slow_noise, rotor_noise, bead_latent, atom_latent = self.split_noise(noise)
        slow = self.bead_flow.sample_slow(slow_noise)
        beads, log_prob, context = self.bead_flow.place(slow, bead_latent)
        atoms, log_prob_atoms = self.atom_flow.sample_from(rotor_noise, atom_latent, context)
        return torch.cat([beads, atoms], dim=1), log_prob + log_prob_atoms + self.bead_flow.log_prob_slow(slow)

    def place_stiff(
        self, slow: Tensor, rotors: Tensor, bead_latent: Tensor, atom_latent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All coordinates `(batch, dof)` at given soft ones, differentiable, and the log-density of the stiff ones.

        Arguments:
            slow: `(batch, n_slow)`.
            rotors: `(batch, n_rotor)`.
            bead_latent: `(batch, n_bead)` standard normal.
            atom_latent: `(batch, n_atom)` standard normal.
        """
        beads, log_prob, context = self.bead_flow.place(slow, bead_latent)
        atoms, log_prob_atoms = self.atom_flow.place(rotors, atom_latent, context)
        return torch.cat([beads, atoms], dim=1), log_prob + log_prob_atoms

    def draw_latents(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Standard normal latents of the beads' and the atoms' stiff coordinates, one row for each row of `like`."""
        latent = torch.randn(
            like.shape[0], self.sizes[1] + self.sizes[3], generator=generator, dtype=like.dtype, device=like.device
        )
        return latent[:, : self.sizes[1]], latent[:, self.sizes[1] :]

    def to_latent(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The bijection to the latents `[z | X] (batch, dof)`: uniform for soft coordinates, normal for stiff ones.

        Returns:
            latents in the blocks' order, and `log |det dlatent/dq|`.
        """
        beads, atoms = self.split(q)
        slow, stiff = self.bead_flow.split(beads)
        rotors, fast = self.atom_flow.split(atoms)
        features = self.bead_flow.slow.features(slow)
        bead_latent, whitened, logdet_beads = self.bead_flow.stiff.to_latent(stiff, features)
        context = torch.cat([features, whitened], dim=1)
        rotor_context = torch.cat([context, self.atom_flow.rotors.features(rotors)], dim=1)
        atom_latent, _, logdet_atoms = self.atom_flow.stiff.to_latent(fast, rotor_context)
        latents = [
            self.bead_flow.slow.to_latent(slow, slow[:, :0]),
            bead_latent,
            self.atom_flow.rotors.to_latent(rotors, context),
            atom_latent,
        ]
        logdet = logdet_beads + logdet_atoms + self.bead_flow.log_prob_slow(slow)
        return torch.cat(latents, dim=1), logdet + self.atom_flow.rotors.log_prob(rotors, context)

    def from_latent(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `to_latent`, differentiable: coordinates `(batch, dof)` and `log |det dq/dlatent|`."""
        z, bead_latent, rotor_latent, atom_latent = torch.split(latent, list(self.sizes), dim=1)
        slow = self.bead_flow.slow.from_latent(z, z[:, :0])
        beads, log_prob, context = self.bead_flow.place(slow, bead_latent)
        rotors = self.atom_flow.rotors.from_latent(rotor_latent, context)
        atoms, log_prob_atoms = self.atom_flow.place(rotors, atom_latent, context)
        base = self.log_prob_latent(latent)
        soft = self.bead_flow.log_prob_slow(slow) + self.atom_flow.rotors.log_prob(rotors, context)
        return torch.cat([beads, atoms], dim=1), base - log_prob - log_prob_atoms - soft

    def log_prob_latent(self, latent: Tensor) -> Tensor:
        """Log-density `(batch,)` of the latents themselves: uniform for soft coordinates, normal for stiff ones."""
        _, bead_latent, _, atom_latent = torch.split(latent, list(self.sizes), dim=1)
        return self.bead_flow.stiff.log_prob_latent(bead_latent) + self.atom_flow.stiff.log_prob_latent(atom_latent)
