"""Values from JSON as what they are declared to be: a dataclass and its type hints are the schema of a file."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from openmm_cgflow.errors import InvalidInputError, ModelFileError

__all__ = ["read_as"]

T = TypeVar("T")
_LARGEST = 2**53  # beyond it JSON's numbers are not exact everywhere
_SIMPLE: dict[type, str] = {bool: "true or false", str: "text"}


@overload
def read_as(declared: type[T], value: Any, where: str, finite: bool = True) -> T: ...  # noqa: ANN401


@overload
def read_as(declared: types.UnionType, value: Any, where: str, finite: bool = True) -> Any: ...  # noqa: ANN401


def read_as(declared: Any, value: Any, where: str, finite: bool = True) -> Any:
    """A value that `json` gave, as the declared type; nothing is converted but whole numbers where others may stand.

    Arguments:
        declared: a dataclass, `int`, `float`, `str`, `bool`, `list[...]`, `tuple[...]`, `dict[str, ...]`, `Literal`,
            unions of them, or `Any`. Fields of a dataclass with a default may be missing; unknown ones are refused.
        value: what `json` gave.
        where: its name in messages.
        finite: whether infinities and NaN are refused. A dataclass field with `metadata={"finite": False}` lifts that
            for all that is in it.

    Raises:
        ModelFileError: if the value is not of this type; the message says where.

    Example:
        >>> read_as(list[int], [1, 2], "a list")
        [1, 2]
    """
    origin = get_origin(declared)
    if dataclasses.is_dataclass(declared):
        return _record(declared, value, where, finite)
    if origin in (Union, types.UnionType):
        return _union(declared, value, where, finite)
    if declared is Any:
        return value
    reader = _READERS.get(origin or declared)
    if reader is None:
        raise TypeError(f"{declared} cannot be read from JSON")
    return reader(declared, value, where, finite)


def _wrong(where: str, value: object, wanted: str) -> ModelFileError:
    shown = repr(value) if isinstance(value, int | float | bool | str | None) else type(value).__name__
    return ModelFileError(f"{where} is {shown if len(shown) <= 60 else shown[:60] + '...'}, not {wanted}")


def _integer(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) is not int or abs(value) > _LARGEST:
        raise _wrong(where, value, "a whole number of less than 2^53")
    return value


def _number(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) not in (int, float) or (type(value) is int and abs(value) > _LARGEST):
        raise _wrong(where, value, "a number")
    if finite and not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    return float(value)


def _simple(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) is not declared:
        raise _wrong(where, value, _SIMPLE[declared])
    return value


def _nothing(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if value is not None:
        raise _wrong(where, value, "null")
    return value


def _literal(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if not any(type(value) is type(known) and value == known for known in get_args(declared)):
        raise _wrong(where, value, f"one of {list(get_args(declared))}")
    return value


def _list(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) is not list:
        raise _wrong(where, value, "a list")
    item = (get_args(declared) or (Any,))[0]
    return [read_as(item, entry, f"{where}[{k}]", finite) for k, entry in enumerate(value)]


def _tuple(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    items = get_args(declared)
    if type(value) not in (list, tuple):
        raise _wrong(where, value, "a list")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(value) != len(items):
        raise _wrong(where, value, f"a list of {len(items)}")
    return tuple(
        read_as(item, v, f"{where}[{k}]", finite) for k, (item, v) in enumerate(zip(items, value, strict=True))
    )


def _dict(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) is not dict:
        raise _wrong(where, value, "an object")
    item = (get_args(declared) or (str, Any))[1]
    return {key: read_as(item, entry, f"{where}.{key}", finite) for key, entry in value.items()}


_READERS: dict[Any, Callable[[Any, Any, str, bool], Any]] = {
    int: _integer,
    float: _number,
    str: _simple,
    bool: _simple,
    type(None): _nothing,
    Literal: _literal,
    list: _list,
    tuple: _tuple,
    dict: _dict,
}


def _union(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    choices = get_args(declared)
    if value is None and type(None) in choices:
        return None
    problems = []
    for choice in choices:
        if choice is not type(None):
            try:
                return read_as(choice, value, where, finite)
            except ModelFileError as error:
                problems.append(error)
    raise problems[0]


@lru_cache(maxsize=64)
def _fields(declared: Any) -> Mapping[str, tuple[Any, bool, bool]]:  # noqa: ANN401
    """Type of each field of a dataclass, whether it must be there, and whether it must be finite."""
    hints = get_type_hints(declared)
    missing = dataclasses.MISSING
    return {
        f.name: (
            hints[f.name],
            f.default is missing and f.default_factory is missing,
            f.metadata.get("finite", True),
        )
        for f in dataclasses.fields(declared)
        if f.init
    }


def _record(declared: Any, value: Any, where: str, finite: bool) -> Any:  # noqa: ANN401
    if type(value) is not dict:
        raise _wrong(where, value, "an object")
    fields = _fields(declared)
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise ModelFileError(f"{where} has the unknown field {unknown[0][:60]!r}")
    lacking = [name for name, (_, required, _) in fields.items() if required and name not in value]
    if lacking:
        raise ModelFileError(f"{where} lacks {lacking[0]!r}")
    read = {}
    for name, entry in value.items():
        hint, _, must_be_finite = fields[name]
        read[name] = read_as(hint, entry, f"{where}.{name}", finite and must_be_finite)
    try:
        return declared(**read)
    except InvalidInputError as error:  # of settings, which check what a user gives
        raise ModelFileError(f"{where}: {error}") from error
