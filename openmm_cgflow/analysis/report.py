"""Pictures and one HTML page about a trained flow and samples of it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openmm_cgflow.analysis.basins import Basin, basins
from openmm_cgflow.analysis.free_energy import Array, FreeEnergy2D, effective_size, free_energy_1d, free_energy_2d
from openmm_cgflow.analysis.html import page, report_page
from openmm_cgflow.analysis.plots import plot_energies, plot_free_energies, plot_log_weights, plot_surface
from openmm_cgflow.analysis.style import save_png
from openmm_cgflow.analysis.summary import coverage_rows, covered, molecule, summary, torsion_labels
from openmm_cgflow.analysis.training_curves import plot_training
from openmm_cgflow.analysis.views import View, views_section
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.sampling import Samples, trust
from openmm_cgflow.storage import write_whole
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import KB

__all__ = ["report", "torsion_pairs"]

BARRIER_KT = 1.0
"""Basins less deep than this (in kT) count as part of their neighbour."""

MOST_VIEWS = 8
"""Structures on a page, of which each takes a WebGL context; browsers allow sixteen."""


def torsion_pairs(names: Sequence[str], atoms: Sequence[Sequence[int]], most: int = 4) -> list[tuple[int, int]]:
    """Pairs of torsions worth a two-dimensional picture.

    Neighbours, whose central bonds share an atom, come first (phi and psi of one residue before any other); then
    torsions that follow one another in the list.

    Arguments:
        names: `n` names.
        atoms: the four atom indices of each torsion.
        most: largest number of pairs.

    Returns:
        Pairs of indices, the earlier torsion first, in the order of the torsions.
    """

    def rank(pair: tuple[int, int]) -> tuple[bool, bool, int]:
        i, j = pair
        touching = bool(set(atoms[i][1:3]) & set(atoms[j][1:3]))
        kinds = [names[k].rpartition(":")[2].lower() for k in pair]
        ramachandran = kinds[0].startswith("phi") and kinds[1].startswith("psi")
        return not (touching and ramachandran), not touching, i

    pairs = [
        (i, j)
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if j == i + 1 or set(atoms[i][1:3]) & set(atoms[j][1:3])
    ]
    return sorted(sorted(pairs, key=rank)[:most])


def report(flow: TrainedFlow, samples: Samples, out_dir: str | Path, command: str | None = None) -> Path:
    """Write PNG pictures and one self-contained `report.html` about a flow and its samples.

    Arguments:
        flow: a trained `CGFlow`.
        samples: `Samples` of it, at least two with finite energies.
        out_dir: folder; it is made if it does not exist, files of the same names are replaced.
        command: the command line to put into the table.

    Returns:
        Path of the page.

    Raises:
        InvalidInputError: fewer than two samples have a finite energy, or the folder cannot be written.
        MismatchError: the samples are of another molecule, or with other slow torsions.
    """
    ours, theirs = (flow.topology.getNumAtoms(), *flow.slow_names), (samples.positions.shape[1], *samples.slow_names)
    if ours != theirs:
        raise MismatchError(
            f"report: the samples are of {theirs[0]} atoms with the slow torsions {', '.join(theirs[1:]) or 'none'}, "
            f"the flow of {ours[0]} with {', '.join(ours[1:]) or 'none'}: give samples of this flow."
        )
    usable = int(np.isfinite(samples.log_weights).sum())
    if usable < 2:
        raise InvalidInputError(
            f"a report needs at least 2 samples with finite energies, these have {usable}: sample more"
        )
    folder = Path(out_dir)
    with report_page(folder) as path:
        surfaces, cells, views = _surfaces(flow, samples, folder)
        pictures = [*surfaces, *_torsions(flow, samples, folder), *_weights(samples, folder), *_training(flow, folder)]
        columns = ("torsions", "minimum", "F (kJ/mol)", "population", "± s.e.")
        verdict = trust(samples.khat, samples.n, covered(flow))
        html = page(
            title=f"{molecule(flow.topology)} at {samples.temperature:g} K",
            verdict=f"ESS {100 * samples.ess:.1f} % of {samples.n:,} samples; {verdict}. "
            + " ".join(f"{label.capitalize()}: {text}." for label, text in coverage_rows(flow)[:1]),
            good=covered(flow) is not False and samples.trustworthy,
            rows=summary(flow, samples, command),
            tables=[("Basins, by reweighted samples", columns, cells)] if cells else [],
            pictures=pictures,
            views=views_section("Structures", flow.topology, views or [_likeliest(samples)]),
        )
        write_whole(path, html.encode())
    return path


def _likeliest(samples: Samples) -> View:
    """The sample of the lowest energy."""
    lowest = int(np.argmin(np.where(np.isfinite(samples.log_weights), samples.reduced_energies, np.inf)))
    return View(samples.positions[lowest], "the sample of the lowest energy")


def _surfaces(
    flow: TrainedFlow, samples: Samples, folder: Path
) -> tuple[list[tuple[Path, str, bool]], list[tuple[str, ...]], list[View]]:
    """A picture, the lines of the table of basins, and a sample of each basin, for each pair of torsions."""
    pictures: list[tuple[Path, str, bool]] = []
    cells: list[tuple[str, ...]] = []
    views: list[View] = []
    labels = torsion_labels(flow)
    pairs = torsion_pairs(labels, flow.slow_torsions)
    for i, j in pairs:
        names = labels[i], labels[j]
        both = samples.slow[:, [i, j]].astype(np.float64)
        surface = free_energy_2d(both[:, 0], both[:, 1], samples.temperature, samples.weights)
        found = _basins(surface, both, samples)
        path = folder / f"free_energy_{_slug(names[0])}_{_slug(names[1])}.png"
        if str(path).lower() in (str(other).lower() for other, *_ in pictures):
            path = path.with_stem(f"{path.stem}_{i + 1}_{j + 1}")
        save_png(plot_surface(surface, names, found), path)
        caption = (
            f"Free energy over {names[0]} and {names[1]} from reweighted samples, smoothed by "
            f"{math.degrees(surface.width):.0f}°; dots: minima and populations of basins; grey: not sampled."
        )
        pictures.append((path, caption, len(pairs) == 1))
        for basin in found:
            place = ", ".join(f"{math.degrees(a):.0f}°" for a in basin.minimum)
            percent = f"{100 * basin.population:.2f} %", f"{100 * basin.error:.2f} %"
            cells.append((f"{names[0]}, {names[1]}", place, f"{max(0.0, basin.free_energy):.1f}", *percent))
            if len(views) < MOST_VIEWS:
                views.append(
                    View(
                        samples.positions[_nearest(both, basin, samples)], f"{', '.join(names)}: {place}, {percent[0]}"
                    )
                )
    return pictures, cells, views


def _nearest(angles: Array, basin: Basin, samples: Samples) -> int:
    """The sample of finite energy whose torsions are nearest to a basin's minimum."""
    apart = (1 - np.cos(angles - np.array(basin.minimum))).sum(1)
    return int(np.argmin(np.where(np.isfinite(samples.log_weights), apart, np.inf)))


