"""Torch's compiler takes the vector instructions that the CPU says it has, and tries them out only where that fails."""

import pytest
from torch._inductor import config, cpu_vec_isa

from openmm_cgflow.compute import without_trial


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    kinds = list(cpu_vec_isa.supported_vec_isa_list)
    with config.patch({"cpp.vec_isa_ok": None}):
        yield
    assert cpu_vec_isa.supported_vec_isa_list == kinds


def test_instructions_are_not_tried_out(monkeypatch):
    def trial(kind, code):
        assert str(kind) == "avx512"  # whose half precision is tried out whatever is set
        return False

    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", trial)
    assert isinstance(without_trial(cpu_vec_isa.valid_vec_isa_list), list)
    assert config.cpp.vec_isa_ok is None
    assert not cpu_vec_isa.valid_vec_isa_list.cache_info().currsize  # others of this process try them out


def test_instructions_are_tried_out_where_the_compiler_fails_with_them():
    seen = []

    def compiler():
        seen.append(config.cpp.vec_isa_ok)
        if seen[-1]:
            raise RuntimeError("unrecognized option -mavx512f")
        return "compiled"

    assert without_trial(compiler) == "compiled"
    assert seen == [True, None]


def test_errors_are_those_of_the_second_time():
    def compiler():
        raise RuntimeError(str(config.cpp.vec_isa_ok))

    with pytest.raises(RuntimeError, match="None"):
        without_trial(compiler)


@pytest.mark.parametrize("chosen", [True, False])
def test_what_the_user_has_set_stays(chosen):
    with config.patch({"cpp.vec_isa_ok": chosen}):
        assert without_trial(lambda: config.cpp.vec_isa_ok) is chosen
