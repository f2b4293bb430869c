"""A coarse-grained force field of alanine dipeptide from public frames in explicit water, without forces.

    python examples/explicit_water_cg.py --quick        # 1,000 frames: a minute or two
    python examples/explicit_water_cg.py                # 1,000 and 10,000 frames
    python examples/explicit_water_cg.py --seeds 0 1 2  # other frames

The frames are those of five beads (ff99SB-ILDN, TIP3P, 300 K) that belong to CGnet; the reference is the mean of four
histograms of phi and psi of a million such frames (see data/README.md). The force field is judged by importance
sampling, without a simulation: the Jensen-Shannon divergence from the reference over 60 x 60 bins, the population of
phi > 0, and the mean squared error of the free energy. Then walkers move in it, and their own histogram is set beside
its distribution. At last atoms are put around some of their beads, by a flow that was trained on energies alone, of
another force field in implicit solvent. Exits with 1 where a divergence is above its mark.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import BeadModel, DistilSettings, FitSettings, judge_beads, torsion_histogram

HERE = Path(__file__).resolve().parent
MARKS = {1_000: 0.02, 10_000: 0.008}
"""Jensen-Shannon divergence, nats; some thousandths more for the short fit."""
QUICK = {"fit": FitSettings(members=2), "settings": DistilSettings(points=25_000, steps=1_500)}
TEMPERATURE = 300.0


def main() -> None:
    """Fit and judge for each number of frames; dynamics and backmapping with the last force field."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 frames alone, a shorter fit, fewer walkers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the frames that are taken, and of fits")
    options = parser.parse_args()
    with np.load(HERE / "data" / "ala2_explicit.npz") as data:
        frames, folds = data["frames"].astype(float), data["reference"].astype(float)
    reference = folds.mean(0)
    flow = cgf.CGFlow.load(HERE / "models" / "aldp.cgflow")
    beads, kT = flow.coordinates.bead_coordinates(), flow.target.kT
    model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
    above = 100 * folds[:, 30:].sum((1, 2))
    print(f"phi > 0 in the reference: {above.mean():.2f} %, {above.min():.2f} to {above.max():.2f} by fold")
    print("frames  seed  JS of the frames  JS of the force field  phi > 0, %  F-MSE, (kcal/mol)^2   ESS   seconds")
    missed = []
    for n in [1_000] if options.quick else MARKS:
        for seed in options.seeds:
            taken = frames[np.random.default_rng(seed).permutation(len(frames))[:n]]
            start = time.monotonic()
            short = QUICK if options.quick else {}
            force_field = cgf.CGForceField.fromFrames(model, taken, temperature=TEMPERATURE, seed=seed, **short)
            seconds = time.monotonic() - start
            found = judge_beads(force_field.student, None, beads, kT, n=400_000)
            raw, js = divergence(torsion_histogram(torsions(flow, taken)), reference), found.js(reference)
            print(
                f"{n:6,d}  {seed:4d}  {raw:16.4f}  {js:21.4f}  {100 * found.population():10.2f}"
                f"  {found.free_energy_mse(reference):20.3f}  {found.ess:4.2f}  {seconds:8.0f}",
                flush=True,
            )
            mark = MARKS[n] + 0.005 * options.quick
            if js > mark:
                missed.append(f"{n:,} frames, seed {seed}: {js:.4f}, more than {mark}")
    moved = dynamics(flow, force_field, taken, found, *((300, 1.0) if options.quick else (1000, 10.0)))
    atoms_around(flow, moved)
    if missed:
        sys.exit("\n".join(missed))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon, nats."""
    middle = 0.5 * (p + q)
    return sum(0.5 * float((a[a > 0] * np.log(a[a > 0] / middle[a > 0])).sum()) for a in (p, q))


def torsions(flow: cgf.CGFlow, frames: np.ndarray) -> np.ndarray:
    """Phi and psi `(frames, 2)` of beads, rad."""
    return (
        flow.coordinates.bead_coordinates().to_internal(torch.as_tensor(frames, dtype=torch.float64))[0][:, :2].numpy()
    )


def dynamics(flow, force_field, frames: np.ndarray, found, walkers: int, picoseconds: float) -> np.ndarray:
    """Langevin dynamics of walkers from frames of the data; gives where they are at the end."""
    start = frames[np.random.default_rng(0).choice(len(frames), walkers)]
    begun = time.monotonic()
    steps = round(500 * picoseconds)
    moved = force_field.createWalkers(start).run(steps, every=100).numpy()
    cost = 1e6 * (time.monotonic() - begun) / steps / walkers
    half = len(moved) // 2
    seen = torsion_histogram(torsions(flow, moved[half:].reshape(-1, *moved.shape[2:])))
    # the same number of frames drawn from the force field's own distribution, independent ones: the noise
    drawn = np.random.default_rng(1).multinomial((len(moved) - half) * walkers, found.probabilities.ravel())
    noise = divergence(drawn.reshape(seen.shape) / drawn.sum(), found.probabilities)
    print(f"{walkers:,} walkers, {picoseconds:g} ps each in steps of 2 fs: {cost:.1f} microseconds a step and walker")
    print(
        f"  their histogram (second half) beside the force field's own distribution: JS "
        f"{divergence(seen, found.probabilities):.4f}, of as many independent frames {noise:.4f}; phi > 0 "
        f"{100 * seen[30:].sum():.2f} %"
    )
    return moved[-1]


def atoms_around(flow: cgf.CGFlow, beads: np.ndarray, frames: int = 50) -> None:
    """Put atoms around some frames of beads."""
    atoms = flow.backmap(beads[:frames].astype(float), n=8, seed=0)
    print(f"8 structures of all atoms around each of {frames} frames, {atoms.outside.sum()} outside the trained region")
    print(f"  ESS within a frame {100 * np.nanmean(atoms.ess):.1f} % on average")
    for label, text in atoms.checks.summary():
        print(f"  {label:22s} {text}")


if __name__ == "__main__":
    main()
