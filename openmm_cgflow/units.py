"""Units at the public surface: OpenMM quantities, mdtraj objects or bare numbers in nm, K and s."""

import logging
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openmm
from openmm import unit

from openmm_cgflow.errors import InvalidInputError

__all__ = [
    "KB",
    "PositionsLike",
    "finite_number",
    "in_kelvin",
    "in_nm",
    "in_radians",
    "in_seconds",
    "read_only",
    "real_array",
    "scalar_in",
]

_COLD = 100.0  # K
_log = logging.getLogger("openmm_cgflow")

KB: float = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
"""Boltzmann's constant per mole, kJ/mol/K."""

PositionsLike: TypeAlias = Any
"""Whatever holds positions, of one structure or of frames; `in_nm` reads it.

An OpenMM Quantity (of an array or of a list of Vec3), a list of Quantities, an OpenMM State or PDBFile, an mdtraj
Trajectory (or anything with an `xyz` array in nm), a torch tensor, or bare numbers in nm. These have no type in common:
what is given is looked at when it comes in.
"""


def _bare(value: Any, wanted: unit.Unit, what: str) -> Any:  # noqa: ANN401
    """The value in the wanted unit, without the unit; bare numbers pass as they are, and so do lists of both."""
    if isinstance(value, list | tuple) and any(unit.is_quantity(_first(row)) for row in value):
        return [_bare(row, wanted, what) for row in value]
    if unit.is_quantity(value):
        if not value.unit.is_compatible(wanted):
            raise InvalidInputError(
                f"{what} is given in {value.unit}; give it in {wanted} (or a unit compatible with it)"
            )
        return value.value_in_unit(wanted)
    return value


def _first(value: Any) -> Any:  # noqa: ANN401
    """The first entry of lists within lists."""
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    return value


def scalar_in(value: Any, wanted: unit.Unit, what: str) -> float:  # noqa: ANN401
    """One finite number in the wanted unit; bare numbers are taken to be in it.

    Raises:
        InvalidInputError: another unit, or no finite number; `what` names it.

    Example:
        >>> scalar_in(2 * unit.femtosecond, unit.picosecond, "timestep")
        0.002
    """
    bare = _bare(value, wanted, what)
    try:
        number = float(bare)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} is {value!r}; give one number or an OpenMM Quantity in {wanted}") from error
    if not np.isfinite(number):
        raise InvalidInputError(f"{what} is {number}; give a finite number")
    return number


def in_nm(positions: PositionsLike) -> np.ndarray:
    """Positions as a float64 array in nm.

    Arguments:
        positions: see `PositionsLike`.

    Returns:
        An array of the same shape as the input, usually `(atoms, 3)` or `(frames, atoms, 3)`, nm.

    Raises:
        InvalidInputError: the unit is not a length, or the values do not form an array of numbers.

    Example:
        >>> in_nm([[1.0, 2.0, 3.0]] * unit.angstrom)
        array([[0.1, 0.2, 0.3]])
    """
    if isinstance(positions, str | Path):
        raise InvalidInputError(f"positions are the name of a file, {str(positions)!r}; read it first (mdtraj.load)")
    if hasattr(positions, "xyz"):
        positions = positions.xyz
    elif hasattr(positions, "getPositions"):
        try:
            positions = positions.getPositions()
        except openmm.OpenMMException as error:
            raise InvalidInputError(
                f"the State holds no positions; ask for them: getState(positions=True) ({error})"
            ) from error
    return real_array(_bare(positions, unit.nanometer, "positions"), "positions are", "(atoms, 3) values in nm")


def real_array(values: Any, what: str, wanted: str) -> np.ndarray:  # noqa: ANN401
    """Values as a float64 array of their own: imaginary parts, masked values and None are refused, not dropped.

    Arguments:
        values: an array, a torch tensor, or lists of numbers.
        what: what they are, with its verb, for the message.
        wanted: what to give.

    Raises:
        InvalidInputError: they are no array of real numbers, or have units.

    Example:
        >>> real_array([1, 2], "positions are", "(atoms, 3) values in nm")
        array([1., 2.])
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if unit.is_quantity(_first(values)):  # numpy would drop the unit without a word
        raise InvalidInputError(f"{what} an array with units ({_first(values).unit}); give {wanted}")
    if np.ma.is_masked(values):
        raise InvalidInputError(f"{what} an array with masked values; give {wanted}, without them")
    try:
        raw = np.asarray(values)
        if np.iscomplexobj(raw):
            raise InvalidInputError(f"{what} complex; give {wanted}, real and imaginary parts by themselves")
        if raw.dtype == object and any(value is None for value in raw.flat):
            raise TypeError("None")
        return np.array(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} not an array of numbers; give {wanted}") from error


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array that cannot be written to: for what is kept after it was handed out.

    Example:
        >>> read_only(np.zeros(2)).flags.writeable
        False
    """
    view = array.view()
    view.flags.writeable = False
    return view


def finite_number(value: Any, what: str) -> float:  # noqa: ANN401
    """A number without a unit.

    Raises:
        InvalidInputError: not a number, not a finite one, or one with a unit.
    """
    return scalar_in(value, unit.dimensionless, what)


def in_kelvin(temperature: unit.Quantity | float) -> float:
    """A temperature as a float in K; bare numbers are taken to be in K, with a warning if that is cold.

    Raises:
        InvalidInputError: not a temperature, not a number, or not above 0.

    Example:
        >>> in_kelvin(300)
        300.0
    """
    kelvin = scalar_in(temperature, unit.kelvin, "temperature")
    if kelvin <= 0:
        raise InvalidInputError(f"temperature is {kelvin:g} K; give one above 0, for instance 300*unit.kelvin")
    if kelvin < _COLD and not unit.is_quantity(temperature):
        _log.warning(
            "the temperature is taken to be %g K: if it was meant in degrees Celsius, give %g", kelvin, kelvin + 273.15
        )
    return kelvin


def in_radians(angles: Any) -> Any:  # noqa: ANN401
    """Angles as bare numbers in rad, in whatever they come; bare numbers are taken to be in rad.

    Raises:
        InvalidInputError: the unit is not an angle.

    Example:
        >>> round(in_radians(180 * unit.degree), 4)
        3.1416
    """
    return _bare(angles, unit.radian, "an angle")


def in_seconds(time: unit.Quantity | float) -> float:
    """A duration as a float in s; bare numbers are taken to be in s.

    Raises:
        InvalidInputError: not a time, or not a finite number.
    """
    return scalar_in(time, unit.second, "time")
