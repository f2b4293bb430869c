"""Atoms around alpha carbons of proteins, beside cgback: energies, validity, rotamers, time.

    python examples/benchmarks/protein_backmapping.py --cgback /path/to/bin/cgback villin.pdb 1ap4.pdb
    python examples/benchmarks/protein_backmapping.py ca.pdb --trajectory ca.xtc --frames 32
    python examples/benchmarks/protein_backmapping.py 1ubq.pdb --frames 2 --beads ca martini3 com

Each file has all atoms (a reference to compare with) or alpha carbons alone. `--noise` moves every alpha carbon by a
Gaussian of so many nm first. Energies are those of amber14 with OBC2 in kJ/mol a residue, before and after the same 50
steps of L-BFGS with the alpha carbons held. The score is our own force field, which cgback, learned from structures of
the PDB, has never seen: hence the columns beside it. cgback (`pip install cgback` in an environment of its own) places
all frames of a protein as chains of one file, far from one another, so that its start is not counted in each.

With `--beads` the structures are around beads of these kinds that are made of the reference, whose hydrogens are placed
and minimised first; beside their energy stands that of the reference after the same steps with the same beads held.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import mdtraj
import numpy as np
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.proteins.beads.kinds import ATOMS, BeadMapping
from openmm_cgflow.proteins.checks import check_protein, close_pairs
from openmm_cgflow.proteins.placing.layout import ProteinLayout
from openmm_cgflow.proteins.relaxing.bead_minimiser import BeadMinimiser
from openmm_cgflow.proteins.relaxing.force_field import Minimiser, amber14, expected_lengths
from openmm_cgflow.proteins.result import cis_of

SPACING = 1.5  # nm that is left between copies in cgback's input
STEPS = 50
PROTEIN = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "CYX", "GLN", "GLU", "GLY", "HIS", "HID", "HIE"),
    *("HIP", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]


def reference(path: Path) -> tuple[app.Topology, np.ndarray]:
    """Topology and positions `(atoms, 3)` of the protein in a file."""
    pdb = app.PDBFile(str(path))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([residue for residue in modeller.topology.residues() if residue.name not in PROTEIN])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def theirs(program: Path, size: str, names: list[str], traces: np.ndarray, topology: app.Topology) -> tuple:
    """Structures `(n, atoms, 3)` by cgback in the order of `topology`, NaN where it has no such atom, and seconds."""
    reach = np.ptp(traces, axis=1).max() + SPACING
    side = int(np.ceil(len(traces) ** (1 / 3)))
    grid = [(k % side, k // side % side, k // side**2) for k in range(len(traces))]
    shifts = reach * (np.array(grid, dtype=float) - side / 2) - traces.mean(1)
    rows = []
    for k, trace in enumerate(traces + shifts[:, None]):
        for i, (name, x) in enumerate(zip(names, 10 * trace, strict=True), start=1):
            where = "".join(f"{value:8.3f}" for value in x)
            rows.append(
                f"ATOM  {len(rows) % 100000:5d}  CA  {name} {chr(65 + k % 26)}{i:4d}    {where}  1.00  0.00           C"
            )
        rows.append("TER")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "ca.pdb", Path(folder) / "out.pdb"
        given.write_text("\n".join([*rows, "END", ""]))
        start = time.monotonic()
        subprocess.run([program, given, "-o", made, "-m", size], check=True, capture_output=True)
        seconds = time.monotonic() - start
        lines = [line for line in made.read_text().splitlines() if line.startswith("ATOM")]
    wanted = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms()}
    x = np.full((len(traces), topology.getNumAtoms(), 3), np.nan)
    frame, before = 0, 0
    for line in lines:
        residue = int(line[22:26]) - 1
        frame += residue < before
        before = residue
        index = wanted.get((residue, line[12:16].strip()))
        if index is not None:
            x[frame, index] = [float(line[a:b]) / 10 for a, b in ((30, 38), (38, 46), (46, 54))]
    return x - shifts[:, None], seconds


def completed(x: np.ndarray, topology: app.Topology) -> np.ndarray:
    """The same with atoms that are missing (of termini, of variants of histidine) beside their bonded ones."""
    lengths = [0.125 if atom.element.symbol == "O" else 0.101 for atom in topology.atoms()]  # nm
    heavy = {}
    for a, b in topology.bonds():
        heavy.setdefault(a.index, b.index)
        heavy.setdefault(b.index, a.index)
    rng = np.random.default_rng(0)
    for frame in x:
        for k in np.flatnonzero(np.isnan(frame[:, 0])):
            best, base = None, frame[heavy[k]]
            others = frame[~np.isnan(frame[:, 0])]
            others = others[np.linalg.norm(others - base, axis=1) > 1e-6]
            for direction in rng.normal(size=(200, 3)):
                place = base + lengths[k] * direction / np.linalg.norm(direction)
                room = np.linalg.norm(others - place, axis=1).min()
                if best is None or room > best[0]:
                    best = room, place
            frame[k] = best[1]
    return x


def described(
    name: str,
    who: str,
    x: np.ndarray,
    topology: app.Topology,
    known: tuple | None,
    seconds: float,
    minimiser: Minimiser,
) -> dict:
    """One row of the table."""
    n = topology.getNumResidues()
    lengths = expected_lengths(topology, amber14(topology))
    raw = check_protein(topology, x, cis_of(topology, x), lengths)
    e0 = minimiser.energies(x) / n
    relaxed, e50 = minimiser.minimised(x.astype(np.float32), STEPS)
    after = check_protein(topology, relaxed, cis_of(topology, relaxed), lengths)
    pairs = np.array([(a.index, b.index) for a, b in topology.bonds()])
    heavy = np.array([a.element.symbol != "H" and b.element.symbol != "H" for a, b in topology.bonds()])
    off = np.abs(np.linalg.norm(x[:, pairs[:, 0]] - x[:, pairs[:, 1]], axis=2) / lengths - 1)[:, heavy] > 0.1
    row = {
        "protein": name,
        "who": who,
        "residues": n,
        "n": len(x),
        "seconds": seconds / len(x),
        "e0": float(np.median(e0)),
        "e50": float(np.mean(e50) / n),
        "e50_sd": float(np.std(e50) / n),
        "close": float(close_pairs(topology, x).mean() * 100 / n),
        "bonds": float(off.sum(1).mean()),
        "mirrored": int(raw.wrong_chirality.sum()),
        "cis": int(raw.wrong_peptides.sum()),
        "pierced": int(raw.pierced_rings.sum()),
        "wrong_after": int((after.wrong_chirality + after.wrong_peptides + after.pierced_rings).sum()),
    }
    if known is not None:
        row |= compared(known, relaxed, topology)
    print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def with_hydrogens(topology: app.Topology, x: np.ndarray) -> tuple[app.Topology, np.ndarray]:
    """The same with hydrogens, which are minimised around the other atoms."""
    modeller = app.Modeller(topology, x * unit.nanometer)
    modeller.addHydrogens(app.ForceField("amber14-all.xml"))
    top, x = modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))
    heavy = [atom.index for atom in top.atoms() if atom.element.symbol != "H"]
    return top, Minimiser(amber14(top), heavy).minimised(x[None].astype(np.float32), 200)[0][0].astype(float)


def around_beads(name: str, known: tuple[app.Topology, np.ndarray], kind: str, n: int) -> dict:
    """A row for structures around beads of a kind that are made of the reference."""
    top, x = known
    mapper = cgf.ProteinBackmapper(top, beads=kind)
    beads = mapper.beadsOf(x)
    start = time.process_time()
    made = mapper.backmap(beads, n=n, relax=STEPS, seed=0)
    seconds = (time.process_time() - start) / n
    mapping = BeadMapping.of(ProteinLayout(mapper.given, mapper.library, (), top), kind)
    if kind in ATOMS:
        _, energy = Minimiser(mapper.system, mapping.atom.tolist()).minimised(x[None].astype(np.float32), STEPS)
    else:
        _, energy = BeadMinimiser(mapper.system, mapping).minimised_on(x[None].astype(np.float32), STEPS, beads)
    carbons, y = [atom.index for atom in top.atoms() if atom.name == "CA"], made.positions[0]
    checks = made.checks
    row = {
        "protein": name,
        "beads": kind,
        "n": n,
        "cpu_seconds": seconds,
        "ca_rmsd": float(np.sqrt(((y[:, carbons] - x[carbons]) ** 2).sum(2).mean())),
        **compared(known, y, made.topology),
        "e50": float(made.energies.mean() / top.getNumResidues()),
        "e50_of_reference": float(energy[0] / top.getNumResidues()),
        "bead_error": float(made.bead_error.max()),
        "wrong_after": int((checks.wrong_chirality + checks.wrong_peptides + checks.pierced_rings).sum()),
    }
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def compared(known: tuple[app.Topology, np.ndarray], x: np.ndarray, topology: app.Topology) -> dict[str, float]:
    """Distances from the reference after minimising, nm, and the share of chi1 within 40 degrees."""
    theirs, reference_x = known
    places = {(atom.residue.index, atom.name): atom.index for atom in theirs.atoms()}
    common = [
        (places[a.residue.index, a.name], a.index, a.name)
        for a in topology.atoms()
        if a.element.symbol != "H" and a.name != "OXT" and (a.residue.index, a.name) in places
    ]
    i, j = np.array([row[0] for row in common]), np.array([row[1] for row in common])
    names = np.array([row[2] for row in common])
    squared = ((reference_x[i] - x[:, j]) ** 2).sum(2)
    side = ~np.isin(names, ["N", "CA", "C", "O"])
    chi = []
    for top, positions in ((theirs, reference_x[None]), (topology, x)):
        md = mdtraj.Topology.from_openmm(top)
        indices, angles = mdtraj.compute_chi1(mdtraj.Trajectory(positions, md))
        chi.append({md.atom(row[1]).residue.index: angle for row, angle in zip(indices, angles.T, strict=True)})
    both = sorted(set(chi[0]) & set(chi[1]))
    turned = [np.angle(np.exp(1j * (chi[1][k] - chi[0][k]))) for k in both]
    return {
        "o_rmsd": float(np.sqrt(squared[:, names == "O"].mean())),
        "side_rmsd": float(np.sqrt(squared[:, side].mean())),
        "chi1": float(np.mean(np.abs(turned) < np.radians(40))) if both else float("nan"),
    }


def main() -> None:
    """Place atoms with both, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", type=Path, nargs="+")
    parser.add_argument("--trajectory", type=Path, help="of alpha carbons, for one structure")
    parser.add_argument("--frames", type=int, default=8, help="of the trajectory; or structures around one trace")
    parser.add_argument("--noise", type=float, default=0.0, help="nm")
    parser.add_argument("--cgback", type=Path, help="the command")
    parser.add_argument("--sizes", nargs="*", default=["M"])
    parser.add_argument("--beads", nargs="+", metavar="KIND", help="n-ca-c, martini3, ...: beads of the reference")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for path in options.structures:
        top, x = reference(path)
        if options.beads:
            known = with_hydrogens(top, x)
            rows += [around_beads(path.stem, known, kind, options.frames) for kind in options.beads]
            if options.json:
                options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
            continue
        carbons = [atom.index for atom in top.atoms() if atom.name == "CA"]
        names = [residue.name for residue in top.residues()]
        traces = np.repeat(x[carbons][None], options.frames, 0)
        if options.trajectory:
            frames = mdtraj.load(str(options.trajectory), top=str(path)).xyz.astype(float)
            traces = frames[np.linspace(0, len(frames) - 1, min(options.frames, len(frames))).astype(int)]
        traces = traces + options.noise * np.random.default_rng(0).normal(size=traces.shape)
        known = (top, x) if len(carbons) < top.getNumAtoms() and not options.trajectory else None
        mapper = cgf.ProteinBackmapper(names)
        first = mapper.backmap(traces[:1], relax=0, seed=1)
        start = time.monotonic()
        ours = mapper.backmap(traces, relax=0, seed=0)
        seconds = time.monotonic() - start
        held = [atom.index for atom in first.topology.atoms() if atom.name == "CA"]
        minimiser = Minimiser(mapper.system, held)
        positions = ours.positions[:, 0].astype(float)
        rows.append(described(path.stem, "ours", positions, ours.topology, known, seconds, minimiser))
        for size in options.sizes if options.cgback else []:
            public = [residue.name for residue in first.topology.residues()]
            made, seconds = theirs(options.cgback, size, public, traces, first.topology)
            made = completed(made, first.topology)
            rows.append(described(path.stem, f"cgback {size}", made, first.topology, known, seconds, minimiser))
        if options.json:
            options.json.write_text(json.dumps({"noise": options.noise, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
