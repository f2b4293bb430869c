"""Whether structures are the molecule that they should be: isomers, clashes, pierced rings, bond lengths."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import networkx
import numpy as np
from openmm import app

from openmm_cgflow.structures import distances
from openmm_cgflow.units import read_only

__all__ = ["StructureChecks", "check_structures"]

_BOND_TOLERANCE = 0.2  # of its length in the reference
_CLASH_SHARE = 0.5  # of the sum of the van der Waals radii, below which two atoms clash
_CHUNK = 5000
# van der Waals radii, nm (Bondi 1964, doi:10.1021/j100785a001); others: 0.17
_RADII = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.152, "F": 0.147, "P": 0.18, "S": 0.18, "Cl": 0.175, "Br": 0.185}


@dataclass(frozen=True)
class StructureChecks:
    """What is wrong with each of some structures; all arrays are `(n,)`.

    Attributes:
        wrong_chirality: stereocentres that are not those of the reference.
        wrong_peptides: peptide bonds that are *cis* where the reference is *trans*, or the other way round.
        clashes: pairs of atoms, more than three bonds apart, closer than half the sum of their van der Waals radii.
        pierced_rings: bonds through the inside of a ring.
        worst_bond: largest deviation of a bond's length from the reference, as a fraction of it.
    """

    wrong_chirality: np.ndarray
    wrong_peptides: np.ndarray
    clashes: np.ndarray
    pierced_rings: np.ndarray
    worst_bond: np.ndarray

    @cached_property
    def fine(self) -> np.ndarray:
        """Whether nothing is wrong: no such finding, and every bond within 20 % of its length."""
        found = self.wrong_chirality + self.wrong_peptides + self.clashes + self.pierced_rings
        return read_only((found == 0) & (self.worst_bond < _BOND_TOLERANCE))

    def summary(self) -> list[tuple[str, str]]:
        """Label and text of each check, for people."""
        n = len(self.fine)

        def share(wrong: np.ndarray) -> str:
            return f"{np.count_nonzero(wrong)} of {n} structures"

        return [
            ("wrong chirality", share(self.wrong_chirality)),
            ("other peptide isomer", share(self.wrong_peptides)),
            ("clashes", share(self.clashes)),
            ("pierced rings", share(self.pierced_rings)),
            ("bonds off by > 20 %", share(self.worst_bond >= _BOND_TOLERANCE)),
        ]


def check_structures(topology: app.Topology, reference: np.ndarray, positions: np.ndarray) -> StructureChecks:
    """Check structures against one that is right.

    Arguments:
        topology: with elements and bonds.
        reference: `(atoms, 3)` nm, a structure with the right isomers and ordinary bond lengths.
        positions: `(n, atoms, 3)` nm.
    """
    graph = networkx.Graph()
    for atom in topology.atoms():
        graph.add_node(atom.index, symbol=atom.element.symbol if atom.element is not None else "")
    graph.add_edges_from((bond[0].index, bond[1].index) for bond in topology.bonds())
    checker = _Checker(graph, reference)
    chunks = [checker.check(positions[i : i + _CHUNK]) for i in range(0, max(1, len(positions)), _CHUNK)]
    return StructureChecks(*(read_only(np.concatenate(column)) for column in zip(*chunks, strict=True)))


class _Checker:
    def __init__(self, graph: networkx.Graph, reference: np.ndarray) -> None:
        reference = np.asarray(reference, dtype=np.float64)[None]
        self.centres = _stereocentres(graph)
        self.handedness = np.sign(_volumes(reference, self.centres))[0]
        self.peptides = np.array(list(_peptide_bonds(graph)), dtype=int).reshape(-1, 4)
        self.trans = _cosines(reference, self.peptides)[0] < 0
        self.bonds = np.array(sorted(sorted(edge) for edge in graph.edges), dtype=int).reshape(-1, 2)
        self.lengths = distances(reference, self.bonds)[0]
        self.pairs = _far_pairs(graph)
        radii = np.array([_RADII.get(graph.nodes[i]["symbol"], 0.17) for i in sorted(graph)])
        self.closest = _CLASH_SHARE * radii[self.pairs].sum(1)
        rings = networkx.minimum_cycle_basis(graph)
        self.rings = [(np.array(ring), self._bonds_beside(ring)) for ring in rings]

    def _bonds_beside(self, ring: list[int]) -> np.ndarray:
        """Bonds that share no atom with the ring."""
        return self.bonds[~np.isin(self.bonds, ring).any(1)]

    def check(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """The five columns of `StructureChecks` for `x (n, atoms, 3)`."""
        wrong_chirality = (np.sign(_volumes(x, self.centres)) != self.handedness).sum(1)
        wrong_peptides = ((_cosines(x, self.peptides) < 0) != self.trans).sum(1)
        clashes = (distances(x, self.pairs) < self.closest).sum(1)
        pierced = np.zeros(len(x), dtype=int)
        for ring, bonds in self.rings:
            pierced += _piercings(x, ring, bonds)
        worst = np.abs(distances(x, self.bonds) / self.lengths - 1).max(1, initial=0)
        return wrong_chirality, wrong_peptides, clashes, pierced, worst


def _stereocentres(graph: networkx.Graph) -> np.ndarray:
    """Centres of four different groups, as rows `(centre, three of its neighbours)`.

    Groups are compared by the Weisfeiler-Lehman refinement of the elements, deep enough to see the whole molecule.
    """
    labels: dict[int, Any] = {i: graph.nodes[i]["symbol"] for i in graph}
    for _ in range(len(graph)):
        signatures = {i: (labels[i], tuple(sorted(labels[j] for j in graph[i]))) for i in graph}
        names = {signature: str(k) for k, signature in enumerate(sorted(set(signatures.values())))}
        refined = {i: names[signatures[i]] for i in graph}
        if len(set(refined.values())) == len(set(labels.values())):
            break
        labels = refined
    found = [
        (i, *sorted(graph[i])[:3])
        for i in sorted(graph)
        if len(graph[i]) == 4 and len({labels[j] for j in graph[i]}) == 4
    ]
    return np.array(found, dtype=int).reshape(-1, 4)


def _peptide_bonds(graph: networkx.Graph) -> Iterator[tuple[int, int, int, int]]:
    """Torsions X-C-N-Y of amides: C with a terminal O, N with two heavy neighbours, or with one and a hydrogen."""
    symbol = dict(graph.nodes(data="symbol"))

    def heavy(centre: int, *without: int) -> list[int]:
        return sorted(i for i in graph[centre] if symbol[i] != "H" and i not in without)

    for c in sorted(i for i in graph if symbol[i] == "C"):
        oxygens = [i for i in graph[c] if symbol[i] == "O" and len(graph[i]) == 1]
        if len(graph[c]) != 3 or len(oxygens) != 1:
            continue
        for n in sorted(i for i in graph[c] if symbol[i] == "N" and len(graph[i]) == 3):
            before, after = heavy(c, oxygens[0], n), heavy(n, c)
            hydrogens = [i for i in graph[n] if symbol[i] == "H"]
            if before and len(after) == 1 and len(hydrogens) == 1:
                yield before[0], c, n, after[0]


def _far_pairs(graph: networkx.Graph) -> np.ndarray:
    """Pairs of atoms more than three bonds apart."""
    near = {i: set(networkx.single_source_shortest_path_length(graph, i, cutoff=3)) for i in graph}
    return np.array([(i, j) for i, j in combinations(sorted(graph), 2) if j not in near[i]], dtype=int).reshape(-1, 2)


def _volumes(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Signed volumes `(n, centres)` of three neighbours around each centre."""
    a, b, c = (x[:, centres[:, k]] - x[:, centres[:, 0]] for k in (1, 2, 3))
    return np.einsum("npk,npk->np", a, np.cross(b, c))


