"""Frames of beads in trajectories of all atoms, or of the beads alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from openmm import app

from openmm_cgflow.atom_matching import atom_label, order_by_names, same_elements, symbol_of
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching.frames.mapping import as_mdtraj
from openmm_cgflow.structures import given_structures, whole_frames
from openmm_cgflow.text_files import check_encoding
from openmm_cgflow.trajectory_files import blocks, names_atoms, why_unreadable

__all__ = ["FrameReader"]

_AT_ONCE = 10_000_000  # positions in memory: 0.5 GB with their copies in double precision


@dataclass(frozen=True)
class FrameReader:
    """Finds the beads in whatever mdtraj reads; see `BeadModel` for its attributes."""

    topology: app.Topology
    labels: Sequence[str]
    bonds: tuple[tuple[int, int], ...]
    shares: np.ndarray | None
    owners: np.ndarray | None
    atoms: mdtraj.Topology | None

    def pieces(
        self,
        files: Sequence[str | Path],
        top: Any,  # noqa: ANN401
        stride: int,
        chunk: int,
    ) -> Iterator[mdtraj.Trajectory]:
        """Pieces of files, of `chunk` frames at most; every `stride`-th frame of all, one file after another.

        Raises:
            InvalidInputError: for a file that is not there, or cannot be read.
        """
        seen = 0
        for file in files:
            path = Path(file)
            if not path.exists():
                raise InvalidInputError(f"there is no file {path}; give the path of a trajectory")
            if path.is_file():
                check_encoding(path)
            for block in self._blocks(path, top, chunk):
                chosen = block[-seen % stride :: stride]
                seen += len(block)
                if len(chosen):
                    yield chosen

    def _blocks(self, path: Path, top: Any, chunk: int) -> Iterator[mdtraj.Trajectory]:  # noqa: ANN401
        """Frames of one file, with the Topology that fits: the one given, that of all atoms, or that of the beads."""
        beads = mdtraj.Topology.from_openmm(self.topology)
        if names_atoms(path):
            choices: list[Any] = [None]
        elif top is not None:
            choices = [str(top) if isinstance(top, str | Path) else as_mdtraj(top)]
        else:
            choices = [beads] if self.atoms is None else [self.atoms, beads]
        problem: Exception = OSError("it has no frames")
        for choice in choices:
            begun = False
            try:
                top = mdtraj.load_topology(choice) if isinstance(choice, str) else choice
                at_once = chunk if top is None else max(1, min(chunk, _AT_ONCE // top.n_atoms))
                for block in blocks(path, at_once, **({} if top is None else {"top": top})):
                    begun = True
                    yield block
            except Exception as error:  # mdtraj's readers raise whatever they meet
                problem = error
                if begun:
                    break
            else:
                return
        what = f"{len(self.labels)} beads" + (f" or {self.atoms.n_atoms} atoms" if self.atoms is not None else "")
        raise InvalidInputError(
            f"{path} cannot be read as a trajectory of {what}: {why_unreadable(problem)}; give its own Topology as top"
        ) from problem

    def beads_of(self, piece: Any) -> np.ndarray:  # noqa: ANN401
        """Frames of the beads in one piece, whole.

        Raises:
            MismatchError: for other atoms or beads.
        """
        given = given_structures(piece)
        x = given.x[None] if given.x.ndim == 2 else given.x
        if x.ndim != 3 or x.shape[2] != 3:
            raise MismatchError(f"positions have shape {given.x.shape}; give (frames, atoms, 3), in nm")
        count = x.shape[1]
        if self.atoms is not None and count == self.atoms.n_atoms:
            if given.atoms is not None:
                x = self._ordered(x, list(self.atoms.atoms), given.atoms)
            return self._of_atoms(x, given.box)
        if count != len(self.labels):
            wanted = f"{len(self.labels)} beads" + ("" if self.atoms is None else f" or {self.atoms.n_atoms} atoms")
            raise MismatchError(
                f"the trajectory has {count} atoms, but the model is of {wanted} ({', '.join(self.labels)}): the beads "
                "cannot be found in it; give a trajectory of the Topology that the model was made of, or of the beads "
                "alone, for instance trajectory.atom_slice(trajectory.topology.select('name CA'))"
            )
        if given.atoms is not None:
            x = self._ordered(x, list(self.topology.atoms()), given.atoms)
        return whole_frames(x, np.array(self.bonds), given.box)

    def _ordered(self, x: np.ndarray, ours: Sequence[Any], theirs: Sequence[Any]) -> np.ndarray:
        """The positions in our order of atoms, by names where they tell."""
        found = order_by_names(ours, theirs)
        if found is not None:
            return x[:, found]
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not same_elements([a], [b]):
                raise MismatchError(
                    f"atom {k} of the trajectory is {atom_label(b)} ({symbol_of(b)}), that of the model "
                    f"{atom_label(a)} ({symbol_of(a)}): give a trajectory of the same atoms in the same order"
                )
        return x

    def _of_atoms(self, x: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Beads of positions of all atoms, of molecules that are made whole."""
        assert self.shares is not None
        assert self.owners is not None
        assert self.atoms is not None
        if box is not None:
            mine = np.flatnonzero(self.owners >= 0)
            place = {int(atom): k for k, atom in enumerate(mine)}
            bonds = [(b[0].index, b[1].index) for b in self.atoms.bonds if b[0].index in place]
            x = x.copy()
            x[:, mine] = whole_frames(x[:, mine], np.array([(place[i], place[j]) for i, j in bonds]), box)
        return np.einsum("ba,fax->fbx", self.shares, x)
