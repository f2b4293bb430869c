"""Flat free-energy surfaces without metadynamics: the flow's free energy, with the opposite sign, as a bias.

    python examples/flattening.py                    # 400 ps of alanine dipeptide, twice: some minutes
    python examples/flattening.py --picoseconds 5    # a taste

`createForce(backend="tabulated", scale=-1)` is a native OpenMM force: molecular dynamics on it diffuses over phi and
psi, and the frames are reweighted by the same free energy, known beforehand. Nothing is filled up step by step.
"""

import argparse

import numpy as np
import openmm
from openmm import app, unit

import openmm_cgflow as cgf

from add_to_script import MODEL, PDB, fastest_platform  # isort: skip  (beside this file)
from aldp_analysis import ALDP_BASINS, basin_labels, torsions  # isort: skip


def main() -> None:
    """Run with and without the bias, and print how much of the surface was visited, and the reweighted populations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=400)
    options = parser.parse_args()
    flow = cgf.CGFlow.load(MODEL)
    steps = max(20, round(options.picoseconds / 0.05))
    for scale in (0.0, -1.0):
        x = frames(flow, scale, steps)
        phi, psi = torsions(x)
        cells = np.unique(np.floor(np.stack([phi, psi]) / 15), axis=1).shape[1]
        print(f"scale {scale:4.1f}: {100 * cells / 24**2:.0f} % of the cells of 15 x 15 degrees were visited")
        # bias V = scale F: a frame has the weight exp(scale F / kT)
        weights = np.exp(scale * flow.freeEnergy(np.radians(np.stack([phi, psi], 1)))._value / flow.target.kT)
        labels = basin_labels(phi, psi)
        for k, name in enumerate(ALDP_BASINS):
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


if __name__ == "__main__":
    main()
