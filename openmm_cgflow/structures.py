"""What a user gives as positions, turned into coordinates of one molecule that were looked at."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
from openmm import app, unit

from openmm_cgflow.atom_matching import atom_label, match_atoms
from openmm_cgflow.chemistry.system_bonds import BondLength
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.units import PositionsLike, in_nm

__all__ = ["Given", "StructureReader", "distances", "given_structures", "made_whole", "whole_frames"]

_log = logging.getLogger("openmm_cgflow")
_SHOWN = 5  # frames named in a message
_CHUNK = 2000  # frames whose distances are computed at a time
_SLACK = 0.5  # of its length, by which a bond may be off
_ODD = 0.15  # of its length, by which a bond may be off on average before it is said
_SPLIT = 3.0  # times its length: a bond that long is one between periodic images, or between other atoms
_ALIKE = 1.6  # ratio of the extremes of bond lengths over what is expected, if only the unit is wrong
COINCIDENT = 1e-3
"""nm: atoms that are closer are at one point."""
OVERLAP = 0.05
"""nm: no two atoms of a molecule are closer, bonded or not, in a structure that is not a sample of a poor flow."""
CONSTRAINT_TOLERANCE = 2e-3
"""nm by which a constrained distance may be off: what XTC and GRO files, with three decimals, do to it."""


@dataclass(frozen=True)
class Given:
    """Positions as they were given.

    Attributes:
        x: `(..., atoms, 3)`, nm, as they are.
        atoms: atoms of the Topology that they came with; None for bare numbers.
        box: `(frames, 3, 3)` or `(3, 3)`, nm, rows are the box vectors; None where it is not known.
    """

    x: np.ndarray
    atoms: Sequence[Any] | None = None
    box: np.ndarray | None = None


def given_structures(positions: PositionsLike) -> Given:
    """Positions with the names and the box that came with them, if any.

    Arguments:
        positions: mdtraj Trajectory, an OpenMM State, PDBFile or anything with `getPositions`, or what `in_nm` takes.

    Raises:
        InvalidInputError: they are not an array of numbers, or not lengths.
    """
    if isinstance(positions, Given):
        return positions
    topology = getattr(positions, "topology", None)
    atoms = list(topology.atoms() if callable(topology.atoms) else topology.atoms) if topology is not None else None
    return Given(in_nm(positions), atoms, _box(positions, topology))


def _box(positions: PositionsLike, topology: Any) -> np.ndarray | None:  # noqa: ANN401
    if hasattr(positions, "unitcell_vectors"):
        box = positions.unitcell_vectors
    elif hasattr(positions, "getPeriodicBoxVectors"):  # a State or GromacsGroFile
        box = positions.getPeriodicBoxVectors()
    elif hasattr(positions, "boxVectors"):  # AmberInpcrdFile
        box = positions.boxVectors
    else:
        box = topology.getPeriodicBoxVectors() if isinstance(topology, app.Topology) else None
    if box is None:
        return None
    if not isinstance(box, np.ndarray) or unit.is_quantity(box):
        box = np.array(box.value_in_unit(unit.nanometer))
    box = np.asarray(box, dtype=np.float64)
    known = np.isfinite(box).all() and (np.abs(np.linalg.det(box)) > 1e-6).all()
    return box if known else None


_NARROW = 0.5  # nm: no box of a simulation


def made_whole(x: np.ndarray, bonds: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Molecules put together across a periodic box: each atom at the image that is nearest to one it is bonded to.

    Arguments:
        x: `(frames, atoms, 3)`, nm.
        bonds: `(bonds, 2)`, pairs of atoms.
        box: `(frames, 3, 3)` or `(3, 3)`, nm, rows are the box vectors.
    """
    x, box = x.copy(), np.broadcast_to(box, (len(x), 3, 3))
    inverse = np.linalg.inv(box)
    graph = networkx.Graph(bonds.tolist())
    for part in networkx.connected_components(graph):
        for parent, atom in networkx.bfs_edges(graph, min(part)):
            images = np.round(np.einsum("fk,fkl->fl", x[:, atom] - x[:, parent], inverse))
            x[:, atom] -= np.einsum("fk,fkl->fl", images, box)
    return x


