"""Expanded ensemble over the scale of a flow's bias, whose weights are known before the first step (OpenMM 8.6).

    python examples/expanded_ensemble.py                      # alanine dipeptide, 200 ps of each
    python examples/expanded_ensemble.py --picoseconds 20

The states have the bias `scale * F(phi, psi)` with scales from 0 (no bias) to -1 (no barriers). The simulation goes
from one to the other by itself: it crosses barriers where they are flat, and its frames at scale 0 are those of the
molecule as it is, with no weights. For that each state needs a weight, `-log Z` of it. `ExpandedEnsembleSampler` can
learn the weights while it runs; a flow has them from its samples: `Z(scale) / Z(0)` is the mean of
`exp(-scale F / kT)`.

Printed for both: the share of the time in each state (a sixth each if the weights are right), how often phi changed
sides, and the population of phi > 0 at scale 0 beside that of the flow's samples. In explicit water the same weights
are a first guess.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openmm
from openmm import app
from scipy.special import logsumexp

import openmm_cgflow as cgf

HERE = Path(__file__).resolve().parent
SCALES = np.linspace(0, -1, 6)
STEPS = 25  # between changes of the state


def weights_of(flow: cgf.CGFlow, scales: np.ndarray, n: int = 20_000, seed: int = 0) -> np.ndarray:
    """`-log Z(scale) / Z(0)` of the molecule with `scale * F` added to its energy, `(scales,)`."""
    samples = flow.sample(n, seed=seed)
    kT = 0.00831446261815324 * flow.temperature._value
    reduced = flow.freeEnergy(samples.slow)._value / kT
    log_weights = samples.log_weights - logsumexp(samples.log_weights)
    return -logsumexp(log_weights - scales[:, None] * reduced, axis=1)


def run(flow: cgf.CGFlow, weights: list[float] | None, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """State `(iterations,)` and phi `(iterations,)`, rad, after each attempt to change the state."""
    system = flow.system
    system.addForce(flow.createForce("tabulated", scale=0))
    integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1.0, 0.002)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(flow.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(flow.sample(1, seed=seed).positions[0])
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(flow.temperature, seed)
    states = [{"cgflow_scale": float(scale)} for scale in SCALES]
    sampler = app.ExpandedEnsembleSampler(states, simulation, STEPS, weights=weights, reportInterval=STEPS)
    visited, frames = [], []
    for _ in range(steps // STEPS):
        simulation.step(STEPS)
        visited.append(sampler.currentStateIndex)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(visited), flow.slowVariables(np.array(frames))[:, 0]


def changes(phi: np.ndarray) -> int:
    """How often phi went from its usual side to the other one, or back."""
    side = np.where((phi > 0.5) & (phi < 1.7), 1, np.where((phi < -0.7) & (phi > -2.8), 0, -1))
    return int(np.abs(np.diff(side[side >= 0])).sum())


def main() -> None:
    """Run with the flow's weights and with learned ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "models" / "aldp.cgflow")
    parser.add_argument("--picoseconds", type=float, default=200.0, help="of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    options = parser.parse_args()
    if not hasattr(app, "ExpandedEnsembleSampler"):
        parser.error(f"OpenMM {openmm.version.version} has no ExpandedEnsembleSampler; install OpenMM 8.6")
    flow = cgf.CGFlow.load(options.model)
    weights = weights_of(flow, SCALES)
    print("weights of the flow: " + " ".join(f"{w:.2f}" for w in weights))
    found = {}
    for name, given in (("flow", list(weights)), ("learned", None)):
        states, phi = run(flow, given, round(options.picoseconds / 0.002), options.seed)
        shares = np.bincount(states, minlength=len(SCALES)) / len(states)
        plain = phi[states == 0]
        found[name] = {
            "shares": shares.tolist(),
            "changes_per_ns": 1000 * changes(phi) / options.picoseconds,
            "positive": float((plain > 0).mean()) if len(plain) else None,
        }
        print(f"{name:8s} share of each state {np.round(shares, 2)}, changes of phi {changes(phi)}")
        print(f"{'':8s} phi > 0 at scale 0: {found[name]['positive']} of {len(plain)} frames")
    samples = flow.sample(20_000, seed=0)
    print(f"flow's samples, phi > 0: {samples.reweight((samples.slow[:, 0] > 0).astype(float))[0]:.4f}")
    if options.json:
        options.json.write_text(json.dumps(found | {"weights": weights.tolist()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
