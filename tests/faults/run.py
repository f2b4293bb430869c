"""What goes wrong around a training, on purpose: `python tests/faults/run.py` (`make faults`), some ten minutes.

Trainings that are killed at random moments and go on, a disk that is full, a place where nothing can be written, two
trainings with one checkpoint, a worker that is killed, energies that are NaN or raise, and broken files of every
format. Each line says what was done and what came of it; the exit code is 1 if something was lost, or if what the
user sees is not one line that says what is wrong.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
MODEL = ROOT / "examples" / "models" / "alanine_dipeptide.cgflow"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

EVALUATIONS = 60_000
LARGEST_FILE = 20_000
"""Bytes that a process may write into one file where the disk is full."""
Outcome = tuple[bool, str]


def command(*arguments: object) -> list[str]:
    """The command line of this package, in this environment."""
    return [sys.executable, "-m", "openmm_cgflow", *map(str, arguments)]


def train(folder: Path, *more: object) -> list[str]:
    """A short training of butane with a checkpoint."""
    files = (DATA / "butane.prmtop", DATA / "butane.inpcrd")
    options = ("-o", folder / "m.cgflow", "--evaluations", EVALUATIONS, "--seed", 1, *more)
    return command("train", *files, *options)


def environment() -> dict[str, str]:
    """One thread, and this source."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False, **options)


def one_line(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether what the user sees is one line that begins with `error:`, and no traceback."""
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return done.returncode in (1, 2) and len(said) == 1 and "Traceback" not in done.stderr


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What it said at the end."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"exit code {done.returncode}: {lines[-1][:160] if lines else 'nothing'}"


def ess_of(model: Path) -> float:
    """ESS of 4,000 samples."""
    import openmm_cgflow as cgf

    return cgf.CGFlow.load(model, device="cpu").sample(4000, seed=0).ess


# ---- what is tried


def kills(folder: Path, n: int, seed: int) -> Outcome:
    """`n` kills -9 at random moments of trainings that go on, beside one that was left alone."""
    calm, rough = folder / "calm", folder / "rough"
    calm.mkdir()
    rough.mkdir()
    begun = time.monotonic()
    done = run(train(calm))
    length, rng, killed, finished = time.monotonic() - begun, random.Random(seed), 0, []
    if done.returncode:
        return False, last_line(done)
    while killed < n:
        process = subprocess.Popen(
            train(rough), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        try:
            _, error = process.communicate(timeout=rng.uniform(0.1, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        if process.returncode:
            return False, f"after {killed} kills: {error.strip().splitlines()[-1]}"
        finished.append(ess_of(rough / "m.cgflow"))
        for path in rough.iterdir():
            path.unlink()
    done = run(train(rough))
    if done.returncode:
        return False, last_line(done)
    finished.append(ess_of(rough / "m.cgflow"))
    alone = ess_of(calm / "m.cgflow")
    # not on both sides: what is killed while it is checked after its training trains as long again
    near = min(finished) > alone - 0.04
    found = ", ".join(f"{100 * ess:.1f}" for ess in finished)
    return near, f"{killed} kills in {len(finished)} trainings: ESS {found} %; undisturbed {100 * alone:.1f} %"


def full_disk(folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Every command that writes, where no file may grow beyond some kilobytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))

    yield from _writes(folder, lambda arguments: run(arguments, preexec_fn=limit), folder)


def nowhere(folder: Path) -> Iterator[tuple[str, Outcome]]:
    """The same where nothing can be written at all."""
    yield from _writes(folder, run, Path("/proc/self/nothing"))


def _writes(
    folder: Path, do: Callable[[list[str]], subprocess.CompletedProcess[str]], out: Path
) -> Iterator[tuple[str, Outcome]]:
    beads = folder / "beads.dcd"
    if not beads.exists():
        run(command("simulate", MODEL, "--time", 1, "-o", beads))
    before = b"what was there"
    tried = {
        "train": ("m.cgflow", train(out)),
        "sample": ("s.dcd", command("sample", MODEL, "-n", 200, "-o", out / "s.dcd")),
        "report": ("report.html", command("report", MODEL, "-n", 200, "--out", out)),
        "backmap": ("b.xtc", command("backmap", MODEL, beads, "-n", 20, "-o", out / "b.xtc")),
        "simulate": ("c.dcd", command("simulate", MODEL, "--time", 40, "-o", out / "c.dcd")),
        "fit-cg": ("f.cgff", command("fit-cg", MODEL, "--points", 200, "--steps", 3, "-o", out / "f.cgff")),
    }
    for name, (file, arguments) in tried.items():
        old = out / file
        exists = out.is_dir()
        if exists:
            old.write_bytes(before)
        done = do(arguments)
        kept = not exists or (old.exists() and old.read_bytes() == before)
        note = "" if kept else "; the file that was there is gone"
        yield name, (one_line(done) and kept, last_line(done) + note)
        for path in folder.glob("*"):
            if path != beads:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def two_trainings(folder: Path) -> Outcome:
    """A second training with the checkpoint of one that runs."""
    first = subprocess.Popen(train(folder), env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    lock = next((folder.glob("*.lock")), None)
    while lock is None and first.poll() is None:
        time.sleep(0.05)
        lock = next((folder.glob("*.lock")), None)
    second = run(train(folder))
    first.wait()
    return first.returncode == 0 and one_line(
        second
    ), f"first: exit code {first.returncode}; second: {last_line(second)}"


def broken_energies(kind: str) -> Outcome:
    """A force that is NaN, or that raises, after some energies: one error of this package must say so."""
    script = f"""
import sys
import numpy as np
import openmm
import openmm_cgflow as cgf
from molecules import load
calls = [0]
def energy(state):
    calls[0] += 1
    x = state.getPositions(asNumpy=True)._value
    if {kind!r} == "NaN" and calls[0] > 300:
        return float("nan"), np.zeros_like(x)
    if {kind!r} == "raises" and calls[0] > 300:
        raise RuntimeError("the model server has gone")
    return 0.0, np.zeros_like(x)
butane = load("butane")
system = openmm.XmlSerializer.clone(butane.system)
system.addForce(openmm.PythonForce(energy, {{}}))
flow = cgf.CGFlow(butane.topology, system, butane.positions, seed=0)
try:
    flow.train(evaluations=20_000, progress=False)
except cgf.CGFlowError as error:
    print("CGFlowError:", error)
except Exception as error:
    print(type(error).__name__ + ":", error)
    sys.exit(3)
else:
    print("trained")
"""
    done = run([sys.executable, "-c", script], cwd=ROOT / "tests", timeout=600)
    said = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else last_line(done)
    return done.returncode == 0 and said.startswith("CGFlowError"), said[:200]


def killed_worker() -> Outcome:
    """A process that evaluates energies is killed while it works."""
    script = """
import os, signal, sys, threading, time
import multiprocessing
import numpy as np
import torch
import openmm_cgflow as cgf
from molecules import load
from openmm_cgflow.potentials import ContextPotential
if __name__ == "__main__":
    butane = load("butane")
    potential = ContextPotential(butane.system, workers=2)
    x = torch.from_numpy(np.repeat(np.asarray(butane.positions, dtype=float)[None], 20_000, 0))
    potential.energy_and_forces(x[:10])
    victim = multiprocessing.active_children()[0].pid
    threading.Timer(0.2, os.kill, (victim, signal.SIGKILL)).start()
    try:
        while True:
            potential.energy_and_forces(x)
    except cgf.CGFlowError as error:
        print("CGFlowError:", error)
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(script, encoding="utf-8")
        more = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, str(path)],
            env={**environment(), "PYTHONPATH": more},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    said = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else last_line(done)
    return done.returncode == 0 and said.startswith("CGFlowError"), said[:200]


