"""Which atom is what: the all-atom Topology of a protein, and the tables by which its parts are placed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import networkx
import numpy as np
import torch
from openmm import app
from torch import Tensor

from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import InvalidInputError, MismatchError, ModelFileError
from openmm_cgflow.proteins.chain.geometry import dihedrals
from openmm_cgflow.proteins.chain.residues import CHI, PUBLIC_NAMES, hydrogens_of_n
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.library import FragmentLibrary

__all__ = [
    "MOST_CHI",
    "ProteinLayout",
    "SideChain",
    "backbone_of_template",
    "disulfide_pairs",
    "greasy_hydrogens",
    "turned",
    "with_disulfides",
]

_log = logging.getLogger("openmm_cgflow")
MOST_CHI = 4
"""Torsions of the longest side chain."""

_ELEMENTS = {symbol: app.element.get_by_symbol(symbol) for symbol in "HCNOS"}


@dataclass(frozen=True)
class SideChain:
    """Atoms of one side chain (with HA), and how its torsions move them, in the frame of the residue.

    Attributes:
        names: of the atoms.
        local: `(atoms, 3)` nm, of the template.
        depth: `(atoms,)`, how many torsions move each atom, the first ones.
        points: `(MOST_CHI, 3)` nm, on the axes of the torsions.
        directions: `(MOST_CHI, 3)`, of the axes.
        reference: `(MOST_CHI,)` rad, the torsions of the template.
        n_chi: how many there are.
    """

    names: tuple[str, ...]
    local: Tensor
    depth: Tensor
    points: Tensor
    directions: Tensor
    reference: Tensor
    n_chi: int


class ProteinLayout:
    """The atoms of a protein and where each comes from.

    Arguments:
        sequence: the protein.
        library: of templates.
        disulfides: pairs of residues whose sulfurs are bonded.
        topology: an all-atom Topology whose order of atoms is kept; by default one is built.

    Raises:
        MismatchError: the Topology has other atoms than the sequence has, the first of which is named.
        InvalidInputError: it has no bonds.
        ModelFileError: the library has no template of a residue.
    """

    def __init__(
        self,
        sequence: ProteinSequence,
        library: FragmentLibrary,
        disulfides: Sequence[tuple[int, int]] = (),
        topology: app.Topology | None = None,
    ) -> None:
        self.sequence, self.disulfides = sequence, tuple(disulfides)
        for residue in sequence.residues:
            if residue.variant not in library.templates:
                raise ModelFileError(f"the library of fragments has no template of {residue.variant} ({residue.label})")
        self._side_chains = {name: _side_chain(name, library) for name in {r.variant for r in sequence.residues}}
        self.side_chains = [self._side_chains[residue.variant] for residue in sequence.residues]
        names = [self._names(k) for k in range(len(sequence))]
        self.topology = self._built(names) if topology is None else topology
        self.index = _index(names, self.topology, sequence)
        self.n_atoms = self.topology.getNumAtoms()
        self._of: dict[str, Tensor] = {}

    def _names(self, k: int) -> list[str]:
        """Names of the atoms of residue `k`, in the order of a PDB file."""
        residue = self.sequence.residues[k]
        hydrogens = hydrogens_of_n(residue.variant, self.sequence.is_first(k))
        names = ["N", *hydrogens, "CA", *self.side_chains[k].names, "C", "O"]
        return [*names, "OXT"] if self.sequence.is_last(k) else names

    def _built(self, names: list[list[str]]) -> app.Topology:
        topology = app.Topology()
        chain, made = None, {}
        for k, residue in enumerate(self.sequence.residues):
            if self.sequence.is_first(k):
                chain = topology.addChain(residue.chain_name)
            public = PUBLIC_NAMES.get(residue.variant, residue.variant)
            added = topology.addResidue(public, chain, residue.number, residue.insertion)
            for name in names[k]:
                made[k, name] = topology.addAtom(name, _ELEMENTS[name[0]], added)
        topology.createStandardBonds()
        bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
        for k, j in self.disulfides:
            pair = made[k, "SG"], made[j, "SG"]
            if frozenset(atom.index for atom in pair) not in bonded:
                topology.addBond(*pair)
        return topology

    def of(self, name: str) -> Tensor:
        """Index of the atom of this name in each residue, `(residues,)`; -1 where there is none."""
        if name not in self._of:
            self._of[name] = torch.tensor([atoms.get(name, -1) for atoms in self.index])
        return self._of[name]

    @cached_property
    def side_atoms(self) -> Tensor:
        """Indices of all atoms of side chains, residue by residue, `(side atoms,)`."""
        return torch.tensor([self.index[k][name] for k, side in enumerate(self.side_chains) for name in side.names])

    @cached_property
    def side_residue(self) -> Tensor:
        """The residue of each of `side_atoms`."""
        return torch.tensor([k for k, side in enumerate(self.side_chains) for _ in side.names])

    @cached_property
    def side_start(self) -> list[int]:
        """Where each residue begins in `side_atoms`, and the end."""
        return [0, *np.cumsum([len(side.names) for side in self.side_chains]).tolist()]

    def chi_of(self, variant: str) -> list[tuple[str, str, str, str]]:
        """Names of the atoms of the torsions of a variant's side chain."""
        return CHI.get(variant, [])

    def template_positions(self) -> Tensor:
        """All residues as their templates, each in its own frame, `(atoms, 3)` nm."""
        x = torch.zeros(self.n_atoms, 3, dtype=torch.float64)
        for k, side in enumerate(self.side_chains):
            for name, place in (*zip(side.names, side.local, strict=True), *backbone_of_template(side.names).items()):
                x[self.index[k][name]] = place
        return x

    @cached_property
    def is_proline(self) -> Tensor:
        """`(residues,)` bool."""
        return torch.tensor([residue.variant == "PRO" for residue in self.sequence.residues])


