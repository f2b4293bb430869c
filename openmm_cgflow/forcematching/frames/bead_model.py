"""The beads of a coarse-grained model, without a System: names, masses, bonds and internal coordinates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import mdtraj
import networkx
import numpy as np
import torch
from openmm import app, unit

from openmm_cgflow.atom_matching import atom_label, symbol_of
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.coordinates import InternalCoordinates, chain_coordinates
from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching.frames.checked import check_bonds_of_frames, check_finite
from openmm_cgflow.forcematching.frames.mapping import (
    BACKBONE,
    PRESETS,
    BeadMapping,
    as_mdtraj,
    distances_between,
    groups_of,
    shortest_tree,
)
from openmm_cgflow.forcematching.frames.residues import residue_name, residue_parts
from openmm_cgflow.forcematching.frames.trajectory import FrameReader
from openmm_cgflow.units import PositionsLike, scalar_in

__all__ = ["BeadModel"]

_CONSTANT = 1e-5  # nm or rad: a coordinate that moves less does not move


@dataclass(frozen=True)
class BeadModel:
    """The beads of one molecule: which atoms make each, names, masses and bonds. No System is needed.

    Made by `fromTopology`, `fromSequence` or `fromBeads`.

    Attributes:
        topology: OpenMM Topology of the beads, with the bonds by which they are placed.
        masses: of the beads, dalton: of a bead that is an atom, with the atoms that hang on it and on no other bead.
        bonds: pairs of beads, which join all of them without a ring.
        groups: the atoms of each bead; None where there are no atoms but the beads.
        shares: `(beads, atoms)`, row by row the shares by which positions of atoms make that of a bead; None as above.
        owners: for each atom the bead on which it hangs, -1 for atoms of other molecules; None as above.
        atoms: mdtraj Topology of all atoms; None as above.
    """

    topology: app.Topology
    masses: tuple[float, ...]
    bonds: tuple[tuple[int, int], ...]
    groups: tuple[tuple[int, ...], ...] | None = None
    shares: np.ndarray | None = None
    owners: np.ndarray | None = None
    atoms: mdtraj.Topology | None = None

    # ---- construction

    @classmethod
    def fromTopology(cls, topology: Any, mapping: BeadMapping = "ca") -> "BeadModel":  # noqa: ANN401
        """Beads made of the atoms of a Topology.

        Arguments:
            topology: OpenMM or mdtraj Topology, with bonds; solvent and other molecules may be there.
            mapping: a preset: `"ca"` (one bead a residue), `"backbone"` (N, CA and C of each residue) or `"dipeptide"`
                (ACE C; N, CA, C; NME N); or a selection in mdtraj's language, such as `"name CA CB"`; or indices of
                atoms; or groups of atoms, each of whose centre of mass is a bead. Where it chooses every atom and
                there are no bonds, as of alpha carbons alone, this is `fromBeads`.

        Raises:
            InvalidInputError: no atom or fewer than 4 beads are chosen, an atom is named twice or does not exist, the
                Topology has no bonds, or the beads are of several molecules.

        Example:
            >>> from openmmtools.testsystems import AlanineDipeptideVacuum
            >>> model = BeadModel.fromTopology(AlanineDipeptideVacuum().topology, "dipeptide")
            >>> model.names
            ['C', 'N', 'CA', 'C', 'N']
            >>> [round(mass, 2) for mass in model.masses]
            [43.04, 15.01, 28.05, 28.01, 30.05]
        """
        atoms = as_mdtraj(topology)
        groups = groups_of(atoms, mapping)
        if not atoms.n_bonds and len(groups) == atoms.n_atoms:  # the atoms are gone
            return cls.fromBeads(topology)
        if not atoms.n_bonds:
            raise InvalidInputError(
                "the Topology has no bonds, so that nothing says which beads are neighbours; add them with "
                "topology.createStandardBonds(), or give a Topology of the beads alone to BeadModel.fromBeads"
            )
        graph = networkx.Graph((bond[0].index, bond[1].index) for bond in atoms.bonds)
        graph.add_nodes_from(range(atoms.n_atoms))
        masses = np.array([atom.element.mass if atom.element is not None else 0.0 for atom in atoms.atoms])
        distance, owners = distances_between(graph, groups, atoms.n_atoms)
        bonds = shortest_tree(distance, [atom_label(atoms.atom(group[0])) for group in groups])
        shares = np.zeros((len(groups), atoms.n_atoms))
        for bead, group in enumerate(groups):
            weights = masses[list(group)]
            shares[bead, list(group)] = weights / weights.sum() if weights.sum() > 0 else 1 / len(group)
        total = [float(masses[owners == bead].sum()) for bead in range(len(groups))]
        if min(total) <= 0:
            nameless = atom_label(atoms.atom(groups[int(np.argmin(total))][0]))
            raise InvalidInputError(
                f"the mass of the bead {nameless} is not known, since its atoms have no elements; give a Topology with "
                "elements, or BeadModel.fromBeads with masses"
            )
        own = [atoms.atom(group[0]) for group in groups]
        made = [("BEAD" if len(group) > 1 else atom.name) for group, atom in zip(groups, own, strict=True)]
        elements = [None if len(group) > 1 else atom.element for group, atom in zip(groups, own, strict=True)]
        residues = [(atom.residue.chain.index, atom.residue.name, str(atom.residue.resSeq)) for atom in own]
        return cls(
            _bead_topology(made, elements, residues, bonds), tuple(total), tuple(bonds), groups, shares, owners, atoms
        )

    @classmethod
    def fromBeads(cls, topology: Any, masses: Sequence[float] | None = None) -> "BeadModel":  # noqa: ANN401
        """Beads whose atoms are gone: a Topology of the beads alone, as coarse-grained trajectories have it.

        Arguments:
            topology: OpenMM or mdtraj Topology of the beads. Without bonds that join all of them, each is joined to the
                one after it.
            masses: of the beads, dalton; by default those of amino acids for N, CA and C (all of the residue for CA
                alone), and else of the elements.

        Raises:
            InvalidInputError: fewer than 4 beads, several chains, or a mass that cannot be told.

        Example:
            >>> top = mdtraj.Topology()
            >>> chain = top.add_chain()
            >>> for name in ("GLY", "ALA", "SER", "GLY"):
            ...     _ = top.add_atom("CA", mdtraj.element.carbon, top.add_residue(name, chain))
            >>> BeadModel.fromBeads(top).bonds
            ((0, 1), (1, 2), (2, 3))
        """
        beads = as_mdtraj(topology)
        if beads.n_atoms < 4:
            raise InvalidInputError(f"there are {beads.n_atoms} beads; internal coordinates need at least 4")
        chains = {atom.residue.chain.index for atom in beads.atoms}
        graph = networkx.Graph((bond[0].index, bond[1].index) for bond in beads.bonds)
        graph.add_nodes_from(range(beads.n_atoms))
        if not networkx.is_connected(graph):
            if len(chains) > 1:
                raise InvalidInputError(
                    f"the beads are in {len(chains)} chains that no bond joins; internal coordinates are of one "
                    "molecule: give the beads of one chain, or add the bond with topology.add_bond"
                )
            graph.add_edges_from(pairwise(range(beads.n_atoms)))
        distance, _ = distances_between(graph, tuple((k,) for k in range(beads.n_atoms)), beads.n_atoms)
        own = list(beads.atoms)
        bonds = shortest_tree(distance, [atom_label(atom) for atom in own])
        residues = [(0, atom.residue.name, str(atom.residue.resSeq)) for atom in own]
        topology = _bead_topology([atom.name for atom in own], [atom.element for atom in own], residues, bonds)
        found = _residue_masses(own) if masses is None else [scalar_in(mass, unit.dalton, "masses") for mass in masses]
        if len(found) != beads.n_atoms or not all(np.isfinite(found)) or min(found) <= 0:
            raise InvalidInputError(
                f"masses are {found}; give one above 0, in dalton, for each of the {beads.n_atoms} beads"
            )
        return cls(topology, tuple(found), tuple(bonds))

    @classmethod
    def fromSequence(cls, sequence: str | Sequence[str], mapping: str = "ca") -> "BeadModel":
        """Beads of a peptide of which only the sequence is known.

        Arguments:
            sequence: one-letter codes, such as `"GYDPETGTWG"`, or residue names, such as `["ACE", "ALA", "NME"]`.
            mapping: a preset, see `fromTopology`.

        Raises:
            InvalidInputError: an unknown residue or preset, or fewer than 4 beads.

        Example:
            >>> BeadModel.fromSequence("GYDPETGTWG").topology.getNumAtoms()
            10
            >>> BeadModel.fromSequence(["ACE", "ALA", "NME"], "dipeptide").names
            ['C', 'N', 'CA', 'C', 'N']
        """
        if mapping not in PRESETS:
            raise InvalidInputError(
                f"mapping is {mapping!r}; of a sequence there are no atoms to choose from: give one of "
                + ", ".join(map(repr, PRESETS))
            )
        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for number, code in enumerate(sequence, 1):
            residue = topology.add_residue(residue_name(code), chain, resSeq=number)
            for name in ("C",) if residue.name == "ACE" else ("N",) if residue.name == "NME" else BACKBONE:
                topology.add_atom(name, mdtraj.element.Element.getBySymbol(name[0]), residue)
        chosen = groups_of(topology, mapping)
        return cls.fromBeads(topology.subset([group[0] for group in chosen]))

    # ---- description

    @property
    def n_beads(self) -> int:
        """How many beads."""
        return len(self.masses)

    @cached_property
    def names(self) -> list[str]:
        """The name of each bead: that of its atom, or `BEAD` for the centre of mass of several."""
        return [atom.name for atom in self.topology.atoms()]

    @cached_property
    def labels(self) -> list[str]:
        """How beads are called in messages, such as `ALA2:CA`."""
        return [atom_label(atom) for atom in self.topology.atoms()]

    # ---- frames

    def read(
        self,
        trajectory: PositionsLike,
        top: Any = None,  # noqa: ANN401
        stride: int = 1,
        chunk: int = 1000,
    ) -> np.ndarray:
        """Frames of the beads `(frames, beads, 3)`, nm, of a trajectory of all atoms or of the beads alone.

        Molecules that a periodic box splits are made whole where the box is known. Files are read piece by piece, so
        that they may be larger than memory.

        Arguments:
            trajectory: an mdtraj Trajectory, a file that mdtraj reads (or several of the same atoms), an array of
                `(frames, atoms or beads, 3)`, nm, or a Quantity of one.
            top: what mdtraj needs to read the file, if it is neither this model's atoms nor its beads.
            stride: take every so many frames, of all files one after another.
            chunk: frames of a file that are in memory at a time; fewer of many atoms in XTC, DCD and other formats
                without names.

        Raises:
            MismatchError: a trajectory of other atoms or beads.
            InvalidInputError: no frames, NaN, broken bonds (also where the box is not known), or a file that cannot be
                read; frames are named.

        Example:
            >>> from openmm import unit
            >>> model = BeadModel.fromSequence("GGGG")
            >>> model.read([[[0.0, 0, 0], [3.8, 0, 0], [3.8, 3.8, 0], [3.8, 3.8, 3.8]]] * unit.angstrom).shape
            (1, 4, 3)
        """
        stride, chunk = whole_number(stride, "read: stride"), whole_number(chunk, "read: chunk")
        if isinstance(trajectory, str | Path):
            trajectory = [trajectory]
        files = isinstance(trajectory, list | tuple) and trajectory and isinstance(trajectory[0], str | Path)
        reader = FrameReader(self.topology, self.labels, self.bonds, self.shares, self.owners, self.atoms)
        pieces: Iterable[Any] = reader.pieces(trajectory, top, stride, chunk) if files else [trajectory]
        parts = [reader.beads_of(piece) for piece in pieces]
        x = np.concatenate(parts) if parts else np.empty((0, self.n_beads, 3))
        if not files:
            x = x[::stride]
        if not len(x):
            raise InvalidInputError("the trajectory has no frames; give at least one")
        self.check(x)
        return x

    def check(self, x: np.ndarray) -> None:
        """Refuse frames `(frames, beads, 3)` in nm that cannot be of these beads.

        Raises:
            MismatchError: another number of beads.
            InvalidInputError: NaN, beads on one another, broken bonds, or another unit; frames are named.
        """
        if x.ndim != 3 or x.shape[1:] != (self.n_beads, 3):
            raise MismatchError(
                f"frames of beads have shape {x.shape}; give (frames, {self.n_beads}, 3), in nm: "
                + ", ".join(self.labels)
            )
        check_finite(x, "frame")
        check_bonds_of_frames(x, self.bonds, self.labels, self._expected)

    @cached_property
    def _expected(self) -> dict[tuple[int, int], float]:
        """Lengths of bonds that are known beforehand, nm: of the backbone, and between CA of residues in a row."""
        known = {frozenset(("N", "CA")): 0.146, frozenset(("CA", "C")): 0.153, frozenset(("C", "N")): 0.133}
        pairs = ((bond, frozenset(self.names[k] for k in bond)) for bond in self.bonds)
        found = {bond: known[pair] for bond, pair in pairs if pair in known}
        ids = [atom.residue.id for atom in self.topology.atoms()]
        numbers = [int(number) if number.lstrip("-").isdigit() else None for number in ids]
        for i, j in self.bonds:
            first, second = numbers[i], numbers[j]
            if self.names[i] == self.names[j] == "CA" and first is not None and second is not None:
                found |= {(i, j): 0.38} if abs(first - second) == 1 else {}
        return found

    def coordinates(
        self,
        frames: np.ndarray,
        weights: np.ndarray | None = None,
        fixed: Sequence[tuple[int, int]] = (),
    ) -> InternalCoordinates:
        """Internal coordinates of the beads; what stands in for a force field's rest values is taken from frames.

        All torsions are slow and circular; bonds and angles are stiff, with the mean and the standard deviation of the
        frames as reference and scale.

        Arguments:
            frames: `(frames, beads, 3)`, nm, from `read`.
            weights: `(frames,)` of biased frames; all the same by default.
            fixed: bonds of one length (constraints), pairs of beads; they are no coordinates.

        Raises:
            InvalidInputError: a coordinate that does not change over the frames; it is named.
        """
        self.check(frames)
        w = np.full(len(frames), 1 / len(frames)) if weights is None else np.asarray(weights, float) / np.sum(weights)
        mean = {bond_key(i, j): float(w @ np.linalg.norm(frames[:, i] - frames[:, j], axis=1)) for i, j in fixed}
        unknown = [pair for pair in mean if pair not in {bond_key(i, j) for i, j in self.bonds}]
        if unknown:
            raise InvalidInputError(
                f"fixed has {unknown[0]}, which is no bond between beads; there are {sorted(self.bonds)}"
            )
        residues = [label.split(":")[0] for label in self.labels]
        made = chain_coordinates(self.names, residues, self.bonds, frames[0], mean)
        q = made.to_internal(torch.as_tensor(frames, dtype=torch.float64))[0].numpy()
        for k, entry in enumerate(made.layout.coordinates):
            value = q[:, k]
            if entry.torsion:
                centre = float(np.angle(w @ np.exp(1j * value)))
                spread = float(np.sqrt(w @ np.angle(np.exp(1j * (value - centre))) ** 2))
            else:
                centre = float(w @ value)
                spread = float(np.sqrt(w @ (value - centre) ** 2))
            if spread < _CONSTANT:
                raise InvalidInputError(_constant(entry.name, centre, len(frames), self._bond_of(entry.name, made)))
            entry.reference, entry.scale = centre, spread if not entry.torsion else entry.scale
        return InternalCoordinates(made.layout)

    def _bond_of(self, name: str, coordinates: InternalCoordinates) -> tuple[int, int] | None:
        """The pair of beads of a bond's coordinate by its name."""
        slot = coordinates.names.index(name)
        order, refs = coordinates.layout.order, [[0], [0], *coordinates.layout.refs]
        pairs = zip(coordinates.layout.bond_slots, order[1:], refs, strict=True)
        return next((bond_key(atom, order[ref[0]]) for s, atom, ref in pairs if s == slot), None)


