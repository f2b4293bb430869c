"""Whole files or none, one writer at a time, and one error for all that can be wrong with a file."""

import contextlib
import errno
import os
import secrets
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmm_cgflow.errors import ModelFileError

try:
    import fcntl
except ImportError:  # Windows, where files are whole, but not locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked", "reading", "write_whole"]

_held: dict[str, int] = {}  # files locked by this process, and the thread that did
_guard = threading.Lock()


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong inside, and was not foreseen, becomes one error that names the file.

    Arguments:
        path: the file.
        what: it is to be, such as `model`.

    Raises:
        ModelFileError: for every exception inside.
    """
    try:
        yield
    except ModelFileError as error:
        if str(error).startswith(str(path)):
            raise
        raise ModelFileError(f"{path} is damaged or was made by another program: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelFileError(
            f"{path} cannot be used as a {what}: {reason}. Copy it again from where it was made, or make it again."
        ) from error


def _unwritable(path: str | Path, error: OSError) -> ModelFileError:
    return ModelFileError(
        f"{path} could not be written ({error.strerror or error}); free some space or choose another place. "
        "Nothing was lost: an older file there is untouched, and what is in memory can be saved again."
    )


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: to a new file beside it, which is then renamed.

    A new file has the permissions that the process's umask gives, one that is replaced keeps its own; where the path is
    a link, the file that it leads to is replaced.

    Arguments:
        path: where to; an existing file is replaced only once the new one is complete.
        data: its content.

    Raises:
        ModelFileError: if it cannot be written (no such folder, no permission, a full disk), or another process is
            writing it; an older file stays.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = _mode(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    with locked(path):
        temporary = target.parent / f".{target.name[:80]}.{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise _unwritable(path, error) from error
            raise


def _mode(target: Path) -> int | None:
    """Permissions of the file that is there.

    Raises:
        OSError: if it is a folder, a device or a pipe.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "what is there is no ordinary file")
    return stat.S_IMODE(mode)


@contextmanager
def locked(path: str | Path | None) -> Iterator[None]:
    """Keep other processes, and other threads of this one, from writing a file meanwhile.

    The lock is one of the operating system on `PATH.lock`, which is gone when the process is, however it ended. The
    same thread may lock a file again. Where the file system has no locks, there is none.

    Arguments:
        path: the file, which need not exist; nothing is locked for None.

    Raises:
        ModelFileError: if somebody else holds it; the message says who. If the folder cannot be written.
    """
    if path is None or fcntl is None:
        yield
        return
    target = os.path.realpath(path)
    with _guard:
        mine = _held.get(target) == threading.get_ident()
    if mine:
        yield
        return
    descriptor = _acquire(path, f"{target}.lock")
    try:
        with _guard:
            _held[target] = threading.get_ident()
        yield
    finally:
        with _guard:
            _held.pop(target, None)
        if descriptor is not None:
            # first the name and then the lock: who waits for the old one finds that it is no more
            with contextlib.suppress(OSError):
                os.unlink(f"{target}.lock")
            os.close(descriptor)


def _acquire(path: str | Path, lock: str) -> int | None:
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ModelFileError(
                f"{path} is being written by {owner}: wait until that has ended, or choose another file."
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                break
        os.close(descriptor)  # its last holder has removed it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
