"""The pictures of a report: each function takes arrays and gives a figure."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openmm_cgflow.analysis.basins import Basin
from openmm_cgflow.analysis.free_energy import KNOWN, Array, FreeEnergy1D, FreeEnergy2D, weighted_histogram
from openmm_cgflow.analysis.style import BLUE, CYCLE, GREY, ORANGE, angle_axis, figure, pretty, theme

__all__ = [
    "plot_curves",
    "plot_difference",
    "plot_energies",
    "plot_errors",
    "plot_free_energies",
    "plot_log_weights",
    "plot_surface",
]

F_LABEL = r"$F$ (kJ mol$^{-1}$)"
ROOF = 40.0
"""Free energies above this are not drawn, kJ/mol (16 kT at room temperature)."""


def plot_surface(surface: FreeEnergy2D, names: tuple[str, str], basins: Sequence[Basin] = ()) -> Figure:
    """A Ramachandran-style picture of a 2-D free energy with the populations of its basins.

    Arguments:
        surface: from `free_energy_2d`.
        names: names of the two torsions.
        basins: those to mark; populations below 0.05 % are left out.

    Returns:
        The figure.
    """
    grid = np.degrees(np.append(surface.grid, np.pi))
    values, visits = (np.pad(t, ((0, 1), (0, 1)), mode="wrap").T for t in (surface.smooth, surface.visits))
    top = max(4.0, 4 * math.ceil(min(float(values[visits > KNOWN].max()), ROOF) / 4))
    shown = np.minimum(values, top + 10)
    with theme():
        made = figure(5.75, 4.7)
        axes = made.add_subplot()
        filled = axes.contourf(grid, grid, shown, np.arange(0, top + 1, 2), cmap="viridis", extend="max")
        axes.contour(grid, grid, shown, np.arange(4, top + 1, 4), colors="white", linewidths=0.5, alpha=0.6)
        axes.contourf(grid, grid, visits, [-np.inf, KNOWN], colors=["#F1F2F4"], zorder=2.1)
        axes.contour(grid, grid, visits, [KNOWN], colors="#9CA3AF", linewidths=0.6, zorder=2.2)
        bar = made.colorbar(filled, ax=axes, pad=0.02, fraction=0.05)
        bar.set_label(F_LABEL)
        bar.set_ticks(list(np.arange(0, top + 1, 4)))
        bar.outline.set_visible(False)
        bar.ax.grid(False)
        for basin in basins:
            if basin.population >= 5e-4:
                _mark(axes, basin)
        _plane(axes, names)
    return made


def _plane(axes: Axes, names: tuple[str, str]) -> None:
    """Axes of two torsions, framed on all sides."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    axes.grid(False)
    angle_axis(axes, "x", pretty(names[0]))
    angle_axis(axes, "y", pretty(names[1]))


