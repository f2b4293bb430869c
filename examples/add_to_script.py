"""An OpenMM script with five lines more: molecular dynamics that crosses every barrier.

    python examples/add_to_script.py                   # 100 ps of alanine dipeptide, in about two minutes
    python examples/add_to_script.py --picoseconds 2   # a taste

The lines marked with `# +` are all that is added to the script. Every 50 steps the trained flow proposes a structure
of the whole molecule, which is accepted with the exact Metropolis-Hastings probability: the ensemble stays that of the
System.
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

import openmm_cgflow as cgf  # +

HERE = Path(__file__).resolve().parent
PDB = HERE.parent / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"
MODEL = HERE / "models" / "alanine_dipeptide.cgflow"

BASINS = ("C7eq/C5", "alpha_R", "alpha_L/C7ax")


def basins(slow: np.ndarray) -> np.ndarray:
    """Which of the `BASINS` phi and psi `(n, 2)`, rad, are in, `(n,)`: the ridges of ff96 with OBC1 lie between."""
    phi, psi = (np.degrees(slow).T + 180) % 360 - 180
    return np.where((phi >= 0) & (phi < 125), 2, np.where((psi >= -125) & (psi < 10), 1, 0))


def main() -> None:
    """Run, and print which basins were visited."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=100)
    options = parser.parse_args()

    pdb = app.PDBFile(str(PDB))
    system = app.ForceField("amber96.xml", "implicit/obc1.xml").createSystem(pdb.topology)
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, system, integrator, *fastest_platform())
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

    flow = cgf.CGFlow.load(MODEL)  # +
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, frequency=50)  # +

    frames = []
    for _ in range(max(10, round(1000 * options.picoseconds / 50))):
        monte_carlo.step(simulation, 50)  # + (was: simulation.step(50))
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)

    print(
        f"{monte_carlo.accepted} of {monte_carlo.attempted} proposals accepted ({100 * monte_carlo.acceptance:.1f} %)"
    )  # +
    labels = basins(flow.slowVariables(np.array(frames)))
    moves = np.count_nonzero(np.diff(labels))
    print(f"{len(frames)} frames, {moves} moves between basins:")
    for k, name in enumerate(BASINS):
        share = np.mean(labels == k)
        error = (labels == k).reshape(10, -1).mean(1).std(ddof=1) / 10**0.5 if len(labels) % 10 == 0 else np.nan
        print(f"  {name:14s} {share:.4f} +- {error:.4f}")


def fastest_platform() -> tuple[openmm.Platform, dict[str, str]]:
    """A GPU where there is one, else OpenMM's CPU platform with one thread, which is best for 22 atoms."""
    names = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    for name in ("CUDA", "HIP", "OpenCL"):
        if name in names:
            return openmm.Platform.getPlatformByName(name), {}
    return openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}


if __name__ == "__main__":
    main()