def broken_files(folder: Path, n: int, seed: int) -> Outcome:
    """`n` damaged input files of every format: each is read, or refused with an error of this package."""
    import openmm
    from openmm import app

    import openmm_cgflow as cgf
    from openmm_cgflow.inputs import load_system

    rng = random.Random(seed)
    pdb = ROOT / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"
    structure = app.PDBFile(str(pdb))
    system = app.ForceField("amber96.xml").createSystem(structure.topology)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system), encoding="utf-8")
    import parmed

    made = parmed.load_file(str(DATA / "butane.prmtop"), str(DATA / "butane.inpcrd"))
    for name in ("butane.top", "butane.gro"):
        made.save(str(folder / name), overwrite=True)
    sets = [
        [pdb],
        [DATA / "butane.prmtop", DATA / "butane.inpcrd"],
        [folder / "butane.top", folder / "butane.gro"],
        [folder / "system.xml", pdb],
    ]
    counts, wrong = {"read": 0, "refused": 0}, []
    for number in range(n):
        files = rng.choice(sets)
        victim = rng.randrange(len(files))
        given = [folder / f"case{number}_{path.name}" for path in files]
        for k, (path, copy) in enumerate(zip(files, given, strict=True)):
            data = path.read_bytes()
            copy.write_bytes(damaged(data, rng) if k == victim else data)
        try:
            options = {"forcefield": ["amber96.xml"]} if len(files) == 1 else {}
            cgf.CGFlow(*load_system(*given, **options), seed=0)
            counts["read"] += 1
        except cgf.CGFlowError:
            counts["refused"] += 1
        except Exception as error:
            wrong.append(f"{given[victim].name}: {type(error).__name__}: {str(error)[:80]}")
    return not wrong, f"{counts['read']} read, {counts['refused']} refused" + "".join(f"; {each}" for each in wrong[:5])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut off, with bytes or lines changed, doubled or lost, or replaced as a whole."""
    lines = data.splitlines(keepends=True)
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        at = rng.randrange(len(lines))
        return b"".join(lines[:at] + lines[at + 1 :])
    if kind == 2:
        at = rng.randrange(len(lines))
        return b"".join(lines[: at + 1] + lines[at:])
    if kind == 3:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    if kind == 4:
        return rng.choice([b"", b"\0" * 1000, b"nonsense\n" * 10, data.replace(b"1", b"nan", 3)])
    return b"".join(rng.sample(lines, len(lines)))


def main() -> int:
    """Do all, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="what begins so")
    options = parser.parse_args()
    failed = 0

    def tell(name: str, outcome: Outcome) -> None:
        nonlocal failed
        failed += not outcome[0]
        print(f"{'fine' if outcome[0] else 'WRONG':6s}{name:26s}{outcome[1]}", flush=True)

    simple: dict[str, Callable[[Path], Outcome]] = {
        "files": lambda folder: broken_files(folder, options.files, options.seed),
        "two trainings": two_trainings,
        "worker killed": lambda folder: killed_worker(),
        "energies: NaN": lambda folder: broken_energies("NaN"),
        "energies: raises": lambda folder: broken_energies("raises"),
        "kills": lambda folder: kills(folder, options.kills, options.seed),
    }
    several = {"disk full": full_disk, "nowhere to write": nowhere}
    for name in (*simple, *several):
        if not name.startswith(tuple(options.only)):
            continue
        with tempfile.TemporaryDirectory() as work:
            if name in simple:
                tell(name, simple[name](Path(work)))
            else:
                for what, outcome in several[name](Path(work)):
                    tell(f"{name}: {what}", outcome)
    print("nothing was lost" if not failed else f"{failed} went wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
