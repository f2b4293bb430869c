"""The command for proteins: atoms around alpha carbons or other beads."""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from openmm_cgflow.cli.app import app, load_torch
from openmm_cgflow.cli.options import DrawSeed, positive, trajectory_file
from openmm_cgflow.cli.output import show
from openmm_cgflow.errors import InvalidInputError

__all__ = ["backmap_protein"]


@app.command("backmap-protein")
def backmap_protein(
    structure: Annotated[
        Path,
        typer.Argument(metavar="CA.PDB", help="Beads, or more atoms; names the residues.", show_default=False),
    ],
    trajectory: Annotated[
        Path | None, typer.Argument(metavar="[TRAJ]", help="Frames of them: .xtc, .dcd, ...", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File for the structures: .pdb, .xtc, .dcd, .trr or .nc.")
    ] = Path("atoms.pdb"),
    n: Annotated[int, typer.Option("-n", help="Structures for each frame.")] = 1,
    relax: Annotated[int, typer.Option(help="Iterations of minimisation with the beads held.")] = 50,
    stride: Annotated[int, typer.Option(help="Take every so many frames.")] = 1,
    frames: Annotated[
        str | None, typer.Option(metavar="A:B", help="Frames A to B - 1, from 0 on.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    library: Annotated[
        Path | None, typer.Option(help="Library of fragments; the shipped one if left out.", show_default=False)
    ] = None,
    disulfides: Annotated[
        bool, typer.Option("--disulfides/--no-disulfides", help="Bond cysteines that are near in the first frame.")
    ] = True,
    beads: Annotated[
        str,
        typer.Option(help="ca, n-ca-c, backbone, martini2, martini3, com (centres of mass), or auto: by the names."),
    ] = "auto",
    seed: DrawSeed = None,
) -> None:
    """Put all atoms around the beads of a protein, such as alpha carbons; energies and checks go into an .npz file.

    What is written opens in OpenMM with its force fields. A run that was ended goes on with the same command.
    """
    for name, value in (("-n", n), ("--stride", stride), ("--workers", workers)):
        positive(name, value)
    if relax < 0:
        raise InvalidInputError(f"--relax is {relax}: give 0 or a number of iterations")
    load_torch()
    from openmm_cgflow.analysis import duration
    from openmm_cgflow.proteins import backmap_protein_file
    from openmm_cgflow.proteins.beads.kinds import checked_kind
    from openmm_cgflow.trajectory_files import WRITTEN, frame_range

    trajectory_file(output, "structures", WRITTEN)
    start = time.monotonic()
    chosen = frame_range(frames)
    kind = checked_kind(beads)
    result = backmap_protein_file(
        structure, output, trajectory, n, relax, seed, stride, chosen, workers, library, disulfides, True, kind
    )
    taken = time.monotonic() - start
    energy = np.median(result.energies) / result.residues
    rows = [
        ("structures", f"{result.structures:,} of {result.residues:,} residues, in {duration(taken)}"),
        ("energy a residue, median", f"{energy:.1f} kJ/mol{f', after {relax} steps' if relax else ''}"),
        ("beads off, at most", f"{result.bead_error.max():.4f} nm"),
        *result.checks.summary(),
    ]
    show([*rows, ("written", ", ".join(map(str, result.written)))])
