"""What a flow is trained on: a target whose energies are paid from a budget."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from openmm_cgflow.compute import on_host
from openmm_cgflow.sampling import BoltzmannTarget
from openmm_cgflow.training.budget import Budget

__all__ = ["BudgetedTarget"]

_SETTLING = 90.0  # seconds that must be left for the potential to be compiled


class BudgetedTarget(BoltzmannTarget):
    """A target whose energies are paid from a budget: asking for more than it has raises Spent.

    Arguments:
        target: the same without a budget.
        budget: pays.
        at_once: inside it, what cannot look at the budget is left when somebody asks for an end.
    """

    def __init__(
        self,
        target: BoltzmannTarget,
        budget: Budget,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(target.potential, target.coordinates, target.kT)
        self._budget, self._at_once = budget, at_once

    def reduced(self, x: Tensor) -> Tensor:
        """As without a budget, after paying for it: piece by piece, where that makes no difference."""
        pieces = x.split(self.potential.piece or max(1, len(x)))
        return torch.cat([self._paid(piece) for piece in pieces])

    def _paid(self, x: Tensor) -> Tensor:
        on_host(self._budget.spend, len(x))
        return super().reduced(x)

    def settle(self) -> bool:
        """As without a budget, if there is time."""
        seconds = self._budget.seconds
        if seconds is None or seconds - self._budget.elapsed > _SETTLING:
            with self._at_once():
                return super().settle()
        return False
