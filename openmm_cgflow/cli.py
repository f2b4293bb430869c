"""The command line. Heavy libraries load inside the commands, so that --help is quick."""

import logging
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from openmm_cgflow.errors import CGFlowError, InvalidInputError

if TYPE_CHECKING:
    from openmm_cgflow.backmapping import Backmapped
    from openmm_cgflow.force_field import CGForceField
    from openmm_cgflow.forcematching import DistilSettings
    from openmm_cgflow.model import CGFlow
    from openmm_cgflow.sampling import Samples

__all__ = ["app", "main"]

DEMO_SECONDS, DEMO_EVALUATIONS = 420.0, 3_000_000
"""What the demo's training takes at most: with start, samples and pictures it stays below ten minutes on two cores."""
CHECK_SAMPLES = 5000
FORMATS = (".dcd", ".xtc", ".pdb", ".npz")
MODEL, FORCE_FIELD = ".cgflow", ".cgff"


class _Commands(TyperGroup):
    """Prints errors that users can mend in one line; remembers the command line for reports."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Any = None,  # noqa: ANN401  (newer typer has its own copy of click: its Context has no public name)
        **extra: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        extra.setdefault("obj", shlex.join(["openmm-cgflow", *args]))
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401
        try:
            with _told():
                return super().invoke(ctx)
        except CGFlowError as error:
            _fail(str(error), 2)
        except OSError as error:
            _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)


@contextmanager
def _told() -> Iterator[None]:
    """Show what the package has to say while it works; the logging of the process is as before after it."""
    logger, handler = logging.getLogger("openmm_cgflow"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Equilibrium samples and free energies of a molecule from its OpenMM force field, without a simulation.",
)

Model = Annotated[Path, typer.Argument(help="Model file that train or demo wrote.", show_default=False)]
Number = Annotated[int, typer.Option("-n", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:1; the GPU where there is one if left out.", show_default=False),
]
DrawSeed = Annotated[int | None, typer.Option("--seed", help="Seed of the draw; a new one each time if left out.")]


def _show_version(asked: bool) -> None:
    if asked:
        from openmm_cgflow.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the model, the samples and the report.")] = Path("demo"),
    seconds: Annotated[
        float | None,
        typer.Option(
            "--time",
            help="Training time, seconds. If neither limit is given: seven minutes, or three million evaluations.",
            show_default=False,
        ),
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Limit of energy evaluations.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train on alanine dipeptide in implicit solvent, sample 10,000 structures and draw their free energies."""
    start = time.monotonic()
    for name, value in (("--time", seconds), ("--evaluations", evaluations)):
        _positive(name, value)
    _writable_folder(out)
    _start()
    from openmm_cgflow.analysis import duration, report
    from openmm_cgflow.inputs import load_system
    from openmm_cgflow.model import CGFlow
    from openmm_cgflow.storage import locked

    ctx.with_resource(locked(out / "model.cgflow"))
    pdb = Path(__file__).parent / "data" / "alanine_dipeptide.pdb"
    # ff96 and OBC1: the same energies as openmmtools' AlanineDipeptideImplicit, which published results are for
    flow = CGFlow(*load_system(pdb, forcefield=["amber96.xml"], implicit_solvent="OBC1"), seed=seed, device=device)
    if seconds is None and evaluations is None:
        seconds, evaluations = DEMO_SECONDS, DEMO_EVALUATIONS
    flow.train(time=seconds, evaluations=evaluations)
    flow.save(out / "model.cgflow")
    samples = flow.sample(10_000, seed=seed)
    _save(samples, out / "samples.dcd")
    page = report(flow, samples, out, command=ctx.obj)
    taken = [("whole command", duration(time.monotonic() - start)), ("report", str(page))]
    _summarise(flow, samples, taken)