def backbone_of_template(names: Sequence[str]) -> dict[str, Tensor]:
    """N, CA and C in the frame of a residue with these atoms in its side chain, as usual angles have them."""
    on_n = "CD" in names and "HG" not in names and "HD2" in names and len(names) == 10  # proline: CA-N is the axis
    first, second = (0.0, 1.94) if on_n else (-0.97, 0.97)
    return {
        "N": 0.1449 * torch.tensor([np.cos(first), np.sin(first), 0.0], dtype=torch.float64),
        "CA": torch.zeros(3, dtype=torch.float64),
        "C": 0.1526 * torch.tensor([np.cos(second), np.sin(second), 0.0], dtype=torch.float64),
    }


def turned(side: SideChain, chi: Tensor) -> Tensor:
    """Atoms of a side chain with its torsions at `chi`, in the residue's frame.

    Arguments:
        side: the side chain.
        chi: `(..., torsions)` rad.

    Returns:
        `(..., atoms, 3)` nm.
    """
    x = side.local.to(chi).expand(*chi.shape[:-1], *side.local.shape)
    for k in reversed(range(side.n_chi)):
        angle = (chi[..., k] - side.reference[k])[..., None, None]
        point, axis = side.points[k].to(chi), side.directions[k].to(chi)
        rest = x - point
        around = torch.linalg.cross(axis.expand_as(rest), rest)
        along = (rest @ axis)[..., None] * axis
        rotated = point + along + torch.cos(angle) * (rest - along) + torch.sin(angle) * around
        x = torch.where((side.depth > k)[:, None], rotated, x)
    return x


def disulfide_pairs(pairs: Any) -> list[tuple[int, int]]:  # noqa: ANN401
    """Pairs of residues, counted from 0; numpy's integers too.

    Raises:
        InvalidInputError: they are something else.
    """
    try:
        return [(whole_number(a, "a residue", 0), whole_number(b, "a residue", 0)) for a, b in pairs]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"disulfides are {pairs!r}; give pairs of the numbers of cysteines, counted from 0, such as [(2, 9)], or "
            "[] for none"
        ) from error


