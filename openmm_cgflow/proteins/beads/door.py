"""Beads at the door: put together where a box splits them, refused by name where they are not what they should be."""

import logging
from itertools import combinations, product

import networkx
import numpy as np

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.proteins.beads.kinds import ATOMS, BeadKind, bead_names, first_beads
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.chain.trace import checked_trace, refuse_gaps, refuse_not_finite
from openmm_cgflow.structures import distances, whole_frames
from openmm_cgflow.units import PositionsLike, in_nm

__all__ = ["checked_beads", "whole_beads"]

_log = logging.getLogger("openmm_cgflow")
_REACH = {"martini2": (0.2, 0.5), "martini3": (0.2, 0.5), "com": (0.1, 1.3)}  # nm, first beads of neighbours
_SPLIT = {"atoms": 0.6, "means": 1.4}  # nm, longer than any distance of neighbours: a box is between them
_FAR = 1.0  # nm, of a side chain's beads from the first one of the residue
_NEAR = 1.0  # nm, of the nearest beads of chains that are beside one another
_ROOM = 0.1  # nm^3, which a residue has at least in a box that is one
_NO_BOX = 2.0 * np.eye(3)  # nm, what OpenMM's States of Systems without a box have


def whole_beads(x: np.ndarray, box: np.ndarray | None, sequence: ProteinSequence, kind: BeadKind) -> np.ndarray:
    """Beads `(frames, beads, 3)`, nm, each chain put together where its box `(frames, 3, 3)` splits it, if it is known.

    Chains that are near none of the others are put at their image beside these, if there is one.
    What has another shape, and values that are not finite, are left as they are.
    """
    owner = _residue_of(sequence, kind)
    if x.shape[1:] != (len(owner), 3) or not np.isfinite(x).all():
        return x
    first = first_beads(sequence, kind)
    chain = [(first[k], first[k + 1]) for k in np.flatnonzero(sequence.followed)]
    inner = [(first[k], bead) for bead, k in enumerate(owner) if bead != first[k]]
    pairs = np.array([*chain, *inner]).reshape(-1, 2)
    longest = _SPLIT["atoms" if kind in ATOMS else "means"]
    far = distances(x, pairs).max(1, initial=0.0) > longest
    chains = np.array([residue.chain for residue in sequence.residues])[owner]
    if box is None or not (far.any() or chains[-1]):
        return x
    joined, box = x.copy(), np.broadcast_to(box, (len(x), 3, 3))
    joined[far] = whole_frames(x[far], pairs, box[far])
    sound = distances(joined, pairs).max(1, initial=0.0) <= longest
    joined[~sound] = x[~sound]
    roomy = sound & (np.abs(np.linalg.det(box)) > _ROOM * len(sequence)) & (box != _NO_BOX).any((1, 2))
    moved = [_brought_near(joined[frame], box[frame], chains) for frame in np.flatnonzero(roomy)]
    if any(moved):
        _log.info("in %d of %d frames chains are put at the nearest of their periodic images", sum(moved), len(x))
    return joined


def _brought_near(x: np.ndarray, box: np.ndarray, chains: np.ndarray) -> bool:
    """Move groups of chains of one frame `(beads, 3)`, nm, to an image beside the groups before; whether any was.

    A group is of chains that are near one another already. One that no image brings near another stays where it is.

    Arguments:
        x: beads, which are written over.
        box: `(3, 3)`, nm, rows are the box vectors.
        chains: `(beads,)`, the chain of each.
    """
    from scipy.spatial import cKDTree

    trees = [cKDTree(x[chains == k]) for k in range(chains[-1] + 1)]
    near = networkx.Graph()
    near.add_nodes_from(range(len(trees)))
    for j, k in combinations(range(len(trees)), 2):
        if trees[j].query(x[chains == k])[0].min() < _NEAR:
            near.add_edge(j, k)
    first, *rest = (np.isin(chains, list(group)) for group in networkx.connected_components(near))
    placed, moved = first, False
    while rest:  # the nearest one first, for others may be beside it
        before, found = cKDTree(x[placed]), []
        for group in rest:
            images = np.round((x[group].mean(0) - x[placed].mean(0)) @ np.linalg.inv(box))
            shifts = (images + list(product((-1, 0, 1), repeat=3))) @ box
            apart = [before.query(x[group] - shift)[0].min() for shift in shifts]
            found.append((min(apart), shifts[int(np.argmin(apart))]))
        k = min(range(len(rest)), key=lambda k: found[k][0])
        if found[k][0] >= _NEAR:
            break
        group = rest.pop(k)
        x[group] -= found[k][1]
        placed, moved = placed | group, True
    return moved


def checked_beads(beads: PositionsLike, sequence: ProteinSequence, kind: BeadKind) -> np.ndarray:
    """Beads as `(frames, beads, 3)`, those that are atoms as `(frames, residues, atoms, 3)`, nm.

    Raises:
        MismatchError: another number of beads than these residues have.
        InvalidInputError: values that are not finite, another unit, gaps, beads of another order; the bead is named.
    """
    x = in_nm(beads)
    if kind in ATOMS:
        n, k = len(sequence), len(ATOMS[kind])
        if k > 1 and (x.shape == (n, k, 3) or (x.ndim in (2, 3) and x.shape[-2:] == (n * k, 3))):
            x = x.reshape(-1, n, k, 3)
        elif k > 1 and x.ndim != 4:
            raise MismatchError(
                f"the beads have the shape {x.shape}, and those of kind {kind!r} are {', '.join(ATOMS[kind])} of each "
                f"residue: give (frames, {n}, {k}, 3), or see whether beads= is right"
            )
        return checked_trace(x, sequence)
    names = [(r.label, name) for r in sequence.residues for name in bead_names(kind, r.variant)]
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] != 3 or not len(x):
        raise InvalidInputError(f"the beads have the shape {x.shape}; give (frames, {len(names)}, 3), in nm")
    if x.shape[1] != len(names):
        raise MismatchError(
            f"there are {x.shape[1]} beads, and {len(names)} of kind {kind!r} in these {len(sequence)} residues "
            f"({sequence.residues[0].label}: {', '.join(bead_names(kind, sequence.residues[0].variant))}; ...): see "
            "whether beads= is right, and give the beads of the protein alone, residue by residue"
        )
    refuse_not_finite(x, [f"{name} of {label}" for label, name in names])
    refuse_gaps(x[:, first_beads(sequence, kind)], sequence, "first beads", _REACH[kind])
    _refuse_far(x, sequence, kind)
    return x


def _residue_of(sequence: ProteinSequence, kind: BeadKind) -> np.ndarray:
    """Of every bead, the number of its residue."""
    counts = [len(bead_names(kind, residue.variant)) for residue in sequence.residues]
    return np.repeat(np.arange(len(counts)), counts)


def _refuse_far(x: np.ndarray, sequence: ProteinSequence, kind: BeadKind) -> None:
    """Beads that are not where those of their residue can be."""
    first, owner = first_beads(sequence, kind), _residue_of(sequence, kind)
    far = np.argwhere(np.linalg.norm(x - x[:, first[owner]], axis=2) > _FAR)
    if len(far):
        frame, j = far[0]
        k = owner[j]
        name = bead_names(kind, sequence.residues[k].variant)[j - first[k]]
        raise InvalidInputError(
            f"{name} of {sequence.residues[k].label} is more than {_FAR} nm from its BB in frame {frame}: give beads "
            "residue by residue in the order BB, SC1, ..., or a Topology that names them"
        )
