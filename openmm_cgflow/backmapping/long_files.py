"""Backmapping of files of any length: piece by piece, in processes or on a cluster, and on where it stopped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np

from openmm_cgflow.backmapping.backmap import place_atoms, relax_steps
from openmm_cgflow.backmapping.pieces import (
    AHEAD,
    Joined,
    all_pieces,
    in_processes,
    kept_pieces,
    outputs_beside,
    progress_bar,
)
from openmm_cgflow.compute import plain_torch
from openmm_cgflow.counts import seed_number, whole_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.storage import locked
from openmm_cgflow.structure_checks import StructureChecks
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.trajectory_files import (
    WRITTEN,
    checked_range,
    count_frames,
    read_pieces,
    save_arrays,
    save_trajectory,
    write_frames,
)
from openmm_cgflow.version import __version__

__all__ = ["BackmappedFile", "backmap_file"]


@dataclass(frozen=True)
class BackmappedFile:
    """What `backmap_file` has written.

    Attributes:
        written: the file of structures; an `.npz` file beside it with `log_densities`, `reduced_energies`,
            `log_weights`, `weights`, each `(frames, n)`, `outside`, `failed` and `ess` (of all that were drawn),
            `(frames,)`, and the checks, `check_...`, of every structure; and a `.topology.pdb` for formats without one.
        frames: of beads.
        structures: that were written.
        outside: frames whose beads the flow does not know.
        failed: frames in which no structure has a finite energy.
        ess: Kish effective sample size over n, the mean over frames that did not fail; NaN if there are none.
        checks: of all structures.
    """

    written: tuple[Path, ...]
    frames: int
    structures: int
    outside: int
    failed: int
    ess: float
    checks: StructureChecks


@plain_torch
def backmap_file(
    flow: TrainedFlow | str | Path,
    beads: str | Path,
    output: str | Path,
    n: int = 1,
    resample: bool = False,
    relax: bool | int = False,
    seed: int | None = None,
    stride: int = 1,
    frames: tuple[int, int | None] = (0, None),
    chunk: int = 1000,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = False,
) -> BackmappedFile:
    """Put atoms around all frames of a file, however long, in bounded memory.

    Pieces of the file are done one by one and kept beside the output, in a folder that ends in `.parts`; a run that was
    ended goes on there with the same arguments. At the end they are joined and the folder is removed. One seed gives
    one result, for any number of workers.

    Arguments:
        flow: a trained flow; a model file, by its path, for more than one worker or a cluster.
        beads: a trajectory of the beads that mdtraj reads.
        output: `.dcd`, `.xtc`, `.trr`, `.nc` or `.pdb`; numbers go into an `.npz` file beside it.
        n: number of structures for each frame.
        resample: keep one of them, drawn by its weight.
        relax: as in `CGFlow.backmap`.
        seed: of the draw; a new one by default.
        stride: take every so many frames.
        frames: the first one, and before which one to end.
        chunk: frames in a piece.
        workers: processes on this machine, one thread each. With more than one, a script has to make the call under
            `if __name__ == "__main__":`, for each process reads the script.
        scheduler: address of a dask scheduler, whose workers have this package and can read the model file.
        progress: show a bar with the time that is left.

    Raises:
        InvalidInputError: for numbers that cannot be, files that cannot be read or written, no frames; if with
            `resample` a frame has no structure of finite energy; if the pieces there are of another run; for a
            scheduler without dask.
        MismatchError: for other beads.

    Example:
        backmap_file("model.cgflow", "long.xtc", "atoms.xtc", n=8, resample=True, workers=4, progress=True)
    """
    beads, output = Path(beads), Path(output)
    n, stride, chunk, workers = (
        whole_number(value, f"backmap_file: {name}")
        for name, value in (("n", n), ("stride", stride), ("chunk", chunk), ("workers", workers))
    )
    steps = relax_steps(relax, "backmap_file")
    if output.suffix not in WRITTEN:
        raise InvalidInputError(f"{output}: structures are written as {', '.join(WRITTEN)}; choose one of these")
    if not beads.is_file():
        raise InvalidInputError(f"backmap_file: there is no file {beads}")
    seed = None if seed is None else seed_number(seed)
    frames = checked_range(frames, "backmap_file")
    model = None if isinstance(flow, TrainedFlow) else Path(flow)
    if model is None and (workers > 1 or scheduler is not None):
        raise InvalidInputError("backmap_file: several workers each read the model: give the path of its file")
    outputs = outputs_beside(output, [beads] if model is None else [beads, model])
    own = flow if isinstance(flow, TrainedFlow) else TrainedFlow.load(flow)
    parts = output.with_name(output.name + ".parts")
    with locked(output):
        weights = _weights(own)
        identity = _identity(weights, beads, stride, frames, chunk)
        described = {"identity": identity, "n": n, "resample": resample, "relax_steps": steps}
        where = own if model is None else _ModelFile(str(model.resolve()), weights)
        topology = mdtraj.Topology.from_openmm(own.beads.topology)
        pieces = read_pieces(beads, topology, chunk, stride, *frames)
        total = count_frames(beads, stride, *frames)
        if total == 0:
            raise InvalidInputError(f"backmap_file: there are no frames in {beads} from {frames[0]} on")
        with (
            kept_pieces(parts, described, seed) as drawn,
            progress_bar(progress, total) as advance,
            _doing(own, where, workers, scheduler) as (submit, ahead),
        ):
            task = _Task(n, resample, steps, drawn)
            found = all_pieces(pieces, parts, lambda piece, number: submit(piece, number, task), ahead, advance)
            if not found:
                raise InvalidInputError(f"backmap_file: there are no frames in {beads}")
        return _join(own, found, parts, outputs)


@dataclass(frozen=True)
class _Task:
    """What is done with each piece."""

    n: int
    resample: bool
    relax: int
    seed: int


class _ModelFile(NamedTuple):
    """Where a worker finds the model, and the hash of its weights."""

    path: str
    weights: str


@lru_cache(maxsize=1)
def _loaded(model: _ModelFile) -> TrainedFlow:
    """The flow of a file, once in each process.

    Raises:
        InvalidInputError: the file has changed, or is another one where the worker is.
    """
    flow = TrainedFlow.load(model.path)
    if _weights(flow) != model.weights:
        raise InvalidInputError(f"{model.path} holds another model here than where the run was begun")
    return flow


def _do(flow: TrainedFlow | _ModelFile, piece: mdtraj.Trajectory, number: int, task: _Task) -> dict[str, np.ndarray]:
    """What is kept of one piece: structures around its frames, and their numbers. Also what a worker runs."""
    own = flow if isinstance(flow, TrainedFlow) else _loaded(flow)
    seed = int(np.random.SeedSequence([task.seed, number]).generate_state(1)[0])
    try:
        result, _ = place_atoms(own, own.beads.read(piece, "backmap"), task.n, task.relax, seed)
        if task.resample and result.failed.any():
            raise InvalidInputError(
                f"in {result.failed.sum()} of {len(result.failed)} frames no structure has a finite energy, so that "
                "there is none to draw: draw more, leave these frames out (the first is frame "
                f"{int(result.failed.argmax())}), or do not resample"
            )
    except CGFlowError as error:
        raise type(error)(f"in piece {number} of the file, of {len(piece)} frames counted from 0: {error}") from error
    kept = result.resample(seed) if task.resample else result
    time = np.repeat(piece.time, kept.positions.shape[1])
    return kept.numbers() | {"ess": result.ess, "positions": kept.positions, "time": time}


def _weights(flow: TrainedFlow) -> str:
    """A hash of the flow's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(flow.flow.state_dict().items()):
        sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _identity(weights: str, beads: Path, stride: int, frames: tuple[int, int | None], chunk: int) -> str:
    """By which a run knows its pieces again."""
    sha, stat = hashlib.sha256(weights.encode()), beads.stat()
    parts = [str(beads.resolve()), stat.st_size, stat.st_mtime_ns, stride, frames, chunk, __version__]
    sha.update(json.dumps(parts).encode())
    return sha.hexdigest()


