"""Backmapping of Ala4 from its four alpha carbons, beside cgback: speed, beads, clashes, bonds, chirality, energies.

    python examples/benchmarks/cgback_comparison.py --cgback /path/to/bin/cgback --frames 200

cgback (in an environment of its own: `pip install cgback`) is a general pretrained model for proteins; ours is trained
on this one molecule first, without data (`--time` seconds; the model is kept in `--model`). The beads are those of
frames of molecular dynamics, amber14 with OBC2 at 300 K. Whole commands are timed for both. Energies are those after
the same minimisation: 50 iterations with the alpha carbons held.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.structure_checks import check_structures

PDB = Path(__file__).resolve().parent / "ala4.pdb"
SPACING = 10.0  # nm between the copies in cgback's input, so that they do not see one another
ITERATIONS = 50


def molecule() -> tuple[app.Topology, openmm.System, np.ndarray, list[int]]:
    """Topology, System, positions and the alpha carbons of Ala4."""
    pdb = app.PDBFile(str(PDB))
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(pdb.topology)
    carbons = [atom.index for atom in pdb.topology.atoms() if atom.name == "CA"]
    return pdb.topology, system, np.array(pdb.positions.value_in_unit(unit.nanometer)), carbons


def dynamics(n: int) -> np.ndarray:
    """Frames `(n, 43, 3)` every 2 ps, nm."""
    _, system, positions, _ = molecule()
    integrator = openmm.LangevinMiddleIntegrator(300, 2 / unit.picosecond, 1 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(20_000)
    frames = np.empty((n, len(positions), 3))
    for frame in frames:
        integrator.step(2000)
        frame[:] = context.getState(positions=True).getPositions(asNumpy=True)._value
    return frames


def ours(model: Path, beads: np.ndarray, folder: Path, n: int) -> tuple[np.ndarray, float]:
    """Structures `(frames, 43, 3)` by `openmm-cgflow backmap`, each one of `n` drawn by weight, and its seconds."""
    flow = cgf.CGFlow.load(model)
    trajectory = mdtraj.Trajectory(beads, mdtraj.Topology.from_openmm(flow.createCGSystem().topology))
    trajectory.save(str(folder / "cg.dcd"))
    command = ["openmm-cgflow", "backmap", str(model), str(folder / "cg.dcd"), "-o", str(folder / "aa.dcd")]
    command += ["-n", str(n), "--resample"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    taken = time.monotonic() - start
    return mdtraj.load(str(folder / "aa.dcd"), top=str(folder / "aa.topology.pdb")).xyz.astype(float), taken


def theirs(program: Path, beads: np.ndarray, folder: Path, size: str) -> tuple[np.ndarray, float]:
    """The same by cgback, with all frames as chains of one file."""
    rows, side = [], int(np.ceil(len(beads) ** (1 / 3)))
    shifts = SPACING * np.array([(k % side, k // side % side, k // side**2) for k in range(len(beads))], dtype=float)
    shifts -= SPACING * side / 2
    for k, frame in enumerate(beads):
        chain = chr(ord("A") + k % 26)
        for residue, x in enumerate(10 * (frame - frame.mean(0) + shifts[k]), start=1):
            where = "".join(f"{value:8.3f}" for value in x)
            rows.append(f"ATOM  {residue:5d}  CA  ALA {chain}{residue:4d}    {where}  1.00  0.00           C")
        rows.append("TER")
    (folder / "ca.pdb").write_text("\n".join([*rows, "END", ""]))
    start = time.monotonic()
    command = [str(program), str(folder / "ca.pdb"), "-o", str(folder / "out.pdb"), "-m", size]
    subprocess.run(command, check=True, capture_output=True)
    taken = time.monotonic() - start
    atoms = [line for line in (folder / "out.pdb").read_text().splitlines() if line.startswith("ATOM")]
    names = [(int(line[22:26]), line[12:16].strip()) for line in atoms]
    x = np.array([[float(line[a:b]) for a, b in ((30, 38), (38, 46), (46, 54))] for line in atoms]) / 10
    per_chain = len(atoms) // len(beads)
    topology, *_ = molecule()
    alias = {"H": "H1"}  # of the first residue
    wanted = [(int(a.residue.id), a.name) for a in topology.atoms()]
    wanted = [(r, alias.get(name, name) if r == 1 else name) for r, name in wanted]
    order = [names[:per_chain].index(entry) for entry in wanted]
    x = x.reshape(len(beads), per_chain, 3)[:, order]
    return x - shifts[:, None] + beads.mean(1, keepdims=True), taken


def minimised(x: np.ndarray) -> np.ndarray:
    """Energies in kJ/mol after the same few iterations, alpha carbons held."""
    _, system, _, carbons = molecule()
    for carbon in carbons:
        system.setParticleMass(carbon, 0.0)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    energies = []
    for frame in x:
        context.setPositions(frame)
        openmm.LocalEnergyMinimizer.minimize(context, 1.0, ITERATIONS)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(energies)


def describe(name: str, x: np.ndarray, frames: np.ndarray, seconds: float | None) -> dict:
    """One row of the table."""
    topology, _, positions, carbons = molecule()
    checks = check_structures(topology, positions, x)
    pairs = np.array([(bond[0].index, bond[1].index) for bond in topology.bonds()])
    lengths, expected = (np.linalg.norm(y[:, pairs[:, 0]] - y[:, pairs[:, 1]], axis=2) for y in (x, frames))
    bonds = np.sqrt(((lengths - expected.mean(0)) ** 2).mean())
    moved = np.linalg.norm(x[:, carbons] - frames[:, carbons], axis=2).max()
    energies = minimised(x)
    speed = f"{len(x) / seconds:10.1f}" if seconds else f"{'-':>10}"
    wrong, clashes = np.mean(checks.wrong_chirality > 0), np.mean(checks.clashes > 0)
    print(
        f"{name:16s}{speed}{moved:12.5f}{100 * wrong:12.1f}{100 * clashes:10.1f}{bonds:10.4f}"
        f"{np.median(energies):12.1f}{np.percentile(energies, 90):12.1f}",
        flush=True,
    )
    return {
        "name": name,
        "frames_a_second": len(x) / seconds if seconds else None,
        "beads_off_by": moved,
        "mirrored": wrong,
        "clashes": clashes,
        "bonds_off_by": bonds,
        "energy_median": np.median(energies),
        "energy_90": np.percentile(energies, 90),
    }


def main() -> None:
    """Train if need be, backmap with both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cgback", type=Path, required=True, help="the command")
    parser.add_argument("--sizes", nargs="*", default=["S", "M", "L"], help="of cgback's models")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--model", type=Path, default=Path("ala4.cgflow"))
    parser.add_argument("--time", type=float, default=240, help="seconds of training, if there is no model yet")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    topology, system, positions, carbons = molecule()
    if not options.model.exists():
        flow = cgf.CGFlow(topology, system, positions, temperature=300, beads=carbons)
        flow.train(time=options.time)
        flow.save(options.model)
        print(flow.sample(5000, seed=0), f"{flow.provenance['evaluations']:,} evaluations", file=sys.stderr)
    frames = dynamics(options.frames)
    beads = frames[:, carbons]
    print(f"{'':16s}{'frames/s':>10}{'bead, nm':>12}{'mirrored %':>12}{'clashes %':>10}{'bonds, nm':>10}", end="")
    print(f"{'E median':>12}{'E 90 %':>12}")
    rows = [describe("dynamics", frames, frames, None)]
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, 8, 64):
            x, seconds = ours(options.model, beads, Path(folder), n)
            rows.append(describe(f"ours, best of {n}" if n > 1 else "ours", x, frames, seconds))
        for size in options.sizes:
            x, seconds = theirs(options.cgback, beads, Path(folder), size)
            rows.append(describe(f"cgback {size}", x, frames, seconds))
    if options.json:
        options.json.write_text(json.dumps({"n": options.frames, "rows": rows}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
