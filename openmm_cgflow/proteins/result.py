"""What backmapping of a protein gives."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import mdtraj
import numpy as np
from openmm import app, unit

from openmm_cgflow.proteins.checks import check_protein
from openmm_cgflow.proteins.placing.planes import CIS_BELOW
from openmm_cgflow.structure_checks import StructureChecks
from openmm_cgflow.trajectory_files import save_arrays, save_trajectory, whole_file

__all__ = ["BackmappedProtein", "write_pdb"]


@dataclass(frozen=True)
class BackmappedProtein:
    """`n` all-atom structures around each of some traces.

    Attributes:
        positions: `(frames, n, atoms, 3)` nm, float32, alpha carbons where they are given.
        energies: `(frames, n)` kJ/mol, of the System; after relaxing, if it was asked for.
        log_evidence: `(frames, n)`, log of an unbiased estimate of the normaliser of the planes' coarse model, of the
            draw that each structure began from. It descends afterwards, and where atoms are in one place a part of it
            is drawn anew, so that structures are no weighted samples. None where the density is known, and around other
            beads than alpha carbons.
        log_density: `(frames, n)`, log of the density of planes, per rad of each, times the probability of the
            candidates of side chains (of these alone where N, CA and C were given). For `assemble="chain"` without
            relaxing; None otherwise.
        ess: `(frames, n, residues)`, effective share of the particles when the plane after each residue was placed; 1
            where there were none.
        relaxed: whether the structures were minimised.
        temperature: K.
        topology: OpenMM Topology of all atoms.
        bond_lengths: `(bonds,)` nm, of the Topology's bonds in the System.
        bead_error: `(frames, n)` nm, how far the worst bead is from where it was given: 0 for beads that are atoms;
            at most 0.001 nm after relaxing for means of atoms.
    """

    positions: np.ndarray
    energies: np.ndarray
    log_evidence: np.ndarray | None
    log_density: np.ndarray | None
    ess: np.ndarray
    relaxed: bool
    temperature: float
    topology: app.Topology
    bond_lengths: np.ndarray
    bead_error: np.ndarray

    @property
    def trajectory(self) -> mdtraj.Trajectory:
        """All structures: the n of the first frame, then those of the second, and so on; a copy."""
        x = self.positions.reshape(-1, *self.positions.shape[2:]).copy()
        return mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(self.topology))

    @cached_property
    def checks(self) -> StructureChecks:
        """Chirality, peptide isomers, clashes, pierced rings and bond lengths of all structures, frame by frame."""
        x = self.positions.reshape(-1, *self.positions.shape[2:])
        return check_protein(self.topology, x, cis_of(self.topology, x), self.bond_lengths)

    @property
    def best(self) -> np.ndarray:
        """`(frames, atoms, 3)` nm, the structure of the lowest energy in each frame; a copy at each call."""
        lowest = np.where(np.isfinite(self.energies), self.energies, np.inf).argmin(1)
        return self.positions[np.arange(len(self.positions)), lowest]

    def numbers(self) -> dict[str, np.ndarray]:
        """What files keep beside the structures, by name; the checks as `check_...`."""
        found = {"energies": self.energies, "ess": self.ess, "bead_error": self.bead_error}
        for name in ("log_evidence", "log_density"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return found | {f"check_{field.name}": getattr(self.checks, field.name) for field in fields(self.checks)}

    def save(self, path: str | Path) -> None:
        """Write the structures, and numbers as `.npz` beside them; a `.pdb` is OpenMM's, with CONECT of disulfides.

        Raises:
            InvalidInputError: where they cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".pdb":
            write_pdb(path, self.topology, self.positions.reshape(-1, *self.positions.shape[2:]))
        else:
            save_trajectory(self.trajectory, path)
        save_arrays(path.with_suffix(".npz"), self.numbers() | {"temperature": np.array(self.temperature)})


def cis_of(topology: app.Topology, x: np.ndarray) -> np.ndarray:
    """Which peptide bonds shall be cis, `(n, peptide bonds)`: before a proline, where the trace says so."""
    residues = list(topology.residues())
    ca = {atom.residue.index: atom.index for atom in topology.atoms() if atom.name == "CA"}
    found = []
    for a, b in pairwise(residues):
        if a.chain.index == b.chain.index:
            near = np.linalg.norm(x[:, ca[a.index]] - x[:, ca[b.index]], axis=1) < CIS_BELOW
            found.append(near if b.name == "PRO" else np.zeros(len(x), dtype=bool))
    return np.array(found, dtype=bool).reshape(-1, len(x)).T


def write_pdb(path: Path, topology: app.Topology, frames: Iterable[np.ndarray]) -> int:
    """A PDB file as OpenMM writes it, with CONECT of disulfides, whole or not at all. Returns the number of frames.

    Arguments:
        path: where to.
        topology: of all atoms.
        frames: `(atoms, 3)` nm each, a model of the file each.

    Raises:
        InvalidInputError: where it cannot be written.
    """
    count = 0
    with whole_file(path) as temporary, temporary.open("w") as file:
        app.PDBFile.writeHeader(topology, file)
        for x in frames:
            count += 1
            app.PDBFile.writeModel(topology, x.astype(float) * unit.nanometer, file, count, keepIds=True)
        app.PDBFile.writeFooter(topology, file)
    return count
