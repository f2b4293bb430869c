"""How many frames a coarse-grained force field needs: error against number of frames, for flow-matching and others.

    python examples/benchmarks/data_efficiency.py             # hours on one core; goes on where it stopped
    python examples/benchmarks/data_efficiency.py --quick     # 300 frames, small budgets: does it run?
    python examples/benchmarks/data_efficiency.py --methods flow forces --frames 300 1000 --sets 1
    python examples/benchmarks/data_efficiency.py --show      # only prints and draws what is there

Alanine dipeptide in OBC1, five beads. Frames are independent ones, drawn from the shipped flow and taken by their
weights, with the forces of its potential: three sets of up to 10,000, and one of 30,000. Methods:

    flow        flow-matching of the frames: `CGForceField.fromFrames`
    flow+forces the same, with the forces on the beads by the best linear map
    forces      force matching of the same network by the same forces, with several settings
    entropy     relative entropy minimisation of the same network, by reweighting
    histogram   of the frames themselves
    kernel      density of von Mises kernels on phi, psi; of five widths the best by the test
    data-free   `CGForceField.fromFlow` of the shipped flow, without a frame; three seeds

Each is judged by `judge_beads`, without a simulation, beside the `reweighted_histogram` of a million samples over
60 x 60 bins of phi, psi. Measures: Jensen-Shannon divergence over the bins; mean squared error of the free energy;
population of phi > 0; KL divergence of all nine coordinates of the beads from the flow's.

Of force matching two numbers are given: by the setting whose held-out frames have the least error, and by the one that
is best by the test, chosen anew for each measure and set, in its favour.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullLocator

import openmm_cgflow as cgf
from openmm_cgflow.analysis.style import BLUE, GREY, ORANGE, figure, save_png, theme
from openmm_cgflow.forcematching import (
    BeadMarginal,
    BeadModel,
    DistilSettings,
    EntropySettings,
    FitSettings,
    MatchSettings,
    fit_forces,
    fit_relative_entropy,
    judge_beads,
    optimal_map,
    reweighted_histogram,
    torsion_histogram,
)

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "aldp.cgflow"
RESULTS, FIGURE = HERE / "data_efficiency.json", HERE.parent / "figures" / "data_efficiency.png"
FRAMES = (300, 1_000, 3_000, 10_000, 30_000)
SETS = 3
LARGEST = 10_000
"""Frames of which there are several sets."""
CAP = 1.6
"""Times the mean weight, above which a frame is no likelier to be taken: 0.1 % of the samples."""
BINS = 60
FINE = 5
"""Parts of a bin, by which kernels are drawn."""
WIDTHS = (0.06, 0.09, 0.13, 0.17, 0.22)
"""Of kernels, rad."""
FORCES = {
    "fast": MatchSettings(rate=1e-2, decay=1.0),
    "decay": MatchSettings(rate=3e-3, decay=1.0),
    "loose": MatchSettings(rate=3e-3),
    "slow": MatchSettings(rate=1e-3),
}
"""Settings of force matching."""
MEASURES = {
    "js": "Jensen-Shannon divergence of phi, psi, nats",
    "mse": "mean squared error of the free energy, (kcal/mol)^2",
    "rare": "phi > 0: |log(population / reference)|",
    "kl": "KL divergence of all coordinates, nats",
}


@dataclasses.dataclass
class Bench:
    """What all points have in common.

    Attributes:
        flow: of all atoms.
        model: the beads.
        frames: `(n, beads, 3)`, nm.
        forces: on all atoms, `(n, atoms, 3)`, kJ/mol/nm.
        reference: `(60, 60)` probabilities.
        quick: small budgets.
    """

    flow: cgf.CGFlow
    model: BeadModel
    frames: np.ndarray
    forces: np.ndarray
    reference: np.ndarray
    quick: bool

    def rows(self, n: int, k: int) -> slice:
        """The frames of a set: small sets are the beginning of large ones, and of two numbers none is in both."""
        start = k * LARGEST if n <= LARGEST else SETS * LARGEST + k * n
        return slice(start, start + n)

    def judge(self, energy: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The measures of an energy of beads."""
        beads = self.flow.coordinates.bead_coordinates()
        n = 20_000 if self.quick else 120_000
        found = judge_beads(energy, self.flow.flow.bead_flow, beads, self.flow.target.kT, BINS, n)
        return self.measures(found) | {"kl": found.kl, "ess": found.ess}

    def measures(self, found: BeadMarginal) -> dict[str, float]:
        """Those of the torsions alone."""
        mse = found.free_energy_mse(self.reference)  # infinite where a bin is empty
        both = {"js": found.js(self.reference), "phi": found.population()}
        return both | ({"mse": mse} if math.isfinite(mse) else {})


