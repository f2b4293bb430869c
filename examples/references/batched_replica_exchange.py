"""The replica-exchange reference of alanine dipeptide: many independent ladders, advanced as one batch.

The flow's samples are compared with it (`examples/alanine_dipeptide.py --reference`). The target is openmmtools'
`AlanineDipeptideImplicit(constraints=None)` (ff96, OBC1) at 300 K. The forces are a compiled `TorchPotential`, which
checks itself against OpenMM here; nothing else of openmm_cgflow is used. `replica_exchange_reference.py` does the same
in plain OpenMM, more slowly.

    python examples/references/batched_replica_exchange.py --seconds 1500
    python examples/references/batched_replica_exchange.py --collect      # results from the checkpoint, no dynamics

Half of the ladders start at phi < 0 and half at phi in (0, 125). Ladders never exchange, so the errors come from the
scatter between them: they are honest for the rare basin too, which a ladder visits only now and then.

One process, one thread. The checkpoint is written every minute and when the run is stopped by Ctrl-C or SIGTERM; the
same command goes on where it was. Langevin dynamics in the form of OpenMM's LangevinMiddleIntegrator (2 fs, 2/ps,
hydrogens of 4 amu), single precision.
"""

import argparse
import json
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from aldp_analysis import ALDP_BASINS, KB, Array, basin_labels, mbar_weights, round_trips, torsions
from numpy.typing import NDArray
from replica_exchange_reference import HERE, SYSTEMS, heavy_hydrogens, starting_positions

from openmm_cgflow.potentials import TorchPotential

STARTS = {
    "phi < 0": ((-75, 145), (-70, -30), (-150, 160), (-110, 10)),
    "phi > 0": ((60, -110), (60, 50)),
}
"""phi, psi (degrees) of the starts; the first half of the ladders has the first set, the others the second."""

FRICTION = 2.0  # 1/ps
STEP = 0.002  # ps
HYDROGEN_MASS = 4.0  # amu
PERIOD = 50  # steps between swaps of neighbours
SWEEPS_PER_FRAME = 2
FRAME = STEP * PERIOD * SWEEPS_PER_FRAME  # ps

NAMES = ("phi", "psi", "energy", "replica")


