"""Molecular dynamics of the beads alone, in the free energy that the flow learned from all atoms.

    python examples/cg_simulation.py                       # 200 ps of NVT and 100 ps of NVE, a quarter of an hour
    python examples/cg_simulation.py --backend compiled    # the same in machine code: a quarter of that
    python examples/cg_simulation.py --picoseconds 2       # a taste

Fifty walkers start from beads that the flow drew. Dynamics must leave their distribution as it is: populations of the
basins, means and widths of bonds and angles are printed beside those of the flow, with errors from the scatter between
walkers. Then the drift of the energy without a thermostat. Writes the beads for `backmap.py`.
"""

import argparse
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import torch
from openmm import unit

import openmm_cgflow as cgf

MODEL = Path(__file__).resolve().parent / "models" / "alanine_dipeptide.cgflow"
WALKERS = 50

BASINS = ("C7eq/C5", "alpha_R", "alpha_L/C7ax")


def basins(slow: np.ndarray) -> np.ndarray:
    """Which of the `BASINS` phi and psi `(n, 2)`, rad, are in, `(n,)`: the ridges of ff96 with OBC1 lie between."""
    phi, psi = (np.degrees(slow).T + 180) % 360 - 180
    return np.where((phi >= 0) & (phi < 125), 2, np.where((psi >= -125) & (psi < 10), 1, 0))


def main() -> None:
    """NVT, then NVE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=200, help="of NVT; NVE takes half as long")
    parser.add_argument("--output", type=Path, default=Path("cg.dcd"))
    parser.add_argument(
        "--backend", choices=["torch", "python", "compiled"], help="of the force; as OpenMM can by default"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # five beads
    flow = cgf.CGFlow.load(MODEL)

    cg = flow.createCGSystem(options.backend)

    frames, seconds = nvt(flow, cg, options.picoseconds)
    steps = 100 * frames.shape[0] * frames.shape[1]
    print(f"NVT: {steps:,} steps of 1 fs in {seconds:.0f} s, {1e6 * seconds / steps:.0f} microseconds a step")
    compare(flow, frames)
    frames = frames.reshape(-1, *frames.shape[2:])
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(cg.topology))
    trajectory.save(str(options.output))
    trajectory[0].save_pdb(str(options.output.with_suffix(".topology.pdb")))
    print(f"written: {options.output}, {len(frames)} frames")

    drift, spread = nve(flow, cg, options.picoseconds / 2)
    print(f"NVE: {options.picoseconds / 2:g} ps in steps of 1 fs, the energy varies by {spread:.3f} kT")
    print(f"     and drifts by {drift:+.2e} kT per degree of freedom per ps")


def compare(flow: cgf.CGFlow, frames: np.ndarray) -> None:
    """Print what the dynamics `(walkers, n, beads, 3)` gives beside the flow's own density of the beads."""
    coordinates = flow.coordinates.bead_coordinates()
    own = flow.sample(100_000, seed=0).positions[:, flow.coordinates.bead_atoms]
    expected = coordinates.to_internal(torch.as_tensor(own))[0].double().numpy()
    found = coordinates.to_internal(torch.as_tensor(frames.reshape(-1, *frames.shape[2:])))[0].numpy()
    print(f"{'':34s} {'dynamics of the beads':>22s} {'density of the flow':>20s}")
    rows = [(name, basins(found[:, :2]) == k, basins(expected[:, :2]) == k) for k, name in enumerate(BASINS)]
    for k, name in enumerate(coordinates.names[2:], start=2):
        rows.append((f"{name}, mean", found[:, k], expected[:, k]))
        squares = [(values - expected[:, k].mean()) ** 2 for values in (found[:, k], expected[:, k])]
        rows.append(("    variance", *squares))
    for name, values, wanted in rows:
        walkers = values.reshape(len(frames), -1).mean(1)
        error = walkers.std(ddof=1) / len(walkers) ** 0.5
        print(f"{name:34s} {values.mean():11.6f} +- {error:8.6f} {wanted.mean():19.6f}")


def context_of(flow: cgf.CGFlow, cg, integrator: openmm.Integrator) -> openmm.Context:
    """The beads on OpenMM's Reference platform, which is the fastest for five particles."""
    context = openmm.Context(cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(flow.temperature, 1)
    return context


def nvt(flow: cgf.CGFlow, cg, picoseconds: float) -> tuple[np.ndarray, float]:
    """Frames `(walkers, n, 5, 3)` every 0.1 ps of Langevin dynamics, `picoseconds` in all, and the seconds it took."""
    integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    context = context_of(flow, cg, integrator)
    integrator.step(20)  # the first steps compile
    starts = flow.sample(WALKERS, seed=1).positions[:, flow.coordinates.bead_atoms].astype(float)
    frames = np.empty((WALKERS, max(1, round(10 * picoseconds / WALKERS)), 5, 3))
    begun = time.monotonic()
    for walker, (start, rows) in enumerate(zip(starts, frames, strict=True)):
        context.setPositions(start)
        context.setVelocitiesToTemperature(flow.temperature, walker + 1)
        for frame in rows:
            integrator.step(100)
            frame[:] = context.getState(positions=True).getPositions(asNumpy=True)._value
    return frames - frames.mean(2, keepdims=True), time.monotonic() - begun


def nve(flow: cgf.CGFlow, cg, picoseconds: float) -> tuple[float, float]:
    """Slope of the total energy, in kT per degree of freedom per ps, and its spread in kT."""
    integrator = openmm.VerletIntegrator(1 * unit.femtosecond)
    context = context_of(flow, cg, integrator)
    energies = []
    for _ in range(max(10, round(picoseconds / 0.05))):
        integrator.step(50)
        state = context.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / flow.target.kT)
    slope = np.polyfit(0.05 * np.arange(len(energies)), energies, 1)[0]
    return slope / 15, float(np.std(energies))


if __name__ == "__main__":
    main()
