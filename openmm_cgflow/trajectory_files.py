"""Trajectory files of any length: frames read and written piece by piece, in any format of mdtraj's."""

import glob
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from mdtraj.utils import in_units_of

from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.text_files import check_encoding

__all__ = [
    "WRITTEN",
    "ascii_path",
    "blocks",
    "checked_range",
    "count_frames",
    "frame_range",
    "names_atoms",
    "read_array",
    "read_pieces",
    "read_topology",
    "save_arrays",
    "save_trajectory",
    "whole_file",
    "why_unreadable",
    "write_frames",
]

WRITTEN = (".dcd", ".xtc", ".trr", ".nc", ".pdb")
"""Formats that `write_frames` writes."""

_NO_TOPOLOGY = (
    *(".dcd", ".xtc", ".trr", ".nc", ".netcdf", ".ncdf", ".mdcrd", ".crd", ".binpos", ".xyz", ".xyz.gz", ".lammpstrj"),
    *(".rst7", ".ncrst", ".restrt", ".inpcrd", ".dtr", ".stk"),
)
_AS_A_WHOLE = (
    *(".cif", ".mmcif", ".pdbx", ".cif.gz", ".mmcif.gz", ".pdbx.gz"),
    *(".rst7", ".ncrst", ".restrt", ".inpcrd"),
)  # of which mdtraj reads no part


def names_atoms(path: Path) -> bool:
    """Whether files of this format name their atoms, so that no Topology is needed.

    Example:
        >>> names_atoms(Path("a.pdb.gz")), names_atoms(Path("a.xtc"))
        (True, False)
    """
    return not path.name.lower().endswith(_NO_TOPOLOGY)


@contextmanager
def ascii_path(path: Path) -> Iterator[Path]:
    """A file or folder by a path of ASCII letters: mdtraj opens DCD, XTC and TRR files by no other.

    That is the path itself if it is one, else a link to it in a temporary folder.
    """
    if str(path).isascii():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{_ascii(path.name)}"
        link.symlink_to(path.resolve())
        yield link


def _ascii(name: str) -> str:
    return name.encode("ascii", "ignore").decode()


def why_unreadable(error: Exception) -> str:
    """What to say of an error of one of mdtraj's readers; a package that is missing by its name."""
    missing = getattr(error.__context__, "name", None) if isinstance(error, ImportError) else None
    return str(error) if missing is None else f"its format needs the package {missing}: pip install {missing}"


def frame_range(text: str | None) -> tuple[int, int | None]:
    """First frame and the one after the last of `a:b`, as Python's slices have it; `a:` and `:b` are fine.

    Raises:
        InvalidInputError: for anything else.

    Example:
        >>> frame_range("100:200"), frame_range(":50"), frame_range(None)
        ((100, 200), (0, 50), (0, None))
    """
    if text is None:
        return 0, None
    first, colon, last = text.partition(":")
    whole = all(not part or part.isdecimal() for part in (first, last))
    start, stop = (int(first or 0), int(last) if last else None) if whole else (0, None)
    if not colon or not whole or (stop is not None and stop <= start):
        raise InvalidInputError(f"frames are {text!r}; give FIRST:LAST, such as 100:200, 100: or :200")
    return start, stop


def checked_range(frames: Any, what: str) -> tuple[int, int | None]:  # noqa: ANN401
    """The first frame and the one after the last, numpy's integers too.

    Raises:
        InvalidInputError: something else; frames from the end; none in between. `what` begins the message.

    Example:
        >>> checked_range((np.int64(3), None), "backmap_file")
        (3, None)
    """
    try:
        start, stop = frames
        first = whole_number(start, "the first", 0)
        return first, None if stop is None else whole_number(stop, "the one after the last", first + 1)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{what}: frames is {frames!r}; give the first and the one after the last, from 0, such as (0, 100), or "
            "(100, None) for all from there on"
        ) from error


