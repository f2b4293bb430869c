"""The mean of several densities of beads: what a teacher is that was fitted to several splits of the frames."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openmm_cgflow.flows import BeadFlow, Decoded, Encoded, Factor

__all__ = ["BeadMixture"]


class BeadMixture(Factor):
    """The mean `(q_1 + ... + q_K) / K` of densities of the same beads.

    Densities that were fitted to different parts of the frames err in different ways, and their mean errs less; it is
    a normalised density, whose samples are those of a member that is drawn for each.

    Source: bagging, Breiman 1996 (doi:10.1007/BF00058655).

    Arguments:
        members: densities of values of one size.

    Raises:
        ValueError: there is no member, or they are of different sizes.

    Example:
        >>> from openmm_cgflow.flows import SoftVariables, StiffDensity
        >>> turn = torch.tensor([2 * math.pi])
        >>> def member() -> BeadFlow:
        ...     slow = SoftVariables(torch.zeros(1), turn, components=2, hidden=4, harmonics=1)
        ...     return BeadFlow(slow, StiffDensity(torch.ones(2), torch.ones(2), 2, couplings=0, hidden=4, rank=1))
        >>> mixture = BeadMixture([member(), member()])
        >>> mixture.sample(5, torch.Generator().manual_seed(0)).value.shape
        torch.Size([5, 3])
    """

    members: nn.ModuleList

    def __init__(self, members: Sequence[BeadFlow]) -> None:
        super().__init__()
        if not members or len({member.sizes for member in members}) > 1:
            raise ValueError("a mixture is of one or more densities of the same sizes")
        self.members = nn.ModuleList(members)
        self.sizes = members[0].sizes
        self.n, self.n_noise = members[0].n, members[0].n_noise + 1
        self.n_features = sum(member.n_features for member in members)

    @property
    def _parts(self) -> list[BeadFlow]:
        return [member for member in self.members if isinstance(member, BeadFlow)]

    def encode(self, value: Tensor, context: Tensor) -> Encoded:
        """Log-density of `value (batch, n)`; its features are those of all members."""
        parts = [member.encode(value, context) for member in self._parts]
        log_probs = torch.stack([part.log_prob for part in parts])
        log_prob = torch.logsumexp(log_probs, 0) - math.log(len(parts))
        return Encoded(log_prob, torch.cat([part.features for part in parts], dim=1))

    def decode(self, noise: Tensor, context: Tensor) -> Decoded:
        """Values made of `noise (batch, n_noise)`: the first column draws the member, the others go to it."""
        count = len(self.members)
        chosen = (noise[:, 0] * count).long().clamp(max=count - 1)
        rows = [torch.nonzero(chosen == k).flatten() for k in range(count)]
        values = [
            member.decode(noise[mine, 1:], context[mine]).value for member, mine in zip(self._parts, rows, strict=True)
        ]
        value = torch.cat(values).index_select(0, torch.argsort(torch.cat(rows)))
        return Decoded(value, *self.encode(value, context))

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """What `decode` makes values of, `(batch, n_noise)`, on the CPU."""
        noise = self._parts[0].draw_noise(batch, generator)
        return torch.cat([torch.rand(batch, 1, generator=generator, dtype=noise.dtype), noise], dim=1)

    def sample_from(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(batch, n)` made of noise, and their log-densities `(batch,)`."""
        value, log_prob, _ = self.decode(noise, noise[:, :0])
        return value, log_prob

    def log_prob_slow(self, value: Tensor) -> Tensor:
        """Log-density `(batch,)` of the slow variables `(batch, n_slow)` alone: exact, nothing is integrated."""
        parts = [member.slow.log_prob(value) for member in self._parts]
        return torch.logsumexp(torch.stack(parts), 0) - math.log(len(parts))
