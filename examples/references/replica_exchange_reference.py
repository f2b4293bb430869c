"""A replica-exchange reference of alanine dipeptide, by plain OpenMM molecular dynamics.

Nothing of openmm_cgflow is used here: it checks the reference of `batched_replica_exchange.py`. A nanosecond is too
short for the rare alpha_L/C7ax, whose blocked error comes out too small; 45 ns of six replicas should give its
population to 10 %, if these ladders mix like those of the batched reference. The target is openmmtools'
`AlanineDipeptideImplicit(constraints=None)` (ff96, OBC1) or `AlanineDipeptideVacuum(constraints=None)` at 300 K.

    python examples/references/replica_exchange_reference.py --system obc1 --nanoseconds 45 --hours 8    # goes on
    python examples/references/replica_exchange_reference.py --system vacuum --hours 0.1
    python examples/references/replica_exchange_reference.py --system obc1 --collect    # results from the checkpoint

One process, one thread. The checkpoint is written every minute, the results (`OUT.npz`, `OUT.json`) every five minutes,
and both when the run is stopped by Ctrl-C or SIGTERM; the same command goes on where it was, after `kill -9` too. A
run that goes on draws new random numbers.

The step: hydrogens of 4 amu (taken from their neighbours; masses do not change the density) allow 2 fs. In vacuum at
300 K the mean bond, angle and total energies were 27.86(7), 35.70(8), -44.84(18) kJ/mol with it, and 27.87(10),
35.56(12), -44.86(22) at 1 fs with natural masses; at 3 fs with 3 amu the bonds had 0.41(13) too much.
"""

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from aldp_analysis import (
    ALDP_BASINS,
    KB,
    PHI,
    PSI,
    Array,
    basin_labels,
    basin_populations,
    mbar_weights,
    round_trips,
    torsions,
)

HERE = Path(__file__).resolve().parent
SYSTEMS = {"obc1": "AlanineDipeptideImplicit", "vacuum": "AlanineDipeptideVacuum"}
"""openmmtools' test systems, by the name on the command line."""

START = ((-75, 145), (-70, -30), (60, 40), (-150, 160), (65, -60), (-110, 10))
"""phi, psi (degrees) at which the replicas start: one or two for each basin."""

BURN_IN = 0.05
"""Share of the frames left out at the beginning."""


def heavy_hydrogens(system: Any, topology: Any, mass: float) -> None:
    """Give hydrogens the mass (amu), taken from their neighbours; the configurational density has no masses."""
    for a, b in topology.bonds():
        hydrogen, heavy = (a, b) if a.element.symbol == "H" else (b, a)
        if hydrogen.element.symbol != "H":
            continue
        old, other = (system.getParticleMass(atom.index)._value for atom in (hydrogen, heavy))
        system.setParticleMass(hydrogen.index, mass)
        system.setParticleMass(heavy.index, other - (mass - old))


def starting_positions(system: Any, positions: Array, degrees: Sequence[tuple[float, float]]) -> Array:
    """Positions, `(n, 22, 3)` nm, at n pairs of phi and psi (degrees), by restrained minimisation."""
    import openmm

    restrained = openmm.XmlSerializer.clone(system)
    pull = openmm.CustomTorsionForce("1000*(1-cos(theta-theta0))")
    pull.addPerTorsionParameter("theta0")
    for atoms in (PHI, PSI):
        pull.addTorsion(*atoms, [0.0])
    restrained.addForce(pull)
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(restrained, openmm.VerletIntegrator(1e-3), reference)
    found = []
    for pair in degrees:
        for k, atoms in enumerate((PHI, PSI)):
            pull.setTorsionParameters(k, *atoms, [np.radians(pair[k])])
        pull.updateParametersInContext(context)
        context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=500)
        found.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return np.stack(found)


