"""A replica-exchange reference of chignolin (CLN025, 166 atoms) in implicit solvent, by OpenMM alone.

Nothing of openmm_cgflow is used here. YYDPETGTWY with charged ends, ff14SBonlysc and OBC2, bonds to hydrogen
constrained. One Context, one thread: replicas take turns in it, and neighbouring temperatures swap every 2 ps. Half of
the replicas start folded (PDB 5AWL), half extended (`chignolin/leap.in` made the files).

    python examples/references/chignolin_reference.py --hours 8    # goes on where an earlier run stopped
    python examples/references/chignolin_reference.py --summary    # OUT.npz and OUT.json from the checkpoint

The checkpoint is written every five minutes and when the run is stopped by Ctrl-C or SIGTERM, whole or not at all. A
run that goes on draws new random numbers, so it is not bit for bit what one long run would have been.

`OUT.npz` has the C-alpha positions (`ca`, nm, relative to their mean, float16) of all temperatures every 10 ps, with
the potential energy and the replica at each: 530 bytes a frame, 5 MB for 100 ns of each replica.

Folded: C-alpha RMSD to the crystal structure below 0.2 nm, over residues 2 to 9 as is customary, since the ends fray.
That lets in the hairpin with shifted strands (0.13 to 0.17 nm), so the share below 0.1 nm is told too. A replica has
folded when it comes below 0.1 nm after having been above 0.4 nm, and has unfolded the other way round.
"""

import argparse
import json
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from aldp_analysis import KB, Array, round_trips
from openmm import app, unit

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "chignolin"

STEP = 0.004  # ps
FRICTION = 1.0  # 1/ps
HYDROGEN_MASS = 3.0  # amu, which leaves 6 to the carbon of a methyl group
PERIOD = 500  # steps between swaps
SWEEPS_PER_FRAME = 5
FRAME = STEP * PERIOD * SWEEPS_PER_FRAME  # ps

CORE = slice(1, 9)
"""Residues 2 to 9, of which the RMSD is taken."""

FOLDED, NATIVE, UNFOLDED = 0.2, 0.1, 0.4  # nm
BURN_IN = 0.1
"""Share of the frames left out at the beginning."""


def make_system() -> tuple[Any, app.Topology]:
    """The System with GBSAOBCForce, which has the energy of `implicit/obc2.xml` and takes a sixth of its time on a CPU.

    Raises:
        RuntimeError: the two forces differ in energy.
    """
    prmtop = app.AmberPrmtopFile(str(DATA / "chignolin.prmtop"))
    system = prmtop.createSystem(constraints=app.HBonds, hydrogenMass=HYDROGEN_MASS * unit.amu, removeCMMotion=False)
    charges = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    by_xml = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml").createSystem(prmtop.topology)
    custom = next(f for f in by_xml.getForces() if isinstance(f, openmm.CustomGBForce))
    fast = openmm.GBSAOBCForce()
    fast.setSolventDielectric(78.5)  # its own default is 78.3
    fast.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    for i in range(system.getNumParticles()):
        charge = charges.getParticleParameters(i)[0]
        _, offset_radius, scaled_radius = custom.getParticleParameters(i)
        custom.setParticleParameters(i, [charge._value, offset_radius, scaled_radius])
        fast.addParticle(charge, offset_radius + 0.009, scaled_radius / offset_radius)
    solvents = [_energy_of(system, force) for force in (fast, custom)]
    if abs(solvents[0] - solvents[1]) > 1e-6 * abs(solvents[1]):
        raise RuntimeError(f"GBSAOBCForce gives {solvents[0]:.3f} kJ/mol, implicit/obc2.xml {solvents[1]:.3f} kJ/mol")
    system.addForce(fast)
    return system, prmtop.topology


