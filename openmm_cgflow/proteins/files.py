"""Backmapping of proteins from files of any length: piece by piece, in processes, and on where it stopped."""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from openmm import app

from openmm_cgflow.analysis.structure_checks import StructureChecks
from openmm_cgflow.backmapping import Joined, all_pieces, in_processes, kept_pieces, outputs_beside, progress_bar
from openmm_cgflow.counts import seed_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.proteins.library import FragmentLibrary
from openmm_cgflow.proteins.mapper import ProteinBackmapper
from openmm_cgflow.proteins.residues import CHI, ONE_LETTER, OTHER_NAMES, REFUSED
from openmm_cgflow.proteins.result import write_pdb
from openmm_cgflow.proteins.sequence import ProteinSequence
from openmm_cgflow.proteins.trace import checked_trace, near_cysteines
from openmm_cgflow.storage import locked
from openmm_cgflow.text_files import check_encoding
from openmm_cgflow.trajectory_files import WRITTEN, count_frames, read_pieces, save_arrays, write_frames
from openmm_cgflow.version import __version__

__all__ = ["BackmappedProteinFile", "backmap_protein_file"]

_log = logging.getLogger("openmm_cgflow")
_KNOWN = {*ONE_LETTER.values(), *CHI, *OTHER_NAMES, *REFUSED}
_PIECE = 3000  # residues, over all frames of a piece


@dataclass(frozen=True)
class BackmappedProteinFile:
    """What `backmap_protein_file` has written.

    Attributes:
        written: the structures; an `.npz` file with energies, evidence, ESS and checks (`check_...`); for formats
            without a topology, a `.topology.pdb`.
        frames: of the trace.
        residues: in each.
        structures: that were written.
        energies: `(structures,)` kJ/mol.
        checks: of all structures.
    """

    written: tuple[Path, ...]
    frames: int
    residues: int
    structures: int
    energies: np.ndarray
    checks: StructureChecks


@dataclass(frozen=True)
class _Task:
    """What is done with each piece, in any process."""

    sequence: ProteinSequence
    disulfides: tuple[tuple[int, int], ...]
    library: str | None
    n: int
    relax: int
    seed: int


