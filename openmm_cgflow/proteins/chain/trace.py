"""Traces of alpha carbons: read, and refused by residue where they cannot be one."""

import logging
from collections.abc import Sequence

import numpy as np

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.units import PositionsLike, in_nm

__all__ = ["checked_trace", "near_cysteines", "refuse_gaps", "refuse_not_finite", "warn_of_near"]

_log = logging.getLogger("openmm_cgflow")
_REACH = (0.25, 0.50)  # nm, of neighbours in a chain
_ANGSTROM = (2.0, 10.0)  # distances of neighbours that are likely in Angstrom
_BONDS = (0.10, 0.19)  # nm, of the backbone
_OVERLAP = 0.2  # nm, of any two


def checked_trace(trace: PositionsLike, sequence: ProteinSequence) -> np.ndarray:
    """Alpha carbons `(frames, residues, 3)`, or N, CA, C (and O) of each residue `(frames, residues, 3 or 4, 3)`, nm.

    Raises:
        MismatchError: another number of beads than residues.
        InvalidInputError: values that are not finite, another unit, gaps, beads on one another; the residue is named.
    """
    x = in_nm(trace)
    if x.ndim == 2:
        x = x[None]
    if x.ndim == 4 and x.shape[2:] in ((3, 3), (4, 3)):
        checked_trace(x[:, :, 1], sequence)
        _refuse_wrong_backbones(x, sequence)
        return x
    n = len(sequence)
    if x.ndim != 3 or x.shape[2:] != (3,) or not len(x):
        raise InvalidInputError(
            f"the trace has the shape {x.shape}; give (frames, {n}, 3) or ({n}, 3), in nm; "
            f"or (frames, {n}, 3, 3) for N, CA and C of each residue, (frames, {n}, 4, 3) with O"
        )
    if x.shape[1] != n:
        raise MismatchError(
            f"the trace has {x.shape[1]} beads, the sequence {n} residues "
            f"({sequence.residues[0].label} to {sequence.residues[-1].label}); give one alpha carbon for each residue: "
            "of an all-atom trajectory, trajectory.atom_slice(trajectory.topology.select('name CA'))"
        )
    refuse_not_finite(x, [f"the alpha carbon of {residue.label}" for residue in sequence.residues])
    refuse_gaps(x, sequence, "alpha carbons", _REACH)
    _refuse_overlaps(x, sequence)
    return x


def refuse_not_finite(x: np.ndarray, names: Sequence[str]) -> None:
    """Refuse points `(frames, points, 3)` that are NaN or infinite, by the name of the first of them."""
    bad = np.argwhere(~np.isfinite(x).all(2))
    if len(bad):
        frame, k = bad[0]
        raise InvalidInputError(f"{names[k]} in frame {frame} is NaN or infinite; leave such frames out")


def refuse_gaps(x: np.ndarray, sequence: ProteinSequence, what: str, reach: tuple[float, float]) -> None:
    """Refuse points `(frames, residues, 3)` of which neighbours in a chain are nearer or farther than `reach`, nm."""
    least, most = reach
    length, inner = np.linalg.norm(np.diff(x, axis=1), axis=2), sequence.followed
    middle = float(np.median(length[:, inner]))
    if _ANGSTROM[0] < middle < _ANGSTROM[1]:
        raise InvalidInputError(
            f"neighbouring {what} are about {middle:.2f} apart, which looks like Angstrom taken for nm: give nm, or a "
            "Quantity, such as x * unit.angstrom"
        )
    wrong = np.argwhere(inner & ((length < least) | (length > most)))
    if len(wrong):
        frame, k = wrong[0]
        many = len(wrong) > 0.3 * length[:, inner].size
        cause = (
            "beads are in another order than the sequence or stand for something else, or the molecule is split by a "
            "periodic box that is not known: make it whole (trajectory.make_molecules_whole())"
            if many
            else "residues are missing there, the molecule is split by a periodic box, or a chain ends there: give "
            "what is missing, make it whole (trajectory.make_molecules_whole()), or begin a new chain (/ in the "
            "sequence, another chain in the Topology)"
        )
        raise InvalidInputError(
            f"the {what} of {sequence.residues[k].label} and {sequence.residues[k + 1].label} are "
            f"{length[frame, k]:.3f} nm apart in frame {frame}, where {least} to {most} are possible: {cause}"
        )