@contextmanager
def _doing(
    flow: TrainedFlow, where: TrainedFlow | _ModelFile, workers: int, scheduler: str | None
) -> Iterator[tuple[Callable[..., Any], int]]:
    """As `in_processes`, or on a cluster."""
    if scheduler is None:
        with in_processes(partial(_do, flow if workers == 1 else where), workers) as doing:
            yield doing
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidInputError('a scheduler needs dask: pip install "openmm_cgflow[dask]"') from error
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:  # nobody is there, or it is no address
        raise InvalidInputError(
            f"there is no dask scheduler at {scheduler!r} ({error}); give its address, such as tcp://HOST:8786"
        ) from error
    with client:
        ahead = AHEAD * max(1, len(client.ncores()))
        yield lambda piece, number, task: client.submit(_do, where, piece, number, task, pure=False), ahead


def _join(flow: TrainedFlow, found: list[Path], parts: Path, outputs: tuple[Path, Path, Path | None]) -> BackmappedFile:
    """One file of structures and one of numbers; then the pieces are removed."""
    joined, topology = Joined(found), mdtraj.Topology.from_openmm(flow.topology)
    structure_file, number_file, topology_file = outputs
    structures = write_frames(structure_file, topology, joined.structures())
    arrays = joined.numbers() | {"temperature": np.array(flow.temperature._value)}
    save_arrays(number_file, arrays)
    if topology_file is not None:
        save_trajectory(mdtraj.Trajectory(flow.positions._value, topology), topology_file)
    shutil.rmtree(parts)
    checks = StructureChecks(*(arrays[f"check_{field.name}"] for field in fields(StructureChecks)))
    outside, failed = arrays["outside"], arrays["failed"]
    ess = float(arrays["ess"][~failed].mean()) if not failed.all() else float("nan")
    written = tuple(path for path in outputs if path is not None)
    return BackmappedFile(written, len(outside), structures, int(outside.sum()), int(failed.sum()), ess, checks)
