"""What one GPU does: energies beside OpenMM's on it, samples, trainings of the demo's target and of molecules.

    python examples/benchmarks/gpu.py --json gpu.json
    python examples/benchmarks/gpu.py --molecules ARG --seconds 120

A training with as many energies as `openmm-cgflow demo` may use, with the default settings; then some by time, with
steps of 4096 rows, which take a GPU little longer than those of 1024. Each row is written as soon as it is there.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from molecules import load
from openmm import app

import openmm_cgflow as cgf
from openmm_cgflow.potentials import TorchPotential

ALDP = Path(cgf.__file__).parent / "data" / "alanine_dipeptide.pdb"
SAMPLES = 10_000


def demo_target() -> tuple[app.Topology, openmm.System, np.ndarray]:
    """What `openmm-cgflow demo` trains on."""
    pdb = app.PDBFile(str(ALDP))
    return pdb.topology, app.ForceField("amber96.xml", "implicit/obc1.xml").createSystem(pdb.topology), pdb.positions


def seconds_of(function, rounds: int = 7) -> float:
    """The median over rounds, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def energies(batch: int) -> dict:
    """Microseconds for an energy and its gradient: ours compiled, in a batch; OpenMM's by one Context on the GPU."""
    _, system, positions = demo_target()
    x = np.array(positions.value_in_unit(openmm.unit.nanometer))
    structures = x + np.random.default_rng(0).normal(scale=0.005, size=(batch, *x.shape))
    potential = TorchPotential.fromSystem(system, compile=True).to("cuda")
    tensor = torch.from_numpy(structures).float().cuda()
    ours = seconds_of(lambda: potential.energy_and_forces(tensor)) / batch
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CUDA"))

    def one_by_one() -> None:
        for positions in structures[:64]:
            context.setPositions(positions)
            context.getState(energy=True, forces=True).getPotentialEnergy()

    return {"batch": batch, "ours_us": 1e6 * ours, "openmm_cuda_us": 1e6 * seconds_of(one_by_one) / 64}


def training(molecule, budget: dict, batch: int | None) -> dict:
    """Train with seed 0; what came of it, and how long 100,000 samples take."""
    start = time.monotonic()
    flow = cgf.CGFlow(*molecule, seed=0, device="cuda")
    building = time.monotonic() - start
    settings = None if batch is None else cgf.TrainSettings(batch=batch)
    flow.train(progress=False, settings=settings, **budget)
    seconds = time.monotonic() - start
    samples = flow.sample(SAMPLES, seed=0)
    return {
        "budget": budget,
        "batch": batch,
        "atoms": flow.coordinates.n_atoms,
        "slow": flow.coordinates.sizes[0],
        "ess": samples.ess,
        "ess_clipped": samples.ess_clipped,
        "khat": samples.khat,
        "log_z": samples.logZ,
        "difference_kT": samples.check(200),
        "evaluations": flow.provenance["evaluations"],
        "training_seconds": flow.provenance["seconds"],
        "building_seconds": building,
        "seconds": seconds,
        "samples_seconds": seconds_of(lambda: flow.sample(100_000, seed=0), 3),
        "coverage": str(flow.coverage),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="*", default=["ARG", "TRP", "lidocaine"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training by time")
    parser.add_argument("--evaluations", type=int, default=3_000_000, help="of the demo's target")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU that this torch can use")
    found: dict[str, dict] = {"device": {"name": torch.cuda.get_device_name(), "torch": torch.__version__}}

    def note(name: str, figures: dict) -> None:
        found[name] = figures
        print(name, json.dumps(figures), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")

    note("demo-evaluations", training(demo_target(), {"evaluations": options.evaluations}, None))
    note("demo-time", training(demo_target(), {"time": options.seconds}, 4096))
    note("energies", energies(16_384))
    for name in options.molecules:
        note(name, training(load(name), {"time": options.seconds}, 4096))


if __name__ == "__main__":
    main()
