"""The Gaussian mixture of arXiv 2504.20940: three modes in 20 dimensions, of which the first ten are slow.

    python examples/gaussian_mixture.py               # the slow directions from the minima
    python examples/gaussian_mixture.py --tempering   # trained with everything else from a random start

What makes the modes overlap nowhere are two directions, Fisher's discriminants, both within the slow half: any ten slow
variables that hold these two leave an unimodal rest. How well they are held is what is compared.
Exits with code 1 where the learned model is not within the figures of the exact one.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.potentials import GaussianMixture
from openmm_cgflow.training import AdaptiveTempering

from exact import Verdict, options, train  # isort: skip  (beside this file)


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
    arguments = options(__doc__, "gaussian_mixture.png", seconds=150, tempering=360)
    target = GaussianMixture.paper(seed=0)
    flow = cgf.VectorFlow(target, slow=10, width=1.0, seed=arguments.seed)
    tempering = AdaptiveTempering(beta=1e-3, delta=0.5, largest=0.1, steps=50) if arguments.tempering else None
    train(flow, arguments, tempering)
    samples = flow.sample(20_000, seed=arguments.seed)

    mode = target.component_of(torch.as_tensor(samples.positions)).numpy()
    shares = np.bincount(mode, weights=samples.weights, minlength=3)
    held = np.linalg.svd(flow.coordinates.slow_directions.numpy() @ discriminants(target).T)[1]
    verdict = Verdict()
    verdict.near("modes", float((shares > 0.01).sum()), 3, 0)
    for k in range(3):
        verdict.near(f"weight of mode {k + 1}", float(shares[k]), 1 / 3, 0.02)
    verdict.near("log Z", samples.logZ, 0.0, 0.02)
    verdict.least("ESS", samples.ess, 0.9)
    verdict.least("discriminant held best (cosine)", float(held[0]), 0.8)
    verdict.least("discriminant held worst (cosine)", float(held[1]), 0.8)
    draw(target, samples.positions, samples.weights, shares).savefig(arguments.figure, dpi=150)
    modes = f"{(shares > 0.01).sum()} of 3, weights off at most {np.abs(shares - 1 / 3).max():.4f}"
    verdict.close(arguments.figure, arguments.json, modes=modes, evaluations=flow.evaluations, seconds=arguments.time)


if __name__ == "__main__":
    main()
