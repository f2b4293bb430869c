"""The descent by which all students are fitted: AdamW with a rate that falls to zero, and early stopping."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from openmm_cgflow.errors import TrainingError
from openmm_cgflow.forcematching.density.likelihood import Fitted

__all__ = ["descend"]

_LOOKS = 40  # of the judge, evenly over the steps


def descend(
    network: nn.Module,
    loss: Callable[[], Tensor],
    rate: float,
    decay: float,
    steps: int,
    judge: Callable[[], float] | None = None,
) -> Fitted:
    """Steps of AdamW, whose rate falls to zero as a cosine.

    With a judge the network is left as it was when the judge's number was least, the start included; without one as it
    is after the last step.

    Arguments:
        network: what is trained, in place.
        loss: of a batch that it draws itself.
        rate: at the beginning.
        decay: weight decay.
        steps: how many.
        judge: gives the loss of rows that were held out, infinite where it cannot be told.

    Raises:
        TrainingError: if the judge's number is NaN at the start.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = least = math.nan if judge is None else judge()
    if judge is not None and math.isnan(start):
        raise TrainingError("the loss of the held-out frames is NaN at the start; there is nothing to judge by.")
    best, kept, every = 0, _copy(network), max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
        if judge is not None and (step % every == 0 or step == steps):
            now = judge()
            if now < least:
                least, best, kept = now, step, _copy(network)
    if judge is not None:
        network.load_state_dict(kept)
    return Fitted(least, start, best, steps)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items()}
