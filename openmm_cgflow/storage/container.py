"""One file for tensors and text: safetensors with JSON in its header. What a file declares is checked before use."""

import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.storage.files import reading, write_whole

__all__ = ["pack", "read_file", "unpack", "write_file"]

FORMAT = "openmm_cgflow"
VERSION = 1
MOST_BYTES = 8 * 2**30
MOST_HEADER_BYTES = 100_000_000  # as in safetensors
MOST_TENSORS = 20_000
MOST_DIMENSIONS = 8
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_METADATA = {"format", "version", "kind", "header"}


def write_file(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a file whole or not at all, see `write_whole`.

    Arguments:
        path: where to; an existing file is replaced only once the new one is complete.
        kind: what it is, `model` or `checkpoint`.
        tensors: by name.
        header: anything that JSON can hold.

    Raises:
        ModelFileError: if it cannot be written (no such folder, no permission, a full disk), or another process is
            writing it; an older file stays.
    """
    write_whole(path, pack(kind, tensors, header))


def pack(kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """What `write_file` writes.

    Raises:
        ModelFileError: if it is more than `unpack` would read.
    """
    metadata = {"format": FORMAT, "version": str(VERSION), "kind": kind, "header": json.dumps(header)}
    data = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    _header_length(data[:8], len(data))
    return data


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_file` wrote.

    Raises:
        ModelFileError: if there is no such file, it is truncated or foreign, of another kind, or of a newer version.
    """
    path = Path(path)
    with reading(path, kind):
        if not path.is_file():
            raise ModelFileError(f"{path}: {'this is a folder' if path.is_dir() else 'there is no such file'}.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ModelFileError(f"{path} has {size:,} bytes; up to {MOST_BYTES:,} are read.")
        with path.open("rb") as file:
            head = file.read(8)
            try:
                declared = _check_container(head + file.read(_header_length(head, size)), size)
            except ModelFileError as error:
                raise _foreign(f"{path} ({size} bytes)", kind, error) from error
            _check_metadata(declared, kind, str(path))
            file.seek(0)
            data = file.read(size)
        return _unpacked(data, declared)


def unpack(data: bytes, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of what `pack` gave.

    Raises:
        ModelFileError: if it is truncated or foreign, of another kind, or of a newer version.
    """
    try:
        declared = _check_container(data[: 8 + _header_length(data[:8], len(data))], len(data))
    except ModelFileError as error:
        raise _foreign(f"this ({len(data)} bytes)", kind, error) from error
    _check_metadata(declared, kind, "this file")
    return _unpacked(data, declared)


def _foreign(what: str, kind: str, error: ModelFileError) -> ModelFileError:
    return ModelFileError(
        f"{what} is truncated or not an openmm_cgflow {kind}: {error}. "
        "Copy it again from where it was made, or train the model again."
    )


def _unpacked(data: bytes, declared: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = _json(declared["__metadata__"]["header"], "the description")
    if not isinstance(header, dict):
        raise ModelFileError("the description is no JSON object")
    try:
        return safetensors.torch.load(data), header
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"the tensors are damaged: {error}") from error


def _header_length(head: bytes, size: int) -> int:
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > size - 8 or length > MOST_HEADER_BYTES:
        raise ModelFileError(f"its header would have {length:,} bytes")
    return length


def _check_container(head: bytes, size: int) -> dict[str, Any]:
    """The header of safetensors, after checking that it declares just the bytes that are there."""
    declared = _json(head[8:], "its header")
    if not isinstance(declared, dict):
        raise ModelFileError("its header is no JSON object")
    if len(declared) > MOST_TENSORS:
        raise ModelFileError(f"its header declares {len(declared):,} tensors")
    pieces = [_check_tensor(name, entry) for name, entry in declared.items() if name != "__metadata__"]
    end = 0
    for first, last in sorted(pieces):
        if first != end:
            raise ModelFileError("its tensors overlap, or leave gaps")
        end = last
    if len(head) + end != size:
        raise ModelFileError(f"its header declares {len(head) + end:,} bytes")
    return declared


def _check_tensor(name: str, entry: object) -> tuple[int, int]:
    """Where a tensor lies, after checking that its shape and type fit there."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"the tensor {name[:60]!r} is not declared as safetensors does")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ModelFileError(f"the tensor {name[:60]!r} is of the type {str(dtype)[:20]!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= MOST_BYTES for n in numbers):
            raise ModelFileError(f"the tensor {name[:60]!r} has a wrong shape or place")
    if len(shape) > MOST_DIMENSIONS or len(offsets) != 2:
        raise ModelFileError(f"the tensor {name[:60]!r} has a wrong shape or place")
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise ModelFileError(f"the tensor {name[:60]!r} of shape {shape} does not fill its place")
    return offsets[0], offsets[1]


def _check_metadata(declared: dict[str, Any], kind: str, what: str) -> None:
    metadata = declared.get("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ModelFileError(f"{what} is a safetensors file, but not one of openmm_cgflow.")
    version = metadata.get("version")
    if not isinstance(version, str) or not version.isascii() or not version.isdigit() or len(version) > 9:
        raise ModelFileError(f"{what} has the file version {str(version)[:20]!r}, which is none.")
    if int(version) > VERSION:
        raise ModelFileError(
            f"{what} has file version {version}; this openmm_cgflow reads up to {VERSION}. Update openmm_cgflow."
        )
    if metadata.get("kind") != kind:
        raise ModelFileError(f"{what} is a {str(metadata.get('kind'))[:40]}, not a {kind}.")
    if set(metadata) != _METADATA or not isinstance(metadata["header"], str):
        raise ModelFileError(f"{what} lacks its description, or has more than that.")


def _json(text: bytes | str, what: str) -> Any:  # noqa: ANN401
    """JSON in which no key occurs twice."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(decoded, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is no JSON that can be read ({str(error)[:200]})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made