class Ladders:
    """Replicas at `(ladders, temperatures)`; neighbours within a ladder swap configurations."""

    def __init__(self, ladders: int, temperatures: Array, seed: int) -> None:
        import openmm
        from openmmtools import testsystems

        test = testsystems.AlanineDipeptideImplicit(constraints=None)
        heavy_hydrogens(test.system, test.topology, HYDROGEN_MASS)
        nm, amu = openmm.unit.nanometer, openmm.unit.amu
        self.potential = TorchPotential.fromSystem(test.system, positions=test.positions, compile=True)
        self.system, self.start = test.system, np.array(test.positions.value_in_unit(nm))
        mass = [test.system.getParticleMass(i).value_in_unit(amu) for i in range(test.system.getNumParticles())]
        self.mass = torch.tensor(mass, dtype=torch.float32)[:, None]
        self.temperatures = temperatures
        self.shape = (ladders, len(temperatures))
        kt = torch.tensor(KB * temperatures, dtype=torch.float32).repeat(ladders)[:, None, None]
        self.thermal = (kt / self.mass).sqrt()  # nm/ps
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.replica = np.tile(np.arange(len(temperatures)), (ladders, 1))
        self.attempts, self.accepted = np.zeros(len(temperatures) - 1), np.zeros(len(temperatures) - 1)
        self.frames: dict[str, list[Array]] = {name: [] for name in NAMES}
        self.sweeps, self.seconds = 0, 0.0

    def prepare(self) -> None:
        """Put half of the ladders at each set of `STARTS`, with fresh velocities."""
        ladders, count = self.shape
        x = np.empty((ladders, count, *self.start.shape), dtype=np.float32)
        half = ladders // 2
        for share, places in zip((slice(None, half), slice(half, None)), STARTS.values(), strict=True):
            found = starting_positions(self.system, self.start, places)
            x[share] = found[np.arange(count) % len(found)]
        self.x = torch.from_numpy(x.reshape(ladders * count, *self.start.shape))
        self.v = self.thermal * torch.randn(self.x.shape, generator=self.generator)
        self.energy, self.force = self.potential.energy_and_forces(self.x)

    def sweep(self) -> None:
        """One period of dynamics and one round of swaps; a row of data at every second sweep."""
        begun = time.monotonic()
        keep = float(np.exp(-FRICTION * STEP))
        kick, noise = STEP / self.mass, self.thermal * (1 - keep**2) ** 0.5
        random = torch.empty_like(self.x)
        for _ in range(PERIOD):
            self.v.addcmul_(kick, self.force)
            self.x.add_(self.v, alpha=STEP / 2)
            random.normal_(generator=self.generator)
            self.v.mul_(keep).addcmul_(noise, random)
            self.x.add_(self.v, alpha=STEP / 2)
            self.energy, self.force = self.potential.energy_and_forces(self.x)
        if not bool(torch.isfinite(self.energy).all()):
            raise RuntimeError("an energy is not finite: the step is too long")
        self.x -= self.x.mean(dim=1, keepdim=True)  # single precision stays exact near the origin
        self.sweeps += 1
        if self.sweeps % SWEEPS_PER_FRAME == 0:
            self._record()
        self._swap()
        self.seconds += time.monotonic() - begun

    def _record(self) -> None:
        phi, psi = torsions(self.x.reshape(*self.shape, *self.start.shape).double().numpy())
        energy = self.energy.reshape(self.shape).numpy()
        for name, row in zip(NAMES, (phi, psi, energy, self.replica), strict=True):
            self.frames[name].append(row.astype(np.uint8 if name == "replica" else np.float32))

    def _swap(self) -> None:
        beta = 1 / (KB * self.temperatures)
        energy = self.energy.reshape(self.shape).double().numpy()
        lower = np.arange(self.sweeps % 2, self.shape[1] - 1, 2)
        gain = (beta[lower + 1] - beta[lower]) * (energy[:, lower + 1] - energy[:, lower])
        accept = np.log(self.rng.random(gain.shape)) < gain
        self.attempts[lower] += len(gain)
        self.accepted[lower] += accept.sum(axis=0)
        source = np.tile(np.arange(self.shape[1]), (self.shape[0], 1))
        source[:, lower] += accept
        source[:, lower + 1] -= accept
        self.replica = np.take_along_axis(self.replica, source, 1)
        take = torch.from_numpy((source + self.shape[1] * np.arange(self.shape[0])[:, None]).ravel())
        self.v = (self.v / self.thermal)[take] * self.thermal
        self.x, self.energy, self.force = self.x[take], self.energy[take], self.force[take]

    def save(self, path: Path) -> None:
        """Write everything needed to go on, by way of a temporary file."""
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            x=self.x.numpy(),
            v=self.v.numpy(),
            temperatures=self.temperatures,
            ids=self.replica,
            attempts=self.attempts,
            accepted=self.accepted,
            sweeps=self.sweeps,
            seconds=self.seconds,
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            torch_rng=self.generator.get_state().numpy(),
            rng=json.dumps(self.rng.bit_generator.state),
            phi=np.array(self.frames["phi"]),
            psi=np.array(self.frames["psi"]),
            energy=np.array(self.frames["energy"]),
            replica=np.array(self.frames["replica"]),
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint has other temperatures or another number of ladders.
        """
        with np.load(path) as data:
            if not np.array_equal(data["temperatures"], self.temperatures) or data["ids"].shape != self.shape:
                raise ValueError(f"{path} was made with other settings; move it away or give another --checkpoint")
            self.x, self.v = torch.from_numpy(data["x"]), torch.from_numpy(data["v"])
            self.replica, self.attempts, self.accepted = data["ids"], data["attempts"], data["accepted"]
            self.sweeps, self.seconds = int(data["sweeps"]), float(data["seconds"])
            self.frames = {name: list(data[name]) for name in NAMES}
            self.generator.set_state(torch.from_numpy(data["torch_rng"]))
            self.rng.bit_generator.state = json.loads(str(data["rng"]))
        self.energy, self.force = self.potential.energy_and_forces(self.x)


def ladder_populations(phi: Array, psi: Array, energy: Array, temperatures: Array) -> Array:
    """Populations at the lowest temperature, by MBAR over all temperatures of each ladder by itself.

    Arguments:
        phi: degrees, `(frames, ladders, temperatures)`.
        psi: the same.
        energy: kJ/mol, the same shape.
        temperatures: K, the target first.

    Returns:
        `(ladders, basins)`.
    """
    labels = basin_labels(phi, psi)
    found = np.empty((phi.shape[1], len(ALDP_BASINS)))
    for k in range(phi.shape[1]):
        weights = mbar_weights(energy[:, k].astype(np.float64), temperatures, fitted_to=10)
        found[k] = np.bincount(labels[:, k].ravel(), weights=weights.ravel(), minlength=len(ALDP_BASINS))
    return found


def mean_and_error(values: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Mean over independent ladders, `(ladders, basins)`, and its standard error, by basin."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return dict(zip(ALDP_BASINS, values.mean(axis=0), strict=True)), dict(zip(ALDP_BASINS, error, strict=True))


def collect(checkpoint: Path, out: Path, burn_in: float) -> dict:
    """Write `OUT.npz` (300 K torsions and energies) and `OUT.json`, leaving out `burn_in` ps at the beginning."""
    with np.load(checkpoint) as data:
        phi, psi, energy, replica = (data[name] for name in NAMES)
        temperatures, seconds, command = data["temperatures"], float(data["seconds"]), str(data["command"])
        acceptance = data["accepted"] / np.maximum(data["attempts"], 1)
    total, first = len(phi), round(burn_in / FRAME)
    phi, psi, energy = phi[first:], psi[first:], energy[first:]
    ladders = phi.shape[1]
    by_ladder = ladder_populations(phi, psi, energy, temperatures)
    share, error = mean_and_error(by_ladder)
    labels = basin_labels(phi[:, :, 0], psi[:, :, 0])
    cold, cold_error = mean_and_error(np.stack([(labels == k).mean(axis=0) for k in range(len(ALDP_BASINS))], axis=1))
    side: dict[str, dict] = {}
    for name, half in zip(STARTS, (by_ladder[: ladders // 2], by_ladder[ladders // 2 :]), strict=True):
        values, errors = mean_and_error(half)
        side[name] = {"populations": values, "errors": errors}
    energies = energy.mean(axis=0, dtype=np.float64)
    summary = {
        "system": f"{SYSTEMS['obc1']}(constraints=None)",
        "command": command,
        "forces": "TorchPotential, compiled, float32",
        "versions": {name: version(name) for name in ("openmm", "openmmtools", "torch", "numpy")},
        "machine": platform.processor() or platform.machine(),
        "temperatures": temperatures.round(2).tolist(),
        "ladders": ladders,
        "step_fs": STEP * 1e3,
        "hydrogen_mass": HYDROGEN_MASS,
        "friction_per_ps": FRICTION,
        "swap_period_steps": PERIOD,
        "frames": total - first,
        "ps_left_out": first * FRAME,
        "ns_each_replica": total * FRAME * 1e-3,
        "ns_all_replicas": total * FRAME * 1e-3 * ladders * len(temperatures),
        "seconds": round(seconds, 1),
        "acceptance": acceptance.round(3).tolist(),
        "round_trips": sum(round_trips(replica[:, k]) for k in range(ladders)),
        "mean_energies": energies.mean(axis=0).round(4).tolist(),
        "mean_energies_errors": (energies.std(axis=0, ddof=1) / np.sqrt(ladders)).round(4).tolist(),
        "basins": ALDP_BASINS,
        "populations": cold,
        "errors": cold_error,
        "populations_all_temperatures": share,
        "errors_all_temperatures": error,
        "ladders_started_at": side,
        "populations_of_each_ladder": by_ladder.round(6).tolist(),
    }
    write(out, summary, [a[:, :, 0] for a in (phi, psi, energy)])
    return summary


def write(out: Path, summary: dict, cold: list[NDArray[np.float32]], most: int = 200_000) -> None:
    """Write the results, with at most so many evenly spaced frames of the lowest temperature, `(frames, ladders)`."""
    every = -(-cold[0].size // most)
    phi, psi, energy = (a[::every].astype(np.float16) for a in cold)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, phi=phi, psi=psi, energy=energy)
    temporary.replace(out.with_suffix(".npz"))
    out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")


def tell(summary: dict) -> None:
    """Print the populations, all ladders and by start."""
    print(f"{summary['seconds']:.0f} s, {summary['ns_each_replica']:.3f} ns each, {summary['ladders']} ladders")
    rows = {"MBAR": ("populations_all_temperatures", "errors_all_temperatures"), "300 K": ("populations", "errors")}
    lines = {name: (summary[a], summary[b]) for name, (a, b) in rows.items()}
    lines |= {name: (s["populations"], s["errors"]) for name, s in summary["ladders_started_at"].items()}
    for name, (share, error) in lines.items():
        print(f"{name:8s}", "  ".join(f"{b} {share[b]:.5f}+-{error[b]:.5f}" for b in ALDP_BASINS), flush=True)


def main() -> None:
    """Run, or go on, until the time is over or a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1500, help="wall time, earlier runs included")
    parser.add_argument("--ladders", type=int, default=42)
    parser.add_argument("--replicas", type=int, default=6, help="temperatures from 300 K to the hottest, geometric")
    parser.add_argument("--hottest", type=float, default=850.0, help="K")
    parser.add_argument("--burn-in", type=float, default=100.0, help="ps left out at the beginning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "aldp_obc1", help="without ending")
    parser.add_argument("--checkpoint", type=Path, help="default OUT.checkpoint.npz")
    parser.add_argument("--collect", action="store_true", help="only write the results of the checkpoint")
    args = parser.parse_args()
    checkpoint = args.checkpoint or args.out.with_suffix(".checkpoint.npz")
    stopped: list[bool] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    if not args.collect:
        torch.set_num_threads(1)
        run = Ladders(args.ladders, np.geomspace(300.0, args.hottest, args.replicas), args.seed)
        if checkpoint.exists():
            run.load(checkpoint)
        else:
            run.prepare()
        written = time.monotonic()
        while run.seconds < args.seconds and not stopped:
            run.sweep()
            if time.monotonic() - written > 60:
                run.save(checkpoint)
                written = time.monotonic()
                print(f"{run.seconds:.0f} s, {run.sweeps * PERIOD * STEP:.1f} ps each", flush=True)
        run.save(checkpoint)
    tell(collect(checkpoint, args.out, args.burn_in))


if __name__ == "__main__":
    main()
