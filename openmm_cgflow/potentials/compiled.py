"""Compiling energy and gradient together, where a C++ compiler exists and it works."""

import logging
import shutil
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from openmm_cgflow.compute import record, without_trial

__all__ = ["EnergyGradient", "compile_energy_gradient", "compiler_available"]

EnergyGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
_log = logging.getLogger("openmm_cgflow")


def compiler_available(device: torch.device) -> bool:
    """Whether torch's compiler can be expected to work on this device."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device.type == "cuda"


def compile_energy_gradient(function: EnergyGradient, example: Tensor) -> EnergyGradient:
    """Compile a function of fixed shape.

    The gradient is traced into the same graph as the energy, so the compiler fuses across both. Whether the result is
    right is for the caller to find out.

    Arguments:
        function: Positions (atoms, 3, batch) -> energies (batch,) and their gradient, as the input.
        example: An input of the only shape that the result will accept.

    Returns:
        The compiled function.

    Raises:
        Exception: Whatever the compiler raises.
    """
    start = time.perf_counter()
    _log.info("compiling the potential: seconds, or half a minute at the first time")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(example)  # what is made at the first call, such as tables, must not become part of the graph
        # One thread whatever torch is set to at the moment: the same code, and so the same bits, each time. Wrapped in
        # C++ it lets go of the interpreter while it runs, so that other threads work meanwhile.
        wrapped = example.device.type == "cpu"
        try:
            compiled = _compiled(function, example, wrapped)
        except Exception as error:  # compilers raise whatever they meet
            if not wrapped:
                raise
            _log.info("compiling with a wrapper in C++ failed (%s): with one in Python", error)
            compiled = _compiled(function, example, False)
    _log.info("compiled the potential in %.1f s", time.perf_counter() - start)
    return compiled


def _compiled(function: EnergyGradient, example: Tensor, wrapped: bool) -> EnergyGradient:
    import torch._inductor  # the compiler takes a second to import, and most programs never compile
    from torch._inductor import config as inductor_config

    def compiled() -> EnergyGradient:
        graph = record(function, example)
        with torch.no_grad(), inductor_config.patch({"cpp.threads": 1, "cpp_wrapper": wrapped}):
            # Not `torch.compile`: its run-time hooks take part in every call and are no good in several threads.
            made: EnergyGradient = torch._inductor.compile(graph, [example])
        return made

    return without_trial(compiled)
