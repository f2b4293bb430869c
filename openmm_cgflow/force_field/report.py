"""Pictures and one HTML page about a coarse-grained force field, beside the flow that it follows if there is one."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from openmm_cgflow.analysis.basins import basins
from openmm_cgflow.analysis.free_energy import Array, FreeEnergy1D, FreeEnergy2D, free_energy_1d
from openmm_cgflow.analysis.html import page, report_page
from openmm_cgflow.analysis.plots import plot_curves, plot_difference, plot_errors, plot_surface
from openmm_cgflow.analysis.report import BARRIER_KT
from openmm_cgflow.analysis.style import save_png
from openmm_cgflow.analysis.summary import duration, molecule, versions
from openmm_cgflow.compute import seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import MismatchError
from openmm_cgflow.force_field.force_field import CGForceField
from openmm_cgflow.forcematching import BeadMarginal, judge_beads
from openmm_cgflow.storage import write_whole
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import KB, in_kelvin

__all__ = ["report_force_field"]

_BINS = 72
_POINTS = 60_000
_FINE = 3  # points of a cell along each axis, at which a flow's density is taken
_WALKERS, _STEPS, _EVERY = 200, 5_000, 50
_COMPARED = 5_000  # frames of a flow at which energies are compared
_FAR_KT = 8.0  # free energies above this are not compared
_GOOD_JS, _GOOD_KT = 0.01, 0.5

Pictures = list[tuple[Path, str, bool]]


@dataclass
class _Page:
    """What is gathered for the page: rows of the summary, the table of basins, pictures, and whether all is well."""

    folder: Path
    rows: list[tuple[str, str]]
    cells: list[tuple[str, ...]]
    pictures: Pictures
    verdict: str = ""
    good: bool = True

    def add(self, drawn: Figure, name: str, caption: str, wide: bool = False) -> None:
        """Write a picture and put it on the page."""
        path = self.folder / name
        save_png(drawn, path)
        self.pictures.append((path, caption, wide))


def report_force_field(
    force_field: CGForceField, out_dir: str | Path, flow: TrainedFlow | None = None, command: str | None = None
) -> Path:
    """Write PNG pictures and one self-contained `report.html` about a coarse-grained force field.

    With one or two torsions, free energies are those of `judge_beads`, without a simulation; with more, those of 200
    walkers that move for 10 ps.

    Arguments:
        force_field: the force field.
        out_dir: folder; it is made if it does not exist, files of the same names are replaced.
        flow: a flow of the same beads, to be set beside it: its teacher, for instance.
        command: the command line to put into the table.

    Returns:
        Path of the page.

    Raises:
        InvalidInputError: if the folder cannot be written.
        MismatchError: if the flow is of other beads or of another temperature.

    Example:
        report_force_field(CGForceField.load("model.cgff"), "report", CGFlow.load("model.cgflow"))
    """
    if flow is not None:
        _check(force_field, flow)
    folder = Path(out_dir)
    with report_page(folder) as path:
        made = _Page(folder, _what_it_is(force_field, command), [], [])
        fitted = force_field.fitted
        made.verdict = f"Energies are off by {fitted.energy_error:.2f} kT at points that were held out of the fit. "
        made.good = fitted.energy_error < _GOOD_KT
        if force_field.student.coordinates.sizes[0] in (1, 2):
            same = flow is not None and _slow_names(flow.coordinates.bead_coordinates()) == _names(force_field)
            if flow is not None and not same:
                made.rows.append(("torsions of the flow", "others are slow than in the force field: not compared"))
            _exact(made, force_field, flow if same else None)
        elif force_field.constraints:
            made.rows.append(("torsions", "not shown: beads are constrained, which walkers cannot keep"))
        elif force_field.student.coordinates.sizes[0]:
            _by_walkers(made, force_field, flow)
        if flow is not None:
            _energies(made, force_field, flow)
        columns = ("torsions", "minimum", "F (kJ/mol)", "population")
        html = page(
            title=f"Force field of {molecule(force_field.topology)} at {in_kelvin(force_field.temperature):g} K",
            verdict=made.verdict.strip(),
            good=made.good,
            rows=made.rows,
            tables=[("Basins of the force field", columns, made.cells)] if made.cells else [],
            pictures=made.pictures,
        )
        write_whole(path, html.encode())
    return path


def _check(force_field: CGForceField, flow: TrainedFlow) -> None:
    flow.beads.check(list(force_field.topology.atoms()))
    ours, theirs = in_kelvin(force_field.temperature), in_kelvin(flow.temperature)
    if abs(ours - theirs) > 0.01:
        raise MismatchError(f"the force field is of {ours:g} K, the flow of {theirs:g} K: give a flow of {ours:g} K")


def _what_it_is(force_field: CGForceField, command: str | None) -> list[tuple[str, str]]:
    fitted, coordinates = force_field.fitted, force_field.student.coordinates
    names = [f"{atom.residue.name}{atom.residue.id}:{atom.name}" for atom in force_field.topology.atoms()]
    kelvin = in_kelvin(force_field.temperature)
    weights = sum(p.numel() for p in force_field.student.parameters())
    rows = [
        ("beads", f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"),
        ("masses", f"{min(force_field.masses):.2f} to {max(force_field.masses):.2f} dalton"),
        ("constraints between beads", str(len(force_field.constraints) or "none")),
        ("internal coordinates", f"{coordinates.dof}, of which {coordinates.sizes[0]} are slow torsions"),
        ("temperature", f"{kelvin:g} K (kT = {KB * kelvin:.4f} kJ/mol)"),
        ("energy", f"{type(force_field.student).__name__}, {weights:,} weights"),
        ("fit", f"{fitted.points:,} points, {fitted.steps:,} steps, seed {fitted.seed}, {duration(fitted.seconds)}"),
        ("error of energies, held out", f"{fitted.energy_error:.3f} kT"),
        ("error of forces, held out", f"{fitted.force_error:.3f} (units of kT over the spread of each coordinate)"),
        ("versions", versions()),
    ]
    return [*rows, ("command", command)] if command else rows


def _names(force_field: CGForceField) -> list[str]:
    return _slow_names(force_field.student.coordinates)


def _slow_names(coordinates: InternalCoordinates) -> list[str]:
    return coordinates.names[: coordinates.sizes[0]]


def _exact(made: _Page, force_field: CGForceField, flow: TrainedFlow | None) -> None:
    """Free energies of one or two torsions by importance sampling."""
    names, kT = _names(force_field), KB * in_kelvin(force_field.temperature)
    coordinates = force_field.student.coordinates if flow is None else flow.coordinates.bead_coordinates().cpu()
    bead_flow = None if flow is None else flow.flow.bead_flow
    found = judge_beads(force_field.student, bead_flow, coordinates, kT, bins=_BINS, n=_POINTS)
    made.rows.append(("torsions", f"by importance sampling without a simulation, ESS {100 * found.ess:.0f} %"))
    made.rows += [
        (f"{name} > 0", f"{100 * found.population(k):.2f} %{_beside(flow, k)}") for k, name in enumerate(names)
    ]
    curves = [("force field", _along(found.probabilities, kT))]
    if flow is not None:
        of_flow = _probabilities(flow)
        curves.append(("flow", _along(of_flow, kT)))
        made.rows += _divergences(found, of_flow)
        js = found.js(of_flow)
        made.verdict = f"The torsions' Jensen-Shannon divergence from the flow is {js:.4f} nats. " + made.verdict
        made.good = made.good and js < _GOOD_JS
    if len(names) == 2:
        _surface(made, found.probabilities, (names[0], names[1]), kT)
        if flow is not None:
            _difference(made, found.probabilities, of_flow, (names[0], names[1]), kT)
    caption = "Free energy along each torsion" + (
        "." if flow is None else ": the force field and the flow, both exact."
    )
    made.add(plot_curves(names, curves), "free_energy_torsions.png", caption, True)


def _beside(flow: TrainedFlow | None, axis: int) -> str:
    return "" if flow is None else f" ({100 * float(_upper(_probabilities(flow), axis)):.2f} % of the flow)"


def _upper(probabilities: Array, axis: int) -> float:
    return float(np.moveaxis(probabilities, axis, 0)[len(probabilities) // 2 :].sum())


def _divergences(found: BeadMarginal, of_flow: Array) -> list[tuple[str, str]]:
    return [
        ("torsions: Jensen-Shannon divergence from the flow", f"{found.js(of_flow):.5f} nats"),
        ("torsions: free energy, mean squared error", f"{found.free_energy_mse(of_flow):.4f} (kcal/mol)^2"),
        ("all coordinates: KL(flow || force field)", f"{found.kl:.4f} nats"),
    ]


@torch.no_grad()
def _probabilities(flow: TrainedFlow) -> Array:
    """Of the cells of the grid by a flow's own density of its torsions."""
    n_slow = flow.coordinates.sizes[0]
    count = _BINS * _FINE
    axis = -math.pi + 2 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    points = torch.cartesian_prod(*[axis] * n_slow).reshape(-1, n_slow)
    energy = flow.freeEnergy(points.numpy())._value
    density = np.exp(-energy / flow.target.kT).reshape((_BINS, _FINE) * n_slow)
    table = density.sum(axis=tuple(range(1, 2 * n_slow, 2)))
    return table / table.sum()