# ---- frames and reference


def draw(flow: cgf.CGFlow, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent frames of the beads, and the forces on all atoms."""
    frames, forces, count, seed = [], [], 0, 0
    while count < n:
        samples = flow.sample(20_000, seed=5000 + seed)
        taken = np.random.default_rng(seed).random(len(samples)) < samples.weights * len(samples) / CAP
        x = torch.as_tensor(samples.positions[taken], dtype=torch.float64)
        forces.append(flow.potential.energy_and_forces(x)[1].numpy().astype(np.float32))
        frames.append(samples.positions[taken][:, flow.coordinates.bead_atoms])
        count, seed = count + len(x), seed + 1
    return np.concatenate(frames)[:n], np.concatenate(forces)[:n]


def weighted_samples(flow: cgf.CGFlow, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Torsions `(n, 2)` and log-weights `(n,)`."""
    batch = min(n, 100_000)
    parts = [flow.sample(batch, seed=9000 + k) for k in range(n // batch)]
    return np.concatenate([p.slow for p in parts]), np.concatenate([p.log_weights for p in parts])


def prepare(flow: cgf.CGFlow, cache: Path, quick: bool) -> tuple[Bench, dict[str, float]]:
    """Frames and reference, made once and kept; and what is known of the reference."""
    model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
    n_frames, n_samples = (2_000, 40_000) if quick else (SETS * LARGEST + max(FRAMES), 1_000_000)
    if not cache.exists():
        print(f"drawing {n_frames:,} frames and {n_samples:,} samples into {cache}", flush=True)
        frames, forces = draw(flow, n_frames)
        slow, log_weights = weighted_samples(flow, n_samples)
        np.savez(cache, frames=frames, forces=forces, slow=slow, log_weights=log_weights)
    kept = np.load(cache)
    frames, forces, slow, log_weights = (kept[name] for name in ("frames", "forces", "slow", "log_weights"))
    weights, half = np.exp(log_weights - log_weights.max()), len(slow) // 2
    reference, *halves = (
        reweighted_histogram(flow.flow.bead_flow, slow[part], weights[part], BINS)
        for part in (slice(None), slice(half), slice(half, None))
    )
    known = {
        "samples": len(slow),
        "phi": float(reference[BINS // 2 :].sum()),
        "noise": js(*halves) / 4,  # the differences of two halves have four times the variance of the whole's
        "noise of counts": js(torsion_histogram(slow, weights, BINS), reference),
    }
    return Bench(flow, model, frames.astype(float), forces, reference, quick), known


def js(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence, nats."""
    return BeadMarginal(p, math.nan, math.nan, math.nan, 1.0).js(q)


# ---- methods: each gives the measures of one set of frames


def flow_matching(bench: Bench, rows: slice, k: int, forces: np.ndarray | None = None) -> dict:
    """The student of a density of the frames."""
    fit = FitSettings(members=2, steps=100) if bench.quick else None
    settings = DistilSettings(points=5_000, steps=300) if bench.quick else None
    force_field = cgf.CGForceField.fromFrames(
        bench.model,
        bench.frames[rows],
        forces=forces,
        temperature=bench.flow.temperature,
        fit=fit,
        settings=settings,
        seed=k,
    )
    return bench.judge(force_field.student)


def with_forces(bench: Bench, rows: slice, k: int) -> dict:
    """The same, with forces on bonds and angles."""
    return flow_matching(bench, rows, k, mapped(bench, rows))


def data_free(bench: Bench, _: slice, k: int) -> dict:
    """The student of the shipped flow."""
    settings = DistilSettings(points=5_000, steps=300, seed=k) if bench.quick else DistilSettings(seed=k)
    return bench.judge(cgf.CGForceField.fromFlow(bench.flow, settings).student)


def histogram(bench: Bench, rows: slice, _: int) -> dict:
    """The frames themselves."""
    return bench.measures(table(torsion_histogram(torsions(bench, rows), bins=BINS), bench))


def kernel(bench: Bench, rows: slice, _: int) -> dict:
    """Kernels on a grid of a fifth of a bin; of five widths the one with the least divergence."""
    counts = torsion_histogram(torsions(bench, rows), bins=BINS * FINE)
    axis = 2 * math.pi * np.arange(BINS * FINE) / (BINS * FINE)
    found = []
    for width in WIDTHS:
        bump = np.exp((np.cos(axis) - 1) / width**2)
        smooth = np.fft.ifft2(np.fft.fft2(counts) * np.fft.fft2(np.outer(bump, bump))).real.clip(min=1e-300)
        p = smooth.reshape(BINS, FINE, BINS, FINE).sum((1, 3))
        found.append(bench.measures(table(p / p.sum(), bench)) | {"width": width})
    return min(found, key=lambda figures: figures["js"])


def torsions(bench: Bench, rows: slice) -> np.ndarray:
    """Of phi and psi, `(n, 2)`, rad."""
    x = torch.as_tensor(bench.frames[rows])
    return bench.flow.coordinates.bead_coordinates().to_internal(x)[0][:, :2].numpy()


def table(p: np.ndarray, bench: Bench) -> BeadMarginal:
    """Probabilities of which nothing else is known."""
    return BeadMarginal(p, math.nan, math.nan, math.nan, bench.flow.target.kT)


def mapped(bench: Bench, rows: slice) -> np.ndarray:
    """Forces on the beads, by the best linear map of this set."""
    return optimal_map(bench.model, bench.forces[rows])(bench.forces[rows])


def forces_by(name: str) -> Callable[[Bench, slice, int], dict]:
    """Force matching with one of the settings."""

    def method(bench: Bench, rows: slice, k: int) -> dict:
        n, model, kelvin = rows.stop - rows.start, bench.model, bench.flow.temperature
        settings = dataclasses.replace(FORCES[name], steps=steps(n))
        if bench.quick:
            settings = dataclasses.replace(settings, members=1, steps=100)
        found = fit_forces(bench.frames[rows], model, mapped(bench, rows), kelvin, settings, k)
        return bench.judge(found.student) | {"held out": found.held_out}

    return method


def entropy(bench: Bench, rows: slice, k: int) -> dict:
    """Relative entropy minimisation."""
    settings = EntropySettings(steps=steps(rows.stop - rows.start))
    if bench.quick:
        settings = EntropySettings(members=1, steps=100, points=3_000)
    found = fit_relative_entropy(bench.frames[rows], bench.model, bench.flow.temperature, None, settings, k)
    return bench.judge(found.student) | {"held out": found.held_out}


def steps(n: int) -> int:
    """Of the baselines, for so many frames: at 1,000 their held-out frames ask for half of it or less."""
    return round(max(400 * math.sqrt(n / 1000), 250))


METHODS: dict[str, Callable[[Bench, slice, int], dict]] = {
    "histogram": histogram,
    "kernel": kernel,
    "data-free": data_free,
    "flow": flow_matching,
    "flow+forces": with_forces,
    "entropy": entropy,
    **{f"forces-{name}": forces_by(name) for name in FORCES},
}


# ---- results


def read(path: Path) -> dict:
    """The file of results, or none yet."""
    return json.loads(path.read_text()) if path.exists() else {"points": {}}


def write(path: Path, results: dict) -> None:
    """Write it whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def tasks(methods: Iterable[str], frames: Iterable[int], sets: int) -> list[tuple[str, int, int]]:
    """Method, number of frames and set: a whole curve first, then the other sets."""
    found = []
    for k in range(sets):
        found += [("data-free", 0, k)] if "data-free" in methods else []
        for n in sorted(frames):
            if k == 0 or n <= LARGEST:
                found += [(method, n, k) for method in methods if method != "data-free"]
    return found


# ---- what they say


def completed(results: dict) -> dict[str, dict]:
    """All points with the error of the rare basin, and two more of force matching: see above."""
    points, settings = {}, {}
    for key, figures in results["points"].items():
        phi = figures["phi"] / results["reference"]["phi"]
        points[key] = figures | {"rare": abs(math.log(phi)) if phi > 0 else math.inf}
        method, _, rest = key.partition("/")
        if method.startswith("forces-"):
            settings.setdefault(rest, []).append(points[key])
    for rest, tried in settings.items():
        rare = min(tried, key=lambda figures: figures["rare"])
        points[f"forces, held-out/{rest}"] = min(tried, key=lambda figures: figures["held out"])
        points[f"forces, best/{rest}"] = {name: min(figures[name] for figures in tried) for name in MEASURES} | {
            "phi": rare["phi"]
        }
    return points


def curve(points: dict[str, dict], method: str, name: str) -> dict[int, list[float]]:
    """What the sets of each number of frames gave."""
    found: dict[int, list[float]] = {}
    for key, figures in points.items():
        of, n, _ = key.split("/")
        if of == method and math.isfinite(figures.get(name, math.inf)):
            found.setdefault(int(n), []).append(figures[name])
    return dict(sorted(found.items()))


def fewer(own: dict[int, list[float]], other: dict[int, list[float]]) -> dict[int, str]:
    """By how many times fewer frames than another method's one has the same mean error, by its number of frames.

    Between its numbers of frames the logarithm of the error is taken to be linear in that of the number.
    """
    sizes, errors = list(own), np.minimum.accumulate([np.mean(values) for values in own.values()])
    found = {}
    for n, values in other.items():
        error = np.mean(values)
        if error > errors[0]:
            found[n] = f"> {n / sizes[0]:.3g}"
        elif error < errors[-1]:
            found[n] = f"< {n / sizes[-1]:.3g}"
        else:
            log_size = np.interp(-np.log(error), -np.log(errors), np.log(sizes))
            found[n] = f"{n / np.exp(log_size):.3g}"
    return found


def report(results: dict) -> dict[str, dict]:
    """Print means and ranges over sets, and how many fewer frames flow-matching needs; the latter as numbers, too."""
    points, known = completed(results), results["reference"]
    print(
        f"reference: {known['samples']:,} samples, phi > 0 {100 * known['phi']:.3f} %; JS of its noise "
        f"{known['noise']:.1e} nats, of a histogram of the same samples {known['noise of counts']:.1e}"
    )
    methods = [*dict.fromkeys(key.split("/")[0] for key in points)]
    ratios: dict[str, dict] = {}
    for name, title in MEASURES.items():
        print(f"\n{title}: mean (least to largest)")
        for method in methods:
            for n, values in curve(points, method, name).items():
                spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
                print(f"  {method:18s}{n:8,d} frames, {len(values)} sets: {np.mean(values):.3g}{spread}")
        for own in ("flow", "flow+forces"):
            for method in methods:
                mine, others = curve(points, own, name), curve(points, method, name)
                if len(mine) > 1 and others and 0 not in others and not method.startswith(("flow", "forces-")):
                    ratios[f"{own} / {method} / {name}"] = found = fewer(mine, others)
                    times = ", ".join(f"{n:,}: {ratio}" for n, ratio in found.items())
                    print(f"  {own} needs fewer frames than {method}, times: {times}")
    return ratios


LINES = {
    "flow": ("flow-matching", "o-", BLUE),
    "flow+forces": ("flow-matching + forces", "s-", "#56B4E9"),
    "entropy": ("relative entropy", "D-", "#009E73"),
    "forces, best": ("force matching, best by the test", "v--", ORANGE),
    "forces, held-out": ("force matching, best held out", "^-", ORANGE),
    "kernel": ("kernel density", "x:", GREY),
    "histogram": ("the frames themselves", "+:", GREY),
}
"""Label, marker and colour of each method."""


def draw_figure(results: dict, path: Path) -> None:
    """Three panels: divergence of the torsions, of all coordinates, and the rare basin."""
    points = completed(results)
    panels = {
        "js": "Jensen-Shannon divergence of φ, ψ (nats)",
        "kl": "KL divergence of all 9 coordinates (nats)",
        "phi": "population of φ > 0 (%)",
    }
    with theme():
        made = figure(12, 4.6)
        for axes, (name, label) in zip(made.subplots(1, len(panels)), panels.items(), strict=True):
            unit = 100 if name == "phi" else 1
            for method, (title, marker, colour) in LINES.items():
                found = curve(points, method, name)
                if not found:
                    continue
                mean = unit * np.array([np.mean(values) for values in found.values()])
                ends = unit * np.array([[min(values), max(values)] for values in found.values()]).T
                faded = 0.6 if method == "forces, best" else 1.0
                axes.errorbar(
                    list(found), mean, np.abs(ends - mean), fmt=marker, color=colour, ms=5, label=title, alpha=faded
                )
            without = [value for values in curve(points, "data-free", name).values() for value in values]
            if without:
                axes.axhline(
                    unit * np.mean(without), color="black", ls="-.", lw=1.2, label="no frames: the flow's energies"
                )
            if name == "phi":
                axes.axhline(unit * results["reference"]["phi"], color=GREY, lw=6, alpha=0.3, label="reference")
            axes.set(xscale="log", yscale="log", xlabel="frames", ylabel=label)
            axes.set_xticks(FRAMES, [f"{n:,}" for n in FRAMES])
            axes.set_xlim(0.8 * min(FRAMES), 1.25 * max(FRAMES))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        handles = {label: handle for handle, label in zip(*made.axes[-1].get_legend_handles_labels(), strict=True)}
        made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(made, path)
    print(f"\nfigure: {path}")


def main() -> None:
    """Measure what is missing, then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 frames, one set, small budgets, results nowhere")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--frames", type=int, nargs="+", choices=FRAMES, default=list(FRAMES))
    parser.add_argument("--sets", type=int, default=SETS, choices=range(1, SETS + 1))
    parser.add_argument("--results", type=Path, default=RESULTS, help="goes on from there")
    parser.add_argument("--cache", type=Path, help="frames and samples; by default a file in the temporary folder")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--json", type=Path, help="write results and ratios there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        folder = Path(tempfile.mkdtemp())
        options.frames, options.sets = [300], 1
        options.results, options.figure = folder / "results.json", folder / "figure.png"
    if not options.show:
        measure(options)
    results = read(options.results)
    ratios = report(results)
    draw_figure(results, options.figure)
    if options.json:
        options.json.write_text(json.dumps(results | {"fewer frames": ratios}, indent=1) + "\n")


def measure(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    cache = options.cache or Path(tempfile.gettempdir()) / f"data_efficiency{'_quick' if options.quick else ''}.npz"
    bench, known = prepare(cgf.CGFlow.load(MODEL), cache, options.quick)
    for method, n, k in tasks(options.methods, options.frames, options.sets):
        key = f"{method}/{n}/{k}"
        if key in read(options.results)["points"]:
            continue
        start = time.monotonic()
        figures = METHODS[method](bench, bench.rows(n, k), k)
        figures["seconds"] = round(time.monotonic() - start, 1)
        print(key, json.dumps(figures), flush=True)
        results = read(options.results) | {"reference": known}  # others may write meanwhile
        results["points"][key] = figures
        write(options.results, results)


if __name__ == "__main__":
    main()
