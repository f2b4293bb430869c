"""Replica exchange of openmmtools with flow proposals in every replica.

    python examples/replica_exchange.py                    # 200 iterations, minutes
    python examples/replica_exchange.py --iterations 5     # a taste

Beside Langevin dynamics, a structure of the whole molecule is proposed in each replica and each iteration: always
accepted, nearly, at 300 K, where the flow was trained, and less the hotter the replica. The move is stored and restored
like any other.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
from openmm import unit
from openmmtools import mcmc, multistate, states

import openmm_cgflow as cgf

MODEL = Path(__file__).resolve().parent / "models" / "alanine_dipeptide.cgflow"

BASINS = ("C7eq/C5", "alpha_R", "alpha_L/C7ax")


def basins(slow: np.ndarray) -> np.ndarray:
    """Which of the `BASINS` phi and psi `(n, 2)`, rad, are in, `(n,)`: the ridges of ff96 with OBC1 lie between."""
    phi, psi = (np.degrees(slow).T + 180) % 360 - 180
    return np.where((phi >= 0) & (phi < 125), 2, np.where((psi >= -125) & (psi < 10), 1, 0))


def main() -> None:
    """Run, and print exchanges, acceptance and the basins of the lowest temperature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    logging.getLogger("openmmtools").setLevel(logging.ERROR)
    flow = cgf.CGFlow.load(MODEL)
    temperatures = [300, 370, 460, 570] * unit.kelvin
    move = mcmc.SequenceMove(
        [
            mcmc.LangevinDynamicsMove(1 * unit.femtosecond, 1 / unit.picosecond, n_steps=200, reassign_velocities=True),
            cgf.FlowMove(MODEL, any_temperature=True),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        storage = multistate.MultiStateReporter(str(Path(folder) / "run.nc"), checkpoint_interval=1)
        sampler = multistate.ReplicaExchangeSampler(mcmc_moves=move, number_of_iterations=options.iterations)
        sampler.create(
            [states.ThermodynamicState(flow.system, temperature) for temperature in temperatures],
            states.SamplerState(flow.positions),
            storage,
        )
        labels = []
        for _ in range(options.iterations):
            sampler.run(1)
            lowest = int(np.argmin(sampler._replica_thermodynamic_states))
            x = sampler.sampler_states[lowest].positions.value_in_unit(unit.nanometer)
            labels.append(int(basins(flow.slowVariables(x))[0]))
        moves = [moves.move_list[1] for moves in sampler.mcmc_moves]
        for temperature, moved in zip(temperatures, moves, strict=True):
            print(f"{temperature._value:.0f} K: {moved.n_accepted} of {moved.n_proposed} flow proposals accepted")
    for k, name in enumerate(BASINS):
        print(f"{name:14s} {np.mean(np.array(labels) == k):.3f} of the frames at 300 K")


if __name__ == "__main__":
    main()
