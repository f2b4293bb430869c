"""A coarse-grained force field of a molecule without a single frame: flow, student, dynamics of the beads.

    python examples/data_free_cg.py                         # the shipped flow of alanine dipeptide: four minutes
    python examples/data_free_cg.py --model model.cgflow    # a flow of your own, of a molecule with slow torsions
    python examples/data_free_cg.py --samples 1000000       # a finer reference

The flow was trained on energies alone. A student, a small network, is fitted to its exact density of the beads, and
judged without a simulation: its distribution of the torsions by importance sampling, beside samples of all atoms that
the flow drew and the molecule's own energies weighed. Then a thousand walkers start from the flow's beads. Exits with
code 1 where the Jensen-Shannon divergence is above 0.002.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import judge_beads, torsion_histogram

MODEL = Path(__file__).resolve().parent / "models" / "aldp.cgflow"
WALKERS = 1000


def main() -> None:
    """Fit, judge, simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument(
        "--samples", type=int, default=400_000, help="of all atoms, for the reference: its noise is 400 nats / n"
    )
    parser.add_argument("--picoseconds", type=float, default=2.0, help="of each of a thousand walkers")
    parser.add_argument("--backend", choices=["torch", "python", "compiled"], default="torch", help="of the force")
    parser.add_argument("--output", type=Path, help="write the force field there, a .cgff file")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(options.model)

    force_field = cgf.CGForceField.fromFlow(flow)
    if options.output:
        force_field.save(options.output)
    fitted = force_field.fitted
    print(
        f"student: {fitted.points:,} points, {fitted.steps:,} steps, {fitted.seconds:.0f} s, no frame of a simulation"
    )
    print(f"  energies off by {fitted.energy_error:.3f} kT at points held out")

    samples = flow.sample(options.samples, seed=0)
    reference = torsion_histogram(samples.slow[:, :2], samples.weights)
    beads, bead_flow, kT = flow.coordinates.bead_coordinates(), flow.flow.bead_flow, flow.target.kT
    found = judge_beads(force_field.student, bead_flow, beads, kT, axes=tuple(range(reference.ndim)))
    above = reference[len(reference) // 2 :].sum()
    js = found.js(reference)
    print(
        f"judged by importance sampling (ESS {found.ess:.2f}) beside {options.samples:,} weighted samples of all atoms"
    )
    print(f"  Jensen-Shannon divergence      {js:.5f} nats, at most 0.002; with the noise of the reference")
    print(
        f"  {flow.slow_names[0]} > 0                   {100 * found.population():.3f} %, reference {100 * above:.3f} %"
    )
    print(f"  free energy, mean squared error {found.free_energy_mse(reference):.4f} (kcal/mol)^2")
    print(f"  KL(flow || student)             {found.kl:.4f} nats, all {beads.dof} coordinates of the beads")

    print(f"a step of 2 fs, one copy, {options.backend}: {one_copy(force_field, options.backend):.0f} microseconds")
    start = samples.positions[:WALKERS, flow.coordinates.bead_atoms]
    walkers, steps = force_field.createWalkers(start), round(500 * options.picoseconds)
    begun = time.monotonic()
    frames = walkers.run(steps, every=min(steps, 50))
    cost = 1e6 * (time.monotonic() - begun) / steps / WALKERS
    print(f"{WALKERS:,} walkers, {options.picoseconds:g} ps each: {cost:.1f} microseconds a step and walker")
    torsions = beads.to_internal(frames[-1].double())[0][:, 0].numpy()
    print(f"  {flow.slow_names[0]} > 0 in their last frame: {100 * (np.sin(torsions) > 0).mean():.1f} %")
    if js > 0.002:
        sys.exit(f"the student's divergence from the reference is {js:.4f}, more than 0.002")


def one_copy(force_field: cgf.CGForceField, backend: str) -> float:
    """Microseconds of a Langevin step of one copy in OpenMM, the best of ten times a hundred."""
    cg = force_field.createCGSystem(backend)
    integrator = openmm.LangevinMiddleIntegrator(force_field.temperature, 1 / unit.picosecond, 2 * unit.femtosecond)
    # a handful of particles: the Reference platform is the fastest
    simulation = app.Simulation(cg.topology, cg.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(cg.positions)
    simulation.step(20)  # the first steps compile
    taken = []
    for _ in range(10):
        begun = time.monotonic()
        integrator.step(100)
        taken.append(1e4 * (time.monotonic() - begun))
    return min(taken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
