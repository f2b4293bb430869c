"""Training curves: ESS, log Z and loss against evaluations and seconds, by stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from openmm_cgflow.analysis.free_energy import Array
from openmm_cgflow.analysis.style import CYCLE, figure, theme

__all__ = ["curve", "plot_training"]

Row = Mapping[str, Any]
"""A row of a training history: stage, seconds, evaluations, ess, logZ, loss, beta; any value may be None."""

ROWS = (("ess", "ESS (%)", 100.0), ("logZ", r"$\ln Z$", 1.0), ("loss", "loss above the\nstage's lowest", 1.0))
COLUMNS = (("evaluations", "energy evaluations"), ("seconds", "time (s)"))


def curve(history: Sequence[Row], x: str, y: str) -> tuple[Array, Array]:
    """Two columns of a training history, without the rows in which either is missing or not finite.

    Arguments:
        history: rows with the keys stage, seconds, evaluations, ess, logZ, loss, beta; any value may be None.
        x: key of the first column.
        y: key of the second column.

    Returns:
        Two arrays of one length.
    """
    pairs = [(row.get(x), row.get(y)) for row in history]
    known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
    table = np.array(known, dtype=np.float64).reshape(-1, 2)
    table = table[np.all(np.isfinite(table), axis=1)]
    return table[:, 0], table[:, 1]


def plot_training(history: Sequence[Row]) -> Figure:
    """ESS, log Z and loss against evaluations (left) and seconds (right); one colour a stage.

    Losses are drawn from the lowest of their stage, for those of two stages have different zeros.

    Arguments:
        history: rows as in `curve`. Quantities that no row has get no panel.

    Returns:
        The figure.
    """
    rows = [r for r in ROWS if len(curve(history, "evaluations", r[0])[0])] or list(ROWS[:1])
    stages = list(dict.fromkeys(str(row.get("stage")) for row in history if any(_known(row, r[0]) for r in rows)))
    with theme():
        made = figure(8.6, 1.95 * len(rows) + 0.8)
        panels = made.subplots(len(rows), 2, squeeze=False, sharex="col", sharey="row")
        for (key, label, factor), line in zip(rows, panels, strict=True):
            line[0].set_ylabel(label)
            drawn = []
            for axes, (x_key, _) in zip(line, COLUMNS, strict=True):
                for number, stage in enumerate(stages):
                    part = [row for row in history if str(row.get("stage")) == stage]
                    x, y = curve(part, x_key, key)
                    if key == "loss" and len(y):  # the losses of two stages have different zeros
                        y = y - y.min()
                    drawn.append(factor * y)
                    dots = {"marker": "o", "ms": 2.5} if len(x) < 40 else {}
                    axes.plot(x, factor * y, color=CYCLE[number % len(CYCLE)], lw=1.5, **dots)
            _limit(line[0], np.concatenate(drawn), key)
        for axes, (_, label) in zip(panels[-1], COLUMNS, strict=True):
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        panels[-1, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
        handles = [panels[0, 0].plot([], [], color=CYCLE[k % len(CYCLE)])[0] for k in range(len(stages))]
        made.legend(
            handles,
            [stage.replace("_", " ") for stage in stages],
            loc="outside upper center",
            ncols=min(5, len(stages)),
        )
    return made


def _known(row: Row, key: str) -> bool:
    return len(curve([row], "evaluations", key)[0]) > 0


def _limit(axes: Axes, values: Array, key: str) -> None:
    """Keep one wild early value from flattening the rest of the curve."""
    if len(values) == 0:
        return
    if key == "ess":
        axes.set_ylim(0, max(5.0, 1.08 * float(values.max())))
        return
    low, high = np.quantile(values, [0.02, 0.98])
    margin = 0.12 * (high - low) + 1e-3 * max(1.0, abs(high))
    axes.set_ylim(low - margin, high + margin)
