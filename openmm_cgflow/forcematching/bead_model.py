"""Which atoms make the beads of a coarse-grained model, without a System: mapping, masses, bonds, and frames read."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import mdtraj
import networkx
import numpy as np
import torch
from openmm import app

from openmm_cgflow.atom_matching import atom_label, order_by_names, same_elements, symbol_of
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.coordinates import InternalCoordinates, chain_coordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching.frames import check_bonds_of_frames, check_finite
from openmm_cgflow.forcematching.residues import residue_name, residue_parts
from openmm_cgflow.structures import given_structures, made_whole
from openmm_cgflow.units import PositionsLike

__all__ = ["BeadMapping", "BeadModel"]

_log = logging.getLogger("openmm_cgflow")

BeadMapping = str | Sequence[int] | Sequence[Sequence[int]]
"""A preset, a selection of mdtraj, indices of atoms, or groups of atoms whose centres of mass are the beads."""

PRESETS = ("ca", "backbone", "dipeptide")
_BACKBONE = ("N", "CA", "C")
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
        atoms = _as_mdtraj(topology)
        groups = _groups(atoms, mapping)
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
        distance, owners = _distances(graph, groups, atoms.n_atoms)
        bonds = _tree(distance, [atom_label(atoms.atom(group[0])) for group in groups])
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
        beads = _as_mdtraj(topology)
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
        distance, _ = _distances(graph, tuple((k,) for k in range(beads.n_atoms)), beads.n_atoms)
        own = list(beads.atoms)
        bonds = _tree(distance, [atom_label(atom) for atom in own])
        residues = [(0, atom.residue.name, str(atom.residue.resSeq)) for atom in own]
        topology = _bead_topology([atom.name for atom in own], [atom.element for atom in own], residues, bonds)
        found = _residue_masses(own) if masses is None else [float(mass) for mass in masses]
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
            for name in ("C",) if residue.name == "ACE" else ("N",) if residue.name == "NME" else _BACKBONE:
                topology.add_atom(name, mdtraj.element.Element.getBySymbol(name[0]), residue)
        chosen = _groups(topology, mapping)
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
            stride: take every so many frames.
            chunk: frames of a file that are in memory at a time.

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
        if isinstance(trajectory, str | Path):
            trajectory = [trajectory]
        files = isinstance(trajectory, list | tuple) and trajectory and isinstance(trajectory[0], str | Path)
        pieces: Iterable[Any] = self._pieces(trajectory, top, stride, chunk) if files else [trajectory]
        parts = [self._read_piece(piece) for piece in pieces]
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

    # ---- pieces of trajectories

    def _pieces(
        self,
        files: Sequence[str | Path],
        top: Any,  # noqa: ANN401
        stride: int,
        chunk: int,
    ) -> Iterator[mdtraj.Trajectory]:
        for file in files:
            path = Path(file)
            if not path.exists():
                raise InvalidInputError(f"there is no file {path}; give the path of a trajectory")
            yield from self._iterload(path, top, stride, chunk)

    def _iterload(self, path: Path, top: Any, stride: int, chunk: int) -> Iterator[mdtraj.Trajectory]:  # noqa: ANN401
        """Pieces of one file, with the Topology that fits: the one given, that of all atoms, or that of the beads."""
        beads = mdtraj.Topology.from_openmm(self.topology)
        if path.suffix.lower() in (".pdb", ".h5", ".gro", ".cif", ".pdbx", ".mmcif"):
            choices: list[Any] = [None]
        elif top is not None:
            choices = [str(top) if isinstance(top, str | Path) else _as_mdtraj(top)]
        else:
            choices = [beads] if self.atoms is None else [self.atoms, beads]
        problem: Exception | None = None
        for choice in choices:
            begun = False
            try:
                options = {} if choice is None else {"top": choice}
                for piece in mdtraj.iterload(str(path), chunk=chunk, stride=stride, **options):
                    begun = True
                    yield piece
            except Exception as error:  # mdtraj's readers raise whatever they meet
                problem = error
                if begun:
                    break
            else:
                return
        what = f"{self.n_beads} beads" + (f" or {self.atoms.n_atoms} atoms" if self.atoms is not None else "")
        raise InvalidInputError(
            f"{path} cannot be read as a trajectory of {what}: {problem}; give its own Topology as top"
        ) from problem

    def _read_piece(self, piece: Any) -> np.ndarray:  # noqa: ANN401
        """Frames of the beads in one piece, whole."""
        given = given_structures(piece)
        x = given.x[None] if given.x.ndim == 2 else given.x
        if x.ndim != 3 or x.shape[2] != 3:
            raise MismatchError(f"positions have shape {given.x.shape}; give (frames, atoms, 3), in nm")
        count = x.shape[1]
        if self.atoms is not None and count == self.atoms.n_atoms:
            if given.atoms is not None:
                x = self._ordered(x, list(self.atoms.atoms), given.atoms)
            return self._of_atoms(x, given.box)
        if count != self.n_beads:
            wanted = f"{self.n_beads} beads" + ("" if self.atoms is None else f" or {self.atoms.n_atoms} atoms")
            raise MismatchError(
                f"the trajectory has {count} atoms, but the model is of {wanted} ({', '.join(self.labels)}): the beads "
                "cannot be found in it; give a trajectory of the Topology that the model was made of, or of the beads "
                "alone, for instance trajectory.atom_slice(trajectory.topology.select('name CA'))"
            )
        if given.atoms is not None:
            x = self._ordered(x, list(self.topology.atoms()), given.atoms)
        return _whole(x, np.array(self.bonds), given.box)

    def _ordered(self, x: np.ndarray, ours: Sequence[Any], theirs: Sequence[Any]) -> np.ndarray:
        """The positions in our order of atoms, by names where they tell."""
        found = order_by_names(ours, theirs)
        if found is not None:
            return x[:, found]
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not same_elements([a], [b]):
                raise MismatchError(
                    f"atom {k} of the trajectory is {atom_label(b)} ({symbol_of(b)}), that of the model "
                    f"{atom_label(a)} ({symbol_of(a)}): give a trajectory of the same atoms in the same order"
                )
        return x

    def _of_atoms(self, x: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Beads of positions of all atoms, of molecules that are made whole."""
        assert self.shares is not None
        assert self.owners is not None
        assert self.atoms is not None
        if box is not None:
            mine = np.flatnonzero(self.owners >= 0)
            place = {int(atom): k for k, atom in enumerate(mine)}
            bonds = [(b[0].index, b[1].index) for b in self.atoms.bonds if b[0].index in place]
            x = x.copy()
            x[:, mine] = _whole(x[:, mine], np.array([(place[i], place[j]) for i, j in bonds]), box)
        return np.einsum("ba,fax->fbx", self.shares, x)