def _mark(axes: Axes, basin: Basin) -> None:
    """Put a dot at the minimum and the population beside it, on the side that has room."""
    x, y = (math.degrees(a) for a in basin.minimum)
    right = x < 70
    percent, error = 100 * basin.population, 100 * basin.error
    digits = 0 if error >= 1 else 1 if error >= 0.1 else 2
    halo = [patheffects.withStroke(linewidth=2.4, foreground="#111827")]
    axes.plot(x, y, "o", ms=4.5, zorder=3, mfc="white", mec="#111827", mew=0.9)
    axes.annotate(
        f"{percent:.{digits}f} ± {error:.{digits}f} %" if error else f"{percent:.2g} %",
        (x, y),
        xytext=(6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color="white",
        fontsize=8.5,
        fontweight="bold",
        path_effects=halo,
    )


def plot_free_energies(
    names: Sequence[str],
    reweighted: Sequence[FreeEnergy1D],
    raw: Sequence[FreeEnergy1D],
    exact: tuple[Array, Array] | None = None,
) -> Figure:
    """Free energies along every torsion: reweighted samples with error bars, and the flow's own.

    Arguments:
        names: one for each torsion.
        reweighted: from weighted samples; drawn with error bars of one standard error.
        raw: from the samples without weights: the flow's marginal density.
        exact: for a single torsion, its angles (rad) and the flow's free energy (kJ/mol) on a fine grid.

    Returns:
        The figure.
    """
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with theme():
        made = figure(max(5.4, 3.5 * columns), 2.7 * rows + 0.45)
        panels = made.subplots(rows, columns, squeeze=False, sharey=True, gridspec_kw={"wspace": 0.08})
        for axes, name, weighted, flow in zip(panels.flat, names, reweighted, raw, strict=False):
            flow_values = np.where(flow.values <= ROOF, flow.values, np.nan)
            if exact is None:
                axes.step(np.degrees(flow.grid), flow_values, where="mid", color=ORANGE, lw=1.4, label="flow")
            else:
                axes.plot(np.degrees(exact[0]), exact[1] - exact[1].min(), color=ORANGE, lw=1.6, label="flow (exact)")
            known = weighted.values <= ROOF
            axes.errorbar(
                np.degrees(weighted.grid[known]),
                weighted.values[known],
                np.minimum(weighted.errors[known], ROOF),
                fmt="o",
                ms=2.6,
                color=BLUE,
                ecolor=BLUE,
                elinewidth=0.9,
                label="reweighted ± 1 s.e.",
            )
            angle_axis(axes, "x", pretty(name))
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        highest = max(float(np.max(f.values[f.values <= ROOF])) for f in reweighted)
        panels[0, 0].set_ylim(-0.04 * highest - 0.3, 1.12 * highest + 1)
        for row in panels:
            row[0].set_ylabel(F_LABEL)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper center", ncols=2)
    return made


def plot_curves(names: Sequence[str], curves: Sequence[tuple[str, Sequence[FreeEnergy1D]]]) -> Figure:
    """Free energies along every torsion, by one or more models.

    Arguments:
        names: one for each torsion.
        curves: what each model is called, and its free energy along each torsion; errors above zero are drawn as bars.

    Returns:
        The figure.
    """
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    highest = max(float(f.values[f.values <= ROOF].max()) for _, along in curves for f in along)
    with theme():
        made = figure(max(5.4, 3.5 * columns), 2.7 * rows + 0.45)
        panels = made.subplots(rows, columns, squeeze=False, sharey=True, gridspec_kw={"wspace": 0.08})
        for k, (axes, name) in enumerate(zip(panels.flat, names, strict=False)):
            for (label, along), color, style in zip(curves, CYCLE, ("-", (0, (4, 2))), strict=False):
                values = np.where(along[k].values <= ROOF, along[k].values, np.nan)
                axes.plot(np.degrees(along[k].grid), values, color=color, ls=style, lw=1.6, label=label)
                if np.nanmax(along[k].errors) > 0:
                    low, high = values - along[k].errors, values + along[k].errors
                    axes.fill_between(np.degrees(along[k].grid), low, high, color=color, alpha=0.25, lw=0)
            angle_axis(axes, "x", pretty(name))
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        panels[0, 0].set_ylim(-0.04 * highest - 0.3, 1.12 * highest + 1)
        for row in panels:
            row[0].set_ylabel(F_LABEL)
        if len(curves) > 1:
            made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves))
    return made


def plot_difference(difference: Array, grid: Array, names: tuple[str, str]) -> Figure:
    """By how much two free energies over two torsions differ.

    Arguments:
        difference: `(bins, bins)`, kJ/mol; NaN where it is not to be shown.
        grid: as that of a `FreeEnergy2D`.
        names: names of the two torsions.

    Returns:
        The figure, whose colours end at 2 kJ/mol at least, and at the difference that a hundredth of it is above.
    """
    turn = np.degrees(np.append(grid, np.pi))
    values = np.ma.masked_invalid(np.pad(difference, ((0, 1), (0, 1)), mode="wrap").T)
    top = max(2.0, math.ceil(float(np.nanquantile(np.abs(difference), 0.99))))
    with theme():
        made = figure(5.75, 4.7)
        axes = made.add_subplot()
        axes.set_facecolor("#F1F2F4")
        levels = np.linspace(-top, top, 17)
        filled = axes.contourf(turn, turn, values, levels, cmap="RdBu_r", extend="both")
        bar = made.colorbar(filled, ax=axes, pad=0.02, fraction=0.05)
        bar.set_label(r"$\Delta F$ (kJ mol$^{-1}$)")
        bar.set_ticks(list(np.linspace(-top, top, 5)))
        bar.outline.set_visible(False)
        bar.ax.grid(False)
        _plane(axes, names)
    return made


