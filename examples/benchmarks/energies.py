"""Energy evaluations a second, with gradients: OpenMM's CPU platforms beside TorchPotential, one thread, one run.

Run it as `python examples/benchmarks/energies.py`; it takes about two minutes, most of it compilation. Rounds of all
the contestants alternate, and the fastest round of each counts: other work on the machine disturbs the ratios little.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch

# torch before openmm, whose torch plugin needs its libraries
# isort: split
import openmm
from openmm import unit
from openmmtools import testsystems

from openmm_cgflow.potentials import ContextPotential, TorchPotential

SYSTEMS = {
    "vacuum": ("alanine dipeptide, vacuum (22 atoms)", testsystems.AlanineDipeptideVacuum, 3.0),
    "obc1": ("alanine dipeptide, OBC1 (22 atoms)", testsystems.AlanineDipeptideImplicit, 6.0),
}


def thermal_positions(system: openmm.System, positions: np.ndarray, n: int) -> torch.Tensor:
    """Frames of a short Langevin run at 300 K, (n, atoms, 3) in nm."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(positions)
    frames = []
    for _ in range(n // 16):
        integrator.step(10)
        frames.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    rng = np.random.default_rng(0)
    x = np.repeat(np.array(frames), 16, axis=0)
    return torch.from_numpy(x + rng.normal(0.0, 0.002, x.shape)).float()


def seconds(evaluate: Callable[[torch.Tensor], object], x: torch.Tensor) -> float:
    """Seconds an evaluation."""
    start = time.perf_counter()
    evaluate(x)
    return (time.perf_counter() - start) / len(x)


def race(name: str, batch: int, rounds: int) -> bool:
    """Print the table of one system; returns whether the compiled potential is as much faster as wanted."""
    title, test, wanted = SYSTEMS[name]
    made = test(constraints=None)
    x = thermal_positions(made.system, made.positions.value_in_unit(unit.nanometer), batch)
    contestants = {
        f"OpenMM {platform}": (ContextPotential(made.system, platform, workers=0), x[: batch // 8])
        for platform in ("Reference", "CPU")
    }
    for label, compile_it in (("TorchPotential, eager", False), ("TorchPotential, compiled", True)):
        contestants[label] = (TorchPotential.fromSystem(made.system, compile=compile_it), x)
    first = {
        label: seconds(potential.energy_and_forces, rows) * len(rows)
        for label, (potential, rows) in contestants.items()
    }
    best = dict.fromkeys(contestants, np.inf)
    for _ in range(rounds):
        for label, (potential, rows) in contestants.items():
            best[label] = min(best[label], seconds(potential.energy_and_forces, rows))
    fastest = min(time for label, time in best.items() if label.startswith("OpenMM"))
    compiled = "TorchPotential, compiled"
    print(f"\n{title}: energy + gradient, batch {batch}, one thread")
    print(f"{'':28}{'us/evaluation':>15}{'evaluations/s':>15}{'ratio':>8}")
    for label, time_taken in best.items():
        print(f"{label:28}{1e6 * time_taken:15.2f}{1 / time_taken:15,.0f}{fastest / time_taken:8.1f}")
    ratio = fastest / best[compiled]
    print(
        f"compilation: {first[compiled]:.1f} s; ratio {ratio:.1f} to the fastest OpenMM platform (wanted: {wanted:.0f})"
    )
    return ratio >= wanted


def main() -> None:
    """Run the races and exit with 1 if one was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("systems", nargs="*", default=list(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    won = [race(name, arguments.batch, arguments.rounds) for name in arguments.systems]
    raise SystemExit(0 if all(won) else 1)


if __name__ == "__main__":
    main()
