"""Torch's compiler takes the vector instructions that the CPU says it has, and tries them out only where that fails."""

import platform

import pytest
import torch
from torch._inductor import config, cpu_vec_isa

from openmm_cgflow.compute import without_trial

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of instructions of x86")


@pytest.fixture(autouse=True)
def tried(monkeypatch) -> list[str]:
    """A new process on a CPU with all instructions, of which the C++ compiler has none but avx2; what is tried out."""
    names = []

    def trial(kind, code):
        names.append(str(kind))
        return str(kind) == "avx2"

    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", trial)
    for name in ("_is_avx2_supported", "_is_avx512_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    kinds = list(cpu_vec_isa.supported_vec_isa_list)
    _forget()
    with config.patch({"cpp.vec_isa_ok": None}):
        yield names
    assert cpu_vec_isa.supported_vec_isa_list == kinds
    _forget()


def _forget() -> None:
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    for function in (
        cpu_vec_isa.x86_isa_checker,
        *(type(kind).__bool__ for kind in cpu_vec_isa.supported_vec_isa_list),
    ):
        getattr(function, "cache_clear", lambda: None)()
    cpu_vec_isa.VecISA._VecISA__bool__impl.cache_clear()


def picked() -> str:
    return str(cpu_vec_isa.pick_vec_isa())


def test_instructions_are_not_tried_out(tried):
    assert without_trial(picked) == "avx512"
    assert set(tried) <= {"avx512"}  # its half precision, whatever is set
    assert config.cpp.vec_isa_ok is None
    assert not cpu_vec_isa.valid_vec_isa_list.cache_info().currsize  # others of this process try theirs out


def test_instructions_are_tried_out_where_the_compiler_fails_with_them(tried):
    seen = []

    def compiler():
        seen.append(picked())
        if seen[-1] == "avx512":
            raise RuntimeError("unrecognized option -mavx512f")
        return "compiled"

    assert without_trial(compiler) == "compiled"
    assert seen == ["avx512", "avx2"]
    assert "avx2" in tried
    assert picked() == "avx2"


def test_what_other_instructions_would_not_help_is_not_compiled_again(monkeypatch):
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda *_: True)
    seen = []

    def compiler():
        seen.append(picked())
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        without_trial(compiler)
    assert seen == ["avx512"]


@pytest.mark.parametrize("chosen", [True, False])
def test_what_the_user_has_set_stays(chosen):
    with config.patch({"cpp.vec_isa_ok": chosen}):
        assert without_trial(lambda: config.cpp.vec_isa_ok) is chosen
