"""A reference of alanine dipeptide by OpenMM alone, in which no basin is rare: dynamics on flattened torsions.

`openmm.app.Metadynamics` finds a bias over phi and psi; then the bias stays as it is (a CMAP force), and frames of
Langevin dynamics are reweighted by it. The weights are exact for any bias; how good it is decides their scatter alone.
Nothing of openmm_cgflow is used. The target, the step and the heavy hydrogens are those of
`replica_exchange_reference.py`: openmmtools' `AlanineDipeptideImplicit(constraints=None)` (ff96, OBC1), 300 K, 2 fs.

    python examples/references/flat_reference.py --nanoseconds 20 --hours 3    # goes on where it stopped

Errors are those of a jackknife over pieces of the trajectory, the worst of 10, 20 and 40 pieces, and the number of
times that phi went from one side to the other and back is told beside them. One thread. `OUT.json` has the results and
is written at the end of each run and every five minutes; the checkpoint has what a run needs to go on.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from aldp_analysis import ALDP_BASINS, KB, PHI, PSI, Array, basin_labels, torsions
from openmm import app, unit
from openmmtools import testsystems
from replica_exchange_reference import blocked_populations, heavy_hydrogens

HERE = Path(__file__).resolve().parent
KELVIN, STEP, FRICTION, HYDROGEN_MASS = 300.0, 0.002, 2.0, 4.0  # K, ps, 1/ps, amu
GRID = 72
"""Points of the bias on each axis."""
EVERY = 100
"""Steps between frames."""


def make_test() -> Any:
    """The test system of openmmtools with heavy hydrogens."""
    test = testsystems.AlanineDipeptideImplicit(constraints=None)
    heavy_hydrogens(test.system, test.topology, HYDROGEN_MASS)
    return test


def find_bias(nanoseconds: float, seed: int) -> Array:
    """The bias of well-tempered metadynamics over psi and phi, `(GRID + 1, GRID + 1)` from -pi to pi, kJ/mol."""
    test = make_test()
    variables = []
    for atoms in (PHI, PSI):
        torsion = openmm.CustomTorsionForce("theta")
        torsion.addTorsion(*atoms, [])
        variables.append(app.BiasVariable(torsion, -np.pi, np.pi, 0.3, periodic=True, gridWidth=GRID + 1))
    meta = app.Metadynamics(test.system, variables, KELVIN, biasFactor=12.0, height=1.0, frequency=250)
    integrator = openmm.LangevinMiddleIntegrator(KELVIN, FRICTION, STEP)
    integrator.setRandomNumberSeed(seed)
    cpu = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(test.topology, test.system, integrator, cpu, {"Threads": "1"})
    simulation.context.setPositions(test.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(KELVIN, seed)
    meta.step(simulation, round(1000 * nanoseconds / STEP))
    free_energy = meta.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
    return free_energy.min() - free_energy + np.ptp(free_energy)


class Flattened:
    """Dynamics with a bias that stays as it is.

    Arguments:
        bias: as `find_bias` gives it.
        positions: nm.
        seed: of velocities and noise.
    """

    def __init__(self, bias: Array, positions: Array, seed: int) -> None:
        test = make_test()
        cmap = openmm.CMAPTorsionForce()
        table = np.roll(bias[:-1, :-1], (GRID // 2, GRID // 2), axis=(0, 1))  # CMAP begins at angle 0; phi runs fastest
        cmap.addMap(GRID, table.ravel())
        cmap.addTorsion(0, *PHI, *PSI)
        cmap.setForceGroup(1)
        test.system.addForce(cmap)
        integrator = openmm.LangevinMiddleIntegrator(KELVIN, FRICTION, STEP)
        integrator.setRandomNumberSeed(seed)
        cpu = openmm.Platform.getPlatformByName("CPU")
        self.context = openmm.Context(test.system, integrator, cpu, {"Threads": "1"})
        self.context.setPositions(positions)
        self.context.setVelocitiesToTemperature(KELVIN, seed)

    def frame(self) -> tuple[float, float, float]:
        """Phi, psi (degrees) and bias (kJ/mol), `EVERY` steps later.

        Raises:
            RuntimeError: the energy is not finite.
        """
        self.context.getIntegrator().step(EVERY)
        energy = self.context.getState(getEnergy=True, groups={1}).getPotentialEnergy()._value
        if not np.isfinite(energy):
            raise RuntimeError("the dynamics has blown up")
        phi, psi = torsions(self.positions)
        return float(phi), float(psi), energy

    @property
    def positions(self) -> Array:
        """Of the atoms, nm."""
        return self.context.getState(getPositions=True).getPositions(asNumpy=True)._value


def crossings(phi: Array) -> int:
    """How often phi went from its usual side to that of alpha_L/C7ax and back again."""
    inside = basin_labels(phi, np.zeros_like(phi)) == list(ALDP_BASINS).index("alpha_L/C7ax")
    settled = np.where(inside & (phi > 30) & (phi < 95), 1, np.where(~inside & (phi < -40) & (phi > -160), 0, -1))
    settled = settled[settled >= 0]
    return int((np.diff(settled) == -1).sum())


def collect(frames: Array, bias_nanoseconds: float, seconds: float) -> dict:
    """Populations of frames `(n, 3)`: phi, psi, bias."""
    phi, psi, bias = frames.T
    weights = np.exp((bias - bias.max()) / (KB * KELVIN))
    populations, errors = blocked_populations(phi[:, None], psi[:, None], weights[:, None])
    return {
        "system": "AlanineDipeptideImplicit(constraints=None)",
        "openmm": openmm.__version__,
        "machine": platform.processor() or platform.machine(),
        "seconds": round(seconds, 1),
        "nanoseconds_of_metadynamics": bias_nanoseconds,
        "nanoseconds": round(len(frames) * EVERY * STEP / 1000, 3),
        "frames": len(frames),
        "effective_share_of_weights": float(weights.sum() ** 2 / (weights @ weights) / len(weights)),
        "crossings_of_phi_and_back": crossings(phi),
        "basins": ALDP_BASINS,
        "populations": populations,
        "errors": errors,
    }


def main() -> None:
    """Run, or go on, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanoseconds", type=float, default=20.0, help="with the bias, earlier runs included")
    parser.add_argument("--metadynamics", type=float, default=2.0, help="nanoseconds in which the bias is found")
    parser.add_argument("--hours", type=float, default=2.0, help="wall time of this run, after the bias is found")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "aldp_obc1_flat", help="without ending")
    parser.add_argument("--checkpoint", type=Path, help="default OUT.checkpoint.npz")
    options = parser.parse_args()
    checkpoint = options.checkpoint or options.out.with_suffix(".checkpoint.npz")
    if checkpoint.exists():
        with np.load(checkpoint) as data:
            bias, found, start, seconds = data["bias"], data["frames"], data["positions"], float(data["seconds"])
    else:
        bias, found, seconds = find_bias(options.metadynamics, options.seed + 1), np.empty((0, 3)), 0.0
        start = make_test().positions.value_in_unit(unit.nanometer)
    run = Flattened(bias, start, options.seed + 2 + len(found))
    frames, begun = [*found], time.monotonic()
    written, wanted = begun, round(1000 * options.nanoseconds / (EVERY * STEP))
    while True:
        now = time.monotonic()
        done = len(frames) >= wanted or now - begun > 3600 * options.hours
        if done or now - written > 300:
            temporary = checkpoint.with_suffix(".tmp.npz")
            spent = seconds + now - begun
            np.savez(temporary, bias=bias, frames=np.array(frames), positions=run.positions, seconds=spent)
            temporary.replace(checkpoint)
            if not frames:
                break
            summary = collect(np.array(frames), options.metadynamics, spent)
            options.out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
            written = now
        if done:
            print(json.dumps(summary, indent=2))
            break
        frames.append(run.frame())


if __name__ == "__main__":
    main()
