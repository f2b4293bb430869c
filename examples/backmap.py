"""From beads to atoms: all-atom structures around the frames of a CG simulation, and molecular dynamics from there.

    python examples/cg_simulation.py && python examples/backmap.py --cg cg.dcd
    python examples/backmap.py                      # makes a short CG trajectory itself

Around every frame eight structures are drawn, checked and weighted; one of them, by its weight, starts a short run of
all atoms.
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

import openmm_cgflow as cgf

MODEL = Path(__file__).resolve().parent / "models" / "alanine_dipeptide.cgflow"


def main() -> None:
    """Backmap, check, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cg", type=Path, help="beads, in a file that mdtraj reads")
    parser.add_argument("--output", type=Path, default=Path("atoms.dcd"))
    parser.add_argument("--runs", type=int, default=3, help="all-atom runs of 1 ps")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(MODEL)
    cg = options.cg or dynamics_of_beads(flow)

    atoms = flow.backmap(cg, n=8, seed=0)
    frames = len(atoms.outside)
    print(f"{frames} frames of beads, {atoms.outside.sum()} outside the trained region; 8 structures for each")
    for label, text in atoms.checks.summary():
        print(f"  {label:22s} {text}")
    print(f"ESS within a frame: {100 * atoms.ess.mean():.1f} % on average, {100 * atoms.ess.min():.1f} % at worst")
    chosen = atoms.resample(seed=0)
    chosen.save(options.output)
    print(f"written: {options.output}, one structure a frame, drawn by its weight")

    for index in np.linspace(0, frames - 1, options.runs).astype(int):
        integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, 1 * unit.femtosecond)
        context = openmm.Context(flow.system, integrator, *fastest_platform())
        context.setPositions(chosen.positions[index, 0].astype(float))
        context.setVelocitiesToTemperature(flow.temperature, 1)
        start = context.getState(energy=True).getPotentialEnergy()._value
        integrator.step(1000)
        end = context.getState(energy=True).getPotentialEnergy()._value
        print(f"all atoms from frame {index}: {start:.0f} kJ/mol at the start, {end:.0f} after 1 ps, no minimisation")


def dynamics_of_beads(flow: cgf.CGFlow, n: int = 20) -> np.ndarray:
    """Frames of beads `(n, beads, 3)`, nm, every 0.1 ps of dynamics in the free energy that the flow learned."""
    cg = flow.createCGSystem()
    integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, 1 * unit.femtosecond)
    context = openmm.Context(cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(cg.positions)
    context.setVelocitiesToTemperature(flow.temperature, 1)
    frames = []
    for _ in range(n):
        integrator.step(100)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def fastest_platform() -> tuple[openmm.Platform, dict[str, str]]:
    """A GPU where there is one, else OpenMM's CPU platform with one thread, which is best for 22 atoms."""
    names = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    for name in ("CUDA", "HIP", "OpenCL"):
        if name in names:
            return openmm.Platform.getPlatformByName(name), {}
    return openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}


if __name__ == "__main__":
    main()