def _bead_topology(
    names: Sequence[str],
    elements: Sequence[Any],
    residues: Sequence[tuple[int, str, str]],
    bonds: Sequence[tuple[int, int]],
) -> app.Topology:
    """An OpenMM Topology of the beads."""
    topology = app.Topology()
    chain, last, atoms, residue = topology.addChain(), None, [], None
    for name, element, key in zip(names, elements, residues, strict=True):
        if key != last:
            last, residue = key, topology.addResidue(key[1], chain, key[2])
        symbol = None if element is None or not element.atomic_number else element.symbol
        atoms.append(topology.addAtom(name, None if symbol is None else app.Element.getBySymbol(symbol), residue))
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    return topology


def _residue_masses(atoms: Sequence[Any]) -> list[float]:
    """Masses of beads without atoms: of amino acids, shared among N, CA and C; else of the elements."""
    inside: dict[int, list[str]] = {}
    for atom in atoms:
        inside.setdefault(atom.residue.index, []).append(atom.name)
    found = []
    for atom in atoms:
        mass = residue_parts(atom.residue.name, tuple(inside[atom.residue.index])).get(atom.name)
        if mass is None and symbol_of(atom) != "without an element":
            mass = atom.element.mass
        if mass is None:
            raise InvalidInputError(f"the mass of the bead {atom_label(atom)} is not known; give masses, in dalton")
        found.append(float(mass))
    return found


def _constant(name: str, value: float, frames: int, bond: tuple[int, int] | None) -> str:
    """What to say of a coordinate that does not change."""
    fix = (
        f"if the bond is constrained, give fixed=[{bond}], which takes it out of the coordinates"
        if bond is not None
        else "give frames in which it moves, or leave one of its beads out"
    )
    return f"{name} is {value:.6g} in all of the {frames} frames: a density of it cannot be fitted; {fix}"