@app.command()
def train(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="MOL.pdb | MOL.prmtop MOL.inpcrd | MOL.top MOL.gro | MOL.psf MOL.crd PARAMETERS | SYSTEM.xml MOL.pdb",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write.", show_default=False)],
    forcefield: Annotated[
        list[str] | None, typer.Option(help="Force-field XML for a PDB file; may be repeated. amber14 if left out.")
    ] = None,
    implicit_solvent: Annotated[
        str | None, typer.Option(help="HCT, OBC1, OBC2, GBn or GBn2; vacuum if left out.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Kelvin.")] = 300.0,
    seconds: Annotated[
        float | None, typer.Option("--time", help="Training time, seconds. Eight minutes if neither limit is given.")
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Limit of energy evaluations.")] = None,
    slow: Annotated[
        str | None,
        typer.Option(
            help="Slow torsions, by names (phi,psi) or atom indices (4-6-8-14), or auto; every soft one if left out."
        ),
    ] = None,
    constraints: Annotated[str | None, typer.Option(help="HBonds, or none.")] = None,
    bonds: Annotated[
        str, typer.Option(help="Where bonds are from: topology (which must agree with the System), or system.")
    ] = "topology",
    seed: Seed = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File for the state of the training; beside the output if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint if there is one.")] = True,
    metrics: Annotated[Path | None, typer.Option(help="CSV file for the training curves.")] = None,
    device: Device = None,
) -> None:
    """Train a flow on the energies of a molecule. Ctrl-C ends the training early and keeps what was learned.

    The same command again finishes a training that was ended or killed; one that came to its end is trained further, by
    as much again.
    """
    for name, value in (("--time", seconds), ("--evaluations", evaluations), ("--temperature", temperature)):
        _positive(name, value)
    state = checkpoint or output.with_name(f"{output.name}.checkpoint")
    for path in (output, state, metrics):
        if path is not None:
            _writable_folder(path.parent)
    _start()
    from openmm_cgflow.inputs import load_system
    from openmm_cgflow.model import CGFlow
    from openmm_cgflow.storage import locked
    from openmm_cgflow.training.interrupt import Interruptible

    ctx.with_resource(locked(output))
    molecule = load_system(*files, forcefield=forcefield, implicit_solvent=implicit_solvent, constraints=constraints)
    flow = CGFlow(*molecule, temperature=temperature, slow=_slow(slow), seed=seed, bonds=bonds, device=device)  # type: ignore[arg-type]
    try:
        with Interruptible() as interrupted:
            flow.train(time=seconds, evaluations=evaluations, checkpoint=state, resume=resume, metrics=metrics)
    except KeyboardInterrupt:
        where = (
            f"the state is in {state}: the same command goes on from there" if state.exists() else "nothing was saved"
        )
        _fail(f"stopped; {where}", 130)
    flow.save(output)
    typer.echo(f"saved {output}")
    try:
        samples = flow.sample(_check_samples(flow.provenance, hurry=interrupted()), seed=seed)
    except KeyboardInterrupt:
        _fail(f"stopped before the check; the model is in {output}", 130)
    _summarise(flow, samples, [("model", str(output)), ("checkpoint", str(state))])


def _check_samples(provenance: dict[str, Any], hurry: bool) -> int:
    """How many samples show how good a model is: fewer where they would take long, or somebody waits for the end."""
    rate = provenance["evaluations"] / max(provenance["seconds"], 1e-3)
    return int(min(CHECK_SAMPLES, max(100, rate * (1.0 if hurry else max(10.0, 0.1 * provenance["seconds"])))))


@app.command()
def sample(
    model: Model,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File for the samples: .dcd, .xtc, .pdb or .npz.", show_default=False),
    ],
    n: Number = 10_000,
    seed: DrawSeed = None,
    device: Device = None,
) -> None:
    """Draw independent structures from a model, with their weights (in an .npz file beside the frames)."""
    _positive("-n", n)
    if output.suffix not in FORMATS:
        raise InvalidInputError(f"{output}: samples are written as {', '.join(FORMATS)}; choose one of these suffixes")
    _writable_folder(output.parent)
    _start()
    from openmm_cgflow.model import CGFlow

    flow = CGFlow.load(model, device)
    samples = flow.sample(n, seed=seed)
    _summarise(flow, samples, [("written", ", ".join(str(path) for path in _save(samples, output)))])


@app.command()
def audit(
    model: Model,
    evaluations: Annotated[
        int | None, typer.Option(help="Energies that it may cost; a tenth of the training's if left out.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--time", help="Limit, seconds.")] = None,
    save: Annotated[bool, typer.Option(help="Write what was found into the model file.")] = True,
    device: Device = None,
) -> None:
    """Look for forms of the molecule that a model does not reach, by hot dynamics from its samples, quenched."""
    for name, value in (("--time", seconds), ("--evaluations", evaluations)):
        _positive(name, value)
    _start()
    from openmm_cgflow.model import CGFlow

    flow = CGFlow.load(model, device)
    coverage = flow.audit(evaluations, seconds)
    if save and coverage.audited:
        flow.save(model)
    _table([("model", str(model)), *coverage.rows(), ("evaluations", f"{coverage.evaluations:,}")])


