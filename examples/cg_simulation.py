"""Molecular dynamics of the beads alone, in the free energy that the flow learned from all atoms.

    python examples/cg_simulation.py                    # 200 ps of NVT and 100 ps of NVE, minutes
    python examples/cg_simulation.py --picoseconds 2    # a taste

Prints the time a step takes, the drift of the energy without a thermostat, and populations of the dynamics beside those
of the flow's own density of the beads, which it must sample. Writes the beads for `backmap.py`.
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

from add_to_script import MODEL  # isort: skip  (beside this file)
from aldp_analysis import ALDP_BASINS, basin_labels  # isort: skip


def main() -> None:
    """NVT, then NVE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=200, help="of NVT; NVE takes half as long")
    parser.add_argument("--output", type=Path, default=Path("cg.dcd"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # five beads
    flow = cgf.CGFlow.load(MODEL)

    frames, seconds = nvt(flow, options.picoseconds)
    steps = round(1000 * options.picoseconds)
    print(f"NVT: {steps:,} steps of 1 fs in {seconds:.0f} s, {1e6 * seconds / steps:.0f} microseconds a step")
    coordinates = flow.coordinates.bead_coordinates()
    slow = coordinates.to_internal(torch.as_tensor(frames))[0][:, :2].numpy()
    expected = flow.sample(100_000, seed=0).slow
    print(f"{'basin':14s} {'dynamics of the beads':>22s} {'density of the flow':>20s}")
    for k, name in enumerate(ALDP_BASINS):
        inside = basin_labels(*np.degrees(slow).T) == k
        error = np.std([block.mean() for block in np.array_split(inside, 10)], ddof=1) / 10**0.5
        wanted = np.mean(basin_labels(*np.degrees(expected).T) == k)
        print(f"{name:14s} {inside.mean():11.4f} +- {error:6.4f} {wanted:20.4f}")
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(flow.createCGSystem("python").topology))
    trajectory.save(str(options.output))
    trajectory[0].save_pdb(str(options.output.with_suffix(".topology.pdb")))
    print(f"written: {options.output}, {len(frames)} frames")

    drift, spread = nve(flow, options.picoseconds / 2)
    print(f"NVE: {options.picoseconds / 2:g} ps in steps of 1 fs, the energy varies by {spread:.3f} kT ")
    print(f"     and drifts by {drift:+.2e} kT per degree of freedom per ps")


def context_of(flow: cgf.CGFlow, integrator: openmm.Integrator) -> openmm.Context:
    """The beads on OpenMM's Reference platform, which is the fastest for five particles."""
    cg = flow.createCGSystem()
    context = openmm.Context(cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(flow.temperature, 1)
    return context


def nvt(flow: cgf.CGFlow, picoseconds: float) -> tuple[np.ndarray, float]:
    """Frames `(n, 5, 3)` every 0.1 ps of Langevin dynamics at the flow's temperature, and the seconds it took."""
    integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    context = context_of(flow, integrator)
    integrator.step(20)  # the first steps compile
    frames = np.empty((max(1, round(10 * picoseconds)), 5, 3))
    begun = time.monotonic()
    for frame in frames:
        integrator.step(100)
        frame[:] = context.getState(positions=True).getPositions(asNumpy=True)._value
    return frames - frames.mean(1, keepdims=True), time.monotonic() - begun


def nve(flow: cgf.CGFlow, picoseconds: float) -> tuple[float, float]:
    """Slope of the total energy, in kT per degree of freedom per ps, and its spread in kT."""
    integrator = openmm.VerletIntegrator(1 * unit.femtosecond)
    context = context_of(flow, integrator)
    energies = []
    for _ in range(max(10, round(picoseconds / 0.05))):
        integrator.step(50)
        state = context.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value / flow.target.kT)
    slope = np.polyfit(0.05 * np.arange(len(energies)), energies, 1)[0]
    return slope / 15, float(np.std(energies))


if __name__ == "__main__":
    main()
