"""Whole numbers that users give: counts, indices and seeds."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from openmm_cgflow.errors import InvalidInputError

__all__ = ["LARGEST_SEED", "fits_memory", "indices", "many", "seed_number", "whole_number"]

LARGEST_SEED = 2**63 - 1
"""What torch's and numpy's generators, and a model file, all take."""


def whole_number(value: Any, what: str, least: int = 1) -> int:  # noqa: ANN401
    """An integer, numpy's too; not a bool, and no float, of which a part would be lost.

    Arguments:
        value: what was given.
        what: its name, for the message.
        least: the smallest that is allowed.

    Raises:
        InvalidInputError: something else, or a smaller number.

    Example:
        >>> whole_number(np.int64(3), "sample: n")
        3
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"{what} is {value!r}; give a whole number that is at least {least}.")
    return int(value)


def many(value: Any, what: str, least: int = 1) -> int:  # noqa: ANN401
    """A whole number that is large enough to be written as `1e6`.

    Raises:
        InvalidInputError: something else, a number with a fraction, or one below the least.

    Example:
        >>> many(1e6, "train: evaluations")
        1000000
    """
    return whole_number(int(value) if isinstance(value, float) and value.is_integer() else value, what, least)


def seed_number(value: Any) -> int:  # noqa: ANN401
    """A seed that every generator takes.

    Raises:
        InvalidInputError: no integer, or one that is below 0 or above 2**63 - 1.

    Example:
        >>> seed_number(7)
        7
    """
    if whole_number(value, "seed", least=0) > LARGEST_SEED:
        raise InvalidInputError(f"seed is {value}; give one of at most {LARGEST_SEED}.")
    return int(value)


def fits_memory(n: int, numbers: int, what: str) -> None:
    """See that so many rows can be held before they are made.

    Arguments:
        n: of rows.
        numbers: in each, in single precision; they are held twice where pieces of them are joined.
        what: their name, for the message.

    Raises:
        InvalidInputError: they need more than all the memory of this machine.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    wanted, there = 8 * n * numbers, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise InvalidInputError(
            f"{what} is {n:,}, which takes {wanted / 2**30:,.0f} GiB of memory, and this machine has "
            f"{there / 2**30:,.0f}; take fewer at a time"
        )


def indices(values: Any, what: str) -> list[int]:  # noqa: ANN401
    """Indices of atoms or particles as a list.

    Raises:
        InvalidInputError: not a row of integers.

    Example:
        >>> indices(np.array([4, 6]), "beads")
        [4, 6]
    """
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else None
    wrong = [values] if found is None else [i for i in found if isinstance(i, bool | np.bool_) or not _integer(i)]
    if found is None or wrong:
        raise InvalidInputError(f"{what} contain {wrong[0]!r}; give a list of indices, whole numbers.")
    return [int(i) for i in found]


def _integer(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | np.integer)
