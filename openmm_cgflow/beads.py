"""The beads of a molecule as a molecule of their own: topology, masses, constraints, and frames of them read."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mdtraj
import networkx
import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.atom_matching import order_by_names, same_elements, symbol_of
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.chemistry.system_bonds import BondLength, atomic_numbers, bond_lengths, constraints_of
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.copies import copied_topology
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.structures import StructureReader, given_structures
from openmm_cgflow.text_files import check_encoding
from openmm_cgflow.trajectory_files import ascii_path, names_atoms, why_unreadable
from openmm_cgflow.units import PositionsLike, in_nm

__all__ = ["HEAVIEST", "BeadParticles", "Beads"]

HEAVIEST = 1e6
"""Dalton, of a bead."""

_NO_ATOM = re.compile(r"BB\d*|BAS|S[CI]D?\d*|COM|CMS?|CEN|BEAD\d*", re.IGNORECASE)
"""Names of beads that stand for several atoms, as Martini, Rosetta and `BeadModel` have them."""

_ATOMS = (
    "The beads of a flow are atoms: for centres of mass, or beads of Martini, give positions of atoms instead "
    "(beads= of CGFlow chooses them), or fit a force field of such beads by CGForceField.fromFrames. For a protein, "
    "ProteinBackmapper (openmm-cgflow backmap-protein) takes these beads."
)


class BeadParticles:
    """Beads as particles: all that a System of them has beside its force.

    Arguments:
        topology: of the beads; a copy is kept.
        positions: a structure of them, `(beads, 3)`, Quantity or nm.
        masses: dalton.
        constraints: distances (nm) between beads, by the numbers of the two.

    Attributes:
        positions: nm.

    Raises:
        MismatchError: these are not of one number of beads.
        InvalidInputError: for a mass that is not positive.

    Example:
        >>> topology = app.Topology()
        >>> bead = topology.addAtom("CA", app.element.carbon, topology.addResidue("ALA", topology.addChain()))
        >>> BeadParticles(topology, [[0.0, 0.0, 0.0]], [71.1]).masses
        (71.1,)
    """

    def __init__(
        self,
        topology: app.Topology,
        positions: PositionsLike,
        masses: Sequence[float],
        constraints: Mapping[tuple[int, int], float] = MappingProxyType({}),
    ) -> None:
        self.topology, self.positions, self.masses = copied_topology(topology), in_nm(positions), tuple(masses)
        self.constraints = {bond_key(i, j): distance for (i, j), distance in constraints.items()}
        n = self.topology.getNumAtoms()
        if (len(self.masses), *self.positions.shape) != (n, n, 3):
            raise MismatchError(
                f"the topology has {n} beads, there are {len(self.masses)} masses, and the positions have shape "
                f"{self.positions.shape}: give those of one molecule's beads."
            )
        if not all(0 < mass < HEAVIEST for mass in self.masses):
            raise InvalidInputError(f"masses of beads are {self.masses}; give positive ones, in dalton")


class Beads:
    """What the beads are, from the molecule's own Topology and System.

    Arguments:
        topology: of all atoms.
        system: their masses and constraints.
        x: `(atoms, 3)` nm, a structure.
        coordinates: which atoms are beads, and which hang on them.
    """

    def __init__(
        self, topology: app.Topology, system: openmm.System, x: np.ndarray, coordinates: InternalCoordinates
    ) -> None:
        self._topology, self._system, self._x, self._coordinates = topology, system, x, coordinates
        self.atoms = list(coordinates.bead_atoms)
        """Indices of the beads among the atoms, in their order."""

    @property
    def positions(self) -> unit.Quantity:
        """A structure of the beads, `(beads, 3)`."""
        return self._x[self.atoms] * unit.nanometer

    @cached_property
    def masses(self) -> tuple[float, ...]:
        """The mass of each bead, dalton: that of its atom and of all that hang on it and on no other bead."""
        masses = dict.fromkeys(self.atoms, 0.0)
        for atom, bead in enumerate(self._coordinates.bead_of_atom):
            masses[bead] += self._system.getParticleMass(atom).value_in_unit(unit.dalton)
        return tuple(masses[bead] for bead in self.atoms)

    @cached_property
    def constraints(self) -> Mapping[tuple[int, int], float]:
        """Distances (nm) that are constrained between beads, by the numbers of the two."""
        place = {atom: bead for bead, atom in enumerate(self.atoms)}
        found = constraints_of(self._system).items()
        return MappingProxyType(
            {bond_key(place[i], place[j]): distance for (i, j), distance in found if i in place and j in place}
        )

    @property
    def particles(self) -> BeadParticles:
        """The beads without the molecule."""
        return BeadParticles(self.topology, self.positions, self.masses, self.constraints)

    @property
    def topology(self) -> app.Topology:
        """The beads in their order, with elements and names of their atoms, with the bonds and pseudo-bonds between."""
        whole = self._topology
        atoms = list(whole.atoms())
        topology = app.Topology()
        chain, residue, last = topology.addChain(), None, None
        made = {}
        for index in self.atoms:
            atom = atoms[index]
            if atom.residue is not last:
                last = atom.residue
                residue = topology.addResidue(last.name, chain, last.id, last.insertionCode)
            made[index] = topology.addAtom(atom.name, atom.element, residue)
        bonds = {frozenset((bond[0].index, bond[1].index)) for bond in whole.bonds()}
        bonds |= {frozenset(pair) for pair in self._coordinates.bead_bonds}
        for i, j in sorted(sorted(bond) for bond in bonds if bond <= made.keys()):
            topology.addBond(made[i], made[j])
        return topology

    def check(self, atoms: Sequence[Any]) -> None:
        """Refuse beads in another number or order; elements count where there are any, names if they are the same.

        Arguments:
            atoms: atoms of an OpenMM or mdtraj Topology, one for each bead.

        Raises:
            MismatchError: naming the first difference and the order that is wanted.
        """
        all_atoms = list(self._topology.atoms())
        ours = [all_atoms[index] for index in self.atoms]
        wanted = ", ".join(f"{atom.residue.name}{atom.residue.id}:{atom.name}" for atom in ours)
        if len(atoms) != len(ours):
            raise MismatchError(f"there are {len(atoms)} beads, but the flow has {len(ours)}: {wanted}.")
        named = sorted(a.name for a in ours) == sorted(b.name for b in atoms)
        for k, (a, b) in enumerate(zip(ours, atoms, strict=True)):
            if _NO_ATOM.fullmatch(b.name) and a.name != b.name:
                raise MismatchError(f"bead {k} is {b.name}, no atom, where that of the flow is {a.name}. {_ATOMS}")
            if not same_elements([a], [b]) or (named and a.name != b.name):
                raise MismatchError(
                    f"bead {k} is {b.name} ({symbol_of(b)}), that of the flow {a.name} ({symbol_of(a)}): "
                    f"give the beads in the order {wanted}."
                )

    def read(self, cg: PositionsLike, what: str) -> np.ndarray:
        """Positions of the beads `(frames, beads, 3)` in nm of a trajectory, a file or an array, checked.

        Arguments:
            cg: holds frames of the beads alone; atoms are put in order by their names, where it has any.
            what: who asks, for messages.

        Raises:
            MismatchError: for other beads.
            InvalidInputError: for NaN, broken bonds, or a file that cannot be read; frames are named.
        """
        n = len(self.atoms)
        if isinstance(cg, str | Path):
            cg = self._load(Path(cg), what)
        given = given_structures(cg)
        x = given.x[None] if given.x.ndim == 2 else given.x
        if given.atoms is not None:
            order = self._order(given.atoms)
            self.check([given.atoms[k] for k in order])
            x = x[:, order]
        if x.ndim != 3 or x.shape[1:] != (n, 3):
            names = ", ".join(atom.name for atom in self.topology.atoms())
            raise MismatchError(f"{what}: beads have shape {x.shape}; give (frames, {n}, 3), in nm: {names}.")
        if not len(x):
            raise InvalidInputError(f"{what}: there are no frames; give at least one.")
        wrong = np.flatnonzero(~np.isfinite(x).all((1, 2)))
        if len(wrong):
            raise InvalidInputError(f"{what}: frame {wrong[0]} holds NaN or infinite values; remove it.")
        if n < 4:  # refused elsewhere: there are no internal coordinates of so few
            return x
        x = self._reader.whole(x, given.box)
        try:
            self._reader.refuse_broken(x, given)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error} {_ATOMS}") from error
        return x

    def _order(self, atoms: Sequence[Any]) -> Sequence[int]:
        """Where each bead is among those given: by names if these tell, else as they are."""
        ours = list(self.topology.atoms())
        order = order_by_names(ours, atoms) if len(atoms) == len(ours) else None
        return range(len(atoms)) if order is None else order.tolist()

    @cached_property
    def _reader(self) -> StructureReader:
        """Reads beads: their bonds as those of the atoms; pseudo-bonds may be as long as the chain between them."""
        topology, system, x = self._topology, self._system, self._x
        graph = networkx.Graph((bond[0].index, bond[1].index) for bond in topology.bonds())
        of_atoms = bond_lengths(graph.edges, system, atomic_numbers(topology, system), x)
        place = {atom: k for k, atom in enumerate(self.atoms)}
        lengths = {}
        for i, j in self._coordinates.bead_bonds:
            expected = float(np.linalg.norm(x[i] - x[j]))
            if graph.has_edge(i, j):
                lengths[place[i], place[j]] = of_atoms[bond_key(i, j)]
            else:
                path = networkx.shortest_path(graph, i, j)
                chain = sum(of_atoms[bond_key(a, b)].expected for a, b in pairwise(path))
                lengths[place[i], place[j]] = BondLength(expected, max(1.5 * chain - expected, 0.0))
        return StructureReader(list(self.topology.atoms()), lengths, {}, "beads")

    def _load(self, path: Path, what: str) -> mdtraj.Trajectory:
        if not path.exists():
            raise InvalidInputError(f"{what}: there is no file {path}.")
        if path.is_file():
            check_encoding(path)
        ours = mdtraj.Topology.from_openmm(self.topology)
        try:
            with ascii_path(path) as plain:
                return mdtraj.load(str(plain)) if names_atoms(path) else mdtraj.load(str(plain), top=ours)
        except Exception as error:  # mdtraj's readers raise whatever they meet
            raise InvalidInputError(
                f"{what}: {path} cannot be read as a trajectory of {ours.n_atoms} beads: {why_unreadable(error)}"
            ) from error
