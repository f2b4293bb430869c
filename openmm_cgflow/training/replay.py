"""Own samples, kept to be learned from again by their weights."""

import math

import torch
from torch import Tensor

from openmm_cgflow.compute import choose
from openmm_cgflow.errors import TrainingError
from openmm_cgflow.sampling import effective_sample_size, log_mean_exp, soften_log_weights
from openmm_cgflow.training.settings import TrainSettings

__all__ = ["Replay"]


class Replay:
    """The last buffers of samples with their weights, from which the soft densities learn.

    Arguments:
        settings: how many buffers, how their weights are softened, how their soft variables are blurred.
        soft: `(n_soft,)` indices of the soft variables.
        span: `(dof,)` how far each coordinate reaches.
        generator: of what is drawn.
    """

    def __init__(self, settings: TrainSettings, soft: Tensor, span: Tensor, generator: torch.Generator) -> None:
        self.settings, self.soft, self.generator = settings, soft, generator
        self.span = span[soft].float()
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.dropped = 0

    def clear(self) -> None:
        """Forget all samples."""
        self.buffers = []

    def keep(self, q: Tensor, log_weights: Tensor, own: Tensor | None = None) -> dict[str, float]:
        """Keep samples `(n, dof)` to learn from; returns the figures of the flow.

        Arguments:
            q: samples.
            log_weights: `(n,)`, under the density that they are from.
            own: under the flow, NaN for those that are not from it; the same if not given.

        Raises:
            TrainingError: if none has a finite energy.
        """
        finite = torch.isfinite(log_weights)
        self.dropped += int((~finite).sum())
        if not bool(finite.any()):
            raise TrainingError(f"all {len(q)} samples have infinite or NaN energies: train again with another seed.")
        softened, power = soften_log_weights(log_weights, self.settings.least_ess, self.settings.clip)
        # adding up to the effective share, by which buffers of different quality are best joined
        weights = torch.softmax(softened, 0) * effective_sample_size(softened)
        # on the CPU, where rows are chosen by them
        self.buffers = [*self.buffers, (q, weights.cpu())][-self.settings.kept :]
        own = log_weights if own is None else own[~own.isnan()]
        return {"ess": effective_sample_size(own), "logZ": log_mean_exp(own)[0], "beta": power.item()}

    def pool(self) -> tuple[Tensor, Tensor]:
        """All kept samples `(n, dof)` and their weights `(n,)`."""
        q, weights = zip(*self.buffers, strict=True)
        return torch.cat(q), torch.cat(weights)

    def rows(self, q: Tensor, weights: Tensor, n: int, blurred: float | None = None) -> Tensor:
        """Samples `(n, dof)` of the pool drawn by their weights, a share of them with a blurred soft variable."""
        return self.blurred(
            q[choose(weights, n, self.generator)],
            self.settings.blur,
            self.settings.blurred if blurred is None else blurred,
        )

    def blurred(self, q: Tensor, width: float, share: float | None = None) -> Tensor:
        """Rows with normal noise on their soft variables: on all of them, or on one of them in a share of the rows."""
        n, noise = self.soft.numel(), torch.zeros(len(q), self.soft.numel())
        if n:
            noise = width / (2 * math.pi) * torch.randn(len(q), n, generator=self.generator)
        if n and share is not None:
            one = torch.nn.functional.one_hot(torch.randint(n, (len(q),), generator=self.generator), n)
            noise = noise * one * (torch.rand(len(q), 1, generator=self.generator) < share)
        return q.index_add(1, self.soft, noise.to(q) * self.span)
