"""The state of a training in a file: tensors by the path to them, and the rest as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openmm_cgflow.storage import write_file
from openmm_cgflow.training.trainer import Trainer

__all__ = ["CheckpointWriter", "flatten", "unflatten"]

_SECONDS = 15.0


def flatten(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a nested state by their paths, and the same nesting without them.

    Example:
        >>> import torch
        >>> flatten({"a": {"b": torch.zeros(1), "c": 2}, "d": None}, "x/")
        ({'x/a/b': tensor([0.])}, {'a': {'c': 2}, 'd': None})
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, Mapping):
            inner, plain[name] = flatten(value, f"{prefix}{name}/")
            tensors |= inner
        else:
            plain[name] = value
    return tensors, plain


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of `flatten`.

    Example:
        >>> import torch
        >>> unflatten({"x/a/b": torch.zeros(1), "y": torch.zeros(1)}, {"a": {"c": 2}}, "x/")
        {'a': {'c': 2, 'b': tensor([0.])}}
    """
    state = {name: unflatten({}, value) if isinstance(value, Mapping) else value for name, value in plain.items()}
    for path, tensor in tensors.items():
        if path.startswith(prefix):
            *outer, name = path[len(prefix) :].split("/")
            place = state
            for step in outer:
                place = place[step]
            place[name] = tensor
    return state


class CheckpointWriter:
    """Writes a training's state, not more often than every few seconds unless forced.

    Arguments:
        path: where to, or None for nowhere.
        trainer: whose state.
        identity: of what the training is for.
    """

    def __init__(self, path: Path | None, trainer: Trainer, identity: str) -> None:
        self._path, self._trainer, self._identity = path, trainer, identity
        self._last = trainer.loop.totals()[0]

    def __call__(self, force: bool = False) -> None:
        """Write, if it is time or `force`."""
        elapsed = self._trainer.loop.totals()[0]
        if self._path is None or not (force or elapsed - self._last > _SECONDS):
            return
        tensors, header = flatten(self._trainer.state_dict())
        write_file(self._path, "checkpoint", tensors, header | {"identity": self._identity})
        self._last = elapsed
