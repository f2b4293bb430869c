"""Internal coordinates of beads that come without a System: nothing is known of them but who is joined to whom."""

from collections.abc import Mapping, Sequence

import numpy as np

from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.coordinates.beads import BeadPlan
from openmm_cgflow.coordinates.internal import InternalCoordinates
from openmm_cgflow.coordinates.layout import build_layout
from openmm_cgflow.coordinates.zmatrix import build_zmatrix
from openmm_cgflow.errors import InvalidInputError

__all__ = ["chain_coordinates"]

_NAMES: dict[tuple[str, ...], tuple[str, int]] = {
    ("C", "N", "CA", "C"): ("phi", 2),
    ("N", "CA", "C", "N"): ("psi", 1),
    ("CA", "C", "N", "CA"): ("omega", 2),
}
"""What a torsion is called, and which of its atoms has the residue."""


def chain_coordinates(
    names: Sequence[str],
    residues: Sequence[str],
    bonds: Sequence[tuple[int, int]],
    x: np.ndarray,
    fixed: Mapping[tuple[int, int], float] | None = None,
) -> InternalCoordinates:
    """Internal coordinates of beads that are joined by bonds without a ring; every torsion is slow and circular.

    Without a System nothing says which torsion is stiff, so that none is taken to be; bonds and angles are stiff.

    Arguments:
        names: of the beads, for instance `CA`.
        residues: the residue of each as a label, for instance `ALA2`.
        bonds: pairs of beads by which all hang together.
        x: `(beads, 3)`, nm, one structure.
        fixed: bonds that have one length, nm, by pairs in ascending order: they are no coordinates.

    Raises:
        InvalidInputError: fewer than 4 beads, or bonds that do not join them, or close a ring.
    """
    n = len(names)
    if n < 4:
        raise InvalidInputError(f"there are {n} beads; internal coordinates need at least 4: choose more beads")
    near: dict[int, list[int]] = {i: [] for i in range(n)}
    for i, j in bonds:
        near[i].append(j)
        near[j].append(i)
    index = {label: k for k, label in enumerate(dict.fromkeys(residues))}
    owner = [index[label] for label in residues]
    molecule = Molecule([[] for _ in range(n)], [6] * n, list(names), list(residues), owner, np.asarray(x, float))
    plan = BeadPlan(list(range(n)), {i: sorted(near[i]) for i in near})
    joined = {0}
    queue = [0]
    while queue:
        fresh = [j for j in near[queue.pop()] if j not in joined]
        joined.update(fresh)
        queue += fresh
    if len(joined) < n or len({bond_key(i, j) for i, j in bonds}) != n - 1:
        missing = [molecule.label(i) for i in range(n) if i not in joined]
        what = f"{', '.join(missing)} are not joined to {molecule.label(0)}" if missing else "they close a ring"
        raise InvalidInputError(f"the bonds between the beads do not make a tree: {what}; give other bonds")
    for i, j in bonds:
        _name_torsion(molecule, plan, i, j)
    rows = build_zmatrix(molecule, plan, set())
    return InternalCoordinates(build_layout(molecule, plan, rows, set(), fixed or {}, molecule.positions))


def _name_torsion(molecule: Molecule, plan: BeadPlan, i: int, j: int) -> None:
    """Let the torsion about a bond within a chain be that of the four beads in a row, with the name that it has."""
    before, after = ([k for k in plan.adjacency[a] if k != b] for a, b in ((i, j), (j, i)))
    if not before or not after:
        return
    atoms = (before[0], i, j, after[0])
    plan.wanted[i, j], plan.wanted[j, i] = (atoms[0], atoms[3]), (atoms[3], atoms[0])
    plan.names[bond_key(i, j)] = "torsion " + " ".join(molecule.label(k) for k in atoms)
    for four in (atoms, atoms[::-1]):
        known = _NAMES.get(tuple(molecule.names[k] for k in four))
        if known is not None:
            plan.names[bond_key(i, j)] = f"{molecule.residues[four[known[1]]]}:{known[0]}"