def whole_frames(x: np.ndarray, bonds: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Frames `(frames, atoms, 3)`, put together where a pair of `bonds` is nearer across the box; see `made_whole`.

    A box that is narrower than half a nm, or than twice the longest bond after that, is none that a molecule was in:
    frames with such a box stay as they are.
    """
    if box is None:
        return x
    box = np.broadcast_to(box, (len(x), 3, 3))
    inverse = np.linalg.inv(box)
    along = np.einsum("fbk,fkl->fbl", x[:, bonds[:, 1]] - x[:, bonds[:, 0]], inverse)
    split = (np.round(along) != 0).any((1, 2))
    if not split.any():
        return x
    joined = made_whole(x[split], bonds, box[split])
    width = 1 / np.linalg.norm(inverse[split], axis=1).max(1)
    sound = np.maximum(2 * distances(joined, bonds).max(1), _NARROW) < width
    x = x.copy()
    x[np.flatnonzero(split)[sound]] = joined[sound]
    _log.debug("%d of %d frames were split by their periodic box; they are made whole", sound.sum(), len(x))
    return x


class StructureReader:
    """Reads structures of one molecule: names, box, bond lengths and constraints of every frame are looked at.

    Bond lengths may be off by half, or by eight thermal widths at 1,500 K, whichever is more: hot or strained frames
    and samples of a poor flow pass, while atoms in another order, another unit or a molecule that a periodic box
    splits do not.

    Arguments:
        atoms: its atoms.
        lengths: what is expected of each bond, by pairs of atoms.
        constraints: constrained distances, nm, by pairs of atoms.
        what: the molecule and what to give, in words, for messages.
    """

    def __init__(
        self,
        atoms: Sequence[Any],
        lengths: Mapping[tuple[int, int], BondLength],
        constraints: Mapping[tuple[int, int], float],
        what: str,
    ) -> None:
        self.atoms, self.what = list(atoms), what
        self.bonds = np.array(list(lengths), dtype=int).reshape(-1, 2)
        self.expected = np.array([length.expected for length in lengths.values()])
        self.slack = np.array([length.slack(_SLACK) for length in lengths.values()])
        self.stiff = np.array([length.stiff for length in lengths.values()], dtype=bool)
        self.constrained = np.array(list(constraints), dtype=int).reshape(-1, 2)
        self.fixed = np.array(list(constraints.values()))
        self._pairs = np.stack(np.triu_indices(len(self.atoms), 1), 1)

    def read(
        self,
        positions: PositionsLike,
        closest: float = COINCIDENT,
        only: Collection[tuple[int, int]] | None = None,
    ) -> np.ndarray:
        """Structures `(frames, atoms, 3)`, nm, float64, in the flow's order of atoms and whole.

        Arguments:
            positions: `(atoms, 3)` or `(frames, atoms, 3)`; see `given_structures`.
            closest: nm: a structure with two atoms that are closer is refused.
            only: bonds that must not be broken, by pairs of atoms in ascending order; all by default.

        Raises:
            MismatchError: another number of atoms, other elements.
            InvalidInputError: not a number somewhere; bonds that are broken; atoms on one another.
        """
        given = given_structures(positions)
        x = given.x[None] if given.x.ndim == 2 else given.x
        if given.atoms is not None and len(given.atoms) != len(self.atoms):
            raise MismatchError(self._other_number(len(given.atoms)))
        if x.ndim != 3 or x.shape[1:] != (len(self.atoms), 3):
            raise MismatchError(f"positions have shape {given.x.shape}, but this model is of {self.what}.")
        if given.atoms is not None:
            order = match_atoms(self.atoms, given.atoms)
            x = x if order is None else x[:, order]
        self._refuse_nan(x)
        x = self.whole(x, given.box)
        self.refuse_broken(x, given, only)
        self._refuse_overlap(x, closest)
        return x

    def whole(self, x: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """The structures, those with broken bonds put together across the box if it is known."""
        broken = self.broken(x).any(1)
        if box is None or not broken.any():
            return x
        joined = made_whole(x[broken], self.bonds, box if box.ndim == 2 else box[broken])
        sound = ~self.broken(joined).any(1)
        x = x.copy()
        x[np.flatnonzero(broken)[sound]] = joined[sound]
        if sound.any():
            _log.info("%d of %d structures were split by their periodic box; they are made whole", sound.sum(), len(x))
        return x

    def broken(self, x: np.ndarray) -> np.ndarray:
        """Whether each bond is out of the range of its length, `(frames, bonds)`."""
        return np.abs(distances(x, self.bonds) - self.expected) > self.slack

    def mean_lengths(self, x: np.ndarray) -> str | None:
        """The stiff bond whose mean length is off by more than 15 %, in words; None if there is none."""
        if not len(self.bonds) or not len(x):
            return None
        off = np.where(self.stiff, np.abs(distances(x, self.bonds).mean(0) / self.expected - 1), 0.0)
        k = int(off.argmax())
        if off[k] <= _ODD:
            return None
        mean = distances(x, self.bonds)[:, k].mean()
        return f"{self._pair(self.bonds[k])} is {mean:.3f} nm long, where {self.expected[k]:.3f} nm are expected"

    def off_constraints(self, x: np.ndarray) -> np.ndarray:
        """By how much the constrained distances are off at most, `(frames,)`, nm."""
        return np.abs(distances(x, self.constrained) - self.fixed).max(1, initial=0.0)

    def worst_constraint(self, x: np.ndarray) -> str:
        """The constraint of one structure `(atoms, 3)` that is off most, in words."""
        length = distances(x[None], self.constrained)[0]
        k = int(np.abs(length - self.fixed).argmax())
        return f"{self._pair(self.constrained[k])} is {length[k]:.4f} nm, constrained to {self.fixed[k]:.4f} nm"

    def _pair(self, pair: np.ndarray) -> str:
        return "-".join(atom_label(self.atoms[k]) for k in pair)

    def _other_number(self, n: int) -> str:
        more = (
            "; take the molecule out of it, for instance trajectory.atom_slice(trajectory.topology.select('protein'))"
            if n > len(self.atoms)
            else ""
        )
        return f"the trajectory has {n} atoms, but this model is of {self.what}{more}."

    def _refuse_nan(self, x: np.ndarray) -> None:
        frames = np.flatnonzero(~np.isfinite(x).all((1, 2)))
        if len(frames):
            which = f"frames {_listed(frames)} ({len(frames)} of {len(x)})" if len(x) > 1 else "positions"
            raise InvalidInputError(f"{which} hold NaN or infinite values; remove them.")

    def refuse_broken(self, x: np.ndarray, given: Given, only: Collection[tuple[int, int]] | None = None) -> None:
        """Refuse structures with broken bonds, naming frames, the worst bond of the first, and what the cause may be.

        Raises:
            InvalidInputError: there are such structures.
        """
        broken = self.broken(x)
        if only is not None:
            broken &= [tuple(sorted(bond)) in only for bond in self.bonds.tolist()]
        frames = np.flatnonzero(broken.any(1))
        if not len(frames):
            return
        length = distances(x[frames[:1]], self.bonds)[0]
        ratio = length / self.expected
        worst = int(np.where(broken[frames[0]], np.abs(np.log(np.maximum(ratio, 1e-6))), -1).argmax())
        where = f" in frame {frames[0]}" if len(x) > 1 else ""
        count = f" (broken bonds in {len(frames)} of {len(x)} frames: {_listed(frames)})" if len(x) > 1 else ""
        raise InvalidInputError(
            f"the bond {self._pair(self.bonds[worst])} is {length[worst]:.4g} nm long{where}, where about "
            f"{self.expected[worst]:.3f} nm are expected{count}: {_cause(ratio, given)}."
        )

    def _refuse_overlap(self, x: np.ndarray, closest: float) -> None:
        pairs = self._pairs
        nearest = self._over_frames(lambda part: distances(part, pairs).min(1, initial=np.inf), x)
        frames = np.flatnonzero(nearest < closest)
        if not len(frames):
            return
        pair = pairs[distances(x[frames[:1]], pairs)[0].argmin()]
        where = f" in frame {frames[0]} ({len(frames)} of {len(x)} frames: {_listed(frames)})" if len(x) > 1 else ""
        raise InvalidInputError(
            f"{self._pair(pair)} are {nearest[frames[0]]:.4f} nm apart{where}: two atoms on one another; "
            "give a structure without such overlaps."
        )

    def _over_frames(self, function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
        chunk = max(1, _CHUNK * 200 // max(1, len(self.atoms) ** 2))
        parts = [function(x[start : start + chunk]) for start in range(0, len(x), chunk)]
        return np.concatenate(parts) if parts else np.empty(0)


def _cause(ratio: np.ndarray, given: Given) -> str:
    """What is most likely wrong, and what to do, from bond lengths over what is expected of them."""
    middle = float(np.median(ratio))
    spread = np.percentile(ratio, 90) / max(np.percentile(ratio, 10), 1e-6)
    if spread < _ALIKE and not 0.6 < middle < 1.6:
        looks = "looks like Angstrom taken for nm" if 7 < middle < 14 else "looks like another unit than nm"
        return (
            f"every bond is about {middle:.3g} times as long as expected, which {looks}: give nm, or a Quantity, such "
            "as x * unit.angstrom"
        )
    if (ratio > _SPLIT).any() and given.box is None:
        return (
            "if the molecule is split by a periodic box, give it with its box (a CRYST1 line of a PDB file, a .gro or "
            ".rst7, an mdtraj Trajectory), or make it whole first (gmx trjconv -pbc whole, "
            "trajectory.make_molecules_whole()); else its atoms are in another order than those of the Topology"
        )
    return (
        "its atoms are in another order than those of the Topology, this is another molecule, a bond of the Topology "
        "is one too many, or the structure is broken; give the atoms in the order of the Topology (an mdtraj "
        "Trajectory is put in order by its names), and minimise the structure if it is crude"
    )


def _listed(frames: np.ndarray) -> str:
    return ", ".join(map(str, frames[:_SHOWN])) + (", ..." if len(frames) > _SHOWN else "")


def distances(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distances of pairs `(pairs, 2)` in `x (frames, atoms, 3)`: `(frames, pairs)`, nm."""
    difference = x[:, pairs[:, 0]] - x[:, pairs[:, 1]]
    return np.sqrt(np.einsum("fpk,fpk->fp", difference, difference))