def plot_errors(errors: Array) -> Figure:
    """Histogram of errors of an energy in kT, less their mean, `(n,)`; those beyond the 0.5 % at either end are cut."""
    low, high = np.quantile(errors, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), 61)
    with theme():
        made = figure(5.6, 3.7)
        axes = made.add_subplot()
        density, _ = weighted_histogram(errors, edges)
        axes.stairs(density, edges, color=BLUE, fill=True, alpha=0.3)
        axes.stairs(density, edges, color=BLUE, lw=1.3)
        axes.axvline(0, color=GREY, lw=1, ls=(0, (4, 3)))
        axes.set_xlabel("energy of the force field less that of the flow, $kT$")
        axes.set_ylabel("probability density")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.text(
            0.97, 0.95, f"rms {errors.std():.3f} $kT$", transform=axes.transAxes, ha="right", va="top", fontsize=9,
        )  # fmt: skip
    return made


def plot_energies(energies: Array, weights: Array) -> Figure:
    """Histogram of potential energies: what the flow draws, and what the weights make of it.

    Arguments:
        energies: `(n,)`, kJ/mol.
        weights: `(n,)`, normalised.

    Returns:
        The figure; it says how many samples lie beyond its right edge.
    """
    finite = np.isfinite(energies)
    order = np.argsort(energies[finite])
    sorted_energies, cumulative = energies[finite][order], np.cumsum(weights[finite][order])
    low = float(sorted_energies[0])
    boltzmann = float(sorted_energies[np.searchsorted(cumulative, 0.9999).clip(0, order.size - 1)])
    top = max(boltzmann, min(float(np.quantile(sorted_energies, 0.98)), 2 * boltzmann - low))
    edges = np.linspace(low, max(top, low + 1e-6), 71)
    beyond = float(np.mean(~finite | (energies > edges[-1])))
    safe = np.where(finite, energies, np.inf)
    with theme():
        made = figure(5.6, 3.7)
        axes = made.add_subplot()
        raw, _ = weighted_histogram(safe, edges)
        density, error = weighted_histogram(safe, edges, weights)
        axes.stairs(raw, edges, color=ORANGE, fill=True, alpha=0.3)
        axes.stairs(raw, edges, color=ORANGE, lw=1.3, label="flow samples")
        axes.stairs(density, edges, color=BLUE, lw=1.6, label="reweighted ± 1 s.e.")
        centres = (edges[:-1] + edges[1:]) / 2
        axes.errorbar(centres, density, error, fmt="none", ecolor=BLUE, elinewidth=0.9)
        axes.set_xlabel(r"potential energy $U$ (kJ mol$^{-1}$)")
        axes.set_ylabel(r"probability density (mol kJ$^{-1}$)")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        note = f"{100 * beyond:.1f} % of the flow's\nsamples lie further right" if beyond >= 5e-4 else None
        axes.legend(title=note, title_fontsize=8.5, alignment="left", loc="upper right")
    return made


def plot_log_weights(log_weights: Array, log_z: float) -> Figure:
    """Histogram of log-weights about log Z, and which of them the averages are made of.

    Arguments:
        log_weights: `(n,)`; minus infinity is left out.
        log_z: the logarithm of their mean.

    Returns:
        The figure.
    """
    x = log_weights[np.isfinite(log_weights)] - log_z
    share = np.exp(x - x.max())
    low = float(max(x.min(), np.quantile(x, 0.01) - 1))
    high = float(x.max()) + 0.03 * (float(x.max()) - low) + 0.1
    right = low + 0.75 * (high - low) > 0
    with theme():
        made = figure(5.6, 3.7)
        axes = made.add_subplot()
        edges = np.linspace(low, high, 71)
        counts, _ = weighted_histogram(x, edges)
        carried, _ = weighted_histogram(x, edges, share)
        axes.stairs(counts, edges, color=ORANGE, fill=True, alpha=0.3)
        axes.stairs(counts, edges, color=ORANGE, lw=1.3, label="share of the samples")
        axes.stairs(carried, edges, color=BLUE, lw=1.6, label="share of the total weight")
        axes.axvline(0, color=GREY, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            "exact flow", (0, 1), xytext=(4 if right else -4, -4), textcoords="offset points",
            xycoords=("data", "axes fraction"), ha="left" if right else "right", va="top", fontsize=8.5, color=GREY,
        )  # fmt: skip
        axes.set_xlabel(r"log-weight, $\ln w - \ln Z$")
        axes.set_ylabel("probability density")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.08 * max(counts.max(), carried.max()))
        axes.legend(loc="upper left")
    return made