def _along(probabilities: Array, kT: float) -> list[FreeEnergy1D]:
    """Free energies along each torsion."""
    grid = -np.pi + 2 * np.pi * (np.arange(_BINS) + 0.5) / _BINS
    found = []
    for axis in range(probabilities.ndim):
        share = np.moveaxis(probabilities, axis, 0).reshape(_BINS, -1).sum(1)
        with np.errstate(divide="ignore"):
            values = -kT * np.log(share / share.max())
        found.append(FreeEnergy1D(grid, values, np.zeros(_BINS)))
    return found


def _at_corners(probabilities: Array) -> Array:
    """The density at the corners of cells, rad^-2: the mean of the four around each."""
    around = [np.roll(probabilities, (i, j), (0, 1)) for i in (0, 1) for j in (0, 1)]
    return np.mean(around, axis=0) * (_BINS / (2 * np.pi)) ** 2


def _surface(made: _Page, probabilities: Array, names: tuple[str, str], kT: float) -> None:
    grid = np.linspace(-np.pi, np.pi, _BINS, endpoint=False)
    density = np.maximum(_at_corners(probabilities), 1e-30)
    surface = FreeEnergy2D(grid, density, np.ones_like(density), 0.0, kT / KB)
    corners = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    found = [
        replace(basin, error=0.0)
        for basin in basins(surface.values, grid, corners, BARRIER_KT * kT, density.ravel())
        if basin.population > 1e-5
    ]
    made.add(
        plot_surface(surface, names, found),
        "free_energy_surface.png",
        f"Free energy of the force field over {names[0]} and {names[1]}; dots: minima and populations of basins.",
    )
    for basin in found:
        place = ", ".join(f"{math.degrees(a):.0f}°" for a in basin.minimum)
        made.cells.append(
            (f"{names[0]}, {names[1]}", place, f"{basin.free_energy + 0.0:.1f}", f"{100 * basin.population:.3g} %")
        )


