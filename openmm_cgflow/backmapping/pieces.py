"""Work on long files piece by piece: what is done is kept in a folder, and is not done again."""

import json
import logging
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openmm_cgflow.counts import seed_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError

__all__ = ["AHEAD", "Done", "all_pieces", "kept_pieces", "one_thread", "outputs_beside", "progress_bar"]

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
class Done:
    """What was done at once, as a future that is done."""

    value: dict[str, np.ndarray]

    def result(self) -> dict[str, np.ndarray]:
        """It."""
        return self.value


def outputs_beside(output: Path, inputs: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """The files that a run writes: structures, numbers, and a Topology where the format has none.

    Raises:
        InvalidInputError: one of them is a file that is read, or two are one.
    """
    topology = None if output.suffix.lower() == ".pdb" else output.with_suffix(".topology.pdb")
    files = output, output.with_suffix(".npz"), topology
    read = [path.resolve() for path in inputs]
    for path in files:
        if path is not None and path.resolve() in read:
            raise InvalidInputError(f"{path} would be written, and is a file that is read: choose another output")
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
                f"{parts} holds pieces of a run with another model, file or options: remove it to begin anew, or give "
                "the same ones to go on"
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


def one_thread() -> None:
    """What a process of a pool begins with."""
    import torch

    torch.set_num_threads(1)


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
        _write_piece(path, future.result())
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
                _write_piece(path, future.result())
        raise CGFlowError(
            f"a process that put atoms around beads has died ({error}), perhaps for want of memory: the same call goes "
            "on where it was; give it fewer workers"
        ) from error
    return found


def _write_piece(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole, or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error}; what is done so far is kept") from error
