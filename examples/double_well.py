"""The double well of arXiv 2504.20940: which direction is slow, how deep are the wells, what is log Z?

    python examples/double_well.py               # the slow direction from the minima
    python examples/double_well.py --tempering   # trained with everything else from a random start, as in the paper

Exits with code 1 where the learned model is not within the figures of the exact one.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.analysis import judge
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.training import AdaptiveTempering

LINE = np.linspace(-4, 4, 801)


def well(x: np.ndarray) -> np.ndarray:
    """The potential along the slow direction."""
    return x**4 / 4 - 3 * x**2 + x


def draw(flow: cgf.VectorFlow, x: np.ndarray, direction: np.ndarray) -> plt.Figure:
    """The potential with samples and the slow direction, and the free energy along it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    grid = np.stack(np.meshgrid(LINE, LINE), -1).reshape(-1, 2)
    u = DoubleWell().energy(torch.as_tensor(grid)).numpy().reshape(len(LINE), -1)
    left.contourf(LINE, LINE, u - u.min(), levels=np.linspace(0, 16, 17), cmap="viridis_r")
    left.plot(*x[:500].T, ".", color="black", markersize=2)
    left.arrow(0, 0, *(1.5 * direction), width=0.06, color="tab:red")
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="potential (kT), samples, slow direction found")
    s = torch.as_tensor(LINE * direction[0]).unsqueeze(1) / flow.coordinates.width
    learned = flow.freeEnergy(s.numpy())._value
    right.plot(LINE, well(LINE) - well(LINE).min(), color="black", linewidth=4, alpha=0.3, label="exact")
    right.plot(LINE, learned - learned.min(), color="tab:red", label="learned")
    right.set(xlabel="slow variable", ylabel="free energy, kT", ylim=(-0.5, 12), title="free energy")
    right.legend()
    return figure


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, help="seconds of training")
    parser.add_argument("--evaluations", type=int, help="energies of training, instead of a time: the same anywhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("double_well.png"))
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--tempering", action="store_true", help="lower the temperature instead of a Laplace start")
    options = parser.parse_args()
    flow = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, seed=options.seed)
    tempering = AdaptiveTempering(beta=0.01, delta=0.2, largest=0.05, steps=40) if options.tempering else None
    time = None if options.evaluations else options.time or (60 if options.tempering else 30)
    flow.train(time, options.evaluations, settings=cgf.TrainSettings(tempering=tempering))
    seconds = flow.provenance["seconds"]
    print(f"{flow.evaluations:,} energy evaluations, {seconds:.0f} s of training")
    samples = flow.sample(100_000, seed=options.seed)

    density = np.exp(-well(LINE))
    left = density[LINE < 0].sum() / density.sum()
    direction = flow.coordinates.slow_directions[0].numpy().astype(float)
    measured, _ = samples.reweight(samples.positions[:, 0] < 0)
    angle = math.degrees(math.acos(min(1.0, abs(direction[0]))))
    draw(flow, samples.positions, direction).savefig(options.figure, dpi=150)
    modes = f"2 of 2, weights off {abs(measured - left):.4f}"
    print(f"figure: {options.figure}")
    rows = [
        ("log Z", samples.logZ, flow.potential.log_z, 0.01),
        ("weight of the deeper well", float(measured), left, 0.01),
        ("weight of the other", float(1 - measured), 1 - left, 0.01),
        ("slow direction, degrees from x1", angle, 0.0, 2.0),
        ("ESS", samples.ess, 0.95, None),
    ]
    judge(rows, options.json, modes=modes, evaluations=flow.evaluations, seconds=seconds)


if __name__ == "__main__":
    main()