def _energy_of(system: Any, force: Any) -> float:
    alone = openmm.System()
    for i in range(system.getNumParticles()):
        alone.addParticle(system.getParticleMass(i))
    alone.addForce(openmm.XmlSerializer.clone(force))
    context = openmm.Context(alone, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(read("folded"))
    return context.getState(getEnergy=True).getPotentialEnergy()._value


def read(name: str) -> Array:
    """Positions of `folded` or `extended`, `(166, 3)` nm."""
    return np.array(app.PDBFile(str(DATA / f"{name}.pdb")).getPositions(asNumpy=True)._value)


def check_structure(topology: app.Topology, x: Array) -> None:
    """Raise a RuntimeError unless all residues are L and all peptide bonds trans."""
    residues = [{a.name: x[a.index] for a in residue.atoms()} for residue in topology.residues()]
    for i, atoms in enumerate(residues):
        n, c = atoms["N"] - atoms["CA"], atoms["C"] - atoms["CA"]
        if "CB" in atoms and np.dot(np.cross(n, c), atoms["CB"] - atoms["CA"]) < 0:
            raise RuntimeError(f"residue {i + 1} is not L")
        if i + 1 < len(residues):
            far = np.linalg.norm(residues[i + 1]["CA"] - atoms["CA"])
            if not 0.36 < far < 0.40:  # nm; 0.29 when cis
                raise RuntimeError(f"C-alphas of residues {i + 1} and {i + 2} are {far:.3f} nm apart: not trans")


def core_rmsd(ca: Array) -> Array:
    """RMSD (nm) of C-alpha positions, `(..., 10, 3)`, to the crystal structure over residues 2 to 9, `(...)`."""
    names = [a.name for a in app.PDBFile(str(DATA / "folded.pdb")).topology.atoms()]
    native = read("folded")[[i for i, name in enumerate(names) if name == "CA"]][CORE]
    native -= native.mean(axis=0)
    x = ca[..., CORE, :].astype(np.float64)
    x -= x.mean(axis=-2, keepdims=True)
    product = np.swapaxes(x, -1, -2) @ native
    singular = np.linalg.svd(product, compute_uv=False)
    singular[..., 2] *= np.sign(np.linalg.det(product))
    square = (x**2).sum(axis=(-1, -2)) + (native**2).sum() - 2 * singular.sum(axis=-1)
    return np.sqrt(np.maximum(square, 0) / len(native))


class ReplicaExchange:
    """Replicas at several temperatures, which take turns in one Context."""

    def __init__(self, temperatures: Array, seed: int) -> None:
        system, self.topology = make_system()
        self.ca = [atom.index for atom in self.topology.atoms() if atom.name == "CA"]
        self.temperatures, self.seed = temperatures, seed
        self.integrator = openmm.LangevinMiddleIntegrator(300.0, FRICTION, STEP)
        self.context = openmm.Context(
            system, self.integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
        )
        count = len(temperatures)
        self.rng = np.random.default_rng(seed)
        self.replica = np.arange(count)  # at each temperature
        self.attempts, self.accepted = np.zeros(count - 1), np.zeros(count - 1)
        self.frames: dict[str, list[Array]] = {"ca": [], "energy": [], "replica": []}
        self.sweeps, self.seconds = 0, 0.0
        self._new_noise()

    def _new_noise(self) -> None:
        self.integrator.setRandomNumberSeed(int(self.rng.integers(1, 2**31 - 1)))
        self.context.reinitialize()

    def prepare(self) -> None:
        """Minimise the two starts, give them to the replicas by turns, and draw velocities."""
        starts = []
        for name in ("folded", "extended"):
            self.context.setPositions(read(name))
            openmm.LocalEnergyMinimizer.minimize(self.context, 1.0)
            state = self.context.getState(getPositions=True, getEnergy=True)
            x = state.getPositions(asNumpy=True)._value
            check_structure(self.topology, x)
            energy = state.getPotentialEnergy()._value
            print(f"{name}: {energy:.0f} kJ/mol, C-alpha RMSD {core_rmsd(x[self.ca]):.3f} nm after minimising")
            starts.append(np.array(x))
        self.x = np.stack([starts[r % 2] for r in self.replica])
        velocities = []
        for r, temperature in enumerate(self.temperatures):
            self.context.setPositions(self.x[r])
            self.context.setVelocitiesToTemperature(temperature, int(self.rng.integers(1, 2**31 - 1)))
            velocities.append(self.context.getState(getVelocities=True).getVelocities(asNumpy=True)._value)
        self.v = np.stack(velocities)

    def sweep(self) -> None:
        """One period of dynamics of every replica, a frame at every fifth sweep, and one round of swaps."""
        begun = time.monotonic()
        count = len(self.temperatures)
        energy = np.empty(count)
        for t, r in enumerate(self.replica):
            self.integrator.setTemperature(self.temperatures[t])
            self.context.setPositions(self.x[r])
            self.context.setVelocities(self.v[r])
            self.integrator.step(PERIOD)
            state = self.context.getState(getEnergy=True, getPositions=True, getVelocities=True)
            energy[t] = state.getPotentialEnergy()._value
            if not np.isfinite(energy[t]):
                raise RuntimeError(f"the energy is {energy[t]} at {self.temperatures[t]:.0f} K")
            x = state.getPositions(asNumpy=True)._value
            self.x[r] = x - x.mean(axis=0)
            self.v[r] = state.getVelocities(asNumpy=True)._value
        self.sweeps += 1
        if self.sweeps % SWEEPS_PER_FRAME == 0:
            ca = self.x[self.replica][:, self.ca]
            self.frames["ca"].append((ca - ca.mean(axis=1, keepdims=True)).astype(np.float16))
            self.frames["energy"].append(energy.astype(np.float32))
            self.frames["replica"].append(self.replica.astype(np.uint8))
        self._swap(energy)
        self.seconds += time.monotonic() - begun

    def _swap(self, energy: Array) -> None:
        beta = 1 / (KB * self.temperatures)
        for t in range(self.sweeps % 2, len(beta) - 1, 2):
            self.attempts[t] += 1
            if np.log(self.rng.random()) < (beta[t + 1] - beta[t]) * (energy[t + 1] - energy[t]):
                self.accepted[t] += 1
                self.replica[[t, t + 1]] = self.replica[[t + 1, t]]
                warmer = np.sqrt(self.temperatures[t + 1] / self.temperatures[t])
                self.v[self.replica[t]] /= warmer
                self.v[self.replica[t + 1]] *= warmer

    def save(self, path: Path) -> None:
        """Write everything needed to go on, by way of a temporary file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            x=self.x,
            v=self.v,
            temperatures=self.temperatures,
            at=self.replica,
            attempts=self.attempts,
            accepted=self.accepted,
            sweeps=self.sweeps,
            seconds=self.seconds,
            seed=self.seed,
            rng=json.dumps(self.rng.bit_generator.state),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            machine=platform.processor() or platform.machine(),
            **{name: np.array(rows) for name, rows in self.frames.items()},
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint was made with other temperatures.
        """
        with np.load(path) as data:
            if not np.array_equal(data["temperatures"], self.temperatures):
                raise ValueError(f"{path} has other temperatures; move it away or give another --out")
            self.x, self.v, self.replica = data["x"], data["v"], data["at"]
            self.attempts, self.accepted = data["attempts"], data["accepted"]
            self.sweeps, self.seconds = int(data["sweeps"]), float(data["seconds"])
            self.frames = {name: list(data[name]) for name in self.frames}
            self.rng.bit_generator.state = json.loads(str(data["rng"]))
        self._new_noise()


def foldings(rmsd: Array) -> tuple[int, int]:
    """How often a replica folded and unfolded, from its RMSD along time, `(frames,)`."""
    marks = np.where(rmsd < NATIVE, 1, np.where(rmsd > UNFOLDED, -1, 0))
    steps = np.diff(marks[marks != 0])
    return int((steps > 0).sum()), int((steps < 0).sum())


def summarise(checkpoint: Path, out: Path) -> dict:
    """Write `OUT.npz` (the frames) and `OUT.json` (what `tell` prints) from a checkpoint."""
    with np.load(checkpoint) as data:
        frames = {name: data[name] for name in ("ca", "energy", "replica")}
        temperatures, seconds, sweeps = data["temperatures"], float(data["seconds"]), int(data["sweeps"])
        acceptance = data["accepted"] / np.maximum(data["attempts"], 1)
        command, machine, seed = str(data["command"]), str(data["machine"]), int(data["seed"])
    if len(frames["ca"]) < 20:
        raise SystemExit(f"{len(frames['ca'])} frames: too few for a summary")
    rmsd = core_rmsd(frames["ca"])
    first = int(BURN_IN * len(rmsd))
    kept = rmsd[first:]
    halves = np.array_split(kept, 2)
    order = np.argsort(frames["replica"], axis=1)
    walkers = np.take_along_axis(rmsd, order, axis=1)
    events = [foldings(walkers[:, r]) for r in range(len(temperatures))]
    summary = {
        "system": "CLN025 (YYDPETGTWY), ff14SBonlysc, OBC2 (GBSAOBCForce), HBonds, no cutoff",
        "command": command,
        "seed": seed,
        "openmm": openmm.__version__,
        "machine": machine,
        "temperatures": temperatures.round(2).tolist(),
        "step_ps": STEP,
        "friction_per_ps": FRICTION,
        "hydrogen_mass": HYDROGEN_MASS,
        "swap_period_steps": PERIOD,
        "frame_ps": FRAME,
        "frames": len(rmsd),
        "frames_left_out": first,
        "ns_each_replica": sweeps * PERIOD * STEP * 1e-3,
        "steps_all_replicas": sweeps * PERIOD * len(temperatures),
        "seconds": round(seconds, 1),
        "acceptance": acceptance.round(3).tolist(),
        "round_trips": round_trips(frames["replica"]),
        "folded": (kept < FOLDED).mean(axis=0).round(4).tolist(),
        "folded_first_half": (halves[0] < FOLDED).mean(axis=0).round(4).tolist(),
        "folded_second_half": (halves[1] < FOLDED).mean(axis=0).round(4).tolist(),
        "native": (kept < NATIVE).mean(axis=0).round(4).tolist(),
        "replicas": [
            {"start": "extended" if r % 2 else "folded", "folded": up, "unfolded": down, "now": float(walkers[-1, r])}
            for r, (up, down) in enumerate(events)
        ],
        "mean_energies": frames["energy"][first:].mean(axis=0, dtype=np.float64).round(3).tolist(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, temperatures=temperatures, **frames)
    temporary.replace(out.with_suffix(".npz"))
    out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def tell(summary: dict) -> None:
    """Print the summary as a table."""
    print(
        f"{summary['seconds'] / 3600:.2f} h, {summary['ns_each_replica']:.2f} ns each replica "
        f"({summary['frames']} frames, the first {summary['frames_left_out']} left out), "
        f"{summary['round_trips']} round trips; acceptance {summary['acceptance']}"
    )
    print(f"  T (K)   <{FOLDED} nm   1st, 2nd half   <{NATIVE} nm   energy (kJ/mol)")
    columns = ("temperatures", "folded", "folded_first_half", "folded_second_half", "native", "mean_energies")
    for t, share, early, late, native, energy in zip(*(summary[name] for name in columns), strict=True):
        print(f"{t:7.1f} {share:9.3f} {early:9.3f} {late:6.3f} {native:10.3f} {energy:14.1f}")
    for r, walker in enumerate(summary["replicas"]):
        print(
            f"replica {r} (started {walker['start']}): folded {walker['folded']}, unfolded {walker['unfolded']} times, "
            f"now {walker['now']:.2f} nm"
        )


def main() -> None:
    """Run, or go on, until the time is over or a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="wall time of this run")
    parser.add_argument("--nanoseconds", type=float, default=np.inf, help="of each replica, earlier runs included")
    parser.add_argument("--summary", action="store_true", help="only write and print the results of the checkpoint")
    parser.add_argument("--replicas", type=int, default=8, help="temperatures from 300 K to the hottest, geometric")
    parser.add_argument("--hottest", type=float, default=500.0, help="K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "chignolin", help="without ending")
    args = parser.parse_args()
    checkpoint = args.out.with_suffix(".checkpoint.npz")
    if not args.summary:
        stopped: list[bool] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.append(True))
        run = ReplicaExchange(np.geomspace(300.0, args.hottest, args.replicas), args.seed)
        if checkpoint.exists():
            run.load(checkpoint)
        else:
            run.prepare()
        begun = written = time.monotonic()
        while not stopped and time.monotonic() - begun < 3600 * args.hours:
            if run.sweeps * PERIOD * STEP * 1e-3 >= args.nanoseconds:
                break
            run.sweep()
            if time.monotonic() - written > 300:
                run.save(checkpoint)
                written = time.monotonic()
                print(f"{run.seconds:.0f} s, {run.sweeps * PERIOD * STEP * 1e-3:.3f} ns each replica", flush=True)
        run.save(checkpoint)
    tell(summarise(checkpoint, args.out))


if __name__ == "__main__":
    main()
