"""Every figure of the benchmarks, measured into one file: `figures.json`, of which `readme_tables.py` makes the tables.

    python examples/benchmarks/all.py                           # many hours; goes on where it stopped
    python examples/benchmarks/all.py --only demo molecules/ARG # what begins so
    python examples/benchmarks/all.py --list                    # what is measured, of which commit, what is missing
    python examples/benchmarks/all.py --quick --out quick.json  # every job in a minute-long form: does it run?

A job that was measured with the package as it is now is left out, unless `--again`: the last commit that changed
`openmm_cgflow/` counts, and changes that are not committed make a job be done again. Each entry has the figures, the
command, the commit, the date, the machine and its load, and the exit code (1 where a benchmark fell short of its mark).
`--cgback PROGRAM` measures cgback too, which lives in an environment of its own.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FIGURES = Path(__file__).resolve().parent / "figures.json"
SEEDS = (0, 1, 2)
AMINO_ACIDS = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]
LIGANDS = ["butane", "pentanenitrile", "biphenyl", "caffeine", "nicotine", "camphor", "ibuprofen", "lidocaine"]
MOLECULES = 800_000
"""Energies of each training of the table of molecules: about two minutes on two quiet cores."""


class Job(NamedTuple):
    """A script below `examples`, its arguments, and those of its quick form."""

    script: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]


def jobs(cgback: Path | None = None) -> dict[str, Job]:
    """All jobs by name, the short ones first."""
    found = {
        "energies": Job("benchmarks/energies.py", ("--rounds", "30"), ("--rounds", "1", "--batch", "64")),
        "forces": Job("benchmarks/forces.py", (), ("--rounds", "1", "--steps", "5")),
        "backmapping": Job("benchmarks/backmapping.py", (), ("--quick",)),
        "data_efficiency": Job("benchmarks/data_efficiency.py", (), ("--quick",)),
    }
    model = ("--model", "examples/models/aldp.cgflow")
    found["populations"] = Job(
        "alanine_dipeptide.py", (*model, "--reference"), (*model, "--reference", "--samples", "2000")
    )
    vacuum = ("--model", "examples/models/aldp_vacuum.cgflow", "--reference", "aldp_vacuum")
    for name, options in (("obc1", model), ("vacuum", vacuum)):
        full = (*options, "--samples", "100000")
        found[f"quality/{name}"] = Job("benchmarks/aldp_quality.py", full, (*options, "--samples", "2000"))
    for seed in SEEDS:
        for script in ("double_well", "many_well", "gaussian_mixture", "gmm40"):
            options = ("--seed", str(seed), "--figure", os.devnull)
            found[f"{script}/{seed}"] = Job(f"{script}.py", options, (*options, "--time", "5"))
    for seed in SEEDS:
        options = ("--seed", str(seed))
        quick = (*options, "--evaluations", "50000")
        found[f"demo/{seed}"] = Job("benchmarks/demo.py", options, quick)
        for name, evaluations in (("demo-1e6", "1000000"), ("demo-3e6", "3000000")):
            found[f"{name}/{seed}"] = Job("benchmarks/demo.py", (*options, "--evaluations", evaluations), quick)
    for name in (*AMINO_ACIDS, *LIGANDS):
        for seed in SEEDS:
            options = (name, "--seeds", str(seed), "--evaluations")
            found[f"molecules/{name}/{seed}"] = Job(
                "benchmarks/molecules.py", (*options, str(MOLECULES)), (*options, "20000")
            )
    picture = "examples/figures/explicit_water.png"
    found["explicit_water"] = Job("explicit_water.py", ("--figure", picture), ("--quick",))
    for name in ("aldp_obc1", "ALA5"):
        quick = (name, "--threads", "1", "--rounds", "1", "--seconds", "2", "--warm", "1")
        found[f"throughput/{name}"] = Job("benchmarks/throughput.py", (name,), quick)
    found["sampler"] = Job("benchmarks/sampler.py", (), ("--moves", "200", "--walkers", "16", "--picoseconds", "1"))
    if Path("/dev/nvidia0").exists():
        quick = ("--seconds", "5", "--evaluations", "40000", "--molecules", "butane")
        found["gpu"] = Job("benchmarks/gpu.py", (), quick)
    if cgback is not None:
        options = ("--cgback", str(cgback), "--model", str(Path(tempfile.gettempdir()) / "ala4.cgflow"), "--frames")
        found["cgback"] = Job("benchmarks/cgback_comparison.py", (*options, "100"), (*options, "4", "--time", "20"))
    return found


def git(*arguments: str) -> str:
    """What git says in this repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def commit_of_package() -> str:
    """The last commit that changed the package; with `+changes` if there are some that are not committed."""
    changed = git("status", "--porcelain", "--", "openmm_cgflow")
    return git("log", "-1", "--format=%h", "--", "openmm_cgflow") + ("+changes" if changed else "")


def machine() -> str:
    """Cores and the processor's name."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} cores of {name}"


def measure(job: Job, quick: bool) -> dict:
    """Run one job in the repository's root; its entry for the file."""
    command = ["python", str(Path("examples") / job.script), *(job.quick if quick else job.arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        entry = {
            "command": " ".join(command),
            "commit": commit_of_package(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "load": os.getloadavg()[0],
        }
        start = time.monotonic()
        run = [sys.executable, *command[1:], "--json", str(result)]
        entry["exit"] = subprocess.run(run, cwd=ROOT, env=environment, check=False).returncode
        entry["seconds"] = round(time.monotonic() - start, 1)
        if not result.exists():
            raise RuntimeError(f"{entry['command']} ended with exit code {entry['exit']} and wrote no figures")
        entry["figures"] = json.loads(result.read_text())
    return entry


def read(path: Path) -> dict[str, dict]:
    """The file of figures, or none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, figures: dict[str, dict]) -> None:
    """Write the file of figures whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
    temporary.replace(path)


def main() -> None:
    """Do what is missing; exit with 1 if something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="jobs whose names begin so")
    parser.add_argument("--again", action="store_true", help="measure what was measured with this commit, too")
    parser.add_argument("--list", action="store_true", help="only say what is measured and what is missing")
    parser.add_argument("--quick", action="store_true", help="short forms; needs an --out of its own")
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--cgback", type=Path, help="the program")
    options = parser.parse_args()
    if options.quick and options.out.resolve() == FIGURES:
        parser.error("--quick gives no figures for documents; give another --out")
    commit, failed = commit_of_package(), []
    chosen = {name: job for name, job in jobs(options.cgback).items() if name.startswith(tuple(options.only))}
    if not chosen:
        parser.error(f"no job begins with {', '.join(options.only)}")
    for name, job in chosen.items():
        figures = read(options.out)  # another process may have written meanwhile
        have = figures.get(name, {}).get("commit", "missing")
        if options.list:
            print(f"{name:28s} {have}")
            continue
        if have == commit and "+" not in commit and not options.again:
            continue
        print(f"--- {name} (was: {have})", flush=True)
        try:
            entry = measure(job, options.quick)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(name)
            continue
        write(options.out, read(options.out) | {name: entry})
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
