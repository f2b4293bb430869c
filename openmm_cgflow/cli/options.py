"""Options that several commands have, and how their values are checked before any long work."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from openmm_cgflow.errors import InvalidInputError

__all__ = [
    "FORCE_FIELD",
    "FORMATS",
    "MODEL",
    "Device",
    "DrawSeed",
    "Model",
    "Number",
    "Seed",
    "no_device",
    "no_input",
    "positive",
    "trajectory_file",
    "writable_folder",
]

FORMATS = (".dcd", ".xtc", ".pdb", ".npz")
MODEL, FORCE_FIELD = ".cgflow", ".cgff"

Model = Annotated[Path, typer.Argument(help="Model file that train or demo wrote.", show_default=False)]
Number = Annotated[int, typer.Option("-n", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:1; the GPU where there is one if left out.", show_default=False),
]
DrawSeed = Annotated[int | None, typer.Option("--seed", help="Seed of the draw; a new one each time if left out.")]


def positive(name: str, value: float | None) -> float:
    """The value, if it is finite and above 0 or was not given."""
    if value is not None and not 0 < value < math.inf:
        raise InvalidInputError(f"{name} is {value:g}: give a number above 0")
    return value or 0


def trajectory_file(output: Path, what: str, formats: Sequence[str] = FORMATS[:-1]) -> None:
    """See that frames can be written there, before any long work."""
    if output.suffix not in formats:
        raise InvalidInputError(f"{output}: {what} are written as {', '.join(formats)}; choose one of these")
    writable_folder(output.parent)


def no_device(device: str | None, model: Path, why: str) -> None:
    """See that a device was not chosen for a force field, which has none."""
    if device is not None and model.suffix == FORCE_FIELD:
        raise InvalidInputError(f"--device says where a flow is; {why}: leave it out")


def no_input(outputs: Sequence[Path | None], inputs: Sequence[Path | str | None]) -> None:
    """See that nothing that is read is written over, nor two things into one file."""
    given = [Path(path).resolve() for path in inputs if path is not None]
    for k, path in enumerate(outputs):
        if path is None:
            continue
        if path.resolve() in given:
            raise InvalidInputError(f"{path} is read, and would be written over: choose another file for the output")
        if path.resolve() in [other.resolve() for other in outputs[:k] if other is not None]:
            raise InvalidInputError(f"{path} is to be written twice: choose another file for one of them")


def writable_folder(folder: Path) -> None:
    """Make the folder and see that files can be written, before any long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInputError(f"cannot write into {folder} ({error.strerror}): choose another place") from error