def _difference(made: _Page, probabilities: Array, of_flow: Array, names: tuple[str, str], kT: float) -> None:
    ours, theirs = (_at_corners(p) for p in (probabilities, of_flow))
    seen = theirs > theirs.max() * math.exp(-_FAR_KT)
    with np.errstate(divide="ignore"):
        difference = np.where(seen, -kT * np.log(ours / np.where(seen, theirs, 1.0)), np.nan)
    grid = np.linspace(-np.pi, np.pi, _BINS, endpoint=False)
    made.add(
        plot_difference(difference, grid, names),
        "free_energy_difference.png",
        f"Free energy of the force field less that of the flow, where the flow's is below {_FAR_KT:g} kT.",
    )


def _by_walkers(made: _Page, force_field: CGForceField, flow: TrainedFlow | None) -> None:
    """Free energies of more than two torsions by a short simulation of many copies."""
    names, kelvin = _names(force_field), in_kelvin(force_field.temperature)
    n_slow, coordinates = len(names), force_field.student.coordinates
    if flow is None:
        start, what = np.repeat(force_field.positions._value[None], _WALKERS, 0), "one structure"
    else:
        drawn = flow.sample(_WALKERS, seed=0).positions
        start, what = drawn[:, flow.coordinates.bead_atoms], "frames of the flow"
    frames = force_field.createWalkers(start, device="cpu").run(_STEPS, every=_EVERY)
    kept = frames[len(frames) // 5 :]
    q = coordinates.to_internal(kept.reshape(-1, *kept.shape[2:]).double())[0][:, :n_slow]
    angles = q.reshape(*kept.shape[:2], n_slow).numpy()
    curves = [("force field", [_with_errors(angles[:, :, k], kelvin) for k in range(n_slow)])]
    if flow is not None:
        own = flow.coordinates.bead_coordinates().cpu()  # whose slow torsions may be others
        drawn_q = flow.flow.bead_flow.sample(_COMPARED, seeded(0)).value.cpu().double()
        slow = coordinates.to_internal(own.to_cartesian(drawn_q)[0])[0][:, :n_slow].detach().numpy()
        curves.append(("flow", [free_energy_1d(slow[:, k], kelvin, bins=36) for k in range(n_slow)]))
    picoseconds = 0.002 * _STEPS
    made.rows.append(("torsions", f"by {_WALKERS} walkers from {what}, {picoseconds:g} ps each in steps of 2 fs"))
    made.add(
        plot_curves(names, curves),
        "free_energy_torsions.png",
        f"Free energy along each torsion, by {_WALKERS} walkers that started from {what} and moved for "
        f"{picoseconds:g} ps, with standard errors over walkers: what a short simulation reaches.",
        True,
    )


def _with_errors(angles: Array, kelvin: float, bins: int = 36) -> FreeEnergy1D:
    """A free energy of `angles (frames, walkers)`, with standard errors over walkers, which do not see one another."""
    whole = free_energy_1d(angles.ravel(), kelvin, bins=bins)
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    share = np.stack([np.histogram(column, edges)[0] for column in angles.T]) / len(angles)
    mean, error = share.mean(0), share.std(0) / math.sqrt(len(share))
    with np.errstate(divide="ignore", invalid="ignore"):
        return replace(whole, errors=np.where(mean > 0, KB * kelvin * error / mean, np.nan))


@torch.no_grad()
def _energies(made: _Page, force_field: CGForceField, flow: TrainedFlow) -> None:
    """Energies of the force field less those of the flow, at the flow's own beads."""
    coordinates = flow.coordinates.bead_coordinates().cpu()
    drawn = flow.flow.bead_flow.sample(_COMPARED, seeded(0))
    q, log_prob = (t.cpu().double() for t in (drawn.value, drawn.log_prob))
    x, log_measure = coordinates.to_cartesian(q)
    inside = coordinates.in_domain(q)
    energy = force_field.student(x.contiguous()) / (KB * in_kelvin(force_field.temperature))
    off = (energy - (log_measure - log_prob))[inside].numpy()
    off = off - off.mean()
    made.rows.append(("energies at beads of the flow", f"off by {off.std():.3f} kT"))
    caption = f"Error of the energy at {len(off):,} frames of beads that the flow drew."
    made.add(plot_errors(off), "energy_errors.png", caption)
