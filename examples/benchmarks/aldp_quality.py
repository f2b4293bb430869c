"""How good a trained alanine dipeptide is: ESS and what limits it, and basins and Ramachandran map beside a reference.

    python examples/benchmarks/aldp_quality.py --model examples/models/aldp.cgflow --samples 100000
    python examples/benchmarks/aldp_quality.py --model examples/models/aldp_vacuum.cgflow --reference aldp_vacuum

The references are replica exchange (`../references`). The total variation of two halves of the reference, between them,
says how far apart two perfect answers of that length would be. Exits with code 1 where a figure is not met.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.analysis import judge
from openmm_cgflow.sampling import effective_sample_size
from openmm_cgflow.training import Parallel

REFERENCES = Path(__file__).resolve().parents[1] / "references"
BINS = np.linspace(-np.pi, np.pi, 25)


def ramachandran(slow: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Normalised 24 x 24 histogram of phi and psi `(n, 2)`, rad."""
    wrapped = (slow + np.pi) % (2 * np.pi) - np.pi
    table = np.histogram2d(*wrapped.T, bins=(BINS, BINS), weights=weights)[0]
    return table / table.sum()


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the sum of the absolute differences."""
    return float(0.5 * np.abs(first - second).sum())


def halves(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Phi and psi of the reference, rad, in two independent halves: of its ladders, or of its only trajectory."""
    with np.load(REFERENCES / f"{name}.npz") as data:
        slow = np.radians(np.stack([data["phi"], data["psi"]], -1).astype(float))
    if slow.ndim == 3:
        return slow[:, ::2].reshape(-1, 2), slow[:, 1::2].reshape(-1, 2)
    return slow[: len(slow) // 2], slow[len(slow) // 2 :]


@torch.no_grad()
def parts(flow: cgf.CGFlow, n_slow: int = 1000, n_fast: int = 100) -> tuple[float, float]:
    """ESS of the fast variables at given slow ones, and of the slow variables with the fast ones integrated out.

    Slow torsions are drawn from the flow; `n_fast` times all else at each estimates its partition function `Z(s)`,
    whose ratio to `q(s)` is the weight of the slow variables alone.
    """
    generator = torch.Generator().manual_seed(0)
    joint = flow.flow
    density = joint.bead_flow.slow
    slow = density.sample(n_slow, generator).value.repeat_interleave(n_fast, 0)
    noise = joint.draw_noise(len(slow), generator)

    def weigh(slow: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor]:
        _, bead, rotor, atom = joint.split_noise(noise)
        beads = joint.bead_flow.stiff.decode(bead, density.features(slow))
        context = torch.cat([density.features(slow), beads.features], 1)
        atoms = joint.atom_flow.decode(torch.cat([rotor, atom], 1), context)
        q = torch.cat([slow, beads.value, atoms.value], 1)
        return (-flow.target.action(q) - beads.log_prob - atoms.log_prob,)

    with Parallel() as parallel:
        (log_weights,) = parallel.map(weigh, slow, noise)
    log_weights = log_weights.double().reshape(n_slow, n_fast)
    fast = np.mean([effective_sample_size(row) for row in log_weights])
    log_z = torch.logsumexp(log_weights, 1) - math.log(n_fast)
    return float(fast), effective_sample_size(log_z - density.log_prob(slow[::n_fast]).double())


def main() -> None:
    """Sample, weigh, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--reference", default="aldp_obc1", choices=["aldp_obc1", "aldp_vacuum"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(options.model)
    made = flow.provenance
    print(f"trained with {made['evaluations']:,} evaluations in {made['seconds'] / 60:.1f} min, seed {made['seed']}")
    samples = flow.sample(options.samples, seed=options.seed)
    print(samples)
    fast, slow = parts(flow)
    print(f"its parts: ESS of fast variables given slow ones {fast:.3f}, of slow variables alone {slow:.3f}")
    reference = json.loads((REFERENCES / f"{options.reference}.json").read_text())
    population = reference["populations_all_temperatures"]["alpha_L/C7ax"]
    error = reference["errors_all_temperatures"]["alpha_L/C7ax"]
    phi = np.degrees(samples.slow[:, 0]) % 360
    left = phi < 125  # alpha_L/C7ax, by the ridges of ff96 at 0 and 125 degrees
    ours, our_error = (float(value) for value in samples.reweight(left))
    within = effective_sample_size(torch.as_tensor(samples.log_weights[left]))
    print(f"ESS of the samples in alpha_L/C7ax alone: {within:.3f}")
    print(f"alpha_L/C7ax: {ours:.5f} +- {our_error:.5f}, reference {population:.5f} +- {error:.5f}\n")

    free, theirs = (-math.log(p / (1 - p)) for p in (ours, population))
    own_error = error / (population * (1 - population))
    print(f"error of the reference's free energy of alpha_L/C7ax against the rest: {own_error:.3f} kT")
    first, second = halves(options.reference)
    apart = total_variation(ramachandran(first), ramachandran(second))
    off = total_variation(ramachandran(samples.slow, samples.weights), ramachandran(np.concatenate([first, second])))
    print(f"(the reference's halves against each other: {apart:.4f})")
    more = {
        "model": {name: made[name] for name in ("evaluations", "seconds", "seed")},
        "n": options.samples,
        "ess_clipped": samples.ess_clipped,
        "khat": samples.khat,
        "ess_fast_given_slow": fast,
        "ess_slow": slow,
        "ess_within_alpha_L": within,
        "F": {"value": free, "error": our_error / (ours * (1 - ours)), "reference": theirs, "its error": own_error},
        "halves": apart,
    }
    rows = [
        ("ESS, unclipped", samples.ess, 0.97, None),
        ("1e7 / evaluations", 1e7 / made["evaluations"], 1, None),
        ("F(alpha_L), kT", free, theirs, 0.1),
        ("Ramachandran total variation", off, 0.0, 2 * apart),
    ]
    judge(rows, options.json, **more)


if __name__ == "__main__":
    main()
