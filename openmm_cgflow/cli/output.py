"""What commands write: files of structures, and a table."""

from pathlib import Path
from typing import TYPE_CHECKING

import openmm_cgflow as cgf

if TYPE_CHECKING:
    from openmm_cgflow.backmapping import Backmapped

__all__ = ["save", "show", "summarise"]


def save(samples: "cgf.Samples | Backmapped", path: Path) -> list[Path]:
    """Write frames and weights, and the topology that DCD and XTC files lack; returns every file written."""
    from openmm_cgflow.trajectory_files import save_trajectory

    samples.save(path)
    written = [path]
    if path.suffix != ".npz":
        written.append(path.with_suffix(".npz"))
    if path.suffix in (".dcd", ".xtc"):
        written.append(path.with_suffix(".topology.pdb"))
        save_trajectory(samples.trajectory[0], written[-1])
    return written


def summarise(flow: "cgf.CGFlow", samples: "cgf.Samples", more: list[tuple[str, str]]) -> None:
    """Show what there is to say of a flow and its samples, and more rows after it."""
    from openmm_cgflow.analysis import summary

    show([*summary(flow, samples), *more])


def show(rows: list[tuple[str, str]]) -> None:
    """Print rows of a label and a text as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    Console().print(table)
