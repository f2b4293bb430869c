"""Torch's compiler without its trial of vector instructions, which takes longer than most of what is compiled."""

from collections.abc import Callable
from typing import TypeVar

__all__ = ["without_trial"]

_T = TypeVar("_T")


def without_trial(compile_and_load: Callable[[], _T]) -> _T:
    """What torch's compiler gives, with the vector instructions that the CPU says it has.

    Torch tries each kind of them out before it compiles anything: in each process that compiles it starts up to six
    others, which import torch and load a small library, 13 s of CPU time. A C++ compiler or a torch that lacks these
    instructions fails at compiling or loading; only then they are tried out, and it is done once more.

    Arguments:
        compile_and_load: compiles and loads something by torch's compiler.

    Returns:
        what that gives.

    Raises:
        Exception: whatever the compiler raises, after the trial too.
    """
    from torch._inductor import config, cpu_vec_isa  # seconds, which most programs need not wait

    known = cpu_vec_isa.valid_vec_isa_list  # once for each process
    if config.cpp.vec_isa_ok is not None or known.cache_info().currsize:
        return compile_and_load()
    try:
        with config.patch({"cpp.vec_isa_ok": True}):
            return compile_and_load()
    except Exception:  # compilers raise whatever they meet
        known.cache_clear()
    return compile_and_load()