def backmap_protein_file(
    structure: str | Path,
    output: str | Path,
    trajectory: str | Path | None = None,
    n: int = 1,
    relax: int = 50,
    seed: int | None = None,
    stride: int = 1,
    frames: tuple[int, int | None] = (0, None),
    workers: int = 1,
    library: str | Path | None = None,
    disulfides: bool = True,
    progress: bool = False,
) -> BackmappedProteinFile:
    """Put atoms around the alpha carbons of a file, however long, in bounded memory.

    Pieces of the file are kept beside the output, in a folder that ends in `.parts`; a run that was ended goes on there
    with the same arguments. One seed gives one result for any number of workers, but for rounding where structures are
    relaxed.

    Arguments:
        structure: a PDB file with the alpha carbons, or with more, of which these are taken.
        output: `.dcd`, `.xtc`, `.trr`, `.nc` or `.pdb`; numbers go into an `.npz` file beside it.
        trajectory: frames of the atoms of `structure`, or of its alpha carbons alone; those of `structure` by default.
        n: structures for each frame.
        relax: iterations of minimisation with the alpha carbons held; 0 for none.
        seed: of everything random; a new one by default.
        stride: take every so many frames.
        frames: the first one, and before which one to end.
        workers: processes on this machine, one thread each.
        library: file of a `FragmentLibrary`; the shipped one by default.
        disulfides: whether cysteines that are near in the first frame are bonded.
        progress: show a bar with the time that is left.

    Raises:
        InvalidInputError: for files that cannot be read or written, residues that cannot be built, wrong traces, by
            name; if the pieces there are of another run.
        MismatchError: a trajectory of other beads.

    Example:
        backmap_protein_file("ca.pdb", "atoms.xtc", "ca.xtc", workers=2, progress=True)
    """
    structure, output = Path(structure), Path(output)
    frames_of = structure if trajectory is None else Path(trajectory)
    for name, value, least in (("n", n, 1), ("relax", relax, 0), ("stride", stride, 1), ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInputError(f"{name} is {value!r}; give a whole number of {least} or more")
    if output.suffix.lower() not in WRITTEN:
        raise InvalidInputError(f"{output}: structures are written as {', '.join(WRITTEN)}; choose one of these")
    seed = None if seed is None else seed_number(seed)
    read = [structure, frames_of, *([] if library is None else [Path(library)])]
    for path in read:
        if not path.is_file():
            raise InvalidInputError(f"there is no file {path}")
    outputs = outputs_beside(output, read)
    whole, alpha = _read_structure(structure)
    sequence = ProteinSequence.of(alpha)
    beads = _Beads(frames_of, whole, alpha)
    pieces = beads.pieces(max(1, _PIECE // (len(sequence) * n)), stride, *frames)
    first = next(beads.pieces(1, 1, *frames), None)
    if first is None:
        raise InvalidInputError(f"there are no frames in {frames_of} from {frames[0]} on")
    pairs = tuple(near_cysteines(sequence, checked_trace(first, sequence)[0])) if disulfides else ()
    for a, b in pairs:
        names = sequence.residues[a].label, sequence.residues[b].label
        _log.warning("%s and %s are near in the first frame: a disulfide is built", *names)
    parts = output.with_name(output.name + ".parts")
    task = _Task(sequence, pairs, None if library is None else str(Path(library).resolve()), n, relax, 0)
    with locked(output):
        total = count_frames(frames_of, stride, *frames)
        described = _described(task, (structure, frames_of), stride, frames)
        with kept_pieces(parts, described, seed) as drawn:
            task = replace(task, seed=drawn)
            with progress_bar(progress, total) as advance, in_processes(partial(_do, task), workers) as (submit, ahead):
                found = all_pieces(pieces, parts, submit, ahead, advance)
        return _join(task, found, parts, outputs)


class _Beads:
    """Alpha carbons of a file of frames."""

    def __init__(self, path: Path, whole: app.Topology, alpha: app.Topology) -> None:
        self.path = path
        self.whole, self.alpha = (mdtraj.Topology.from_openmm(t) for t in (whole, alpha))
        self.chosen = [k for k, name in enumerate(_labels(whole)) if name is not None]

    def pieces(self, chunk: int, stride: int, start: int, stop: int | None) -> Iterator[mdtraj.Trajectory]:
        """Frames of alpha carbons."""
        try:
            first = next(read_pieces(self.path, self.whole, 1), None)
            top = self.whole
        except InvalidInputError:
            first = next(read_pieces(self.path, self.alpha, 1), None)
            top = self.alpha
        if first is None:
            return
        for piece in read_pieces(self.path, top, chunk, stride, start, stop):
            if piece.n_atoms == self.alpha.n_atoms:
                yield piece
            elif piece.n_atoms == self.whole.n_atoms:
                yield piece.atom_slice(self.chosen)
            else:
                carbons = piece.topology.select("name CA")
                yield piece.atom_slice(carbons) if len(carbons) else piece


def _labels(topology: app.Topology) -> list[str | None]:
    """The residue's name of each atom that is an alpha carbon of a protein, None for others."""
    return [
        atom.residue.name if atom.name == "CA" and atom.residue.name in _KNOWN else None for atom in topology.atoms()
    ]


def _read_structure(path: Path) -> tuple[app.Topology, app.Topology]:
    """Topology of all atoms of a file, and of its alpha carbons."""
    check_encoding(path)
    try:
        whole = app.PDBFile(str(path)).topology
    except Exception as error:  # OpenMM raises whatever it meets
        raise InvalidInputError(f"{path} cannot be read as a PDB file ({type(error).__name__}: {error})") from error
    labels = _labels(whole)
    alpha, left = app.Topology(), Counter[str]()
    for chain in whole.chains():
        made = None
        for residue in chain.residues():
            atoms = [atom for atom in residue.atoms() if labels[atom.index] is not None]
            names = [atom.name for atom in residue.atoms()]
            if not atoms and ("CA" in names) and residue.name not in ("CA", "CAL"):
                atoms = [atom for atom in residue.atoms() if atom.name == "CA"]  # is refused by its name
            if not atoms:
                left[residue.name] += 1
                continue
            made = made or alpha.addChain(chain.id)
            added = alpha.addResidue(residue.name, made, residue.id)
            alpha.addAtom("CA", app.element.carbon, added)
    if left:
        _log.warning(
            "left out, for they have no alpha carbon: %s", ", ".join(f"{n} {name}" for name, n in left.items())
        )
    if not alpha.getNumAtoms():
        raise InvalidInputError(f"{path} has no atoms named CA of amino acids: give a file of alpha carbons")
    return whole, alpha


def _described(task: _Task, files: tuple[Path, Path], stride: int, frames: tuple[int, int | None]) -> dict[str, Any]:
    """By which a run knows its pieces again."""
    read = [*files, *([] if task.library is None else [Path(task.library)])]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    described = json.dumps([asdict(replace(task, seed=0)), stats, stride, frames, __version__])
    return {"identity": hashlib.sha256(described.encode()).hexdigest()}


@lru_cache(maxsize=1)
def _mapper(sequence: ProteinSequence, disulfides: tuple[tuple[int, int], ...], library: str | None) -> Any:  # noqa: ANN401
    """The mapper of a task, once in each process."""
    return ProteinBackmapper(sequence, FragmentLibrary.load(library), disulfides=disulfides)


def _do(task: _Task, piece: mdtraj.Trajectory, number: int) -> dict[str, np.ndarray]:
    """What is kept of one piece. Also what a worker runs."""
    x = piece.xyz
    seed = int(np.random.SeedSequence([task.seed, number]).generate_state(1)[0])
    try:
        result = _mapper(task.sequence, task.disulfides, task.library).backmap(x, task.n, task.relax, seed)
    except CGFlowError as error:
        raise type(error)(f"in piece {number} of the file, of {len(x)} frames counted from 0: {error}") from error
    return result.numbers() | {"positions": result.positions, "time": np.repeat(piece.time, task.n)}


def _join(
    task: _Task, found: list[Path], parts: Path, outputs: tuple[Path, Path, Path | None]
) -> BackmappedProteinFile:
    """One file of structures and one of numbers; then the pieces are removed."""
    joined, topology = Joined(found), _mapper(task.sequence, task.disulfides, task.library).topology
    structure_file, number_file, topology_file = outputs
    if topology_file is None:
        structures = write_pdb(structure_file, topology, (frame for x, _ in joined.structures() for frame in x))
    else:
        first, _ = next(joined.structures())
        write_pdb(topology_file, topology, first[:1])
        structures = write_frames(structure_file, mdtraj.Topology.from_openmm(topology), joined.structures())
    arrays = joined.numbers()
    save_arrays(number_file, arrays)
    shutil.rmtree(parts)
    checks = StructureChecks(*(arrays[f"check_{field.name}"] for field in fields(StructureChecks)))
    frames = len(arrays["energies"])
    written = tuple(path for path in outputs if path is not None)
    return BackmappedProteinFile(
        written, frames, len(task.sequence), structures, arrays["energies"].reshape(-1), checks
    )
