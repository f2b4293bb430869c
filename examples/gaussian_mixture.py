"""The Gaussian mixture of arXiv 2504.20940: three modes in 20 dimensions, of which the first ten are slow.

    python examples/gaussian_mixture.py               # the slow directions from the minima
    python examples/gaussian_mixture.py --tempering   # trained with everything else from a random start

What makes the modes overlap nowhere are two directions, Fisher's discriminants, both within the slow half: any ten slow
variables that hold these two leave an unimodal rest. How well they are held is what is compared.
Exits with code 1 where the learned model is not within the figures of the exact one.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.analysis import judge
from openmm_cgflow.potentials import GaussianMixture
from openmm_cgflow.training import AdaptiveTempering


def discriminants(target: GaussianMixture) -> np.ndarray:
    """Orthonormal directions `(2, 20)` that tell the three modes apart."""
    means = target.means.numpy().astype(float)
    factor = target.scale_tril[0].numpy().astype(float)
    return np.linalg.qr(np.linalg.solve(factor @ factor.T, (means[1:] - means[0]).T))[0].T


def draw(target: GaussianMixture, x: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> plt.Figure:
    """Samples in the plane of the discriminants, and the weights of the modes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    plane = discriminants(target)
    chosen = np.random.default_rng(0).choice(len(x), 2000, p=weights)
    left.plot(*(x[chosen] @ plane.T).T, ".", markersize=2, color="tab:red", label="samples, reweighted")
    left.plot(*(target.means.numpy() @ plane.T).T, "+", markersize=14, color="black", label="exact means")
    left.set(xlabel="first discriminant", ylabel="second discriminant", title="modes")
    left.legend()
    right.bar(range(3), shares, color="tab:red")
    right.axhline(1 / 3, color="black")
    right.set(xticks=range(3), xlabel="mode", ylabel="weight", title="weights (line: exact)")
    return figure


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, help="seconds of training")
    parser.add_argument("--evaluations", type=int, help="energies of training, instead of a time: the same anywhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("gaussian_mixture.png"))
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--tempering", action="store_true", help="lower the temperature instead of a Laplace start")
    options = parser.parse_args()
    target = GaussianMixture.paper(seed=0)
    flow = cgf.VectorFlow(target, slow=10, width=1.0, seed=options.seed)
    tempering = AdaptiveTempering(beta=1e-3, delta=0.5, largest=0.1, steps=50) if options.tempering else None
    time = None if options.evaluations else options.time or (360 if options.tempering else 150)
    flow.train(time, options.evaluations, settings=cgf.TrainSettings(tempering=tempering))
    seconds = flow.provenance["seconds"]
    print(f"{flow.evaluations:,} energy evaluations, {seconds:.0f} s of training")
    samples = flow.sample(20_000, seed=options.seed)

    mode = target.component_of(torch.as_tensor(samples.positions)).numpy()
    shares = np.bincount(mode, weights=samples.weights, minlength=3)
    held = np.linalg.svd(flow.coordinates.slow_directions.numpy() @ discriminants(target).T)[1]
    draw(target, samples.positions, samples.weights, shares).savefig(options.figure, dpi=150)
    modes = f"{(shares > 0.01).sum()} of 3, weights off at most {np.abs(shares - 1 / 3).max():.4f}"
    print(f"figure: {options.figure}")
    rows = [
        ("modes found", float((shares > 0.01).sum()), 3, 0),
        *((f"weight of mode {k + 1}", float(shares[k]), 1 / 3, 0.02) for k in range(3)),
        ("log Z", samples.logZ, 0.0, 0.02),
        ("ESS", samples.ess, 0.9, None),
        ("discriminant held best (cosine)", float(held[0]), 0.8, None),
        ("discriminant held worst (cosine)", float(held[1]), 0.8, None),
    ]
    judge(rows, options.json, modes=modes, evaluations=flow.evaluations, seconds=seconds)


if __name__ == "__main__":
    main()
