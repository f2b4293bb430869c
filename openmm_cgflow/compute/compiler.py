"""Torch's recorder and compiler, without work of theirs that nothing here needs."""

import gc
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import fx

__all__ = ["record", "without_trial"]

_T = TypeVar("_T")
_log = logging.getLogger("openmm_cgflow")
_RECORDING, _COMPILING = threading.RLock(), threading.RLock()
_PLAIN = ("avx512", "avx2")
_HEADERS = ("cpp_cache_precompile_headers", "aot_inductor.precompile_headers")


def record(
    function: Callable[..., Any],
    *example: torch.Tensor,
    decompositions: Mapping[torch._ops.OpOverload, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """The operations of ATen that a function does, gradients included.

    Arguments:
        function: of tensors.
        example: its arguments; the graph is for tensors of their shapes.
        decompositions: of operations that are to be written by others.

    Example:
        >>> graph = record(lambda x: torch.func.grad(lambda y: y.square().sum())(x), torch.ones(3))
        >>> graph(torch.arange(3.0))
        tensor([0., 2., 4.])
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx  # a second to import, and many programs never record

    # Nodes know the shapes of what they give: with one mode for all of them, in half the time of one for each.
    shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    # The tracer knows tensors by their Python objects: none may be collected while autograd still holds its C++ side.
    with _RECORDING:
        collecting = gc.isenabled()
        gc.disable()
        try:
            with tracing(shapes):
                return make_fx(lambda *x: function(*x), decompositions)(*example)
        finally:
            if collecting:
                gc.enable()


def without_trial(compile_and_load: Callable[[], _T]) -> _T:
    """What torch's compiler gives, with the vector instructions that the CPU says it has.

    Torch tries each kind of them out before it compiles anything: in each process that compiles it starts up to six
    others, which import torch and load a small library, 13 s of CPU time. A compiler or a torch that lacks these
    instructions fails at compiling or loading; only then they are tried out, and it is done once more if others are
    found. What else the process compiles with other instructions is tried out as before.

    Nor are torch's headers compiled by themselves, 5 s and a temporary file of 120 MB for each set of options: what is
    compiled here takes as long with them as without.

    Arguments:
        compile_and_load: compiles and loads something by torch's compiler.

    Returns:
        what that gives.

    Raises:
        Exception: whatever the compiler raises.
    """
    from torch._inductor import config, cpu_vec_isa  # seconds, which most programs need not wait

    known = cpu_vec_isa.valid_vec_isa_list  # made once for each process
    known_here = config.get_config_copy()
    headers = {name: False for name in _HEADERS if name in known_here}
    with _COMPILING, config.patch(headers):  # what is set belongs to the process
        if config.cpp.vec_isa_ok is not None or known.cache_info().currsize:
            return compile_and_load()
        kinds, half = cpu_vec_isa.supported_vec_isa_list, torch.cpu._is_avx512_bf16_supported
        try:
            # without those for matrices, bytes and half precision, which are tried out whatever is set
            cpu_vec_isa.supported_vec_isa_list = [kind for kind in kinds if str(kind) in _PLAIN]
            torch.cpu._is_avx512_bf16_supported = lambda: False
            with config.patch({"cpp.vec_isa_ok": True}):
                untried = [str(kind) for kind in known()]
                return compile_and_load()
        except Exception as error:  # compilers raise whatever they meet
            failed = error
        finally:
            cpu_vec_isa.supported_vec_isa_list, torch.cpu._is_avx512_bf16_supported = kinds, half
            known.cache_clear()
            for answer in (type(kind).__bool__ for kind in kinds):
                if hasattr(answer, "cache_clear"):
                    answer.cache_clear()
        if [str(kind) for kind in known() if str(kind) in _PLAIN] == untried:
            raise failed
        _log.info("compiling failed (%s): once more, with the instructions that work", failed)
        return compile_and_load()
