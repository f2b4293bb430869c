"""Compiling energy and gradient together, where a C++ compiler exists and it works."""

import gc
import logging
import shutil
import time
import warnings
from collections.abc import Callable

import torch
import torch._inductor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["EnergyGradient", "compile_energy_gradient", "compiler_available"]

EnergyGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
_log = logging.getLogger(__name__)


def compiler_available(device: torch.device) -> bool:
    """Whether torch's compiler can be expected to work on this device."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device.type == "cuda"


def compile_energy_gradient(function: EnergyGradient, example: Tensor) -> EnergyGradient:
    """Compile a function of fixed shape.

    The gradient is traced into the same graph as the energy, so the compiler fuses across both.

    Arguments:
        function: Positions (atoms, 3, batch) -> energies (batch,) and their gradient, as the input.
        example: An input of the only shape that the result will accept.

    Returns:
        The compiled function.

    Raises:
        Exception: Whatever the compiler raises.
    """
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _trace(function, example)
        with torch.no_grad():
            # Not `torch.compile`: its run-time hooks take part in every call and are no good in several threads.
            compiled = torch._inductor.compile(graph, [example])
            _compare(function, compiled, example)
    _log.info("compiled the potential in %.1f s", time.perf_counter() - start)
    return compiled


def _trace(function: EnergyGradient, example: Tensor) -> torch.fx.GraphModule:
    # The tracer knows tensors by their Python objects: none may be collected while autograd still holds its C++ side.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return make_fx(lambda x: function(x), tracing_mode="real")(example)
    finally:
        if collecting:
            gc.enable()


def _compare(function: EnergyGradient, compiled: EnergyGradient, example: Tensor) -> None:
    """Both on positions other than those that were traced: nothing may have been frozen into the graph."""
    x = 0.5 * torch.randn_like(example) + 0.1 * example
    for ours, theirs in zip(compiled(x), function(x), strict=True):
        close = torch.isclose(ours, theirs, rtol=1e-2, atol=1e-2)
        if close.float().mean() < 0.9:  # random positions are extreme: float32 may overflow or cancel in some of them
            raise RuntimeError("the compiled potential does not reproduce the uncompiled one")
