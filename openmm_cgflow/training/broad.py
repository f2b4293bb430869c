"""The densities of soft variables as they were at the start, broad enough for what training might forget."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.flows import Given, JointFlow, SoftVariables

__all__ = ["Broad", "Defended"]


class Defended(NamedTuple):
    """Soft variables, the first rows of them from the broad densities.

    Attributes:
        given: what is drawn already.
        difference: `(batch,)` log of the broad density of the slow variables over the flow's own.
        own: `(batch,)` whether a row is the flow's own.
    """

    given: Given
    difference: Tensor
    own: Tensor


class Broad(nn.Module):
    """Copies of the densities of slow variables and rotors.

    Rotors count where one of them turns on a whole circle, as the torsion of a ring that flips does: it has forms that
    differ, which can be lost as those of slow variables can. A symmetric rotor has one form only. Rotors are drawn
    given the slow variables alone, with the beads' stiff coordinates where these are likeliest.

    Arguments:
        flow: whose densities they are.
    """

    def __init__(self, flow: JointFlow) -> None:
        super().__init__()
        rotors = flow.atom_flow.rotors
        self.slow: SoftVariables = copy.deepcopy(flow.bead_flow.slow)
        turning = rotors.n > 0 and bool((rotors.factor[: rotors.n_circular] < 1.5).any())
        self.rotors: SoftVariables | None = copy.deepcopy(rotors) if turning else None

    @torch.no_grad()
    def draw(self, flow: JointFlow, noise: Tensor, share: float) -> Defended:
        """Soft variables made of noise as `flow.draw_noise` gives it, a share of the rows by the broad densities."""
        nothing, n = noise[:, :0], round(share * len(noise))
        slow_noise, _, rotor_noise, _ = flow.split_noise(noise)
        own = torch.arange(len(noise), device=noise.device) >= n
        slow = flow.bead_flow.slow.draw(slow_noise, nothing)
        slow[:n] = self.slow.draw(slow_noise[:n], nothing[:n])
        rotors = None
        if self.rotors is not None:
            rotors = self.rotors.draw(rotor_noise[:n], self._context(flow, slow[:n]))
        log_prob = flow.bead_flow.slow.learned_log_prob(slow)
        return Defended(Given(slow, log_prob, rotors), self.slow.learned_log_prob(slow) - log_prob, own)

    @torch.no_grad()
    def difference(self, flow: JointFlow, q: Tensor, log_prob_rotors: Tensor) -> Tensor:
        """Log of the broad density of the rotors of `q (batch, dof)` over the flow's own, `(batch,)`."""
        if self.rotors is None:
            return torch.zeros_like(log_prob_rotors)
        slow, _, rotors, _ = flow.split(q)
        return self.rotors.learned_log_prob(rotors, self._context(flow, slow)) - log_prob_rotors

    def _context(self, flow: JointFlow, slow: Tensor) -> Tensor:
        """What the rotors are shown of the beads."""
        return torch.cat([self.slow.features(slow), slow.new_zeros(len(slow), flow.sizes[1])], dim=1)
