"""Steps of maximum likelihood on rows of frames, until the rows that were held out are no longer likelier."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openmm_cgflow.errors import TrainingError

__all__ = ["Fitted", "Rows", "minimise_held_out"]

_EVERY = 10  # steps between two looks at the held-out rows
_BATCH = 512
_LARGEST_NORM = 20.0


class Rows(NamedTuple):
    """Rows of frames with their weights.

    Attributes:
        values: tensors `(rows, ...)`, side by side.
        weights: `(rows,)`, of sum 1.
    """

    values: tuple[Tensor, ...]
    weights: Tensor

    def take(self, index: Tensor) -> "Rows":
        """Some of the rows, with weights of sum 1."""
        weights = self.weights[index]
        return Rows(tuple(value[index] for value in self.values), weights / weights.sum())

    def batch(self, generator: torch.Generator) -> "Rows":
        """All rows if they are few, else some that are drawn by their weights."""
        if len(self.weights) <= _BATCH:
            return self
        index = torch.multinomial(self.weights, _BATCH, replacement=True, generator=generator)
        return Rows(tuple(value[index] for value in self.values), torch.full((_BATCH,), 1 / _BATCH))


class Fitted(NamedTuple):
    """What a fit ended with.

    Attributes:
        loss: of the held-out rows at the best step.
        start: the same before the first step.
        best: the step that was kept; 0 is the start.
        steps: that were taken.
    """

    loss: float
    start: float
    best: int
    steps: int


def minimise_held_out(
    module: nn.Module,
    loss: Callable[..., Tensor],
    learned: Rows,
    held_out: Rows,
    rate: float,
    steps: int,
    patience: int,
    generator: torch.Generator,
) -> Fitted:
    """Adam on the mean loss of the learned rows; the module is left as it was when the held-out rows had the least.

    The start is a candidate too: a module that only gets worse is left as it is.

    Arguments:
        module: what is trained, in place.
        loss: of tensors of rows, one number for each row, `(rows,)`.
        learned: rows to learn from.
        held_out: rows to judge by.
        rate: of Adam.
        steps: at most.
        patience: steps without a gain after which it ends.
        generator: draws batches.

    Raises:
        TrainingError: if the held-out rows have no finite loss at the start.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate, fused=True)

    def judge() -> float:
        return float(held_out.weights @ loss(*held_out.values).detach())

    start = least = judge()
    if steps and not math.isfinite(start):
        raise TrainingError(f"the likelihood of the held-out frames is {-start}: the fit has nothing to be judged by.")
    best, kept, step = 0, {name: t.clone() for name, t in module.state_dict().items()}, 0
    for step in range(1, steps + 1):
        batch = learned.batch(generator)
        optimizer.zero_grad()
        value = batch.weights @ loss(*batch.values)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, _LARGEST_NORM)
        if bool(torch.isfinite(norm)):
            optimizer.step()
            torch.autograd.graph.increment_version(parameters)  # fused Adam does not count what it changes
        if step % _EVERY == 0:
            now = judge()
            if now < least:
                least, best, kept = now, step, {name: t.clone() for name, t in module.state_dict().items()}
            if step - best >= patience:
                break
    module.load_state_dict(kept)
    return Fitted(least, start, best, step)
