"""Flat free-energy surfaces without metadynamics: the flow's free energy, with the opposite sign, as a bias.

    python examples/flattening.py                    # 400 ps of alanine dipeptide, twice: some minutes
    python examples/flattening.py --picoseconds 5    # a taste

`createForce(backend="tabulated", scale=-1)` is a native OpenMM force: molecular dynamics on it diffuses over phi and
psi, and the frames are reweighted by the same free energy, known beforehand. Nothing is filled up step by step.
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

import openmm_cgflow as cgf

HERE = Path(__file__).resolve().parent
PDB = HERE.parent / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"
MODEL = HERE / "models" / "alanine_dipeptide.cgflow"

BASINS = ("C7eq/C5", "alpha_R", "alpha_L/C7ax")


def basins(slow: np.ndarray) -> np.ndarray:
    """Which of the `BASINS` phi and psi `(n, 2)`, rad, are in, `(n,)`: the ridges of ff96 with OBC1 lie between."""
    phi, psi = (np.degrees(slow).T + 180) % 360 - 180
    return np.where((phi >= 0) & (phi < 125), 2, np.where((psi >= -125) & (psi < 10), 1, 0))


def main() -> None:
    """Run with and without the bias, and print how much of the surface was visited, and the reweighted populations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=400)
    options = parser.parse_args()
    flow = cgf.CGFlow.load(MODEL)
    steps = max(20, round(options.picoseconds / 0.05))
    for scale in (0.0, -1.0):
        slow = flow.slowVariables(frames(flow, scale, steps))
        cells = len(np.unique(np.floor(np.degrees(slow) % 360 / 15), axis=0))
        print(f"scale {scale:4.1f}: {100 * cells / 24**2:.0f} % of the cells of 15 x 15 degrees were visited")
        # bias V = scale F: a frame has the weight exp(scale F / kT)
        weights = np.exp(scale * flow.freeEnergy(slow) / (unit.MOLAR_GAS_CONSTANT_R * flow.temperature))
        labels = basins(slow)
        for k, name in enumerate(BASINS):
            share, error = blocks(weights, labels == k)
            print(f"    {name:14s} {share:.4f} +- {error:.4f}")


def frames(flow: cgf.CGFlow, scale: float, n: int) -> np.ndarray:
    """Positions `(n, 22, 3)` every 50 fs, with the free energy as a bias times `scale`."""
    pdb = app.PDBFile(str(PDB))
    system = app.ForceField("amber96.xml", "implicit/obc1.xml").createSystem(pdb.topology)
    system.addForce(flow.createForce("tabulated", scale=scale))
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, *fastest_platform())
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    x = np.empty((n, 22, 3))
    for frame in x:
        simulation.step(50)
        frame[:] = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    return x


def blocks(weights: np.ndarray, inside: np.ndarray, n: int = 10) -> tuple[float, float]:
    """Weighted share of frames inside, and its standard error by leaving out one block in turn."""
    total = [block.sum() for block in np.array_split(weights, n)]
    found = [block.sum() for block in np.array_split(weights * inside, n)]
    left_out = [(sum(found) - f) / (sum(total) - t) for f, t in zip(found, total, strict=True)]
    return sum(found) / sum(total), float(np.sqrt((n - 1) * np.var(left_out)))


def fastest_platform() -> tuple[openmm.Platform, dict[str, str]]:
    """A GPU where there is one, else OpenMM's CPU platform with one thread, which is best for 22 atoms."""
    names = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    for name in ("CUDA", "HIP", "OpenCL"):
        if name in names:
            return openmm.Platform.getPlatformByName(name), {}
    return openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}


if __name__ == "__main__":
    main()
