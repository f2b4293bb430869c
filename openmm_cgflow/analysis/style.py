"""How the pictures look: one theme, colours that colour-blind readers can tell apart, names as readers know them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["BLUE", "CYCLE", "GREY", "ORANGE", "angle_axis", "figure", "pretty", "save_png", "theme"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B7280"
CYCLE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F", "#4B4B4B")
"""Okabe and Ito's palette, with its yellow darkened so that it can be read as a line on white."""

THEME: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#374151",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.7,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "mathtext.default": "it",
    "savefig.facecolor": "white",
}

GREEK = ("phi", "psi", "omega", "chi", "theta", "alpha", "beta", "gamma", "delta", "epsilon", "zeta")


@contextmanager
def theme() -> Iterator[None]:
    """Draw with this package's settings inside the block; matplotlib's own settings are as before after it."""
    with mpl.rc_context(THEME):
        yield


def figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches that belongs to no window and to no global list."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save_png(drawn: Figure, path: Path) -> None:
    """Write a figure as PNG, 130 dots per inch."""
    with theme():
        drawn.savefig(path, dpi=130)


def pretty(name: str) -> str:
    r"""A torsion's name as it is written in papers: Greek letters, subscripts for numbers, the residue behind.

    Arguments:
        name: such as `phi`, `chi1`, `ALA2:psi`.

    Returns:
        Text with matplotlib's mathematics; names without a Greek letter stay as they are.

    Example:
        >>> pretty("LYS2:chi1")
        '$\\chi_{1}$ LYS2'
    """
    residue, _, torsion = name.rpartition(":")
    match = re.fullmatch(rf"({'|'.join(GREEK)})_?(\d*)", torsion)
    if match is None:
        return name.replace("$", r"\$")
    letter, number = match.groups()
    symbol = rf"$\{letter}_{{{number}}}$" if number else rf"$\{letter}$"
    return f"{symbol} {residue}".strip()


def angle_axis(axes: Axes, which: str, label: str) -> None:
    """Make the `x` or `y` axis a full turn in degrees with ticks every 90."""
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    limits(-180, 180)
    axis.set_ticks(np.arange(-180, 181, 90), [f"{int(t)}°".replace("-", "−") for t in np.arange(-180, 181, 90)])
    axis.set_label_text(label)