@app.command()
def backmap(
    model: Model,
    beads: Annotated[
        Path, typer.Argument(help="Beads: a .dcd or .xtc of them, or any file that mdtraj reads.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File for the structures: .dcd, .xtc or .pdb.", show_default=False)
    ],
    n: Annotated[int, typer.Option("-n", help="Structures for each frame.")] = 1,
    resample: Annotated[bool, typer.Option("--resample", help="Keep one of them, drawn by its weight.")] = False,
    relax: Annotated[int, typer.Option(help="Iterations of minimisation with the beads held.")] = 0,
    seed: DrawSeed = None,
    device: Device = None,
) -> None:
    """Put atoms around the beads of a CG trajectory; weights and checks go into an .npz file beside the frames."""
    _positive("-n", n)
    if relax < 0:
        raise InvalidInputError(f"--relax is {relax}: give 0 or a number of iterations")
    _trajectory_file(output, "structures")
    _start()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.model import CGFlow

    flow = CGFlow.load(model, device)
    start = time.monotonic()
    result = flow.backmap(beads, n=n, relax=relax, seed=seed)
    taken = time.monotonic() - start
    frames, total = len(result.outside), result.outside.size * n
    rows = [("structures", f"{total:,} around {frames:,} frames of beads, in {duration(taken)}")]
    rows.append(("outside the trained region", f"{result.outside.sum():,} of {frames:,} frames"))
    if n > 1:
        ess = result.ess[~result.failed]
        rows.append(("ESS within a frame", f"{100 * ess.mean():.1f} % on average" if len(ess) else "unknown"))
    if result.failed.any():
        rows.append(("without any finite energy", f"{result.failed.sum():,} of {frames:,} frames"))
    if resample:
        if result.failed.any():
            raise InvalidInputError(
                f"--resample: in {result.failed.sum()} of {frames} frames no structure has a finite energy, so that "
                "there is none to draw: draw more (-n), leave these frames out, or leave out --resample"
            )
        result = result.resample(0 if seed is None else seed)
    rows += result.checks.summary()
    _table([*rows, ("written", ", ".join(str(path) for path in _save(result, output)))])


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
        str, typer.Option(help="Of frames: ca, backbone, dipeptide, or a selection in mdtraj's language.")
    ] = "ca",
    temperature: Annotated[float, typer.Option(help="Of frames, K.")] = 300.0,
    forces: Annotated[
        Path | None, typer.Option(help="On the frames' atoms or beads, .npy, kJ/mol/nm.", show_default=False)
    ] = None,
    stride: Annotated[int, typer.Option(help="Take every so many frames.")] = 1,
    points: Annotated[int, typer.Option(help="Points at which the density of the beads is asked.")] = 50_000,
    steps: Annotated[int, typer.Option(help="Steps of the fit.")] = 2_500,
    seed: Seed = 0,
) -> None:
    """Fit a small, fast energy of beads to the density that a model has of them, or that is fitted to frames first."""
    for name, value in (("--stride", stride), ("--temperature", temperature)):
        _positive(name, value)
    if output.suffix != FORCE_FIELD:
        raise InvalidInputError(f"{output}: a force field is a {FORCE_FIELD} file; name it so")
    for path in (source, top, forces):
        if path is not None and not path.is_file():
            raise InvalidInputError(f"{path}: there is no such file")
    _writable_folder(output.parent)
    _start()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.force_field import CGForceField
    from openmm_cgflow.forcematching import DistilSettings
    from openmm_cgflow.model import CGFlow

    settings = DistilSettings(points=points, steps=steps, seed=seed)
    start = time.monotonic()
    rows: list[tuple[str, str]] = []
    if source.suffix == MODEL:
        flow = CGFlow.load(source, "cpu")
        force_field = CGForceField.fromFlow(flow, settings)
        rows += _judged(force_field, flow)
    elif top is None:
        raise InvalidInputError(f"{source}: give the topology of these frames after them, or a {MODEL} file alone")
    else:
        force_field, shown = _of_frames(source, top, beads, forces, stride, temperature, settings)
        rows += shown
    force_field.save(output)
    fitted = force_field.fitted
    rows = [
        ("student", f"{fitted.points:,} points, {fitted.steps:,} steps"),
        ("error of its energy", f"{fitted.energy_error:.3f} kT, at points held out"),
        *rows,
    ]
    _table([*rows, ("time", duration(time.monotonic() - start)), ("written", str(output))])


