"""What is made of a flow as it is now, once for all who ask, and again after the flow has changed."""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from openmm_cgflow.flows import JointFlow
from openmm_cgflow.trained.molecule import TrainedFlow

__all__ = ["Made", "made_once"]

T = TypeVar("T")
Made = WeakKeyDictionary[JointFlow, tuple[tuple[int, ...], T]]
"""What was made of each flow that is still there, with the counts of changes at which it was."""


def made_once(made: Made[T], flow: TrainedFlow, make: Callable[[TrainedFlow], T]) -> T:
    """What `make` gives of a flow, made anew only if one of its tensors has changed since.

    Arguments:
        made: what was made so far.
        flow: the flow.
        make: makes it; the result must not hold the flow.
    """
    changes = _changes(flow.flow)
    found = made.get(flow.flow)
    if found is None or found[0] != changes:
        found = made[flow.flow] = changes, make(flow)
    return found[1]


def _changes(module: nn.Module) -> tuple[int, ...]:
    """Counts of the changes of each tensor so far."""
    return tuple(t._version for t in (*module.parameters(), *module.buffers()))