def _refuse_overlaps(x: np.ndarray, sequence: ProteinSequence) -> None:
    for frame, points in enumerate(x):
        near = _nearest(points)
        if near is not None:
            a, b = near
            raise InvalidInputError(
                f"the alpha carbons of {sequence.residues[a].label} and {sequence.residues[b].label} are nearer than "
                f"{_OVERLAP} nm in frame {frame}: no atoms fit between them; leave this frame out"
            )


def _refuse_wrong_backbones(x: np.ndarray, sequence: ProteinSequence) -> None:
    """Bonds N-CA, CA-C, C-N and C-O that are none."""
    if not np.isfinite(x).all():
        frame, k = np.argwhere(~np.isfinite(x).all((2, 3)))[0]
        raise InvalidInputError(f"N, C or O of {sequence.residues[k].label} in frame {frame} is NaN or infinite")
    n, ca, c, o = x[:, :, 0], x[:, :, 1], x[:, :, 2], x[:, :, 3:]
    for name, length in (
        ("N-CA", np.linalg.norm(ca - n, axis=2)),
        ("CA-C", np.linalg.norm(c - ca, axis=2)),
        ("C-N", np.where(sequence.followed, np.linalg.norm(n[:, 1:] - c[:, :-1], axis=2), 0.134)),
        *([("C-O", np.linalg.norm(o[:, :, 0] - c, axis=2))] if o.shape[2] else []),
    ):
        wrong = np.argwhere((length < _BONDS[0]) | (length > _BONDS[1]))
        if len(wrong):
            frame, k = wrong[0]
            raise InvalidInputError(
                f"the bond {name} of {sequence.residues[k].label} is {length[frame, k]:.3f} nm long in frame {frame}; "
                "give N, CA, C (and O) of each residue in this order, in nm"
            )


def warn_of_near(x: np.ndarray, sequence: ProteinSequence, below: float) -> None:
    """Say which neighbours are as near as in a cis peptide bond where none is built, as before prolines alone it is."""
    inner = [k for k in np.flatnonzero(sequence.followed).tolist() if sequence.following(k) != "PRO"]
    near = np.linalg.norm(np.diff(x, axis=1), axis=2)[:, inner] < below
    if not near.any():
        return
    frame, which = np.argwhere(near)[0]
    first, second = (sequence.residues[k].label for k in (inner[which], inner[which] + 1))
    _log.warning(
        "in %d of %d frames alpha carbons are as near as across a cis peptide bond (%s and %s in frame %d), but no "
        "proline follows: trans is built there, under strain; see whether the trace is right",
        near.any(1).sum(),
        len(x),
        first,
        second,
        frame,
    )


def _nearest(points: np.ndarray) -> tuple[int, int] | None:
    from scipy.spatial import cKDTree

    pairs = cKDTree(points).query_pairs(_OVERLAP)
    return min(pairs) if pairs else None


def near_cysteines(
    sequence: ProteinSequence, points: np.ndarray, reach: tuple[float, float], apart: int
) -> list[tuple[int, int]]:
    """Pairs of cysteines that are as near as those of a disulfide; the nearest pairs are taken first.

    Arguments:
        sequence: of the protein.
        points: `(residues, 3)` nm, one of each residue.
        reach: nm, how far from one another those of a disulfide are.
        apart: residues that have to be from the one to the other in a chain: in a helix nearer ones are near anyway.
    """
    places = [k for k, residue in enumerate(sequence.residues) if residue.variant in ("CYS", "CYX")]
    pairs = [
        (float(np.linalg.norm(points[i] - points[j])), i, j)
        for a, i in enumerate(places)
        for j in places[a + 1 :]
        if j - i >= apart or sequence.residues[i].chain != sequence.residues[j].chain
    ]
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for distance, i, j in sorted(pairs):
        if reach[0] < distance < reach[1] and not {i, j} & taken:
            found.append((i, j))
            taken |= {i, j}
    return sorted(found)
