"""Backmapping measured: speed, what is kept, and whether the reweighted energies are those of the all-atom ensemble.

    python examples/benchmarks/backmapping.py            # alanine dipeptide, some minutes
    python examples/benchmarks/backmapping.py --quick    # a taste

The reference are frames of molecular dynamics (batched Langevin dynamics on the System's own energies, which knows
nothing of the flow; half of the walkers in the rare basin at phi > 0). Their beads are backmapped; the energies of what
comes out, one structure a frame drawn by its weight, are compared with those of the frames themselves.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

import openmm_cgflow as cgf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "references"))  # dynamics of its own, for comparison
import batched_replica_exchange as batched

MODEL = Path(__file__).resolve().parent.parent / "models" / "alanine_dipeptide.cgflow"
STEP = 0.0005  # ps, so short that the dynamics' own error is too small to be seen
BETWEEN = 0.5  # ps between frames of a walker


def reference_frames(walkers: int, rounds: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames `(rounds, walkers, 22, 3)` in nm at 300 K, and their energies `(rounds, walkers)` in kJ/mol."""
    batched.STEP = STEP
    ladders = batched.Ladders(walkers, np.array([300.0]), seed)
    ladders.prepare()
    sweeps = max(1, round(BETWEEN / (STEP * batched.PERIOD)))
    frames, energies = [], []
    for index in range(rounds + 10):  # 5 ps come to thermal equilibrium first
        for _ in range(sweeps):
            ladders.sweep()
        if index >= 10:
            frames.append(ladders.x.numpy().copy())
            energies.append(ladders.energy.numpy().copy())
    return np.array(frames), np.array(energies)


def kolmogorov_smirnov(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest distance of two distribution functions, and its p-value."""
    result = ks_2samp(ours, theirs, method="asymp")
    return result.statistic, result.pvalue


def detectable_shift(ours: np.ndarray, again: np.ndarray) -> float:
    """The shift of all energies, in kJ/mol, that the test at 5 % finds in 95 of 100 cases, by simulation.

    Arguments:
        ours: energies of one structure drawn for each frame.
        again: those of another drawn for each, so that the two differ by nothing but chance.
    """
    rng = np.random.default_rng(0)
    for share in np.arange(0.02, 1.0, 0.01):
        shift, found = share * ours.std(), 0
        for _ in range(100):
            frames = rng.integers(len(ours), size=len(ours))
            found += kolmogorov_smirnov(ours[frames] + shift, again[frames])[1] < 0.05
        if found >= 95:
            return shift
    return float("inf")


def speed(flow: cgf.CGFlow, frames: int) -> dict:
    """Frames a second, and what is kept."""
    beads = flow.sample(frames, seed=1).positions[:, flow.coordinates.bead_atoms]
    flow.backmap(beads, seed=0)  # may compile
    taken = []
    for seed in range(3):
        start = time.perf_counter()
        result = flow.backmap(beads, seed=seed)
        taken.append(time.perf_counter() - start)
    start = time.perf_counter()
    checks = result.checks
    checking = time.perf_counter() - start
    kept = np.abs(result.positions[:, 0][:, flow.coordinates.bead_atoms] - beads).max()
    rates = frames / min(taken), frames / (min(taken) + checking)
    print(f"speed: {rates[0]:,.0f} frames/s with densities and weights (best of 3 x {frames:,} frames)")
    print(f"       {rates[1]:,.0f} frames/s with all checks as well")
    right, fine = (100 * np.mean(share) for share in (checks.wrong_chirality == 0, checks.fine))
    print(f"chirality right in {right:.2f} %, all checks passed by {fine:.2f} %")
    print(f"largest deviation of a bead: {kept:.1e} nm")
    return {
        "frames_a_second": rates[0],
        "with_checks": rates[1],
        "chirality": right,
        "all_checks": fine,
        "bead_off_by": float(kept),
    }


def energies(flow: cgf.CGFlow, walkers: int, rounds: int) -> dict:
    """Compare the energies of backmapped reference beads with those of the reference."""
    x, u = reference_frames(walkers, rounds)
    beads, theirs = x.reshape(-1, 22, 3)[:, flow.coordinates.bead_atoms], u.ravel()
    result = flow.backmap(beads, n=16, seed=2)
    outside, ess = result.outside.sum(), 100 * result.ess.mean()
    print(f"reference: {walkers} walkers, {rounds} frames each, every {BETWEEN:g} ps")
    print(f"beads outside the trained region: {outside} of {len(beads)}; ESS within a frame {ess:.1f} %")
    everything = flow.target.kT * result.reduced_energies
    drawn, again = (everything[np.arange(len(beads)), draw(result.weights, seed)] for seed in (0, 1))
    mean = np.where(result.weights > 0, result.weights * everything, 0).sum(1)
    by_walker = (mean - theirs).reshape(rounds, walkers).mean(0)
    error = by_walker.std(ddof=1) / walkers**0.5
    print(f"energy, kJ/mol: {mean.mean():.2f} reweighted, {theirs.mean():.2f} reference (s.d. {theirs.std():.1f})")
    print(f"                difference {by_walker.mean():+.2f} +- {error:.2f}, by the scatter between walkers")
    distance, p = kolmogorov_smirnov(drawn, theirs)
    print(f"two-sample test, {len(drawn)} against {len(theirs)}: D = {distance:.4f}, p = {p:.3f}")
    plain = everything[:, 0][np.isfinite(everything[:, 0])]
    print("the same without weights: D = {:.4f}, p = {:.3f}".format(*kolmogorov_smirnov(plain, theirs)))
    shift = detectable_shift(drawn, again)
    print(f"power: a shift of {shift:.2f} kJ/mol ({shift / theirs.std():.2f} s.d.) is found in 95 of 100 cases")
    return {
        "n": len(beads),
        "ess": ess,
        "difference": by_walker.mean(),
        "error": error,
        "p": p,
        "shift": shift,
        "shift_in_sd": shift / theirs.std(),
        "agree": bool(p > 0.01 and abs(by_walker.mean()) < 3 * error),
    }


def draw(weights: np.ndarray, seed: int) -> np.ndarray:
    """One index a row, by its weights."""
    cumulative = weights.cumsum(1)
    return (np.random.default_rng(seed).random((len(weights), 1)) * cumulative[:, -1:] >= cumulative).sum(1)


def main() -> None:
    """Run, and exit with 1 if the energies differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(MODEL)
    figures = speed(flow, 2000 if options.quick else 20_000)
    figures |= energies(flow, 32 if options.quick else 512, 4 if options.quick else 10)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    raise SystemExit(0 if figures["agree"] else 1)


if __name__ == "__main__":
    main()
