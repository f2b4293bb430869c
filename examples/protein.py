"""From alpha carbons to dynamics of all atoms, without any structure learned from: a protein in three steps.

    python examples/protein.py                         # a ten-residue peptide, some seconds
    python examples/protein.py ca.pdb --picoseconds 100

Reads alpha carbons, puts all atoms around them, relaxes these a little with the alpha carbons held, and starts Langevin
dynamics of 2 fs with constrained hydrogens at 300 K from them, without a further minimisation. Prints what was checked,
and draws energies and distances from the start along the way. Fails if anything is mirrored, pierced or not finite.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import openmm_cgflow as cgf

import openmm  # isort: skip  (after torch)
from openmm import app, unit  # isort: skip


def peptide() -> tuple[str, np.ndarray]:
    """A sequence, and its alpha carbons as a helix, `(10, 3)` nm."""
    turn = np.radians(100) * np.arange(10)
    return "GSAELAKRLA", np.stack([0.23 * np.cos(turn), 0.23 * np.sin(turn), 0.15 * np.arange(10)], 1)


def alpha_carbons(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """Names of the residues of each chain, and their alpha carbons."""
    pdb = app.PDBFile(str(path))
    found = [atom for atom in pdb.topology.atoms() if atom.name == "CA"]
    chains = [[a.residue.name for a in found if a.residue.chain == chain] for chain in pdb.topology.chains()]
    x = np.array(pdb.positions.value_in_unit(unit.nanometer))
    return [chain for chain in chains if chain], x[[atom.index for atom in found]]


def dynamics(topology: app.Topology, x: np.ndarray, picoseconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Ten energies in kJ/mol and frames `(atoms, 3)` in nm, of Langevin dynamics from these positions."""
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(topology, constraints=app.HBonds)
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 2 * unit.femtosecond)
    context = openmm.Context(system, integrator)
    context.setPositions(x)
    context.setVelocitiesToTemperature(300, 1)
    energies, frames = [], []
    for _ in range(10):
        integrator.step(max(1, round(picoseconds * 50)))
        state = context.getState(energy=True, positions=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    return np.array(energies), np.array(frames)


def main() -> None:
    """Run, and exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", help="a PDB file with alpha carbons")
    parser.add_argument("--picoseconds", type=float, default=2.0)
    parser.add_argument("-n", type=int, default=2, help="structures")
    parser.add_argument("--out", type=Path, default=Path("protein"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    names, trace = alpha_carbons(options.trace) if options.trace else peptide()
    result = cgf.ProteinBackmapper(names).backmap(trace, n=options.n, relax=50, seed=0)
    result.save(options.out / "atoms.pdb")
    for label, text in result.checks.summary():
        print(f"{label:24s} {text}")
    print(f"energies, kJ/mol         {', '.join(f'{e:.0f}' for e in result.energies[0])}")
    energies, frames = dynamics(result.topology, result.best[0].astype(float), options.picoseconds)
    apart = np.sqrt(((frames - result.best[0]) ** 2).sum(2).mean(1))
    time = options.picoseconds * np.arange(1, 11) / 10
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    axes[0].plot(time, energies, ".-")
    axes[0].set(xlabel="time (ps)", ylabel="potential energy (kJ/mol)")
    axes[1].plot(time, apart, ".-")
    axes[1].set(xlabel="time (ps)", ylabel="distance from the start, r.m.s. (nm)")
    figure.savefig(options.out / "dynamics.png", dpi=150)
    right = result.checks.wrong_chirality.sum() + result.checks.pierced_rings.sum() == 0
    print(f"dynamics of {options.picoseconds:g} ps: {'fine' if np.isfinite(energies).all() else 'NOT FINITE'}")
    raise SystemExit(0 if right and np.isfinite(energies).all() else 1)


if __name__ == "__main__":
    main()