def _basins(surface: FreeEnergy2D, angles: Array, samples: Samples) -> list[Basin]:
    barrier = BARRIER_KT * KB * samples.temperature
    found = basins(surface.values, surface.grid, angles, barrier, samples.weights)
    return [basin for basin in found if basin.population > 2 * basin.error or basin.population > 1e-3]


def _torsions(flow: TrainedFlow, samples: Samples, folder: Path) -> list[tuple[Path, str, bool]]:
    """One picture of the free energies along all slow torsions."""
    names = torsion_labels(flow)
    if not names:
        return []
    columns = [samples.slow[:, k].astype(np.float64) for k in range(len(names))]
    bins = 72 if effective_size(samples.weights) >= 3000 else 36
    reweighted = [free_energy_1d(x, samples.temperature, samples.weights, bins) for x in columns]
    raw = [free_energy_1d(x, samples.temperature, None, bins) for x in columns]
    exact = None
    if len(names) == 1:
        grid = np.linspace(-np.pi, np.pi, 361)
        energy = flow.freeEnergy(grid[:, None])
        exact = grid, np.asarray(getattr(energy, "_value", energy), dtype=np.float64).ravel()
    path = folder / "free_energy_torsions.png"
    save_png(plot_free_energies(names, reweighted, raw, exact), path)
    line = "its exact free energy" if exact else "its unweighted samples"
    return [
        (
            path,
            f"Free energy along each slow torsion: reweighted samples with standard errors, the flow by {line}.",
            True,
        )
    ]


def _weights(samples: Samples, folder: Path) -> list[tuple[Path, str, bool]]:
    """Pictures of the energies and of the log-weights."""
    energies = samples.reduced_energies.astype(np.float64) * KB * samples.temperature
    save_png(plot_energies(energies, samples.weights), folder / "energies.png")
    save_png(plot_log_weights(samples.log_weights.astype(np.float64), samples.logZ), folder / "log_weights.png")
    return [
        (folder / "energies.png", "Potential energies of the flow's samples and of the Boltzmann distribution.", False),
        (
            folder / "log_weights.png",
            "Log-weights: a sharp peak at zero is an exact flow; weight far right of it is rare.",
            False,
        ),
    ]


def _training(flow: TrainedFlow, folder: Path) -> list[tuple[Path, str, bool]]:
    """The training curves, if the flow remembers its training."""
    if not flow.history:
        return []
    path = folder / "training.png"
    save_png(plot_training(flow.history), path)
    return [
        (path, "Training: effective sample size, log Z and loss; losses of different stages differ in scale.", True)
    ]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-") or "torsion"
