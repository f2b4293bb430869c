"""Commands for flows: train one, draw from it, look for what it does not reach, show it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import openmm_cgflow as cgf
from openmm_cgflow.cli.app import app, fail, load_torch
from openmm_cgflow.cli.options import (
    FORCE_FIELD,
    FORMATS,
    Device,
    DrawSeed,
    Model,
    Number,
    Seed,
    no_device,
    no_input,
    positive,
    writable_folder,
)
from openmm_cgflow.cli.output import save, show, summarise
from openmm_cgflow.errors import InvalidInputError

__all__ = ["audit", "demo", "report", "sample", "slow_torsions", "train"]

DEMO_SECONDS, DEMO_EVALUATIONS = 420.0, 3_000_000
"""What the demo's training takes at most: with start, samples and pictures it stays below ten minutes on two cores."""
CHECK_SAMPLES = 5000


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
        positive(name, value)
    writable_folder(out)
    load_torch()
    from openmm_cgflow.analysis import duration, report
    from openmm_cgflow.inputs import load_system
    from openmm_cgflow.storage import locked

    ctx.with_resource(locked(out / "model.cgflow"))
    pdb = Path(__file__).parents[1] / "data" / "alanine_dipeptide.pdb"
    # ff96 and OBC1: the same energies as openmmtools' AlanineDipeptideImplicit, which published results are for
    flow = cgf.CGFlow(*load_system(pdb, forcefield=["amber96.xml"], implicit_solvent="OBC1"), seed=seed, device=device)
    if seconds is None and evaluations is None:
        seconds, evaluations = DEMO_SECONDS, DEMO_EVALUATIONS
    flow.train(time=seconds, evaluations=evaluations)
    flow.save(out / "model.cgflow")
    samples = flow.sample(10_000, seed=seed)
    save(samples, out / "samples.dcd")
    page = report(flow, samples, out, command=ctx.obj)
    taken = [("whole command", duration(time.monotonic() - start)), ("report", str(page))]
    summarise(flow, samples, taken)


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
        positive(name, value)
    state = checkpoint or output.with_name(f"{output.name}.checkpoint")
    no_input((output, state, metrics), (*files, *(forcefield or [])))
    for path in (output, state, metrics):
        if path is not None:
            writable_folder(path.parent)
    load_torch()
    from openmm_cgflow.inputs import load_system
    from openmm_cgflow.storage import locked
    from openmm_cgflow.training.interrupt import Interruptible

    ctx.with_resource(locked(output))
    molecule = load_system(*files, forcefield=forcefield, implicit_solvent=implicit_solvent, constraints=constraints)
    torsions = slow_torsions(slow)
    flow = cgf.CGFlow(*molecule, temperature=temperature, slow=torsions, seed=seed, bonds=bonds, device=device)  # type: ignore[arg-type]
    try:
        with Interruptible() as interrupted:
            flow.train(time=seconds, evaluations=evaluations, checkpoint=state, resume=resume, metrics=metrics)
    except KeyboardInterrupt:
        where = (
            f"the state is in {state}: the same command goes on from there" if state.exists() else "nothing was saved"
        )
        fail(f"stopped; {where}", 130)
    flow.save(output)
    typer.echo(f"saved {output}")
    try:
        samples = flow.sample(_check_samples(flow.provenance, hurry=interrupted()), seed=seed)
    except KeyboardInterrupt:
        fail(f"stopped before the check; the model is in {output}", 130)
    summarise(flow, samples, [("model", str(output)), ("checkpoint", str(state))])


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
    positive("-n", n)
    if output.suffix not in FORMATS:
        raise InvalidInputError(f"{output}: samples are written as {', '.join(FORMATS)}; choose one of these suffixes")
    no_input([*{output, output.with_suffix(".npz"), output.with_suffix(".topology.pdb")}], (model,))
    writable_folder(output.parent)
    flow = cgf.CGFlow.load(model, device)
    samples = flow.sample(n, seed=seed)
    summarise(flow, samples, [("written", ", ".join(str(path) for path in save(samples, output)))])


@app.command()
def audit(
    ctx: typer.Context,
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
        positive(name, value)
    if save:
        from openmm_cgflow.storage import locked

        ctx.with_resource(locked(model))
    flow = cgf.CGFlow.load(model, device)
    coverage = flow.audit(evaluations, seconds)
    if save and coverage.conclusive:
        flow.save(model)
    show([("model", str(model)), *coverage.rows(), ("evaluations", f"{coverage.evaluations:,}")])


@app.command()
def report(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and report.html.")] = Path("report"),
    n: Number = 10_000,
    beside: Annotated[
        Path | None, typer.Option("--flow", help="Of a force field: the model to set beside it.", show_default=False)
    ] = None,
    seed: DrawSeed = None,
    device: Device = None,
) -> None:
    """Draw free energies, energies, weights and training curves of a model, or a force field's fit, on one page."""
    if positive("-n", n) < 2:
        raise InvalidInputError("-n is 1: a report needs at least 2 samples")
    if beside is not None and model.suffix != FORCE_FIELD:
        raise InvalidInputError(f"--flow goes with a force field, a {FORCE_FIELD} file; {model} is none")
    if beside is None:
        no_device(device, model, f"there is none beside the force field {model}")
    writable_folder(out)
    load_torch()
    from openmm_cgflow.analysis import report as write_report

    if model.suffix == FORCE_FIELD:
        from openmm_cgflow.force_field.report import report_force_field

        teacher = None if beside is None else cgf.CGFlow.load(beside, device)
        force_field = cgf.CGForceField.load(model)
        show([("report", str(report_force_field(force_field, out, teacher, ctx.obj)))])
        return
    flow = cgf.CGFlow.load(model, device)
    samples = flow.sample(n, seed=seed)
    page = write_report(flow, samples, out, command=ctx.obj)
    summarise(flow, samples, [("report", str(page))])


def slow_torsions(text: str | None) -> Literal["auto"] | list[str | Sequence[int]] | None:
    """Names, or four atom indices joined by dashes, separated by commas; or `auto`."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InvalidInputError("--slow is empty: name torsions, for instance --slow phi,psi")
    return [[int(k) for k in part.split("-")] if re.fullmatch(r"\d+(-\d+){3}", part) else part for part in parts]
