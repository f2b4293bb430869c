"""The CSV file of a training that goes on from a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.training.reporter import Metrics

__all__ = ["drop_rows_after"]


def drop_rows_after(path: str | Path, history: Sequence[Metrics]) -> None:
    """Drop what a CSV file of metrics has after the last row of a history: the training that goes on makes it again.

    A file without any of its rows is left as it is.

    Raises:
        InvalidInputError: if the file cannot be read or written.
    """
    known = {f"{row.stage},{row.seconds},{row.evaluations}".encode() for row in history}
    size = kept = 0
    try:
        if not Path(path).is_file():
            return
        for line in Path(path).read_bytes().splitlines(keepends=True):
            size += len(line)
            if b",".join(line.split(b",")[:3]) in known:
                kept = size
        if 0 < kept < size:
            os.truncate(path, kept)
    except OSError as error:
        raise InvalidInputError(
            f"metrics cannot be written to {path} ({error.strerror or error}); choose another place."
        ) from error
