"""What can be wrong with a protein's structure, in time that is linear in its size."""

import networkx
import numpy as np
from openmm import app
from scipy.spatial import cKDTree

from openmm_cgflow.structure_checks import StructureChecks
from openmm_cgflow.units import read_only

__all__ = ["check_protein", "close_pairs"]

_RADII = {"H": 0.12, "C": 0.17, "N": 0.155, "O": 0.152, "S": 0.18}  # Bondi, nm
_SHARE = 0.5


class _Lists:
    """Lists of what is looked at, made of a Topology."""

    def __init__(self, topology: app.Topology, lengths: np.ndarray | None) -> None:
        residues = [{atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()]
        names = [residue.name for residue in topology.residues()]
        chains = [residue.chain.index for residue in topology.residues()]
        self.elements = np.array([atom.element.symbol for atom in topology.atoms()])
        self.bonds = np.array([sorted((a.index, b.index)) for a, b in topology.bonds()], dtype=int)
        self.lengths = lengths
        centres = [[a["CA"], a["N"], a["C"], a["CB"]] for a in residues if "CB" in a]
        centres += [[a["CB"], a["CA"], a["OG1"], a["CG2"]] for a, n in zip(residues, names, strict=True) if n == "THR"]
        centres += [[a["CB"], a["CA"], a["CG1"], a["CG2"]] for a, n in zip(residues, names, strict=True) if n == "ILE"]
        self.centres = np.array(centres, dtype=int).reshape(-1, 4)
        # signs of the volume of the last three around the first, in L-amino acids and natural Thr, Ile
        self.signs = np.array(
            [1.0] * sum("CB" in a for a in residues) + [1.0] * names.count("THR") + [1.0] * names.count("ILE")
        )
        self.peptides = np.array(
            [
                [residues[k]["CA"], residues[k]["C"], residues[k + 1]["N"], residues[k + 1]["CA"]]
                for k in range(len(residues) - 1)
                if chains[k] == chains[k + 1]
            ],
            dtype=int,
        ).reshape(-1, 4)
        graph = networkx.Graph(self.bonds.tolist())
        self.near = {i: set(networkx.single_source_shortest_path_length(graph, i, cutoff=3)) for i in graph}
        self.rings = [r for atoms in residues for r in networkx.minimum_cycle_basis(graph.subgraph(atoms.values()))]
        self.heavy = np.flatnonzero(self.elements != "H")
        self.radius = np.array([_RADII.get(e, 0.17) for e in self.elements])


def check_protein(
    topology: app.Topology, positions: np.ndarray, cis: np.ndarray, lengths: np.ndarray
) -> StructureChecks:
    """Check structures of a protein.

    Arguments:
        topology: of all atoms, with bonds.
        positions: `(n, atoms, 3)` nm.
        cis: `(n, peptide bonds)` bool, which shall be cis.
        lengths: `(bonds,)` nm, of the Topology's bonds.
    """
    lists = _Lists(topology, lengths)
    rows = [_checked(lists, x.astype(np.float64), wanted) for x, wanted in zip(positions, cis, strict=True)]
    columns = [read_only(np.array(column)) for column in zip(*rows, strict=True)]
    return StructureChecks(*columns)


def _checked(lists: _Lists, x: np.ndarray, cis: np.ndarray) -> tuple[int, int, int, int, float]:
    a, b, c = (x[lists.centres[:, k]] - x[lists.centres[:, 0]] for k in (1, 2, 3))
    mirrored = int((np.sign(np.einsum("pk,pk->p", a, np.cross(b, c))) != lists.signs).sum())
    p = [x[lists.peptides[:, k]] for k in range(4)]
    cosine = np.einsum("pk,pk->p", np.cross(p[1] - p[0], p[2] - p[1]), np.cross(p[2] - p[1], p[3] - p[2]))
    wrong = int(((cosine > 0) != cis).sum())
    pairs = cKDTree(x).query_pairs(0.18, output_type="ndarray")
    distance = np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    close = distance < _SHARE * (lists.radius[pairs[:, 0]] + lists.radius[pairs[:, 1]])
    clashes = sum(int(j) not in lists.near[int(i)] for i, j in pairs[close])
    now = np.linalg.norm(x[lists.bonds[:, 0]] - x[lists.bonds[:, 1]], axis=1)
    worst = float(np.abs(now / lists.lengths - 1).max(initial=0))
    return mirrored, wrong, clashes, _pierced(lists, x), worst


def _pierced(lists: _Lists, x: np.ndarray) -> int:
    """Bonds through rings."""
    middle = 0.5 * (x[lists.bonds[:, 0]] + x[lists.bonds[:, 1]])
    tree, count = cKDTree(middle), 0
    for ring in lists.rings:
        corners = x[ring]
        centre = corners.mean(0)
        for k in tree.query_ball_point(centre, 0.3):
            if not set(lists.bonds[k].tolist()) & set(ring):
                count += _through(corners, centre, x[lists.bonds[k, 0]], x[lists.bonds[k, 1]])
    return count


def _through(corners: np.ndarray, centre: np.ndarray, start: np.ndarray, end: np.ndarray) -> bool:
    """Whether a bond goes through a triangle between the ring's centre and one of its edges (Moeller-Trumbore)."""
    u, v, along = corners - centre, np.roll(corners, -1, axis=0) - centre, end - start
    normal = np.cross(u, v)
    below = normal @ along
    with np.errstate(divide="ignore", invalid="ignore"):
        t = normal @ (centre - start) / below
        turned = np.cross(start - centre, along)
        s, r = -(v @ turned) / below, (u @ turned) / below
    return bool(((t > 0) & (t < 1) & (s >= 0) & (r >= 0) & (s + r <= 1)).any())


def close_pairs(topology: app.Topology, positions: np.ndarray, below: float = 0.22) -> np.ndarray:
    """Pairs of heavy atoms more than three bonds apart that are nearer than this, `(n,)`.

    Arguments:
        topology: with bonds.
        positions: `(n, atoms, 3)` nm.
        below: nm.
    """
    lists = _Lists(topology, None)
    found = []
    for x in positions:
        pairs = cKDTree(x[lists.heavy]).query_pairs(below, output_type="ndarray")
        found.append(sum(int(lists.heavy[j]) not in lists.near[int(lists.heavy[i])] for i, j in pairs))
    return np.array(found)
