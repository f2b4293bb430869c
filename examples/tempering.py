"""ESS against energy evaluations: adaptive tempering as published, a geometric schedule, and the Laplace start.

    python examples/tempering.py                           # butane, three seeds of each: five minutes
    python examples/tempering.py --molecule aldp_vacuum    # a quarter of an hour

Each training has the same number of energy evaluations. While a temperature is lowered there is no ESS at the target's
own temperature, so that a curve begins where the schedule has arrived; one that never does has none.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import openmm_cgflow as cgf
from openmm_cgflow.inputs import load_system
from openmm_cgflow.training import AdaptiveTempering, GeometricTempering, TrainSettings

ROOT = Path(__file__).resolve().parents[1]
MOLECULES = {
    "butane": [ROOT / "tests" / "data" / "butane.prmtop", ROOT / "tests" / "data" / "butane.inpcrd"],
    "aldp_vacuum": [ROOT / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"],
}
"""Files, in vacuum: GAFF2, and ff96 for alanine dipeptide."""
START, BATCH, LEVELS = 0.2, 512, 10
"""Inverse temperature to begin with: hotter, bonds and angles leave the molecule's isomer, and nothing is learned."""


def methods(evaluations: int) -> dict[str, Callable[[], TrainSettings]]:
    """How each method is set up, by name."""
    arriving = 0.6 * evaluations / BATCH  # steps after which a schedule arrives, if it is never held up

    def published() -> TrainSettings:
        rule = AdaptiveTempering(beta=START, delta=0.2, largest=0.05, steps=max(1, int(arriving / 16)), floor=0.0)
        return TrainSettings(tempering=rule, joint=True, batch=BATCH)

    def geometric() -> TrainSettings:
        rule = GeometricTempering(beta=START, levels=LEVELS, steps=max(1, int(arriving / LEVELS)))
        return TrainSettings(tempering=rule, joint=True, batch=BATCH)

    def weights() -> TrainSettings:
        rule = AdaptiveTempering(beta=START, delta=0.5, largest=0.1, steps=max(1, int(arriving / 16)))
        return TrainSettings(tempering=rule, batch=BATCH, tempering_buffer=2048, buffer_steps=25)

    return {
        "adaptive, as published": published,
        "geometric": geometric,
        "adaptive, soft variables by weights": weights,
        "Laplace start": TrainSettings,
    }


def main() -> None:
    """Train all, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecule", default="butane", choices=MOLECULES)
    parser.add_argument("--evaluations", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("tempering.png"))
    options = parser.parse_args()
    forcefield = ["amber96.xml"] if options.molecule == "aldp_vacuum" else None
    molecule = load_system(*MOLECULES[options.molecule], forcefield=forcefield)
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    print(f"{options.molecule}, {options.evaluations:,} evaluations; ESS of 10,000 samples, unclipped, for each seed")
    for number, (name, settings) in enumerate(methods(options.evaluations).items()):
        found, seconds = [], []
        for seed in range(options.seeds):
            flow = cgf.CGFlow(*molecule, temperature=300, seed=seed)
            try:
                flow.train(evaluations=options.evaluations, progress=False, settings=settings())
                found.append(flow.sample(10_000, seed=0).ess)
            except cgf.TrainingError as error:
                print(f"{name}, seed {seed}: {error}")
                found.append(0.0)
            seconds.append(flow.provenance["seconds"])
            rows = [row for row in flow.history if row["stage"] in ("soft", "refine") and row["ess"] is not None]
            label = name if seed == 0 else None
            axis.plot([r["evaluations"] for r in rows], [r["ess"] for r in rows], color=f"C{number}", label=label)
        values = ", ".join(f"{100 * ess:.1f}" for ess in found)
        print(f"{name:38s} {values} %, median {100 * np.median(found):.1f}; {np.mean(seconds):.0f} s", flush=True)
    axis.set(xlabel="energy evaluations", ylabel="ESS / n", yscale="log", ylim=(1e-4, 1), xlim=(0, options.evaluations))
    axis.set_title(f"{options.molecule}, {options.seeds} seeds each")
    axis.legend()
    figure.savefig(options.figure, dpi=150)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
