"""Backmapping of proteins from files of any length: piece by piece, in processes, and on where it stopped."""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import mdtraj
import numpy as np
from openmm import app
from openmm.app.internal.pdbstructure import PdbStructure

from openmm_cgflow.backmapping import Joined, all_pieces, in_processes, kept_pieces, outputs_beside, progress_bar
from openmm_cgflow.compute import plain_torch
from openmm_cgflow.counts import seed_number, whole_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.proteins.beads.door import checked_beads, whole_beads
from openmm_cgflow.proteins.beads.kinds import (
    ATOMS,
    BeadKind,
    bead_order,
    bridged_cysteines,
    checked_kind,
    kind_of_names,
)
from openmm_cgflow.proteins.beads.names import order_of_beads
from openmm_cgflow.proteins.chain.residues import CHI, ONE_LETTER, OTHER_NAMES, REFUSED
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.mapper import ProteinBackmapper
from openmm_cgflow.proteins.placing.layout import disulfide_pairs
from openmm_cgflow.proteins.result import write_pdb
from openmm_cgflow.storage import locked
from openmm_cgflow.structure_checks import StructureChecks
from openmm_cgflow.structures import given_structures
from openmm_cgflow.text_files import check_encoding
from openmm_cgflow.trajectory_files import (
    WRITTEN,
    checked_range,
    count_frames,
    names_atoms,
    read_pieces,
    save_arrays,
    write_frames,
)
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
        bead_error: `(structures,)` nm, how far the worst bead of each is off.
    """

    written: tuple[Path, ...]
    frames: int
    residues: int
    structures: int
    energies: np.ndarray
    checks: StructureChecks
    bead_error: np.ndarray


@dataclass(frozen=True)
class _Task:
    """What is done with each piece, in any process."""

    sequence: ProteinSequence
    disulfides: tuple[tuple[int, int], ...]
    library: str | None
    n: int
    relax: int
    seed: int
    beads: BeadKind


@plain_torch
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
    disulfides: bool | Sequence[tuple[int, int]] = True,
    progress: bool = False,
    beads: Literal["auto"] | BeadKind = "auto",
) -> BackmappedProteinFile:
    """Put atoms around the alpha carbons or other beads of a file, however long, in bounded memory.

    Pieces of the file are kept beside the output, in a folder that ends in `.parts`; a run that was ended goes on there
    with the same arguments. One seed gives one result for any number of workers, but for rounding where structures are
    relaxed.

    Arguments:
        structure: a PDB file with the beads, or with more, of which these are taken.
        output: `.dcd`, `.xtc`, `.trr`, `.nc` or `.pdb`; numbers go into an `.npz` file beside it.
        trajectory: frames of the atoms of `structure`, or of its beads alone; those of `structure` by default.
        n: structures for each frame.
        relax: iterations of minimisation with the beads held; 0 for none.
        seed: of everything random; a new one by default.
        stride: take every so many frames.
        frames: the first one, and before which one to end.
        workers: processes on this machine, one thread each. With more than one, a script has to make the call under
            `if __name__ == "__main__":`, for each process reads the script.
        library: file of a `FragmentLibrary`; the shipped one by default.
        disulfides: whether cysteines that are near in the first frame are bonded; or pairs of residues counted from 0.
        progress: show a bar with the time that is left.
        beads: their kind, see `ProteinBackmapper`; `"auto"` takes what the names of the protein's atoms tell.

    Raises:
        InvalidInputError: for files that cannot be read or written, residues that cannot be built, wrong traces, by
            name; if the pieces there are of another run.
        MismatchError: a trajectory of other beads.

    Example:
        backmap_protein_file("ca.pdb", "atoms.xtc", "ca.xtc", workers=2, progress=True)
    """
    structure, output = Path(structure), Path(output)
    frames_of = structure if trajectory is None else Path(trajectory)
    n, relax, stride, workers = (
        whole_number(value, name, least)
        for name, value, least in (("n", n, 1), ("relax", relax, 0), ("stride", stride, 1), ("workers", workers, 1))
    )
    if output.suffix not in WRITTEN:
        raise InvalidInputError(f"{output}: structures are written as {', '.join(WRITTEN)}; choose one of these")
    seed = None if seed is None else seed_number(seed)
    read = [structure, frames_of, *([] if library is None else [Path(library)])]
    for path in read:
        if not path.is_file():
            raise InvalidInputError(f"there is no file {path}")
    checked_kind(beads)
    frames = checked_range(frames, "backmap_protein_file")
    given = None if isinstance(disulfides, bool) else disulfide_pairs(disulfides)
    outputs = outputs_beside(output, read)
    whole, kept, chosen, kind = _read_structure(structure, beads)
    sequence = ProteinSequence.of(kept)
    source = _Beads(frames_of, whole, kept, chosen, sequence, kind)
    pieces = source.pieces(max(1, _PIECE // (len(sequence) * n)), stride, *frames)
    first = next(source.pieces(1, 1, *frames), None)
    if first is None:
        raise InvalidInputError(f"there are no frames in {frames_of} from {frames[0]} on")
    near = bridged_cysteines(checked_beads(first, sequence, kind), sequence, kind) if disulfides is True else []
    for a, b in near:
        names = sequence.residues[a].label, sequence.residues[b].label
        _log.warning("%s and %s are near in the first frame: a disulfide is built", *names)
    pairs = tuple(near if given is None else given)
    parts = output.with_name(output.name + ".parts")
    task = _Task(sequence, pairs, None if library is None else str(Path(library).resolve()), n, relax, 0, kind)
    _mapper.cache_clear()  # a library may have been trained anew, and every file is told what is odd about it
    _mapper(sequence, pairs, task.library, kind)
    with locked(output):
        total = count_frames(frames_of, stride, *frames)
        described = _described(task, (structure, frames_of), stride, frames)
        with kept_pieces(parts, described, seed) as drawn:
            task = replace(task, seed=drawn)
            with progress_bar(progress, total) as advance, in_processes(partial(_do, task), workers) as (submit, ahead):
                found = all_pieces(pieces, parts, submit, ahead, advance)
        return _join(task, found, parts, outputs)


class _Beads:
    """Beads of a file of frames."""

    def __init__(
        self,
        path: Path,
        whole: app.Topology,
        kept: app.Topology,
        chosen: list[int],
        sequence: ProteinSequence,
        kind: BeadKind,
    ) -> None:
        self.path, self.chosen, self.sequence, self.kind = path, chosen, sequence, kind
        self.whole, self.kept = (mdtraj.Topology.from_openmm(t) for t in (whole, kept))
        for topology in (self.whole, self.kept):
            for atom in topology.atoms:  # CA may be carbon or calcium: readers guess, and names are enough
                atom.element = mdtraj.element.virtual
        self.ranks = np.argsort(np.argsort(chosen)).tolist()
        self.told = False

    def pieces(self, chunk: int, stride: int, start: int, stop: int | None) -> Iterator[mdtraj.Trajectory]:
        """Frames of beads."""
        try:
            first = next(read_pieces(self.path, self.whole, 1), None)
            top = self.whole
        except InvalidInputError:
            first = next(read_pieces(self.path, self.kept, 1), None)
            top = self.kept
        if first is None:
            return
        named = names_atoms(self.path)
        for piece in read_pieces(self.path, top, chunk, stride, start, stop):
            found = self._found(piece, named)
            found.xyz = whole_beads(found.xyz, given_structures(found).box, self.sequence, self.kind)
            yield found

    def _found(self, piece: mdtraj.Trajectory, named: bool) -> mdtraj.Trajectory:
        """The beads of frames of them, or of all atoms, in the order of their kind, which that of the file need not be.

        Arguments:
            piece: frames.
            named: whether the file has names of its own, by which its atoms are put into the structure's order.
        """
        atoms = piece.n_atoms
        if self.kind == "ca" and atoms not in (self.whole.n_atoms, self.kept.n_atoms):
            carbons = piece.topology.select("name CA")
            piece = piece.atom_slice(carbons) if len(carbons) else piece
        if atoms == self.whole.n_atoms:
            piece = self._by_names(piece, self.whole, named, self.chosen).atom_slice(sorted(self.chosen))
        elif piece.n_atoms == self.kept.n_atoms:
            piece = self._by_names(piece, self.whole.subset(sorted(self.chosen)), named)
        else:
            return piece  # is refused by its number of beads
        piece.xyz = piece.xyz[:, self.ranks]
        return piece

    def _by_names(
        self, piece: mdtraj.Trajectory, ours: mdtraj.Topology, named: bool, used: list[int] | None = None
    ) -> mdtraj.Trajectory:
        """The piece with its atoms in our order, if the file has names, and these tell it."""
        theirs = list(piece.topology.atoms)
        order = order_of_beads(list(ours.atoms), theirs, True, str(self.path), used) if named else None
        if order is None:
            return piece
        if not self.told:
            _log.info(
                "%s has its residues in another order than the structure; they are found by their names", self.path
            )
            self.told = True
        piece.xyz = piece.xyz[:, order]
        return piece


def _read_structure(
    path: Path, beads: Literal["auto"] | BeadKind
) -> tuple[app.Topology, app.Topology, list[int], BeadKind]:
    """Topology of all atoms of a file, that of its beads, where these are among the atoms, and their kind."""
    check_encoding(path)
    try:
        with path.open(encoding="utf-8") as file:
            read = PdbStructure(file, load_all_models=True)
        whole = app.PDBFile(read).topology
    except Exception as error:  # OpenMM raises whatever it meets
        raise InvalidInputError(
            f"{path} cannot be read as a PDB file ({type(error).__name__}: {error}); save the structure as one; "
            "frames after it may be in another format"
        ) from error
    protein = [residue for residue in whole.residues() if _is_protein(residue, beads)]
    left = Counter(residue.name for residue in whole.residues() if not _is_protein(residue, beads))
    if left:
        _log.warning(
            "left out, for they have no %s: %s",
            "alpha carbon" if beads in ("auto", "ca") else "beads of a protein",
            ", ".join(f"{n} {name}" for name, n in left.items()),
        )
    if not protein:
        raise InvalidInputError(
            f"{path} has no atoms named CA of amino acids: give a file of alpha carbons, or of other beads and their "
            "kind (beads=, --beads)"
        )
    named = [residue.name for chain in read.iter_chains() for residue in chain.iter_residues()]
    names = [(residue.name, [atom.name for atom in residue.atoms()]) for residue in protein]
    kind = kind_of_names(names) if beads == "auto" else beads
    kept, made, chosen = app.Topology(), {}, []
    for residue in protein:
        chain = residue.chain
        if chain.index not in made:
            made[chain.index] = kept.addChain(chain.id)
        name = named[residue.index]  # OpenMM makes HIS of HID and HIP, ASP of ASH, and so on
        name = name if name in _KNOWN else residue.name
        added = kept.addResidue(name, made[chain.index], residue.id, residue.insertionCode)
        index = {atom.name: atom.index for atom in residue.atoms()}
        if kind in ATOMS:
            index = {name: index[name] for name in ATOMS[kind] if name in index}
        for bead, atom in index.items():
            kept.addAtom(bead, app.element.carbon, added)
            chosen.append(atom)
    if kind == "ca":
        return whole, kept, chosen, kind
    sequence = ProteinSequence.of(kept)
    residues = [{atom.name: chosen[atom.index] for atom in residue.atoms()} for residue in kept.residues()]
    return whole, kept, bead_order(residues, sequence, kind).tolist(), kind


def _is_protein(residue: Any, beads: Literal["auto"] | BeadKind) -> bool:  # noqa: ANN401
    """Whether a residue has beads of a protein; those that have and are not known are refused by name later."""
    names = {atom.name for atom in residue.atoms()}
    if residue.name in _KNOWN:
        return bool({"CA", "BB", "COM"} & names) or beads == "com"
    return ("CA" in names and residue.name not in ("CA", "CAL")) or "BB" in names


def _described(task: _Task, files: tuple[Path, Path], stride: int, frames: tuple[int, int | None]) -> dict[str, Any]:
    """By which a run knows its pieces again."""
    read = [*files, *([] if task.library is None else [Path(task.library)])]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    described = json.dumps([asdict(replace(task, seed=0)), stats, stride, frames, __version__])
    return {"identity": hashlib.sha256(described.encode()).hexdigest()}


@lru_cache(maxsize=1)
def _mapper(
    sequence: ProteinSequence, disulfides: tuple[tuple[int, int], ...], library: str | None, beads: BeadKind
) -> Any:  # noqa: ANN401
    """The mapper of a task, once in each process of a run."""
    return ProteinBackmapper(sequence, FragmentLibrary.load(library), disulfides=disulfides, beads=beads)


def _do(task: _Task, piece: mdtraj.Trajectory, number: int) -> dict[str, np.ndarray]:
    """What is kept of one piece. Also what a worker runs."""
    x = piece.xyz
    seed = int(np.random.SeedSequence([task.seed, number]).generate_state(1)[0])
    try:
        result = _mapper(task.sequence, task.disulfides, task.library, task.beads).backmap(x, task.n, task.relax, seed)
    except CGFlowError as error:
        raise type(error)(f"in piece {number} of the file, of {len(x)} frames counted from 0: {error}") from error
    return result.numbers() | {"positions": result.positions, "time": np.repeat(piece.time, task.n)}


def _join(
    task: _Task, found: list[Path], parts: Path, outputs: tuple[Path, Path, Path | None]
) -> BackmappedProteinFile:
    """One file of structures and one of numbers; then the pieces are removed."""
    joined, topology = Joined(found), _mapper(task.sequence, task.disulfides, task.library, task.beads).topology
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
        written,
        frames,
        len(task.sequence),
        structures,
        arrays["energies"].reshape(-1),
        checks,
        arrays["bead_error"].reshape(-1),
    )
