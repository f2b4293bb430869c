"""The fast density: every internal coordinate that is not a bead's, given the beads."""

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.bead_flow import SoftVariables
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = ["AtomFlow"]


class AtomFlow(nn.Module):
    """`q(atoms | beads) = q(rotors | beads) q(bonds, angles, stiff torsions | rotors, beads)`.

    Atoms are given as rows `(batch, n_rotor + n_stiff)` of internal coordinates, rotors first; beads by the context
    that `BeadFlow` makes of them.

    Arguments:
        rotors: circular density of the rotors given the beads.
        stiff: density of the stiff coordinates given the beads and the features of the rotors.
    """

    def __init__(self, rotors: SoftVariables, stiff: StiffDensity) -> None:
        super().__init__()
        self.rotors, self.stiff = rotors, stiff

    def split(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Rotors and stiff coordinates."""
        return atoms[:, : self.rotors.n], atoms[:, self.rotors.n :]

    def log_prob(self, atoms: Tensor, context: Tensor, gaussian: bool = False) -> Tensor:
        """Log-density `(batch,)` of `atoms` given the beads' context; `gaussian` leaves the couplings out."""
        rotors, _ = self.split(atoms)
        return self.rotors.log_prob(rotors, context) + self.log_prob_stiff(atoms, context, gaussian)

    def log_prob_stiff(self, atoms: Tensor, context: Tensor, gaussian: bool = False) -> Tensor:
        """Log-density `(batch,)` of the stiff coordinates among `atoms` given the rotors among them and the beads."""
        rotors, stiff = self.split(atoms)
        rotor_context = torch.cat([context, self.rotors.features(rotors)], dim=1)
        return self.stiff.log_prob(stiff, rotor_context, gaussian)[0]

    def sample_from(self, noise: Tensor, latent: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Atoms made of rotor noise and a normal `latent (batch, n_stiff)`, and `log q(atoms | beads)`."""
        rotors = self.rotors.sample(noise, context)
        atoms, log_prob = self.place(rotors, latent, context)
        return atoms, log_prob + self.rotors.log_prob(rotors, context)

    def place(self, rotors: Tensor, latent: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Atom coordinates for `rotors` and a normal `latent (batch, n_stiff)`, and `log q(stiff | rotors, beads)`."""
        stiff, _, log_prob = self.stiff.place(latent, torch.cat([context, self.rotors.features(rotors)], dim=1))
        return torch.cat([rotors, stiff], dim=1), log_prob