def count_frames(path: Path, stride: int = 1, start: int = 0, stop: int | None = None) -> int | None:
    """How many frames `read_pieces` will give, where the format tells without reading all of them; else None."""
    try:
        with ascii_path(path) as plain, mdtraj.open(str(plain)) as file:
            total = len(file)
    except Exception:  # of formats that cannot, and of files that are refused when they are read
        return None
    end = total if stop is None else min(stop, total)
    return max(0, -(-(end - start) // stride))


def read_pieces(
    path: Path,
    topology: mdtraj.Topology,
    chunk: int = 1000,
    stride: int = 1,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[mdtraj.Trajectory]:
    """Frames `start`, `start + stride`, ... before `stop`, at most `chunk` at a time.

    Arguments:
        path: a file that mdtraj reads.
        topology: of formats that hold none.
        chunk: frames that are in memory at a time.
        stride: take every so many frames.
        start: the first one.
        stop: before which one to end; the last one is the file's by default.

    Raises:
        InvalidInputError: for a file that cannot be read, or is text in another encoding than UTF-8, by name.
    """
    options = {} if names_atoms(path) else {"top": topology}
    waiting: list[mdtraj.Trajectory] = []
    seen = 0
    if path.is_file():
        check_encoding(path)
    try:  # not mdtraj's own skip and stride, which some formats take for something else, or not at all
        for block in blocks(path, chunk, **options):
            number = np.arange(seen, seen + len(block))
            seen += len(block)
            wanted = (number >= start) & ((number - start) % stride == 0) & (number < (seen if stop is None else stop))
            if wanted.any():
                waiting.append(block[wanted])
            while sum(map(len, waiting)) >= chunk:
                joined = mdtraj.join(waiting) if len(waiting) > 1 else waiting[0]
                yield joined[:chunk]
                waiting = [joined[chunk:]] if len(joined) > chunk else []
            if stop is not None and seen >= stop:
                break
        if waiting:
            yield mdtraj.join(waiting) if len(waiting) > 1 else waiting[0]
    except CGFlowError:
        raise
    except Exception as error:  # mdtraj's readers raise whatever they meet
        raise InvalidInputError(
            f"{path} cannot be read as a trajectory of {topology.n_atoms} particles: {why_unreadable(error)}"
        ) from error


def blocks(path: Path, chunk: int, **options: mdtraj.Topology) -> Iterator[mdtraj.Trajectory]:
    """All frames of a file, `chunk` at a time; mdtraj's own strides begin anew in each chunk of some formats."""
    with ascii_path(path) as plain:
        if path.name.lower().endswith(_AS_A_WHOLE):
            whole = mdtraj.load(str(plain), **options)
            yield from (whole[k : k + chunk] for k in range(0, len(whole), chunk))
        else:
            yield from mdtraj.iterload(str(plain), chunk=chunk, **options)


def read_topology(path: Path) -> mdtraj.Topology:
    """The Topology of a file.

    Raises:
        InvalidInputError: it has none, or cannot be read.
    """
    check_encoding(path)
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj's readers raise whatever they meet
        raise InvalidInputError(f"{path} cannot be read as a topology ({type(error).__name__}: {error})") from error


def read_array(path: Path) -> np.ndarray:
    """What `numpy.save` wrote; a pickle is not read.

    Raises:
        InvalidInputError: it is something else.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{path} cannot be read as an array, .npy: {error}") from error
    if not isinstance(found, np.ndarray):
        raise InvalidInputError(f"{path} holds several arrays; give one, .npy")
    return found


def write_frames(path: Path, topology: mdtraj.Topology, pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write frames, piece by piece; a file that is there is replaced when all are written. Returns their number.

    Arguments:
        path: one of `WRITTEN`.
        topology: of formats that hold one.
        pieces: positions `(frames, atoms, 3)`, nm, and times `(frames,)`, ps, of each.

    Raises:
        InvalidInputError: for another format, or where the file cannot be written.
    """
    suffix, count = path.suffix.lower(), 0
    if suffix not in WRITTEN:
        raise InvalidInputError(f"{path}: frames are written as {', '.join(WRITTEN)}; choose one of these")
    with whole_file(path) as temporary, mdtraj.open(str(temporary), "w", force_overwrite=True) as file:
        for x, time in pieces:
            values = np.ascontiguousarray(in_units_of(x, "nanometers", file.distance_unit), dtype=np.float32)
            if suffix == ".pdb":
                for k, frame in enumerate(values, count):
                    file.write(frame, topology, modelIndex=k)
            elif suffix == ".dcd":  # which holds no times
                file.write(values)
            elif suffix == ".nc":
                file.write(values, time=time)
            else:
                file.write(values, time=time.astype(np.float32), step=np.arange(count, count + len(x), dtype=np.int32))
            count += len(x)
    return count


def save_trajectory(trajectory: mdtraj.Trajectory, path: Path) -> None:
    """Write a trajectory as what mdtraj writes, whole or not at all.

    Raises:
        InvalidInputError: where it cannot be written, or for NaN in a file of decimals.
    """
    wrong = np.flatnonzero(~np.isfinite(trajectory.xyz).all((1, 2)))
    if len(wrong) and path.suffix.lower() in (".xtc", ".pdb", ".gro", ".cif"):
        raise InvalidInputError(
            f"{path}: {len(wrong)} of {len(trajectory)} frames hold NaN, the first is frame {wrong[0]}, which "
            f"{path.suffix.lower()[1:]} files have no place for: leave them out, or write .dcd or .nc"
        )
    with whole_file(path) as temporary:
        trajectory.save(str(temporary))


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as `.npz`, whole or not at all.

    Raises:
        InvalidInputError: where it cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path`, or of what a link there leads to, when all went well."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(4)}.{_ascii(path.name)}")  # writers go by the suffix
    made_files = f"{glob.escape(temporary.name)}*"
    try:
        with ascii_path(target.parent) as folder:
            yield folder / temporary.name
        for made in target.parent.glob(made_files):  # some formats are a file for each frame, with a number
            made.replace(target.with_name(target.name + made.name[len(temporary.name) :]))
    except CGFlowError:
        raise
    except Exception as error:  # mdtraj's writers raise whatever they meet, also where a disk is full
        # mdtraj calls its table of messages, which is a TypeError that says nothing of the file
        why = "its writer failed" if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"cannot write {path} ({why}); if the disk is full, free some space or choose another place. What was "
            "there stays."
        ) from error
    finally:
        for made in target.parent.glob(made_files):
            made.unlink()
