"""Energy evaluations a second, with gradients: OpenMM's CPU platforms beside TorchPotential, one thread, one run.

    python examples/benchmarks/energies.py                 # about two minutes, most of it compilation
    python examples/benchmarks/energies.py --rounds 30 --json energies.json

OpenMM is timed by a bare loop over one Context: positions as contiguous arrays in nm, energy and forces into one
array. Nothing of openmm_cgflow takes part in it. Rounds of all contestants alternate, in CPU seconds of the process, so
that other work on the machine counts little. The ratio that counts is the smaller one: the fastest round of the faster
OpenMM platform, over the median round of TorchPotential.

That loop is what Python can ask of OpenMM. Inside OpenMM's own integrator a step on the Reference platform takes about
11 us for this molecule in vacuum; no call from outside gets there.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch

# torch before openmm, whose torch plugin needs its libraries
# isort: split
import openmm
from openmm import unit
from openmmtools import testsystems

from openmm_cgflow.potentials import TorchPotential

SYSTEMS = {
    "vacuum": ("alanine dipeptide, vacuum (22 atoms)", testsystems.AlanineDipeptideVacuum, 3.0),
    "obc1": ("alanine dipeptide, OBC1 (22 atoms)", testsystems.AlanineDipeptideImplicit, 6.0),
}

COMPILED = "TorchPotential, compiled"


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


def bare_loop(system: openmm.System, platform: str) -> Callable[[torch.Tensor], None]:
    """Energy and forces of each row by a Context and nothing else.

    `State.getForces(asNumpy=True)` looks through all names of the State at each call; what it calls itself, with an
    array that is kept, takes less.
    """
    properties = {"Threads": "1"} if platform == "CPU" else {}
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    forces = np.empty((system.getNumParticles(), 3))

    def evaluate(rows: list[np.ndarray]) -> None:
        for row in rows:
            context.setPositions(row)
            state = context.getState(energy=True, forces=True)
            state.getPotentialEnergy()
            state._getVectorAsNumpy(openmm.State.Forces, forces)

    return evaluate


def seconds(evaluate: Callable, x: torch.Tensor | list[np.ndarray]) -> float:
    """CPU seconds an evaluation, of all threads."""
    start = time.process_time()
    evaluate(x)
    return (time.process_time() - start) / len(x)


def race(name: str, batch: int, rounds: int) -> dict:
    """Print the table of one system; returns microseconds an evaluation in every round, and the ratio."""
    title, test, wanted = SYSTEMS[name]
    made = test(constraints=None)
    x = thermal_positions(made.system, made.positions.value_in_unit(unit.nanometer), batch)
    rows = list(x[: max(1, batch // 8)].double().numpy())
    contestants: dict[str, tuple[Callable, object]] = {
        f"OpenMM {platform}": (bare_loop(made.system, platform), rows) for platform in ("Reference", "CPU")
    }
    for label, compile_it in (("TorchPotential, eager", False), (COMPILED, True)):
        contestants[label] = (TorchPotential.fromSystem(made.system, compile=compile_it).energy_and_forces, x)
    first = {label: seconds(evaluate, rows) * len(rows) for label, (evaluate, rows) in contestants.items()}
    times: dict[str, list[float]] = {label: [] for label in contestants}
    for _ in range(rounds):
        for label, (evaluate, rows) in contestants.items():
            times[label].append(1e6 * seconds(evaluate, rows))
    fastest = min(min(found) for label, found in times.items() if label.startswith("OpenMM"))
    print(f"\n{title}: energy + gradient, batch {batch}, one thread, {rounds} rounds")
    print(f"{'us/evaluation':28}{'fastest':>12}{'median':>12}{'ratio':>8}")
    for label, found in times.items():
        print(f"{label:28}{min(found):12.2f}{np.median(found):12.2f}{fastest / np.median(found):8.1f}")
    ratio = fastest / float(np.median(times[COMPILED]))
    print(f"compilation: {first[COMPILED]:.1f} s; ratio {ratio:.1f} (wanted: {wanted:.0f})")
    return {
        "batch": batch,
        "n": rounds,
        "microseconds": {
            label: {"fastest": min(found), "median": float(np.median(found))} for label, found in times.items()
        },
        "compile_seconds": first[COMPILED],
        "ratio": ratio,
        "wanted": wanted,
    }


def main() -> None:
    """Run the races and exit with 1 if one was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("systems", nargs="*", default=list(SYSTEMS), help=f"of {', '.join(SYSTEMS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: race(name, arguments.batch, arguments.rounds) for name in arguments.systems}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(0 if all(figures["ratio"] >= figures["wanted"] for figures in found.values()) else 1)


if __name__ == "__main__":
    main()