def _cosines(x: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """Something with the sign of the cosine of each torsion, `(n, torsions)`."""
    a, b, c, d = (x[:, torsions[:, k]] for k in range(4))
    return np.einsum("npk,npk->np", np.cross(b - a, c - b), np.cross(c - b, d - c))


def _piercings(x: np.ndarray, ring: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """How many of the bonds go through the ring, `(n,)`: through a triangle between its centre and one of its edges."""
    corners = x[:, ring]
    middle = corners.mean(1, keepdims=True)
    start, end = x[:, bonds[:, 0], None], x[:, bonds[:, 1], None]  # (n, bonds, 1, 3)
    reach = np.linalg.norm(corners - middle, axis=2).max(1) + np.linalg.norm(end - start, axis=3).max((1, 2), initial=0)
    near = np.linalg.norm(start[:, :, 0] - middle, axis=2).min(1, initial=np.inf) < reach
    count = np.zeros(len(x), dtype=int)
    if not near.any():
        return count
    corners, middle, start, end = corners[near, None], middle[near, None], start[near], end[near]
    u, v = corners - middle, np.roll(corners, -1, axis=2) - middle
    along, offset = end - start, start - middle
    normal = np.cross(u, v)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.einsum("...k,...k->...", along, normal)
        t = -np.einsum("...k,...k->...", offset, normal) * scale
        turned = np.cross(offset, along)
        s = -np.einsum("...k,...k->...", turned, v) * scale
        r = np.einsum("...k,...k->...", turned, u) * scale
    through = (t > 0) & (t < 1) & (s >= 0) & (r >= 0) & (s + r <= 1)
    count[near] = through.any(2).sum(1)
    return count