def _whole(x: np.ndarray, bonds: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Frames put together across the box, where a bond is nearer to an image of its end."""
    if box is None:
        return x
    box = np.broadcast_to(box, (len(x), 3, 3))
    inverse = np.linalg.inv(box)
    along = np.einsum("fbk,fkl->fbl", x[:, bonds[:, 1]] - x[:, bonds[:, 0]], inverse)
    split = (np.round(along) != 0).any((1, 2))
    if not split.any():
        return x
    x = x.copy()
    x[split] = made_whole(x[split], bonds, box[split])
    _log.info("%d of %d frames were split by their periodic box; they are made whole", split.sum(), len(x))
    return x


def _as_mdtraj(topology: Any) -> mdtraj.Topology:  # noqa: ANN401
    if isinstance(topology, mdtraj.Topology):
        return topology
    if isinstance(topology, app.Topology):
        return mdtraj.Topology.from_openmm(topology)
    if hasattr(topology, "topology"):  # a Trajectory, or a PDBFile
        return _as_mdtraj(topology.topology)
    raise InvalidInputError(f"topology is a {type(topology).__name__}; give an OpenMM or an mdtraj Topology")


def _groups(topology: mdtraj.Topology, mapping: BeadMapping) -> tuple[tuple[int, ...], ...]:
    """The atoms of each bead."""
    if isinstance(mapping, str):
        groups: list[tuple[int, ...]] = [(i,) for i in _named(topology, mapping)]
    else:
        groups = [
            tuple(int(i) for i in item) if isinstance(item, Sequence | np.ndarray) else (int(item),) for item in mapping
        ]
    flat = [i for group in groups for i in group]
    wrong = [i for i in flat if not 0 <= i < topology.n_atoms]
    if wrong or any(not group for group in groups):
        what = f"has atom {wrong[0]}" if wrong else "has a group without atoms"
        raise InvalidInputError(f"mapping {what}; give indices of atoms from 0 to {topology.n_atoms - 1}")
    if len(set(flat)) < len(flat):
        twice = next(i for i in flat if flat.count(i) > 1)
        raise InvalidInputError(
            f"mapping has {atom_label(topology.atom(twice))} (atom {twice}) twice; an atom belongs to one bead"
        )
    if len(groups) < 4:
        raise InvalidInputError(
            f"mapping {mapping!r} gives {len(groups)} beads; internal coordinates need at least 4: choose more atoms"
        )
    return tuple(groups)


def _named(topology: mdtraj.Topology, mapping: str) -> list[int]:
    """Atoms of a preset or a selection."""
    if mapping == "dipeptide":
        names = [("ACE", "C"), *((None, name) for name in _BACKBONE), ("NME", "N")]
        found = []
        for residue, name in names:
            for atom in topology.atoms:
                own = atom.residue.name
                if atom.name == name and (own == residue if residue else own not in ("ACE", "NME", "HOH")):
                    found.append(atom.index)
        if len(found) != len(names):
            raise InvalidInputError(
                "mapping 'dipeptide' is of one residue between ACE and NME (beads ACE C; N, CA, C; NME N), which the "
                f"Topology does not have: {', '.join(residue.name for residue in list(topology.residues)[:8])}; "
                "use 'backbone' or 'ca', or give indices of atoms"
            )
        return found
    if mapping in PRESETS:
        wanted = ("CA",) if mapping == "ca" else _BACKBONE
        peptide = {
            atom.residue.index
            for atom in topology.atoms
            if atom.name == "CA" and symbol_of(atom) != "Ca" and atom.residue.name.upper() != "CA"
        }
        found = [atom.index for atom in topology.atoms if atom.name in wanted and atom.residue.index in peptide]
        what = "residues with an atom CA"
    else:
        try:
            found = [int(i) for i in topology.select(mapping)]
        except Exception as error:  # mdtraj's parser raises whatever it meets
            raise InvalidInputError(
                f"mapping {mapping!r} is no preset ({', '.join(PRESETS)}) and no selection that mdtraj reads: {error}"
            ) from error
        what = "atoms that it selects"
    if not found:
        raise InvalidInputError(f"mapping {mapping!r}: the Topology has no {what}; choose other atoms")
    return found


def _distances(
    graph: networkx.Graph, groups: tuple[tuple[int, ...], ...], n_atoms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bonds between beads `(beads, beads)` (inf: not connected), and the nearest bead of each atom (-1: none)."""
    count = len(groups)
    distance = np.full((count, count), np.inf)
    nearest = np.full((count, n_atoms), np.inf)
    for bead, group in enumerate(groups):
        for atom, steps in networkx.multi_source_dijkstra_path_length(graph, set(group)).items():
            nearest[bead, atom] = steps
        for other in range(bead):
            distance[bead, other] = distance[other, bead] = nearest[bead, list(groups[other])].min()
    owners = np.where(np.isfinite(nearest.min(0)), nearest.argmin(0), -1)
    for bead, group in enumerate(groups):
        owners[list(group)] = bead
    return distance, owners


def _tree(distance: np.ndarray, labels: Sequence[str]) -> list[tuple[int, int]]:
    """The bonds between beads: the shortest tree that joins all of them, in the order of the beads where it is free."""
    count = len(distance)
    joined, bonds = [0], []
    while len(joined) < count:
        outside = [j for j in range(count) if j not in joined]
        i, j = min(((i, j) for i in joined for j in outside), key=lambda pair: (distance[pair], abs(pair[0] - pair[1])))
        if not np.isfinite(distance[i, j]):
            first, second = ", ".join(labels[k] for k in joined[:3]), ", ".join(labels[k] for k in outside[:3])
            raise InvalidInputError(
                f"the beads are of several molecules or chains: no bonds lead from {first}, ... to {second}, ...; "
                "internal coordinates are of one molecule: choose the beads of one chain, for instance with the "
                "selection 'chainid 0 and name CA'"
            )
        bonds.append(bond_key(i, j))
        joined.append(j)
    return sorted(bonds)


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
    mend = (
        f"if the bond is constrained, give fixed=[{bond}], which takes it out of the coordinates"
        if bond is not None
        else "give frames in which it moves, or leave one of its beads out"
    )
    return f"{name} is {value:.6g} in all of the {frames} frames: a density of it cannot be fitted; {mend}"
