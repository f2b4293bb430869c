"""What is measured beside what is exact, for the examples whose answer is known."""

import argparse
import json
import sys
from pathlib import Path

import openmm_cgflow as cgf
from openmm_cgflow.training import AdaptiveTempering, TrainSettings


class Verdict:
    """A table of measured and exact values; `close` ends with exit code 1 if any is too far off."""

    def __init__(self) -> None:
        self._short: list[str] = []
        self._figures: dict[str, float] = {}
        print(f"{'':34s}{'measured':>12s}{'exact':>12s}{'off':>10s}{'allowed':>10s}")

    def near(self, name: str, measured: float, exact: float, allowed: float) -> None:
        """A value that must be within `allowed` of the exact one."""
        off = abs(measured - exact)
        self._figures |= {name: measured, f"{name}, off by": off}
        fine = off <= allowed
        print(f"{name:34s}{measured:12.4f}{exact:12.4f}{off:10.4f}{allowed:10.4f}{'' if fine else '   falls short'}")
        self._short += [] if fine else [name]

    def least(self, name: str, measured: float, wanted: float) -> None:
        """A value that must be at least as wanted."""
        fine = measured >= wanted
        self._figures[name] = measured
        print(f"{name:34s}{measured:12.4f}{'':>12s}{'':>10s}{f'>= {wanted:g}':>10s}{'' if fine else '   falls short'}")
        self._short += [] if fine else [name]

    def close(self, figure: Path | None = None, file: Path | None = None, **more: object) -> None:
        """Say where the figure is, write what was measured to a JSON file, and end the script."""
        if figure is not None:
            print(f"figure: {figure}")
        if file is not None:
            file.write_text(json.dumps(self._figures | more, indent=1) + "\n")
        if self._short:
            sys.exit(f"falls short: {', '.join(self._short)}")


def options(description: str, figure: str, seconds: float, tempering: float | None = None) -> argparse.Namespace:
    """The options that these examples share, and their seconds of training: others where there is `--tempering`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, help="seconds of training")
    parser.add_argument("--evaluations", type=int, help="energies of training, instead of a time: the same anywhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path(figure))
    parser.add_argument("--json", type=Path, help="write what was measured there")
    if tempering is not None:
        parser.add_argument("--tempering", action="store_true", help="lower the temperature instead of a Laplace start")
    arguments = parser.parse_args()
    tempered = tempering is not None and arguments.tempering
    arguments.time = arguments.time or (tempering if tempered else seconds)
    return arguments


def train(
    flow: cgf.VectorFlow,
    arguments: argparse.Namespace,
    tempering: AdaptiveTempering | None = None,
    points: int = 512,
) -> None:
    """Train for the time or the evaluations that were asked for, and say what it took."""
    limit = {"evaluations": arguments.evaluations} if arguments.evaluations else {"time": arguments.time}
    flow.train(**limit, settings=TrainSettings(tempering=tempering, points=points))
    arguments.time = flow.provenance["seconds"]
    print(f"{flow.evaluations:,} energy evaluations, {arguments.time:.0f} s of training")
