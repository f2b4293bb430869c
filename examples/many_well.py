"""ManyWell-32: sixteen double wells, 2^16 modes (Midgley et al., FAB, arXiv 2208.01893).

    python examples/many_well.py

Exits with code 1 if log Z of 2,000 samples is off by more than 0.05, or if the signs of the sixteen slow variables do
not have their exact probability by a chi-square test.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.analysis import judge
from openmm_cgflow.potentials import ManyWell

N = 2_000
LINE = np.linspace(-3, 3, 2001)


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, help="seconds of training")
    parser.add_argument("--evaluations", type=int, help="energies of training, instead of a time: the same anywhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("many_well.png"))
    parser.add_argument("--json", type=Path, help="write what was measured there")
    options = parser.parse_args()
    flow = cgf.VectorFlow(ManyWell(32), slow=range(0, 32, 2), width=1.5, seed=options.seed)
    time = None if options.evaluations else options.time or 120
    flow.train(time, options.evaluations)
    seconds = flow.provenance["seconds"]
    print(f"{flow.evaluations:,} energy evaluations, {seconds:.0f} s of training")
    samples = flow.sample(N, seed=options.seed)

    density = np.exp(-(LINE**4 - 6 * LINE**2 - LINE / 2))
    density /= density.sum()
    exact = density[LINE > 0].sum()
    right = samples.positions[:, ::2] > 0
    shares, _ = samples.reweight(right)
    weights = samples.weights
    error = np.sqrt((weights**2).sum() * exact * (1 - exact))
    chi_square = (((shares - exact) / error) ** 2).sum()
    chance = torch.special.gammaincc(torch.tensor(8.0), torch.tensor(chi_square / 2)).item()

    chosen = np.random.default_rng(0).random((200, N, 16)) < exact
    powers = 2 ** np.arange(16)
    expected = np.mean([len(np.unique(signs @ powers)) for signs in chosen])
    found = len(np.unique(right @ powers))
    print(f"different modes among {N:,} samples: {found}; among as many of the exact density: {expected:.0f}")
    print(f"share on the right, mean of 16: {shares.mean():.4f}, exact {exact:.4f}; chi-square {chi_square:.1f} of 16")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    values, repeated = samples.positions[:, ::2].ravel(), np.repeat(weights, 16)
    axes[0].hist(values, 120, range=(-3, 3), density=True, weights=repeated, color="tab:red")
    axes[0].plot(LINE, density / (LINE[1] - LINE[0]), color="black", label="exact")
    axes[0].set(xlabel="slow variables", ylabel="density", title="all sixteen, reweighted")
    axes[0].legend()
    axes[1].errorbar(range(16), shares, error, fmt="o", color="tab:red")
    axes[1].axhline(exact, color="black")
    axes[1].set(xlabel="slow variable", ylabel="share on the right", title="wells (line: exact)")
    figure.savefig(options.figure, dpi=150)
    modes = f"16 signs: chi-square {chi_square:.1f} for 16, p = {chance:.2f}"
    print(f"figure: {options.figure}")
    rows = [
        (f"log Z ({N:,} samples)", samples.logZ, flow.potential.log_z, 0.05),
        ("chance of such a chi-square", chance, 0.001, None),
        ("ESS", samples.ess, 0.8, None),
    ]
    judge(rows, options.json, modes=modes, evaluations=flow.evaluations, seconds=seconds)


if __name__ == "__main__":
    main()
