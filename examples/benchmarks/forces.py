"""Microseconds a step of molecular dynamics: every backend of the free energy as a force, beside plain steps.

    python examples/benchmarks/forces.py

Alanine dipeptide with the shipped model, one thread. Rounds of all contestants alternate, and the fastest round of each
counts. Backends that cannot be had here are named with the reason.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch

# torch before openmm, whose torch plugin needs its libraries
# isort: split
import openmm
from openmm import unit
from openmmtools import testsystems

import openmm_cgflow as cgf

MODEL = Path(__file__).resolve().parent.parent / "models" / "alanine_dipeptide.cgflow"


def context_of(system: openmm.System, positions: unit.Quantity, platform: str) -> openmm.Context:
    """Langevin dynamics at 300 K and 1 fs."""
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 1)
    return context


def contestants(flow: cgf.CGFlow) -> dict[str, openmm.Context]:
    """Contexts by label."""
    found = {}
    vacuum = testsystems.AlanineDipeptideVacuum(constraints=None)
    systems = {"vacuum": (vacuum.system, vacuum.positions, "Reference"), "OBC1": (flow.system, flow.positions, "CPU")}
    for name, (system, positions, platform) in systems.items():
        found[f"all atoms, {name} ({platform})"] = context_of(system, positions, platform)
        for backend in ("torch", "python", "compiled", "tabulated"):
            try:
                force = flow.createForce(backend)
            except cgf.UnsupportedForceError as error:
                print(f"createForce({backend!r}): {error}")
                continue
            biased = copy.deepcopy(system)
            biased.addForce(force)
            found[f"  + createForce({backend!r}) {name}"] = context_of(biased, positions, platform)
    for backend in ("torch", "python", "compiled"):
        try:
            cg = flow.createCGSystem(backend)
        except cgf.UnsupportedForceError as error:
            print(f"createCGSystem({backend!r}): {error}")
            continue
        found[f"beads, createCGSystem({backend!r}) (Reference)"] = context_of(cg.system, cg.positions, "Reference")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    racing = contestants(cgf.CGFlow.load(MODEL))
    for context in racing.values():
        context.getIntegrator().step(30)  # the first steps compile
    best = dict.fromkeys(racing, float("inf"))
    for _ in range(options.rounds):
        for label, context in racing.items():
            start = time.perf_counter()
            context.getIntegrator().step(options.steps)
            context.getState(energy=True)
            best[label] = min(best[label], (time.perf_counter() - start) / options.steps)
    print(f"{'':44}{'us/step':>10}")
    for label, seconds in best.items():
        print(f"{label:44}{1e6 * seconds:10.0f}")
    if options.json:
        found = {label.strip(): 1e6 * seconds for label, seconds in best.items()}
        options.json.write_text(json.dumps({"n": options.rounds, "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
