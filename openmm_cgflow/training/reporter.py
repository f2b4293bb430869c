"""What a training tells while it runs: a progress bar, a list of rows, and a CSV file."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from openmm_cgflow.errors import InvalidInputError

__all__ = ["Metrics", "Reporter"]


@dataclass(frozen=True)
class Metrics:
    """One row of a training's history; it has all calls of `train` in it.

    Attributes:
        stage: `laplace`, `fit`, `soft` and `refine`; or `tempering`, then `refine`.
        seconds: since the beginning.
        evaluations: single-configuration energies since the beginning.
        beta: inverse temperature relative to the target's own.
        loss: of the objective of the stage.
        ess: Kish effective sample size of the newest buffer over its size, at the target's temperature.
        logZ: its estimate of the log configuration integral.
        dropped: rows whose energy was not finite, so far.
    """

    stage: str
    seconds: float
    evaluations: int
    beta: float | None = None
    loss: float | None = None
    ess: float | None = None
    logZ: float | None = None
    dropped: int = 0


class Reporter:
    """Shows progress and writes the rows.

    Arguments:
        progress: whether to draw a bar on the terminal.
        metrics: CSV file to append rows to, or None.
        fresh: begin the file anew.
    """

    def __init__(self, progress: bool = True, metrics: str | Path | None = None, fresh: bool = True) -> None:
        self._fresh = fresh
        self._path = None if metrics is None else Path(metrics)
        self._file: TextIO | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            disable=not progress,
        )

    def __enter__(self) -> "Reporter":
        if self._path is not None:
            self._fresh = self._fresh or not self._path.is_file() or not self._path.stat().st_size
            try:
                self._file = self._path.open("a", newline="", encoding="utf-8")
            except OSError as error:
                raise InvalidInputError(
                    f"metrics cannot be written to {self._path} ({error.strerror or error}); choose another place."
                ) from error
            self._writer = csv.DictWriter(self._file, list(Metrics.__dataclass_fields__))
        self._bar.start()
        self._task = self._bar.add_task("starting", total=1.0, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()

    def tell(self, doing: str, fraction: float) -> None:
        """Say what goes on until the next row, and move the bar to `fraction`."""
        self._bar.update(self._task, description=doing, completed=fraction)

    def add(self, row: Metrics, fraction: float) -> None:
        """Write a row, and move the bar to `fraction` (0 to 1)."""
        if self._file is not None:
            if self._fresh:  # not before: a call that is refused leaves the file as it was
                if self._path is not None and self._path.is_file():
                    self._file.truncate(0)
                self._writer.writeheader()
                self._fresh = False
            self._writer.writerow(asdict(row))
            self._file.flush()
        figures = f"{row.evaluations / max(row.seconds, 1e-9):,.0f} evaluations/s"
        if row.ess is not None and row.logZ is not None:
            figures = f"ESS {100 * row.ess:.1f} %  logZ {row.logZ:.2f}  {figures}"
        self._bar.update(self._task, description=row.stage, completed=fraction, figures=figures)
