"""How fast the refinement is: energies a second of this working tree beside an earlier commit, in one run.

    python examples/benchmarks/throughput.py                                # some 15 minutes, most of it two starts
    python examples/benchmarks/throughput.py ALA5 --threads 1 --rounds 10 --json throughput.json

Both codes train the same molecule in processes of their own, by `CGFlow.train`, with compiled energies and a start
that is as short as can be. Once both are refining, they take turns: one works while the other is stopped. The ratio
that counts is that of energies for each second of CPU time, as the median over rounds, each beside the round of the
other that follows: other work on the machine counts little in it. Wall time stands beside it. The earlier code is taken
from git, and needs the packages that this one has.
"""

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EARLIER = "cd95e94"
WANTED = 1.8
MOLECULES = {
    "aldp_obc1": ("alanine dipeptide, OBC1 (22 atoms)", 340_000),
    "ALA5": ("Ace-Ala5-Nme, OBC2, HBonds (62 atoms)", 60_000),
}
"""What they are, and after how many energies these are compiled, in both codes."""
WORKER = """
import csv, logging, sys, threading, time
import torch
import openmm_cgflow as cgf
from molecules import jiggled, load
assert cgf.__file__.startswith(sys.argv[3]), cgf.__file__
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
molecule = load(sys.argv[1])
flow = cgf.CGFlow(*molecule, seed=0)
x = torch.from_numpy(jiggled(molecule.positions, 2048)).float()
while flow.potential.evaluations < int(sys.argv[4]):  # so many until they are compiled
    flow.potential.energy_and_forces(x)

def answer():
    for _ in sys.stdin:
        with open(sys.argv[2]) as file:
            refining = sum(row["stage"] == "refine" for row in csv.DictReader(file))
        print(flow.potential.evaluations, time.process_time(), refining, flush=True)

threading.Thread(target=answer, daemon=True).start()
settings = cgf.TrainSettings(points=64, sweeps=1, fit_steps=5, soft_buffers=1, buffer_steps=1, buffer=4096)
flow.train(evaluations=10**9, settings=settings, metrics=sys.argv[2], progress=False)
"""


class Worker:
    """A training in a process of its own, which can be stopped and asked how far it is.

    Arguments:
        code: folder of the package.
        molecule: its name.
        threads: cores that it may use.
        folder: for its files.
    """

    def __init__(self, code: Path, molecule: str, threads: int, folder: Path) -> None:
        metrics = folder / "metrics.csv"
        metrics.write_text("stage\n")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join([str(code), str(ROOT / "tests")])
        command = [sys.executable, "-c", WORKER, molecule, str(metrics), str(code), str(MOLECULES[molecule][1])]
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=folder,
            )

    def ask(self) -> tuple[int, float, int]:
        """Energies so far, seconds of CPU time, and buffers of the refinement."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            energies, seconds, refining = self.process.stdout.readline().split()
        except (BrokenPipeError, ValueError) as error:
            raise RuntimeError(f"a worker ended:\n{self.log.read_text()[-3000:]}") from error
        return int(energies), float(seconds), int(refining)

    def stop(self) -> None:
        """Let it wait."""
        self.process.send_signal(signal.SIGSTOP)

    def work(self, seconds: float) -> tuple[float, float]:
        """Let it work for a while; energies for each second of CPU time and of wall time."""
        self.process.send_signal(signal.SIGCONT)
        before, start = self.ask(), time.monotonic()
        time.sleep(seconds)
        after, end = self.ask(), time.monotonic()
        self.stop()
        energies = after[0] - before[0]
        return energies / (after[1] - before[1]), energies / (end - start)


def earlier_code(commit: str, folder: Path) -> Path:
    """The package as it was at a commit."""
    archive = subprocess.run(["git", "archive", commit, "openmm_cgflow"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as file:
        file.extractall(folder, filter="data")
    return folder


def race(molecule: str, threads: int, rounds: int, seconds: float, warm: float, codes: dict[str, Path]) -> dict:
    """Print what both codes do on one molecule; the figures."""
    with tempfile.TemporaryDirectory() as name:
        workers: dict[str, Worker] = {}
        try:
            for code, path in codes.items():
                folder = Path(name) / code
                folder.mkdir()
                workers[code] = worker = Worker(path, molecule, threads, folder)
                while worker.ask()[2] < 1:
                    time.sleep(1)
                time.sleep(warm)
                worker.stop()
            found: dict[str, list[tuple[float, float]]] = {code: [] for code in codes}
            for _ in range(rounds):
                for code, worker in workers.items():
                    found[code].append(worker.work(seconds))
        finally:
            for worker in workers.values():
                worker.process.kill()
                worker.process.wait()
    earlier, now = found.values()
    ratios = [[b[k] / a[k] for a, b in zip(earlier, now, strict=True)] for k in (0, 1)]
    figures = {
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "energies_per_cpu_second": {code: statistics.median(r[0] for r in rows) for code, rows in found.items()},
        "energies_per_second": {code: statistics.median(r[1] for r in rows) for code, rows in found.items()},
        "ratio": statistics.median(ratios[0]),
        "ratio_low": min(ratios[0]),
        "ratio_high": max(ratios[0]),
        "ratio_wall": statistics.median(ratios[1]),
        "wanted": WANTED,
    }
    print(f"\n{MOLECULES[molecule][0]}, {threads} thread{'s' * (threads > 1)}, {rounds} rounds of {seconds:g} s each")
    for code, rows in found.items():
        cpu, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {code:10s} {cpu:8,.0f} energies a second of CPU time, {wall:8,.0f} a second")
    print(
        f"  ratio {figures['ratio']:.2f} ({figures['ratio_low']:.2f} to {figures['ratio_high']:.2f}) by CPU time, "
        f"{figures['ratio_wall']:.2f} by wall time (wanted: {WANTED})",
        flush=True,
    )
    return figures


def main() -> None:
    """Run the races and exit with 1 if one was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecules", nargs="*", default=list(MOLECULES), help=f"of {', '.join(MOLECULES)}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--warm", type=float, default=30.0, help="seconds of refinement before the first round")
    parser.add_argument("--earlier", default=EARLIER, metavar="COMMIT")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        codes = {options.earlier: earlier_code(options.earlier, Path(folder)), "now": ROOT}
        for molecule in options.molecules:
            for threads in options.threads:
                figures = race(molecule, threads, options.rounds, options.seconds, options.warm, codes)
                found[f"{molecule}/{threads}"] = figures
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(0 if all(figures["ratio"] >= figures["wanted"] for figures in found.values()) else 1)


if __name__ == "__main__":
    main()
