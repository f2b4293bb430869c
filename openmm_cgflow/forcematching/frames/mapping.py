"""Which atoms make each bead, by a preset, a selection or indices, and which bonds join the beads."""

from collections.abc import Iterable, Sequence
from typing import Any

import mdtraj
import networkx
import numpy as np
from openmm import app

from openmm_cgflow.atom_matching import atom_label, symbol_of
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.counts import indices
from openmm_cgflow.errors import InvalidInputError

__all__ = ["BACKBONE", "PRESETS", "BeadMapping", "as_mdtraj", "distances_between", "groups_of", "shortest_tree"]

BeadMapping = str | Sequence[int] | Sequence[Sequence[int]]
"""A preset, a selection of mdtraj, indices of atoms, or groups of atoms whose centres of mass are the beads."""

PRESETS = ("ca", "backbone", "dipeptide")
BACKBONE = ("N", "CA", "C")


def as_mdtraj(topology: Any) -> mdtraj.Topology:  # noqa: ANN401
    """A Topology of mdtraj, of one, of OpenMM's, or of what has one."""
    if isinstance(topology, mdtraj.Topology):
        return topology
    if isinstance(topology, app.Topology):
        return mdtraj.Topology.from_openmm(topology)
    if hasattr(topology, "topology"):  # a Trajectory, or a PDBFile
        return as_mdtraj(topology.topology)
    raise InvalidInputError(f"topology is a {type(topology).__name__}; give an OpenMM or an mdtraj Topology")


def groups_of(topology: mdtraj.Topology, mapping: BeadMapping) -> tuple[tuple[int, ...], ...]:
    """The atoms of each bead."""
    if isinstance(mapping, str):
        groups: list[tuple[int, ...]] = [(i,) for i in _named(topology, mapping)]
    elif isinstance(mapping, Iterable):
        groups = [
            tuple(indices(item if isinstance(item, list | tuple | np.ndarray | range) else [item], "mapping"))
            for item in mapping
        ]
    else:
        raise InvalidInputError(f"mapping is {mapping!r}; give indices of atoms, groups of them, or a name")
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
        names = [("ACE", "C"), *((None, name) for name in BACKBONE), ("NME", "N")]
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
        wanted = ("CA",) if mapping == "ca" else BACKBONE
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


def distances_between(
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


def shortest_tree(distance: np.ndarray, labels: Sequence[str]) -> list[tuple[int, int]]:
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
