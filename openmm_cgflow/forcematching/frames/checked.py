"""Frames of beads that are looked at before anything is learned from them."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.structures import distances

__all__ = ["check_bonds_of_frames", "check_finite", "warn_of_duplicates"]

_SHOWN = 5
_SPLIT = (3.0, 0.1)  # times the usual length, and nm more: a bond that long is broken by a box
_COINCIDENT = 1e-3  # nm
_UNIT = 2.5  # ratio to the length that is known, from which the unit is wrong
_DUPLICATES = 0.01  # share of frames that are copies of others, from which it is said


def _listed(frames: np.ndarray) -> str:
    return ", ".join(map(str, frames[:_SHOWN])) + (", ..." if len(frames) > _SHOWN else "")


def check_finite(values: np.ndarray, what: str) -> None:
    """Refuse arrays `(frames, ...)` with NaN or infinite values.

    Raises:
        InvalidInputError: naming the frames.
    """
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(wrong):
        raise InvalidInputError(
            f"{what}s {_listed(wrong)} ({len(wrong)} of {len(values)}) hold NaN or infinite values; remove them"
        )


def check_bonds_of_frames(
    x: np.ndarray,
    bonds: Sequence[tuple[int, int]],
    labels: Sequence[str],
    expected: Mapping[tuple[int, int], float],
) -> None:
    """Refuse frames in which beads lie on one another, or are much farther apart than in the others.

    Arguments:
        x: `(frames, beads, 3)`, nm.
        bonds: pairs of neighbouring beads.
        labels: what beads are called.
        expected: lengths of some bonds that are known beforehand, nm.

    Raises:
        InvalidInputError: naming bond and frames, and what the reason may be.
    """
    length = distances(x, np.array(bonds))
    usual = np.quantile(length, 0.4, axis=0)
    for k, bond in enumerate(bonds):
        pair = "-".join(labels[i] for i in bond)
        if len(close := np.flatnonzero(length[:, k] < _COINCIDENT)):
            raise InvalidInputError(f"{pair} lie on one another in frames {_listed(close)}; remove these frames")
        ratio = usual[k] / expected.get(bond, usual[k])
        if not 1 / _UNIT < ratio < _UNIT:
            unit = "looks like Angstrom taken for nm" if 7 < ratio < 14 else "looks like another unit than nm"
            raise InvalidInputError(
                f"{pair} is {usual[k]:.4g} nm long, where about {expected[bond]:.3f} nm are expected, which {unit} or "
                "other beads: give nm, or a Quantity, such as x * unit.angstrom"
            )
        if len(broken := np.flatnonzero(length[:, k] > _SPLIT[0] * usual[k] + _SPLIT[1])):
            worst = length[broken[0], k]
            raise InvalidInputError(
                f"{pair} is {worst:.4g} nm long in frame {broken[0]}, where {usual[k]:.4g} nm are usual ({len(broken)} "
                f"of {len(x)} frames: {_listed(broken)}): the molecule is split by a periodic box, or the frames are "
                "broken; give an mdtraj Trajectory with its box, or make molecules whole first "
                "(trajectory.make_molecules_whole(), gmx trjconv -pbc whole)"
            )


def warn_of_duplicates(x: np.ndarray) -> None:
    """Warn if frames `(frames, beads, 3)` are copies of one another: they count as often as they stand there."""
    copies = len(x) - len(np.unique(x.reshape(len(x), -1), axis=0))
    if copies > _DUPLICATES * len(x):
        warnings.warn(
            f"{copies} of {len(x)} frames are exact copies of others, so that they may be in training and held-out "
            "frames at once, and the fit stops too late; give each frame once, with its weight as weights",
            stacklevel=3,
        )
