"""A GPU that is not there: tensors that say they are on CUDA, hold their numbers on the CPU, and refuse to be mixed.

Every operation is asked of torch's own `FakeTensorMode` first, which raises where devices are mixed as a GPU would, and
says on which device the result is; then it is done with the numbers, so that what depends on these (`if loss > 0`,
`x[mask]`) goes its way, and results can be compared with those of the CPU. `FakeTensorMode` alone cannot do it: without
a CUDA driver, Python cannot even slice its tensors, and autograd ends the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_DEPENDS_ON_DATA = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
_aten = torch.ops.aten
_TAKES_ANY = (_aten.index_add.default, _aten.index_add_.default)  # if asked of FakeTensorMode, not on a GPU
_PLACES: dict[Any, torch.device] = {}


class OnCuda(torch.Tensor):
    """A tensor of the fake GPU; `numbers` holds its numbers."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "OnCuda":
        self = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device="meta"
        )
        self.numbers = real
        return self

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def is_cpu(self) -> bool:
        return False

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __repr__(self) -> str:
        return f"OnCuda({self.numbers})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors that are asked for on CUDA, and takes others there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type in ("cuda", "meta"):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten.detach.default:
        return OnCuda(args[0].numbers.detach())
    device = _place(func, args, kwargs)
    if kwargs.get("generator") is not None and kwargs["generator"].device.type == "cpu":
        raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    was: list[OnCuda] = []
    real_args, real_kwargs = _numbers(args, was), _numbers(kwargs, was)
    if real_kwargs.get("device") is not None:
        real_kwargs["device"] = CPU
    out = func(*real_args, **real_kwargs)
    return out if device.type == "cpu" else tree_map_only(torch.Tensor, lambda t: _wrapped(t, was), out)


def _numbers(value: Any, found: list[OnCuda]) -> Any:
    """The value with the numbers of each tensor of the fake GPU in its place; pytree takes five times as long."""
    if isinstance(value, OnCuda):
        found.append(value)
        return value.numbers
    if isinstance(value, (list, tuple)):
        return type(value)([_numbers(v, found) for v in value])
    return {k: _numbers(v, found) for k, v in value.items()} if isinstance(value, dict) else value


def _leaves(value: Any) -> list[Any]:
    """What is in nested lists and tuples."""
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, (list, tuple)) else [value]


def _wrapped(value: torch.Tensor, was: list[OnCuda]) -> OnCuda:
    same = [t for t in was if t.numbers is value]
    return same[0] if same else OnCuda(value)


def _place(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """The device of the results, by torch's rules, which know no more than this of the arguments."""
    flat = _leaves((args, [v for k, v in kwargs.items() if k != "generator"]))
    known = [(str(t.device), t.dim() == 0) if isinstance(t, torch.Tensor) else type(t) for t in flat]
    key = (func, str(kwargs.get("device")), *known)
    if func in _TAKES_ANY and len({place[0] for place in known if isinstance(place, tuple)}) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    if key not in _PLACES:
        _PLACES[key] = _judged(func, args, kwargs)
    return _PLACES[key]


def _judged(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """What `FakeTensorMode` says: it raises where devices are mixed."""
    mode, fakes = FakeTensorMode(allow_non_fake_inputs=False), {}

    def faked(t: torch.Tensor) -> FakeTensor:
        if id(t) not in fakes:
            with torch.no_grad(), _disable_current_modes():
                meta = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            fakes[id(t)] = FakeTensor(mode, meta, t.device)
        return fakes[id(t)]

    fake_args, fake_kwargs = tree_map_only(torch.Tensor, faked, (args, kwargs))
    if fake_kwargs.get("device") is not None and torch.device(fake_kwargs["device"]).type == "meta":
        fake_kwargs["device"] = CUDA
    try:
        with mode:
            out = func(*fake_args, **fake_kwargs)
    except _DEPENDS_ON_DATA:
        return CUDA
    except torch.AcceleratorError:  # of `x[mask]`, whose shape torch would have to ask a GPU for
        assert func in (_aten.index.Tensor, _aten.index_put_.default), func
        return CUDA
    places = {t.device for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)}
    assert len(places) < 2, (func, places)
    return places.pop() if places else CPU


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors may be moved to CUDA inside."""
    with patch.object(torch.cuda, "_lazy_init", lambda: None), _Factories():
        yield
