"""Commands for beads: atoms around them, force fields for them, dynamics of them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import openmm_cgflow as cgf
from openmm_cgflow.cli.app import app, load_torch
from openmm_cgflow.cli.options import (
    FORCE_FIELD,
    MODEL,
    Device,
    DrawSeed,
    Model,
    Seed,
    no_device,
    no_input,
    positive,
    trajectory_file,
    writable_folder,
)
from openmm_cgflow.cli.output import show
from openmm_cgflow.errors import InvalidInputError

if TYPE_CHECKING:
    from openmm_cgflow.forcematching import DistilSettings

__all__ = ["backmap", "fit_cg", "simulate"]

_MOST_STEPS = 2**31
"""OpenMM counts the steps of a call in a C integer."""


@app.command()
def backmap(
    model: Model,
    beads: Annotated[
        Path, typer.Argument(help="Beads: a .dcd or .xtc of them, or any file that mdtraj reads.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="File for the structures: .dcd, .xtc, .trr, .nc or .pdb.", show_default=False
        ),
    ],
    n: Annotated[int, typer.Option("-n", help="Structures for each frame.")] = 1,
    resample: Annotated[bool, typer.Option("--resample", help="Keep one of them, drawn by its weight.")] = False,
    relax: Annotated[int, typer.Option(help="Iterations of minimisation with the beads held.")] = 0,
    stride: Annotated[int, typer.Option(help="Take every so many frames.")] = 1,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Frames A to B - 1, from 0 on.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, for many machines.", show_default=False)
    ] = None,
    seed: DrawSeed = None,
    device: Device = None,
) -> None:
    """Put atoms around the beads of a CG trajectory, of any length; weights and checks go into an .npz file beside it.

    A run that was ended goes on where it was, with the same command.
    """
    for name, value in (("-n", n), ("--stride", stride), ("--workers", workers)):
        positive(name, value)
    if relax < 0:
        raise InvalidInputError(f"--relax is {relax}: give 0 or a number of iterations")
    if device is not None and (workers > 1 or scheduler is not None):
        raise InvalidInputError("--device is for one process: leave it out, or leave out --workers and --scheduler")
    load_torch()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.backmapping import backmap_file
    from openmm_cgflow.trajectory_files import WRITTEN, frame_range

    trajectory_file(output, "structures", WRITTEN)
    no_input((output,), (model, beads))
    chosen = frame_range(frames)

    many = workers > 1 or scheduler is not None
    start = time.monotonic()
    result = backmap_file(
        model if many else cgf.CGFlow.load(model, device),
        beads,
        output,
        n,
        resample,
        relax,
        seed,
        stride,
        chosen,
        workers=workers,
        scheduler=scheduler,
        progress=True,
    )
    taken = time.monotonic() - start
    rows = [("structures", f"{result.structures:,} around {result.frames:,} frames of beads, in {duration(taken)}")]
    rows.append(("outside the trained region", f"{result.outside:,} of {result.frames:,} frames"))
    if n > 1:
        ess = f"{100 * result.ess:.1f} % on average" if result.failed < result.frames else "unknown"
        rows.append(("ESS within a frame", ess))
    if result.failed:
        rows.append(("without any finite energy", f"{result.failed:,} of {result.frames:,} frames"))
    rows += result.checks.summary()
    show([*rows, ("written", ", ".join(map(str, result.written)))])


@app.command("fit-cg")
def fit_cg(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL|TRAJ", help="Model of a flow, .cgflow; or frames that mdtraj reads.")
    ],
    top: Annotated[
        Path | None, typer.Argument(metavar="[TOP]", help="Of frames: a topology with bonds.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File for the force field, such as MOL.cgff.", show_default=False)
    ] = Path("beads.cgff"),
    beads: Annotated[
        str | None,
        typer.Option(help="Of frames: ca, backbone, dipeptide, or a selection of mdtraj's.", show_default="ca"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of frames, K.", show_default="300")] = None,
    forces: Annotated[
        Path | None, typer.Option(help="On the frames' atoms or beads, .npy, kJ/mol/nm.", show_default=False)
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Take every so many frames.", show_default="1")] = None,
    points: Annotated[int, typer.Option(help="Points at which the density of the beads is asked.")] = 50_000,
    steps: Annotated[int, typer.Option(help="Steps of the fit.")] = 2_500,
    student: Annotated[
        str, typer.Option(help="mlp, the fastest; or schnet, whose weights are for other sequences too.")
    ] = "mlp",
    seed: Seed = 0,
) -> None:
    """Fit a small, fast energy of beads to the density that a model has of them, or that is fitted to frames first."""
    for name, value in (("--stride", stride), ("--temperature", temperature)):
        positive(name, value)
    if output.suffix != FORCE_FIELD:
        raise InvalidInputError(f"{output}: a force field is a {FORCE_FIELD} file; name it so")
    no_input((output,), (source, top, forces))
    of_frames = {"TOP": top, "--beads": beads, "--temperature": temperature, "--forces": forces, "--stride": stride}
    given = [name for name, value in of_frames.items() if value is not None]
    if source.suffix == MODEL and given:
        raise InvalidInputError(f"{', '.join(given)}: of frames alone; {source} is a model, which has its own")
    if student not in ("mlp", "schnet"):
        raise InvalidInputError(f"--student is {student!r}; give mlp or schnet")
    for path in (source, top, forces):
        if path is not None and not path.is_file():
            raise InvalidInputError(f"{path}: there is no such file")
    writable_folder(output.parent)
    load_torch()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.forcematching import DistilSettings, SchNetSettings, StudentSettings

    size = SchNetSettings() if student == "schnet" else StudentSettings()
    settings = DistilSettings(points=points, steps=steps, student=size, seed=seed)
    start = time.monotonic()
    rows: list[tuple[str, str]] = []
    if source.suffix == MODEL:
        flow = cgf.CGFlow.load(source, "cpu")
        force_field = cgf.CGForceField.fromFlow(flow, settings)
        rows += _judged(force_field, flow)
    elif top is None:
        raise InvalidInputError(f"{source}: give the topology of these frames after them, or a {MODEL} file alone")
    else:
        force_field, shown = _of_frames(
            source, top, "ca" if beads is None else beads, forces, stride or 1, temperature or 300.0, settings
        )
        rows += shown
    force_field.save(output)
    fitted = force_field.fitted
    rows = [
        ("student", f"{fitted.points:,} points, {fitted.steps:,} steps"),
        ("error of its energy", f"{fitted.energy_error:.3f} kT, at points held out"),
        *rows,
    ]
    show([*rows, ("time", duration(time.monotonic() - start)), ("written", str(output))])


def _judged(force_field: "cgf.CGForceField", flow: "cgf.CGFlow") -> list[tuple[str, str]]:
    """How far a force field is from the density of its flow."""
    from openmm_cgflow.forcematching import judge_beads

    coordinates = flow.coordinates.bead_coordinates()
    if not coordinates.sizes[0]:
        return []
    found = judge_beads(force_field.student, flow.flow.bead_flow, coordinates, flow.target.kT, n=20_000)
    return [("KL from the model", f"{found.kl:.4f} nats, by importance sampling with an ESS of {found.ess:.2f}")]


def _of_frames(
    trajectory: Path,
    top: Path,
    beads: str,
    forces: Path | None,
    stride: int,
    temperature: float,
    settings: "DistilSettings",
) -> tuple["cgf.CGForceField", list[tuple[str, str]]]:
    """A force field of frames, and what there is to say of them."""
    from openmm_cgflow.forcematching import BeadModel
    from openmm_cgflow.trajectory_files import read_array, read_topology

    model = BeadModel.fromTopology(read_topology(top), beads)
    frames = model.read(trajectory, str(top), stride)
    pushes = None if forces is None else read_array(forces)[::stride]
    force_field = cgf.CGForceField.fromFrames(
        model, frames, forces=pushes, temperature=temperature, settings=settings, seed=settings.seed
    )
    named = ", ".join(model.labels[:8]) + (" ..." if model.n_beads > 8 else "")
    return force_field, [("beads", f"{model.n_beads}: {named}"), ("frames", f"{len(frames):,}")]


@app.command()
def simulate(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File for the beads: .dcd, .xtc or .pdb.", show_default=False)
    ],
    picoseconds: Annotated[float, typer.Option("--time", help="Length, ps.")] = 100.0,
    timestep: Annotated[float, typer.Option(help="Time step, fs.")] = 2.0,
    interval: Annotated[
        float | None, typer.Option(help="Between frames, ps: 0.1, or --time if that is shorter.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Run Langevin dynamics of the beads, at the temperature of the model: a flow's, or a force field's of fit-cg."""
    for name, value in (("--time", picoseconds), ("--timestep", timestep), ("--interval", interval)):
        positive(name, value)
    if interval is None:
        interval = min(0.1, picoseconds)
    if interval > picoseconds:
        raise InvalidInputError(
            f"--interval is {interval:g} ps, longer than --time, {picoseconds:g} ps: there is no frame"
        )
    if 1000 * interval / timestep >= _MOST_STEPS:
        raise InvalidInputError(
            f"--interval is {interval:g} ps, of more than {_MOST_STEPS:,} steps: give a shorter one"
        )
    no_device(device, model, f"the force field {model} runs where OpenMM's platform is")
    trajectory_file(output, "beads")
    topology = output.with_suffix(".topology.pdb")
    no_input((output, topology), (model,))
    load_torch()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.backmapping import FlowPlacer
    from openmm_cgflow.openmm_plugin.forces.cg_system import langevin_frames
    from openmm_cgflow.trajectory_files import save_trajectory

    source: cgf.CGForceField | cgf.CGFlow = (
        cgf.CGForceField.load(model) if model.suffix == FORCE_FIELD else cgf.CGFlow.load(model, device)
    )
    start = time.monotonic()
    trajectory = langevin_frames(source.createCGSystem(), source.temperature, picoseconds, timestep, interval, seed)
    taken = time.monotonic() - start
    steps = max(1, round(1000 * interval / timestep)) * trajectory.n_frames
    save_trajectory(trajectory, output)
    save_trajectory(trajectory[0], topology)
    rows = [
        ("beads", f"{trajectory.n_atoms}, {trajectory.n_frames:,} frames"),
        ("speed", f"{steps:,} steps in {duration(taken)}, {1e6 * taken / steps:.0f} microseconds a step"),
    ]
    if isinstance(source, cgf.CGForceField):
        what, strange = "what it was fitted to", source.outside(trajectory.xyz)
    else:
        x = source.compute.tensor(trajectory.xyz.astype("float64"))
        what, strange = "the trained region", FlowPlacer(source, x).outside.cpu().numpy()
    rows.append((f"outside {what}", f"{strange.sum():,} of {trajectory.n_frames:,} frames"))
    show([*rows, ("written", f"{output}, {topology}")])
