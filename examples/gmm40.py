"""GMM-40: forty modes in the plane (Midgley et al., FAB, arXiv 2208.01893).

    python examples/gmm40.py

Exits with code 1 if a mode is missing, ESS is below 85 %, or log Z is off by more than 0.02.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.analysis import judge
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import GaussianMixture

WIDTH = 20.0


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, help="seconds of training")
    parser.add_argument("--evaluations", type=int, help="energies of training, instead of a time: the same anywhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("gmm40.png"))
    parser.add_argument("--json", type=Path, help="write what was measured there")
    options = parser.parse_args()
    target = GaussianMixture.forty()
    settings = FlowSettings(components=64, seed=options.seed)
    flow = cgf.VectorFlow(target, slow=2, width=WIDTH, settings=settings, seed=options.seed)
    time = None if options.evaluations else options.time or 360
    flow.train(time, options.evaluations, settings=cgf.TrainSettings(points=4096))
    seconds = flow.provenance["seconds"]
    print(f"{flow.evaluations:,} energy evaluations, {seconds:.0f} s of training")
    samples = flow.sample(10_000, seed=options.seed)

    x = torch.as_tensor(samples.positions)
    mode = target.component_of(x).numpy()
    near = np.linalg.norm(samples.positions - target.means.numpy()[mode], axis=1) < 3 * float(
        target.scale_tril[0, 0, 0]
    )
    shares = np.bincount(mode, weights=samples.weights, minlength=40)
    off = 40 * shares - 1
    print(f"weights of the modes, relative to 1/40: {off.min():+.1%} to {off.max():+.1%}, {off.std():.1%} r.m.s.")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
    line = np.linspace(-46, 46, 300)
    grid = torch.tensor(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), dtype=torch.float32)
    panels = ((-target.energy(grid).numpy(), "exact"), (flow.logDensity(grid.numpy()), "learned"))
    for axis, (log_density, title) in zip(axes, panels, strict=True):
        axis.contourf(line, line, log_density.reshape(300, 300), levels=np.linspace(-14, -5, 19), cmap="viridis")
        axis.set(title=f"log-density, {title}", xlabel="$x_1$", aspect="equal", xlim=(-46, 46), ylim=(-46, 46))
    axes[1].plot(*samples.positions[:400].T, ".", markersize=2, color="white")
    axes[0].set_ylabel("$x_2$")
    figure.savefig(options.figure, dpi=150)
    modes = f"{len(np.unique(mode[near]))} of 40, weights off {off.std():.1%} r.m.s."
    print(f"figure: {options.figure}")
    rows = [
        ("modes found", float(len(np.unique(mode[near]))), 40, 0),
        ("log Z", samples.logZ, 0.0, 0.02),
        ("ESS", samples.ess, 0.85, None),
    ]
    judge(rows, options.json, modes=modes, evaluations=flow.evaluations, seconds=seconds)


if __name__ == "__main__":
    main()
