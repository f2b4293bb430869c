"""Read damaged files, a million of them: `python tests/fuzz/run.py --n 1000000`.

Each one must be read, or refused with the error that is meant for it, within seconds and a few hundred MB, and no code
in it may run. Ends with exit code 1 otherwise, and says how to get the same input again.
"""

import argparse
import ctypes
import multiprocessing
import os
import random
import resource
import sys
import time
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STUCK = 60.0  # seconds of CPU time without an end of one input: seconds say nothing where other jobs have the cores
DEAD = 1800.0  # seconds
MEMORY = 600 * 2**20  # bytes beyond what is there at the start
BATCH = 1000


def rng_of(seed: int, number: int) -> random.Random:
    """The random numbers that an input is made of."""
    return random.Random(f"{seed}:{number}")


def work(seed: int, target: str, first: int, end: int, at: "Synchronized[int]", results: Any) -> None:
    """Read inputs, in a process of its own: some damage might end it."""
    import torch

    from fuzz.targets import Files, make_input, outcome

    torch.set_num_threads(1)
    files = Files.make()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[tuple[int, str, str]] = []
    for number in range(first, end):
        at.value = number
        made = make_input(files, rng_of(seed, number), target)
        result = outcome(made)
        if result in ("loaded", "refused"):
            counts[made.target, result] += 1
        else:
            counts[made.target, "failed"] += 1
            failures.append((number, made.target, result))
        if (number + 1 - first) % BATCH == 0 or number + 1 == end:
            results.send((number + 1, counts, failures))
            counts, failures = Counter(), []


def cpu_seconds(process: int | None) -> float:
    """What a process has spent so far; nothing if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run:
    """Keeps a working process going, and counts what it tells."""

    def __init__(self, seed: int, n: int, target: str = "") -> None:
        self.seed, self.n, self.target, self.done = seed, n, target, 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: list[tuple[int, str, str]] = []
        self.started = time.monotonic()
        self._shown = self.started

    def go(self) -> None:
        """Until all are done; a process that ends or is stuck is replaced behind the input that did that."""
        while self.done < self.n:
            self._one_process()

    def _one_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        at = context.Value(ctypes.c_int64, self.done, lock=False)
        process = context.Process(
            target=work, args=(self.seed, self.target, self.done, self.n, at, theirs), daemon=True
        )
        process.start()
        theirs.close()
        last, since, spent = -1, time.monotonic(), 0.0
        ended = None
        while ended is None:
            try:
                if ours.poll(1.0):
                    self._take(*ours.recv())
            except EOFError:
                ended = "the process ended"
            if at.value != last:
                last, since, spent = at.value, time.monotonic(), cpu_seconds(process.pid)
            elif self.done < self.n and (cpu_seconds(process.pid) - spent > STUCK or time.monotonic() - since > DEAD):
                ended = f"no end after {time.monotonic() - since:.0f} s"
                process.kill()
        process.join()
        if self.done < self.n:
            # those of the batch before it were read, but their counts went with the process
            self.counts["(lost with the process)", "loaded or refused"] += at.value - self.done
            self.counts["(any)", "failed"] += 1
            self.failures.append((at.value, "(any)", f"{ended}, exit code {process.exitcode}"))
            self.done = at.value + 1

    def _take(self, done: int, counts: Counter[tuple[str, str]], failures: list[tuple[int, str, str]]) -> None:
        self.done = done
        self.counts += counts
        for failure in failures:
            self.failures.append(failure)
            if len(self.failures) <= 20:
                print(f"  input {failure[0]} ({failure[1]}): {failure[2]}", flush=True)
        if time.monotonic() - self._shown > 10 or done == self.n:
            self._shown = time.monotonic()
            rate = self.done / max(self._shown - self.started, 1e-9)
            print(f"{self.done:>9,} of {self.n:,}   {rate:,.0f} inputs/s   failed: {len(self.failures)}", flush=True)

    def summary(self) -> str:
        """Counts by what was read and what came of it."""
        results = ("loaded", "refused", "failed", "loaded or refused")
        lines = [f"{'':24}{'loaded fine':>14}{'refused':>14}{'anything else':>16}"]
        for target in sorted({target for target, _ in self.counts}):
            row = [self.counts[target, result] for result in results]
            lines.append(f"{target:24}{row[0] + row[3]:>14,}{row[1]:>14,}{row[2]:>16,}")
        sums = [sum(v for (_, r), v in self.counts.items() if r == result) for result in results]
        lines.append(f"{'all':24}{sums[0] + sums[3]:>14,}{sums[1]:>14,}{sums[2]:>16,}")
        return "\n".join(lines)


def show(seed: int, number: int, target: str) -> int:
    """Make one input again and say what comes of it."""
    from fuzz.targets import Files, make_input, outcome

    made = make_input(Files.make(), rng_of(seed, number), target)
    print(f"{made.target}: {made.what!r}"[:20_000])
    result = outcome(made)
    print(result)
    return 0 if result in ("loaded", "refused") else 1


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--target", default="", choices=["", "force field"], help="these files alone")
    parser.add_argument("--only", type=int, help="this input alone, shown")
    options = parser.parse_args()
    if options.only is not None:
        return show(options.seed, options.only, options.target)
    run = Run(options.seed, options.n, options.target)
    run.go()
    print(run.summary())
    for number, target, result in run.failures[:50]:
        more = f" --target {options.target!r}" if options.target else ""
        print(
            f"failed: {target}: {result}\n  again: python tests/fuzz/run.py --seed {options.seed} --only {number}{more}"
        )
    minutes = (time.monotonic() - run.started) / 60
    print(f"{options.n:,} inputs, seed {options.seed}, {minutes:.1f} minutes, {len(run.failures)} failures")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
