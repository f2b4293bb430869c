"""Work on long files piece by piece: what is done is kept in a folder, and is not done again."""

import json
import logging
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openmm_cgflow.counts import seed_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.trajectory_files import names_atoms, whole_file

__all__ = ["AHEAD", "Joined", "all_pieces", "in_processes", "kept_pieces", "outputs_beside", "progress_bar"]

_log = logging.getLogger("openmm_cgflow")
AHEAD = 2
"""Pieces that wait for each worker."""


@contextmanager
def progress_bar(progress: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over frames; gives what moves it on."""
    columns = (TextColumn("backmapping"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        bead_frames = bar.add_task("frames", total=total)
        yield lambda frames: bar.advance(bead_frames, frames)


@dataclass(frozen=True)
class _Done:
    """What was done at once, as a future that is done."""

    value: dict[str, np.ndarray]

    def result(self) -> dict[str, np.ndarray]:
        """It."""
        return self.value


def outputs_beside(output: Path, inputs: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """The files that a run writes: structures, numbers, and a Topology where the format has none.

    Raises:
        InvalidInputError: one of them is a file that is read, or is beside one and of it: its Topology, or its numbers
            (which are this output's own where that is there already).
    """
    topology = None if output.suffix.lower() == ".pdb" else output.with_suffix(".topology.pdb")
    files = output, output.with_suffix(".npz"), topology
    read = [path.resolve() for path in inputs]
    needed = [path.with_suffix(".topology.pdb").resolve() for path in inputs if not names_atoms(path)]
    if not output.exists():
        needed += [path.with_suffix(".npz").resolve() for path in inputs]
    for path in filter(None, files):
        if path.resolve() in read:
            raise InvalidInputError(f"{path} would be written, and is a file that is read: choose another output")
        if path.resolve() in needed and path.exists():
            raise InvalidInputError(f"{path} would be written, and is of a file that is read: choose another output")
    return files


@contextmanager
def kept_pieces(parts: Path, described: dict[str, Any], seed: int | None) -> Iterator[int]:
    """The folder of a run's pieces, new or of this very run; gives the seed, a new one if there is none.

    A run that fails before a piece was made leaves no folder.

    Arguments:
        parts: the folder.
        described: what makes the run what it is, as what JSON can hold.
        seed: that was asked for; by default that of the run that goes on.

    Raises:
        InvalidInputError: the folder cannot be made, or holds something else.
    """
    path = parts / "run.json"
    try:
        there = parts.exists() and any(parts.iterdir())
        before = json.loads(path.read_text(encoding="utf-8")) if there else {}
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot use {parts}: {error}; remove it, or choose another output") from error
    if there:
        if not isinstance(before, dict) or before != described | {"seed": before.get("seed") if seed is None else seed}:
            raise InvalidInputError(
                f"{parts} holds pieces of a run with another model, file or options, or of another version: remove it, "
                "or give the same ones to go on"
            )
        _log.info("backmapping goes on with the pieces in %s", parts)
    seed = seed_number(before.get("seed") if there else secrets.randbits(32) if seed is None else seed)
    try:
        if not there:
            _describe(path, described | {"seed": seed})
        yield seed
    except BaseException:
        if not any(parts.glob("*.npz")):
            shutil.rmtree(parts, ignore_errors=True)
        raise


def _describe(path: Path, described: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(described), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot use {path.parent}: {error}; choose another output") from error


@contextmanager
def in_processes(do: Callable[..., dict[str, np.ndarray]], workers: int) -> Iterator[tuple[Callable[..., Any], int]]:
    """A function that has a piece done and returns what has a `result()`, and how many may wait for that.

    Arguments:
        do: does a piece; at the top level of a module, for more than one worker.
        workers: processes, of one thread each; 1 for this one.
    """
    if workers == 1:
        yield lambda *piece: _Done(do(*piece)), 1
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
    try:
        yield lambda *piece: pool.submit(do, *piece), AHEAD * workers
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """What a process of a pool begins with."""
    import torch

    torch.set_num_threads(1)


class Joined:
    """What was kept of all pieces: structures, and beside them numbers, which are known after these.

    Arguments:
        found: files of the pieces, in order.
    """

    def __init__(self, found: list[Path]) -> None:
        self.found = found
        self._columns: dict[str, list[np.ndarray]] = {}

    def structures(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions `(structures, atoms, 3)` in nm and times `(structures,)`, piece by piece."""
        self._columns.clear()
        for path in self.found:
            with np.load(path) as data:
                for name in data.keys() - {"positions", "time"}:
                    self._columns.setdefault(name, []).append(data[name])
                x, time = data["positions"], data["time"]
            yield x.reshape(-1, *x.shape[2:]), time

    def numbers(self) -> dict[str, np.ndarray]:
        """All else, by name, of the pieces that `structures` has given."""
        return {name: np.concatenate(column) for name, column in self._columns.items()}


def all_pieces(
    pieces: Iterator[mdtraj.Trajectory],
    parts: Path,
    submit: Callable[[mdtraj.Trajectory, int], Any],
    ahead: int,
    advance: Callable[[int], None],
) -> list[Path]:
    """Have every piece done that is not there yet; their files, in order.

    Arguments:
        pieces: of the trajectory.
        parts: the folder where what was made of them is kept.
        submit: has a piece done, by its number too, and returns what has a `result()`, arrays by name.
        ahead: how many may wait for that.
        advance: is told the number of frames that are done.

    Raises:
        CGFlowError: a process died; the same call goes on.
    """
    found: list[Path] = []
    waiting: deque[tuple[Path, int, Any]] = deque()

    def take() -> None:
        path, frames, future = waiting.popleft()
        _keep(path, future.result())
        advance(frames)

    try:
        for number, piece in enumerate(pieces):
            path = parts / f"{number:06d}.npz"
            found.append(path)
            if path.exists():
                advance(len(piece))
                continue
            waiting.append((path, len(piece), submit(piece, number)))
            if len(waiting) >= ahead:
                take()
        while waiting:
            take()
    except BrokenExecutor as error:
        for path, _, future in waiting:
            if future.done() and not future.cancelled() and future.exception() is None:
                _keep(path, future.result())
        raise CGFlowError(
            f"a process that put atoms around beads has died ({error}): the same call goes on where it was. In a "
            'script, make it under `if __name__ == "__main__":`, for each process reads the script; else memory may '
            "have run out: give it fewer workers"
        ) from error
    return found


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # not compressed: it is read but once