def with_disulfides(
    sequence: ProteinSequence, pairs: Sequence[tuple[int, int]], thiolates: bool = False
) -> ProteinSequence:
    """The sequence with the residues of these pairs as CYX, and no others.

    Arguments:
        sequence: of the protein.
        pairs: of residues, counted from 0.
        thiolates: leave CYX that are in no pair, which have no hydrogen on the sulfur, instead of making CYS of them.

    Raises:
        InvalidInputError: a residue of a pair is no cysteine, or is in two pairs.
    """
    residues, seen = list(sequence.residues), set()
    for pair in pairs:
        for k in pair:
            if not 0 <= k < len(residues) or residues[k].variant not in ("CYS", "CYX") or k in seen:
                what = residues[k].label if 0 <= k < len(residues) else f"residue {k}"
                raise InvalidInputError(
                    f"the disulfide {tuple(pair)} needs {what} to be a cysteine that is in no other one; give pairs of "
                    "the numbers of cysteines, counted from 0"
                )
            seen.add(k)
            residues[k] = replace(residues[k], variant="CYX")
    for k, residue in enumerate(residues):
        if residue.variant == "CYX" and k not in seen and not thiolates:
            _log.warning("%s is in no disulfide, and is built as CYS; disulfides=[...] bonds it", residue.label)
            residues[k] = replace(residue, variant="CYS")
    return ProteinSequence(tuple(residues))


def greasy_hydrogens(layout: ProteinLayout) -> list[int]:
    """Indices of hydrogens on carbons."""
    found = []
    for a, b in layout.topology.bonds():
        for hydrogen, other in ((a, b), (b, a)):
            if hydrogen.element.symbol == "H" and other.element.symbol == "C":
                found.append(hydrogen.index)
    return sorted(found)


def _index(names: list[list[str]], topology: app.Topology, sequence: ProteinSequence) -> list[dict[str, int]]:
    if topology.getNumBonds() < topology.getNumAtoms() - len(sequence.lengths):
        raise InvalidInputError(
            f"the Topology has {topology.getNumBonds()} bonds for {topology.getNumAtoms()} atoms; add them "
            "(topology.createStandardBonds()), or give the sequence, for which a Topology is built"
        )
    found = [{atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()]
    if len(found) != len(names):
        raise MismatchError(f"the Topology has {len(found)} residues, the sequence {len(names)}; give one of both")
    for k, (wanted, atoms) in enumerate(zip(names, found, strict=True)):
        if sequence.is_first(k) and "H1" in atoms and "H" in wanted:  # AMBER's name of it
            atoms["H"] = atoms.pop("H1")
        odd = sorted(set(wanted) ^ set(atoms))
        if odd:
            missing = odd[0] in wanted
            raise MismatchError(
                f"{sequence.residues[k].label} {'lacks' if missing else 'has'} the atom {odd[0]}"
                f"{'' if missing else ', which its template does not have'}: give a Topology with all hydrogens and "
                "PDB names, or one of the alpha carbons alone, for which atoms are built"
            )
    return found


def _side_chain(variant: str, library: FragmentLibrary) -> SideChain:
    names, local = tuple(library.atoms[variant]), library.templates[variant].double()
    place = {name: local[k] for k, name in enumerate(names)}
    place |= backbone_of_template(names)
    graph = _bonds_within(names, place)
    chis = CHI.get(variant, [])
    depth = torch.zeros(len(names), dtype=torch.long)
    points, directions = (torch.zeros(MOST_CHI, 3, dtype=torch.float64) for _ in range(2))
    directions[:, 0] = 1
    reference = torch.zeros(MOST_CHI, dtype=torch.float64)
    for k, (a, b, c, d) in enumerate(chis):
        cut = graph.copy()
        cut.remove_edge(b, c)
        moved = networkx.node_connected_component(cut, c) - {c}
        depth += torch.tensor([name in moved for name in names])
        points[k] = place[c]
        directions[k] = torch.nn.functional.normalize(place[c] - place[b], dim=0)
        reference[k] = dihedrals(place[a], place[b], place[c], place[d])
    return SideChain(names, local, depth, points, directions, reference, len(chis))


def _bonds_within(names: Sequence[str], place: dict[str, Any]) -> networkx.Graph:
    """Bonds of a template by its distances: covalent ones are below 0.125 nm with a hydrogen, 0.195 nm without."""
    graph = networkx.Graph()
    every = ["N", "CA", *names]
    graph.add_nodes_from(every)
    for i, a in enumerate(every):
        for b in every[:i]:
            hydrogens = (a[0] == "H") + (b[0] == "H")
            limit = (0.195, 0.145, 0.0)[hydrogens]
            if float((place[a] - place[b]).norm()) < limit:
                graph.add_edge(a, b)
    return graph
