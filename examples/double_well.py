"""The double well of arXiv 2504.20940: which direction is slow, how deep are the wells, what is log Z?

    python examples/double_well.py               # the slow direction from the minima
    python examples/double_well.py --tempering   # trained with everything else from a random start, as in the paper

Exits with code 1 where the learned model is not within the figures of the exact one.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import openmm_cgflow as cgf
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.training import AdaptiveTempering

from exact import Verdict, options, train  # isort: skip  (beside this file)

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
    arguments = options(__doc__, "double_well.png", seconds=30, tempering=60)
    flow = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, seed=arguments.seed)
    tempering = AdaptiveTempering(beta=0.01, delta=0.2, largest=0.05, steps=40) if arguments.tempering else None
    train(flow, arguments, tempering)
    samples = flow.sample(100_000, seed=arguments.seed)

    density = np.exp(-well(LINE))
    left = density[LINE < 0].sum() / density.sum()
    direction = flow.coordinates.slow_directions[0].numpy().astype(float)
    measured, _ = samples.reweight(samples.positions[:, 0] < 0)
    verdict = Verdict()
    verdict.near("log Z", samples.logZ, flow.potential.log_z, 0.01)
    verdict.near("weight of the deeper well", float(measured), left, 0.01)
    verdict.near("weight of the other", float(1 - measured), 1 - left, 0.01)
    angle = math.degrees(math.acos(min(1.0, abs(direction[0]))))
    verdict.near("slow direction, degrees from x1", angle, 0.0, 2.0)
    verdict.least("ESS", samples.ess, 0.95)
    draw(flow, samples.positions, direction).savefig(arguments.figure, dpi=150)
    modes = f"2 of 2, weights off {abs(measured - left):.4f}"
    verdict.close(arguments.figure, arguments.json, modes=modes, evaluations=flow.evaluations, seconds=arguments.time)


if __name__ == "__main__":
    main()
