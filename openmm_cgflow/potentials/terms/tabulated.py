"""OpenMM's tabulated functions in torch."""

from collections.abc import Callable, Sequence

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.terms.lepton import Value
from openmm_cgflow.potentials.terms.splines import Bicubic, Cubic

__all__ = ["tabulated_functions"]


def _as_tensors(arguments: Sequence[Value]) -> list[Tensor]:
    like = next((a for a in arguments if isinstance(a, Tensor)), torch.zeros(1, 1, dtype=torch.float64))
    made = [
        a if isinstance(a, Tensor) else torch.full((1, 1), a, dtype=like.dtype, device=like.device) for a in arguments
    ]
    return list(torch.broadcast_tensors(*made))


def _continuous(spline: Cubic | Bicubic) -> Callable[..., Value]:
    return lambda *arguments: spline(*_as_tensors(arguments))


def _discrete(sizes: Sequence[int], values: Sequence[float]) -> Callable[..., Value]:
    table = np.asarray(values, dtype=np.float64)
    made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def look_up(*arguments: Value) -> Value:
        tensors = _as_tensors(arguments)
        like = tensors[0]
        key = (like.dtype, like.device)
        if key not in made:
            made[key] = torch.tensor(table, dtype=like.dtype, device=like.device)
        number = torch.zeros_like(like, dtype=torch.long)
        for size, index in zip(reversed(sizes), reversed(tensors), strict=True):
            number = number * size + index.detach().nan_to_num().round().long().clamp(0, size - 1)
        return made[key][number]

    return look_up


def _translate(name: str, function: openmm.TabulatedFunction) -> Callable[..., Value]:
    if isinstance(function, openmm.Continuous1DFunction):
        values, low, high = function.getFunctionParameters()
        return _continuous(Cubic(values, low, high, function.getPeriodic()))
    if isinstance(function, openmm.Continuous2DFunction):
        nx, ny, values, x0, x1, y0, y1 = function.getFunctionParameters()
        grid = np.reshape(values, (ny, nx)).T[None]
        return _continuous(Bicubic(grid, (x0, x1), (y0, y1), function.getPeriodic()))
    if isinstance(function, openmm.Discrete1DFunction):
        values = function.getFunctionParameters()
        return _discrete([len(values)], values)
    if isinstance(function, openmm.Discrete2DFunction | openmm.Discrete3DFunction):
        *sizes, values = function.getFunctionParameters()
        return _discrete(sizes, values)
    raise UnsupportedForceError(f"the tabulated function {name!r} is a {type(function).__name__}")


def tabulated_functions(force: openmm.Force) -> dict[str, Callable[..., Value]]:
    """The tabulated functions of a custom force, by name.

    Discrete tables are clamped at their ends, where OpenMM raises an error.

    Raises:
        UnsupportedForceError: A kind of function that has no translation (Continuous3D).
    """
    names = [force.getTabulatedFunctionName(i) for i in range(force.getNumTabulatedFunctions())]
    return {name: _translate(name, force.getTabulatedFunction(i)) for i, name in enumerate(names)}
