"""A page about a library: what each fragment cost, how well it was learned, and its free energy."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from openmm_cgflow.analysis.html import page, report_page
from openmm_cgflow.analysis.style import figure, save_png, theme
from openmm_cgflow.proteins.fragments.learned import Lesson
from openmm_cgflow.storage import write_whole

__all__ = ["report_fragments"]

_GOOD = 0.3  # conditional ESS below which a fragment is named in the verdict
_SHOWN = 30.0  # kJ/mol, the top of the colours
_ACROSS = 5


def report_fragments(lessons: Sequence[Lesson], out_dir: str | Path, provenance: dict[str, Any]) -> Path:
    """Write `report.html`, with everything inside it, and its picture.

    Arguments:
        lessons: of the fragments.
        out_dir: folder; it is made if it does not exist.
        provenance: force field, solvent, temperature.

    Returns:
        Path of the page.

    Raises:
        InvalidInputError: if the folder cannot be written.
    """
    folder = Path(out_dir)
    weak = [lesson.fragment.name for lesson in lessons if lesson.figures["conditional"] < _GOOD]
    verdict = f"{len(lessons)} fragments; the atoms given the backbone have an ESS of {_GOOD:.0%} or more"
    verdict += f" but for {', '.join(weak)}: train these longer." if weak else " in all of them."
    cells = []
    for lesson in lessons:
        done = lesson.figures
        cells.append((
            lesson.fragment.name,
            f"{done['evaluations'] / 1e6:.2f} M",
            f"{done['seconds'] / 60:.1f}",
            f"{100 * done['ess']:.1f} %",
            f"{100 * done['conditional']:.1f} %",
            f"{math.degrees(lesson.mean_angle[0]):.1f} +- {math.degrees(lesson.mean_angle[1]):.1f}",
        ))  # fmt: skip
    minutes = sum(lesson.figures["seconds"] for lesson in lessons) / 60
    energies = sum(lesson.figures["evaluations"] for lesson in lessons)
    rows = [
        ("force field", " ".join([*provenance["forcefield"], provenance["solvent"] or "vacuum"])),
        ("temperature", f"{provenance['temperature']:g} K"),
        ("energies", f"{energies / 1e6:.2f} million, in {minutes:.0f} minutes"),
        ("openmm_cgflow", str(provenance.get("version"))),
    ]
    columns = ("fragment", "energies", "minutes", "ESS", "ESS given the backbone", "N-CA-C (deg)")
    with report_page(folder) as path:
        picture = folder / "free_energies.png"
        save_png(_surfaces(lessons), picture)
        html = page(
            title="Library of fragments",
            verdict=verdict,
            good=not weak,
            rows=rows,
            tables=[("Fragments", columns, cells)],
            pictures=[(picture, f"Free energies over phi and psi, kJ/mol, up to {_SHOWN:g}", True)],
        )
        write_whole(path, html.encode())
    return path


def _surfaces(lessons: Sequence[Lesson]) -> Figure:
    down = math.ceil(len(lessons) / _ACROSS)
    turn = np.linspace(-180.0, 180.0, 73)
    with theme():
        made = figure(11.0, 2.3 * down + 0.4)
        for k, lesson in enumerate(lessons):
            axes = made.add_subplot(down, _ACROSS, k + 1)
            values = np.pad(lesson.free_energy.numpy(), ((0, 1), (0, 1)), mode="wrap").T
            axes.contourf(turn, turn, np.minimum(values, _SHOWN), np.arange(0.0, _SHOWN + 1, 3.0), cmap="viridis")
            axes.set_title(lesson.fragment.name, fontsize=9)
            axes.set_xticks([-180, 0, 180])
            axes.set_yticks([-180, 0, 180])
            axes.grid(visible=False)
    return made