class ReplicaExchange:
    """Replicas of one System at several temperatures, each in its own Context; neighbours swap temperatures."""

    def __init__(self, args: argparse.Namespace) -> None:
        import openmm
        from openmmtools import testsystems

        self.mm = openmm
        test = getattr(testsystems, SYSTEMS[args.system])(constraints=None)
        self.system, self.topology = test.system, test.topology
        self.start = np.array(test.positions.value_in_unit(openmm.unit.nanometer))
        heavy_hydrogens(self.system, self.topology, args.hydrogen_mass)
        self.period = args.period
        self.setup = np.array([args.system, str(args.step_fs), str(args.hydrogen_mass), str(args.period)])
        self.temperatures = np.geomspace(300.0, args.hottest, args.replicas)
        self.rng = np.random.default_rng(args.seed)
        self.states = np.arange(args.replicas)  # replica at each temperature
        self.phi: list[Array] = []
        self.psi: list[Array] = []
        self.energy: list[Array] = []
        self.replica: list[Array] = []
        self.attempts, self.accepted = np.zeros(args.replicas - 1), np.zeros(args.replicas - 1)
        self.seconds = 0.0
        self.contexts = [self._context(args, t) for t in self.temperatures]

    def _context(self, args: argparse.Namespace, temperature: float) -> Any:
        integrator = self.mm.LangevinMiddleIntegrator(temperature, 2.0, 1e-3 * args.step_fs)
        integrator.setRandomNumberSeed(self._random_seed())
        if args.system == "vacuum":
            return self.mm.Context(self.system, integrator, self.mm.Platform.getPlatformByName("Reference"))
        return self.mm.Context(self.system, integrator, self.mm.Platform.getPlatformByName("CPU"), {"Threads": "1"})

    def _random_seed(self) -> int:
        return int(self.rng.integers(1, 2**31 - 1))

    def prepare(self) -> None:
        """Bring the replicas to `START` by restrained minimisation, with fresh velocities."""
        places = [START[r % len(START)] for r in range(len(self.contexts))]
        positions = starting_positions(self.system, self.start, places)
        for r, replica in enumerate(self.contexts):
            replica.setPositions(positions[r])
            replica.setVelocitiesToTemperature(self.temperatures[r], r + 1)

    def sweep(self) -> None:
        """One period of dynamics, one row of data, one round of swaps between neighbours."""
        begun = time.monotonic()
        count = len(self.contexts)
        phi, psi, energy = np.empty(count), np.empty(count), np.empty(count)
        for t in range(count):
            context = self.contexts[self.states[t]]
            context.getIntegrator().step(self.period)
            state = context.getState(getEnergy=True, getPositions=True)
            energy[t] = state.getPotentialEnergy()._value
            if not np.isfinite(energy[t]):
                raise RuntimeError(f"energy is {energy[t]} at {self.temperatures[t]:.0f} K; use a shorter --step-fs")
            phi[t], psi[t] = torsions(state.getPositions(asNumpy=True)._value)
        self.phi.append(phi)
        self.psi.append(psi)
        self.energy.append(energy.copy())
        self.replica.append(self.states.copy())
        beta = 1 / (KB * self.temperatures)
        for t in range(len(self.phi) % 2, count - 1, 2):
            self.attempts[t] += 1
            if np.log(self.rng.random()) < (beta[t + 1] - beta[t]) * (energy[t + 1] - energy[t]):
                self.accepted[t] += 1
                energy[[t, t + 1]] = energy[[t + 1, t]]
                self.states[[t, t + 1]] = self.states[[t + 1, t]]
                self._move(self.states[t], self.temperatures[t + 1], self.temperatures[t])
                self._move(self.states[t + 1], self.temperatures[t], self.temperatures[t + 1])
        self.seconds += time.monotonic() - begun

    def _move(self, replica: int, old: float, new: float) -> None:
        context = self.contexts[replica]
        context.getIntegrator().setTemperature(new)
        velocities = context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
        context.setVelocities(velocities * np.sqrt(new / old))

    def save(self, path: Path) -> None:
        """Write everything needed to go on, by way of a temporary file."""
        states = [c.getState(getPositions=True, getVelocities=True) for c in self.contexts]
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            x=np.stack([s.getPositions(asNumpy=True)._value for s in states]),
            v=np.stack([s.getVelocities(asNumpy=True)._value for s in states]),
            temperatures=self.temperatures,
            states=self.states,
            phi=np.array(self.phi, dtype=np.float32),
            psi=np.array(self.psi, dtype=np.float32),
            energy=np.array(self.energy, dtype=np.float32),
            replica=np.array(self.replica, dtype=np.uint8),
            attempts=self.attempts,
            accepted=self.accepted,
            seconds=self.seconds,
            setup=self.setup,
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            rng=json.dumps(self.rng.bit_generator.state),
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint was made with another system or other settings.
        """
        with np.load(path) as data:
            if not np.array_equal(data["temperatures"], self.temperatures) or not np.array_equal(
                data["setup"], self.setup
            ):
                raise ValueError(f"{path} was made with other settings; move it away or give another --checkpoint")
            self.states = data["states"]
            for name in ("phi", "psi", "energy", "replica"):
                setattr(self, name, list(data[name]))
            self.attempts, self.accepted = data["attempts"], data["accepted"]
            self.seconds = float(data["seconds"])
            self.rng.bit_generator.state = json.loads(str(data["rng"]))
            for context in self.contexts:  # the noise of the earlier run's start must not come again
                context.getIntegrator().setRandomNumberSeed(self._random_seed())
                context.reinitialize()
            for t, r in enumerate(self.states):
                self.contexts[r].setPositions(data["x"][r])
                self.contexts[r].setVelocities(data["v"][r])
                self.contexts[r].getIntegrator().setTemperature(self.temperatures[t])


def collect(checkpoint: Path, out: Path) -> dict:
    """Write `OUT.npz` (torsions and energies at the lowest temperature) and `OUT.json` from a checkpoint."""
    import openmm

    with np.load(checkpoint) as data:
        phi, psi, energy, replica = (data[k] for k in ("phi", "psi", "energy", "replica"))
        temperatures, seconds, setup = data["temperatures"], float(data["seconds"]), data["setup"]
        command = str(data["command"])
        acceptance = data["accepted"] / np.maximum(data["attempts"], 1)
    first = int(BURN_IN * len(phi))
    phi, psi, energy, replica = phi[first:], psi[first:], energy[first:], replica[first:]
    weights = mbar_weights(energy.astype(np.float64), temperatures)
    mbar, mbar_error = blocked_populations(phi, psi, weights)
    cold, cold_error = blocked_populations(phi[:, :1], psi[:, :1], np.ones((len(phi), 1)))
    step_fs, hydrogen_mass, period = float(setup[1]), float(setup[2]), int(setup[3])
    steps = (first + len(phi)) * period * len(temperatures)
    summary = {
        "system": f"{SYSTEMS[str(setup[0])]}(constraints=None)",
        "command": command,
        "versions": {"openmm": openmm.__version__, "openmmtools": version("openmmtools"), "numpy": np.__version__},
        "machine": platform.processor() or platform.machine(),
        "temperatures": temperatures.round(2).tolist(),
        "step_fs": step_fs,
        "hydrogen_mass": hydrogen_mass,
        "swap_period_steps": period,
        "frames": len(phi),
        "frames_left_out": first,
        "steps_all_replicas": steps,
        "ns_each_replica": steps / len(temperatures) * step_fs * 1e-6,
        "seconds": round(seconds, 1),
        "acceptance": acceptance.round(3).tolist(),
        "round_trips": round_trips(replica),
        "mean_energy": float(energy[:, 0].mean()),
        "basins": ALDP_BASINS,
        "populations": cold,
        "errors": cold_error,
        "populations_all_temperatures": mbar,
        "errors_all_temperatures": mbar_error,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp.npz")
    np.savez_compressed(
        temporary, phi=phi[:, 0].astype(np.float16), psi=psi[:, 0].astype(np.float16), energy=energy[:, 0]
    )
    temporary.replace(out.with_suffix(".npz"))
    out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def blocked_populations(phi: Array, psi: Array, weights: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Populations of correlated frames, `(frames, temperatures)`, and jackknife errors (worst of 10, 20, 40 blocks)."""
    labels = basin_labels(phi, psi)
    sums = np.stack([(weights * (labels == k)).sum(axis=1) for k in range(len(ALDP_BASINS))], axis=1)
    error = np.zeros(len(ALDP_BASINS))
    for count in (10, 20, 40):
        blocks = np.stack([block.sum(axis=0) for block in np.array_split(sums, count)])
        left = blocks.sum(axis=0) - blocks
        left = left / left.sum(axis=1, keepdims=True)
        error = np.maximum(error, np.sqrt((count - 1) / count * ((left - left.mean(axis=0)) ** 2).sum(axis=0)))
    errors = dict(zip(ALDP_BASINS, error.tolist(), strict=True))
    return basin_populations(phi.ravel(), psi.ravel(), weights.ravel()), errors


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=["obc1", "vacuum"], default="obc1")
    parser.add_argument("--hours", type=float, default=1.25, help="wall time of this run")
    parser.add_argument("--nanoseconds", type=float, default=np.inf, help="of each replica, earlier runs included")
    parser.add_argument("--out", type=Path, help="without ending; default examples/references/aldp_SYSTEM_openmm")
    parser.add_argument("--checkpoint", type=Path, help="default OUT.checkpoint.npz")
    parser.add_argument("--collect", action="store_true", help="only write the results of the checkpoint")
    parser.add_argument("--replicas", type=int, default=6, help="temperatures from 300 K to the hottest, geometric")
    parser.add_argument("--hottest", type=float, default=850.0, help="K")
    parser.add_argument("--period", type=int, default=50, help="steps between swaps")
    parser.add_argument("--step-fs", type=float, default=2.0)
    parser.add_argument("--hydrogen-mass", type=float, default=4.0, help="amu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out or HERE / f"aldp_{args.system}_openmm"
    args.checkpoint = args.checkpoint or args.out.with_suffix(".checkpoint.npz")
    return args


def main() -> None:
    """Run, or go on, until the time is over or a signal comes."""
    args = arguments()
    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    if not args.collect:
        run = ReplicaExchange(args)
        if args.checkpoint.exists():
            run.load(args.checkpoint)
        else:
            run.prepare()
        begun = written = collected = time.monotonic()
        while not stopped and time.monotonic() - begun < 3600 * args.hours:
            if len(run.phi) * args.period * args.step_fs * 1e-6 >= args.nanoseconds:
                break
            run.sweep()
            if time.monotonic() - written > 60:
                run.save(args.checkpoint)
                written = time.monotonic()
            if written - collected > 300:
                _tell(collect(args.checkpoint, args.out))
                collected = written
        run.save(args.checkpoint)
    _tell(collect(args.checkpoint, args.out))


def _tell(summary: dict) -> None:
    values = zip(ALDP_BASINS, summary["populations"].values(), summary["errors"].values(), strict=True)
    shares = "  ".join(f"{name} {share:.4f}+-{error:.4f}" for name, share, error in values)
    print(f"{summary['seconds']:.0f} s, {summary['ns_each_replica']:.3f} ns each: {shares}", flush=True)


if __name__ == "__main__":
    main()
