"""Tensors from files into modules: names, shapes and types must be those of the module, and the values finite."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from openmm_cgflow.errors import ModelFileError

__all__ = ["Allowance", "check_fit", "fill"]

_OF_A_NUMBER = (torch.ops.aten.arange, torch.ops.aten.randperm, torch.ops.aten.eye)


def check_fit(tensors: Mapping[str, Tensor], module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Those of the tensors whose names begin with `prefix.`, without it, after checking that they are the module's.

    Arguments:
        tensors: by name.
        module: what they are for; it may be one without storage.
        prefix: of their names.

    Raises:
        ModelFileError: if one is missing, too many, of another shape or type, or not finite.
    """
    start = f"{prefix}." if prefix else ""
    mine = {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
    wanted = module.state_dict()
    for name in [*wanted, *mine]:
        if name not in mine or name not in wanted:
            raise ModelFileError(f"the tensor {start + name[:80]!r} is {'missing' if name in wanted else 'unknown'}")
        here, there = mine[name], wanted[name]
        if here.shape != there.shape or here.dtype != there.dtype:
            raise ModelFileError(
                f"the tensor {start + name!r} is {here.dtype} {tuple(here.shape)}, "
                f"but {there.dtype} {tuple(there.shape)} belongs there"
            )
        if here.is_floating_point() and not bool(torch.isfinite(here).all()):
            raise ModelFileError(f"the tensor {start + name!r} holds NaN or infinite values")
    return mine


def fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Set a module's parameters and buffers from those of the tensors whose names begin with `prefix.`.

    Raises:
        ModelFileError: if they do not fit, see `check_fit`; the module is then as it was.
    """
    module.load_state_dict(check_fit(tensors, module, prefix))


class Allowance(TorchDispatchMode):
    """While active, tensors may be made only up to a number of values in all, and only so many tensors.

    What a file declares is built within what the file itself holds: a width of 10^9 ends before memory is asked for.

    Arguments:
        values: how many values the tensors may have together.
        tensors: how many may be made.

    Raises:
        ModelFileError: for more.

    Example:
        >>> with Allowance(1000, 10):
        ...     _ = torch.nn.Linear(10, 20)
    """

    def __init__(self, values: int, tensors: int) -> None:
        super().__init__()
        self.values, self.tensors = values, tensors

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Count what a function that takes a size is about to make, before it does."""
        self.tensors -= 1
        size = next((a for a in args if isinstance(a, list | tuple) and a and all(type(k) is int for k in a)), ())
        if func.overloadpacket in _OF_A_NUMBER:
            size = [max((a for a in args if isinstance(a, int | float)), default=0)]
        self.values -= math.prod(size) if size else 0
        if self.tensors < 0 or self.values < 0:
            raise ModelFileError("it declares larger networks than it holds")
        return func(*args, **(kwargs or {}))
