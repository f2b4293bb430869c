"""A coarse-grained force field from frames, without forces: how good it is for how many frames.

    python examples/flow_matching.py --quick          # 300 frames: two minutes
    python examples/flow_matching.py                  # 300, 1,000 and 10,000 frames
    python examples/flow_matching.py --seeds 0 1 2    # other frames

The frames are independent ones of alanine dipeptide, drawn from the shipped flow and taken by their weights. A density
of five beads is fitted to them (the teacher), and a small network to that density (the student): flow-matching, Köhler
et al. 2023, arXiv 2203.11167. The student is judged without a simulation, beside weighted samples of all atoms: the
Jensen-Shannon divergence of phi and psi over 60 x 60 bins, the population of phi > 0, and the KL divergence of all nine
coordinates of the beads. Beside it stands the histogram of the frames themselves. Exits with 1 where a divergence is
above its mark. How many frames other methods need, force matching above all, is measured by
`benchmarks/data_efficiency.py`, and drawn in `figures/data_efficiency.png`.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import BeadModel, judge_beads, reweighted_histogram, torsion_histogram

MODEL = Path(__file__).resolve().parent / "models" / "aldp.cgflow"
MARKS = {300: 0.03, 1_000: 0.015, 10_000: 0.004}
"""Jensen-Shannon divergence, nats; the frames of a set scatter by a quarter around some two thirds of it."""


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon, nats."""
    middle = 0.5 * (p + q)
    return sum(0.5 * float((a[a > 0] * np.log(a[a > 0] / middle[a > 0])).sum()) for a in (p, q))


def main() -> None:
    """Fit and judge for each number of frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 frames alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=400_000, help="of all atoms, for the reference")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(MODEL)
    atoms, bead_flow = flow.coordinates.bead_atoms, flow.flow.bead_flow
    beads, kT = flow.coordinates.bead_coordinates(), flow.target.kT
    model = BeadModel.fromTopology(flow.topology, atoms)
    samples = flow.sample(options.samples if not options.quick else 100_000, seed=1000)
    reference = reweighted_histogram(bead_flow, samples.slow, samples.weights)
    print(f"phi > 0 in the reference: {100 * reference[30:].sum():.2f} %")
    print("frames  seed  JS of the frames  JS of the force field  phi > 0, %     KL   seconds")
    missed = []
    for n in [300] if options.quick else MARKS:
        for seed in options.seeds:
            drawn = flow.sample(3 * n + 500, seed=seed)
            taken = np.random.default_rng(seed).random(len(drawn)) < drawn.weights * len(drawn) / 2
            frames = drawn.positions[np.flatnonzero(taken)[:n]][:, atoms].astype(float)
            start = time.monotonic()
            force_field = cgf.CGForceField.fromFrames(model, frames, temperature=flow.temperature, seed=seed)
            seconds = time.monotonic() - start
            found = judge_beads(force_field.student, bead_flow, beads, kT)
            torsions = beads.to_internal(flow.compute.tensor(frames).cpu())[0][:, :2].numpy()
            raw, js = divergence(torsion_histogram(torsions), reference), found.js(reference)
            print(
                f"{n:6,d}  {seed:4d}  {raw:16.4f}  {js:21.4f}  {100 * found.population():10.2f}  {found.kl:6.3f}"
                f"  {seconds:8.0f}",
                flush=True,
            )
            if js > MARKS[n]:
                missed.append(f"{n:,} frames, seed {seed}: {js:.4f}, more than {MARKS[n]}")
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