def _judged(force_field: "CGForceField", flow: "CGFlow") -> list[tuple[str, str]]:
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
) -> tuple["CGForceField", list[tuple[str, str]]]:
    """A force field of frames, and what there is to say of them."""
    import mdtraj
    import numpy as np

    from openmm_cgflow.force_field import CGForceField
    from openmm_cgflow.forcematching import BeadModel

    model = BeadModel.fromTopology(mdtraj.load_topology(str(top)), beads)
    frames = model.read(trajectory, str(top), stride)
    pushes = None if forces is None else np.load(forces, allow_pickle=False)[::stride]
    force_field = CGForceField.fromFrames(
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
    interval: Annotated[float, typer.Option(help="Between frames, ps.")] = 0.1,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Run Langevin dynamics of the beads, at the temperature of the model: a flow's, or a force field's of fit-cg."""
    for name, value in (("--time", picoseconds), ("--timestep", timestep), ("--interval", interval)):
        _positive(name, value)
    _trajectory_file(output, "beads")
    _start()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.force_field import CGForceField
    from openmm_cgflow.model import CGFlow
    from openmm_cgflow.openmm_plugin.cg_system import langevin_frames

    source: CGForceField | CGFlow = (
        CGForceField.load(model) if model.suffix == FORCE_FIELD else CGFlow.load(model, device)
    )
    start = time.monotonic()
    trajectory = langevin_frames(source.createCGSystem(), source.temperature, picoseconds, timestep, interval, seed)
    taken = time.monotonic() - start
    steps = round(1000 * picoseconds / timestep)
    trajectory.save(str(output))
    topology = output.with_suffix(".topology.pdb")
    trajectory[0].save_pdb(str(topology))
    _table(
        [
            ("beads", f"{trajectory.n_atoms}, {trajectory.n_frames:,} frames"),
            ("speed", f"{steps:,} steps in {duration(taken)}, {1e6 * taken / steps:.0f} microseconds a step"),
            ("written", f"{output}, {topology}"),
        ]
    )


@app.command()
def report(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and report.html.")] = Path("report"),
    n: Number = 10_000,
    seed: DrawSeed = None,
    device: Device = None,
) -> None:
    """Draw free energies, energies, weights and training curves of a model, on one page."""
    if _positive("-n", n) < 2:
        raise InvalidInputError("-n is 1: a report needs at least 2 samples")
    _writable_folder(out)
    _start()
    from openmm_cgflow.analysis import report as write_report
    from openmm_cgflow.model import CGFlow

    flow = CGFlow.load(model, device)
    samples = flow.sample(n, seed=seed)
    page = write_report(flow, samples, out, command=ctx.obj)
    _summarise(flow, samples, [("report", str(page))])


def _positive(name: str, value: float | None) -> float:
    """The value, if it is above 0 or was not given."""
    if value is not None and not value > 0:
        raise InvalidInputError(f"{name} is {value:g}: give a number above 0")
    return value or 0


def _slow(text: str | None) -> Literal["auto"] | list[str | Sequence[int]] | None:
    """Names, or four atom indices joined by dashes, separated by commas; or `auto`."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InvalidInputError("--slow is empty: name torsions, for instance --slow phi,psi")
    return [[int(k) for k in part.split("-")] if re.fullmatch(r"\d+(-\d+){3}", part) else part for part in parts]


def _trajectory_file(output: Path, what: str) -> None:
    """See that frames can be written there, before any long work."""
    formats = FORMATS[:-1]
    if output.suffix not in formats:
        raise InvalidInputError(f"{output}: {what} are written as {', '.join(formats)}; choose one of these")
    _writable_folder(output.parent)


def _writable_folder(folder: Path) -> None:
    """Make the folder and see that files can be written, before any long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInputError(f"cannot write into {folder} ({error.strerror}): choose another place") from error


def _save(samples: "Samples | Backmapped", path: Path) -> list[Path]:
    """Write frames and weights, and the topology that DCD and XTC files lack; returns every file written."""
    samples.save(path)
    written = [path]
    if path.suffix != ".npz":
        written.append(path.with_suffix(".npz"))
    if path.suffix in (".dcd", ".xtc"):
        written.append(path.with_suffix(".topology.pdb"))
        samples.trajectory[0].save_pdb(str(written[-1]))
    return written


def _summarise(flow: "CGFlow", samples: "Samples", more: list[tuple[str, str]]) -> None:
    from openmm_cgflow.analysis import summary

    _table([*summary(flow, samples), *more])


def _table(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    Console().print(table)


def _start() -> None:
    """Load torch before anything loads openmm."""
    import torch  # noqa: F401  (openmm-torch's plugin needs torch's libraries in the process first)


def main() -> None:
    """Entry point of the command `openmm-cgflow`."""
    hook = sys.excepthook  # which typer replaces by its own
    try:
        app(prog_name="openmm-cgflow")
    finally:
        sys.excepthook = hook
