"""FlowMonteCarlo measured: acceptance, populations with a good and with a bad flow, and the cost beside plain dynamics.

    python examples/benchmarks/sampler.py                     # 100,000 moves each, half an hour or so
    python examples/benchmarks/sampler.py --moves 2000 --walkers 64 --picoseconds 5     # a taste

The bad flow has a slow density that was never trained: it must give the same populations, with fewer accepted moves.
What alpha_L's population to 10 % costs is told for plain molecular dynamics (by how long walkers that start there
stay), for parallel tempering (by the scatter between the ladders of `references/aldp_obc1.json`, all replicas and the
equilibration counted), for `FlowMonteCarlo` and for reweighted samples of the flow, these two with the training: every
energy, and the wall time at the rates measured here. Dynamics and parallel tempering have the batched energies too.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch

# torch before openmm, whose torch plugin needs its libraries
# isort: split
import openmm
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.flows import JointFlow

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "references"))  # dynamics of its own, for comparison
import batched_replica_exchange as batched
from aldp_analysis import ALDP_BASINS, basin_labels, torsions

MODEL = Path(__file__).resolve().parent.parent / "models" / "alanine_dipeptide.cgflow"
REFERENCE = Path(__file__).resolve().parent.parent / "references" / "aldp_obc1.json"
BETWEEN = 5  # steps of 1 fs between moves; a move itself costs two energies
RARE, TOLERANCE = 0.0023, 0.1  # the population of alpha_L, and the relative error wanted


def bad_flow() -> cgf.CGFlow:
    """The shipped flow with a slow density as it was before training: nearly uniform in phi and psi."""
    flow = cgf.CGFlow.load(MODEL)
    c = flow.coordinates
    untrained = JointFlow.build(c.sizes, c.centre, c.scale, c.period)
    flow.flow.bead_flow.slow.load_state_dict(untrained.bead_flow.slow.state_dict())
    return flow


def chain(flow: cgf.CGFlow, moves: int, seed: int) -> tuple[np.ndarray, float, float]:
    """Basins after each move, the acceptance, and seconds."""
    topology, system, positions = flow.topology, flow.system, flow.positions
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, seed)
    monte_carlo = cgf.FlowMonteCarlo(simulation, flow, frequency=BETWEEN, seed=seed)
    x = np.empty((moves, 22, 3), dtype=np.float32)
    start = time.monotonic()
    for frame in x:
        monte_carlo.step(simulation, BETWEEN)
        frame[:] = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    return basin_labels(*torsions(x.astype(float))), monte_carlo.acceptance, time.monotonic() - start


def inefficiency(inside: np.ndarray) -> float:
    """How many moves make an independent one: by the variance of the means of 50 blocks."""
    blocks = np.array([block.mean() for block in np.array_split(inside, 50)])
    return max(1.0, blocks.var(ddof=1) * (len(inside) / 50) / max(inside.var(), 1e-12))


def report(name: str, flow: cgf.CGFlow, moves: int, seed: int) -> dict:
    """Print populations beside the reference; the result has also the moves for one independent sample of alpha_L."""
    labels, acceptance, seconds = chain(flow, moves, seed)
    reference = json.loads(REFERENCE.read_text())
    print(f"\n{name}: {moves:,} moves in {seconds:.0f} s, acceptance {100 * acceptance:.1f} %")
    basins, agree = {}, True
    for k, basin in enumerate(ALDP_BASINS):
        inside = (labels == k).astype(float)
        error = math.sqrt(inside.var() * inefficiency(inside) / moves)
        theirs = reference["populations_all_temperatures"][basin]
        their_error = reference["errors_all_temperatures"][basin]
        away = (inside.mean() - theirs) / math.hypot(error, their_error)
        agree &= abs(away) <= 3
        basins[basin] = {"population": inside.mean(), "error": error}
        ours = f"{inside.mean():.5f} +- {error:.5f}"
        print(f"  {basin:14s} {ours}   reference {theirs:.5f} +- {their_error:.5f}   {away:+.1f} s.e.")
    independent = inefficiency((labels == 2).astype(float))
    return {
        "acceptance": acceptance,
        "n": moves,
        "basins": basins,
        "agree": bool(agree),
        "moves_for_one": independent,
        "seconds_a_move": seconds / moves,
    }


def stay(walkers: int, picoseconds: float) -> dict:
    """How long plain dynamics stays in alpha_L, ps: exposure over departures; and seconds an energy takes."""
    batched.STARTS = {"phi > 0": batched.STARTS["phi > 0"], "also": batched.STARTS["phi > 0"]}
    ladders = batched.Ladders(walkers, np.array([300.0]), seed=3)
    ladders.prepare()
    sweep = batched.STEP * batched.PERIOD
    left = np.zeros(walkers, dtype=bool)
    exposure, sweeps = 0.0, round(picoseconds / sweep)
    for _ in range(sweeps):
        ladders.sweep()
        labels = basin_labels(*torsions(ladders.x.double().numpy()))
        exposure += sweep * np.count_nonzero(~left)
        left |= labels != 2
    energies = sweeps * batched.PERIOD * walkers
    return {
        "stay_ps": exposure / max(1, left.sum()),
        "left": int(left.sum()),
        "n": walkers,
        "seconds_an_energy": ladders.seconds / energies,
    }


def costs(flow: cgf.CGFlow, moves: dict, dynamics: dict, seed: int) -> dict[str, dict]:
    """Energies and seconds for the population of alpha_L to `TOLERANCE`, by method, and how many of them train."""
    samples = (1 - RARE) / (RARE * TOLERANCE**2)
    trained, training = flow.provenance["evaluations"], flow.provenance["seconds"]
    # two states: their correlation time is about the stay in the rarer one, and twice that makes an independent sample
    plain = samples * 2 * dynamics["stay_ps"] / batched.STEP
    rows = {"plain dynamics": {"energies": plain, "seconds": plain * dynamics["seconds_an_energy"], "training": 0}}

    reference = json.loads(REFERENCE.read_text())
    relative = reference["errors_all_temperatures"]["alpha_L/C7ax"]
    relative /= reference["populations_all_temperatures"]["alpha_L/C7ax"]
    replicas = reference["ladders"] * len(reference["temperatures"])
    spent = replicas * reference["ns_each_replica"] * 1e6 / reference["step_fs"] * (relative / TOLERANCE) ** 2
    rows["parallel tempering"] = {"energies": spent, "seconds": spent * dynamics["seconds_an_energy"], "training": 0}

    needed = samples * moves["moves_for_one"]
    rows["FlowMonteCarlo"] = {
        "energies": needed * (BETWEEN + 2) + trained,
        "seconds": needed * moves["seconds_a_move"] + training,
        "training": trained,
    }

    start, n = time.monotonic(), 100_000
    drawn = flow.sample(n, seed=seed)
    seconds = time.monotonic() - start
    mean, error = (float(v) for v in drawn.reweight(basin_labels(*np.degrees(drawn.slow).T) == 2))
    share = (error / mean / TOLERANCE) ** 2
    rows["reweighted samples"] = {
        "energies": share * n + trained,
        "seconds": share * seconds + training,
        "training": trained,
    }
    return rows


def main() -> None:
    """Run, and exit with 1 if a population is more than three standard errors off or a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=100_000)
    parser.add_argument("--walkers", type=int, default=256)
    parser.add_argument("--picoseconds", type=float, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    good = cgf.CGFlow.load(MODEL)
    moves = report("shipped flow", good, options.moves, options.seed)
    bad = report("bad flow", bad_flow(), options.moves, options.seed)
    dynamics = stay(options.walkers, options.picoseconds)
    print(
        f"\nplain dynamics stays in alpha_L for {dynamics['stay_ps']:.0f} ps "
        f"({dynamics['left']} of {options.walkers} walkers left)"
    )
    rows = costs(good, moves, dynamics, options.seed)
    print(f"\nfor the population of alpha_L to {100 * TOLERANCE:.0f} %, one thread:")
    print(f"{'':22}{'energies':>10}{'of training':>13}{'minutes':>9}")
    for name, row in rows.items():
        print(f"{name:22}{row['energies']:10.1e}{row['training']:13.1e}{row['seconds'] / 60:9.1f}")
    if options.json:
        figures = {"good": moves, "bad": bad, "dynamics": dynamics, "costs": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    raise SystemExit(0 if moves["agree"] and bad["agree"] else 1)


if __name__ == "__main__":
    main()
