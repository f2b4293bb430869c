"""Which atoms are beads and which torsions are slow: the user's choice, or all soft torsions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from openmm_cgflow.chemistry.axes import Axis, find_axes
from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.chemistry.perception import Perceived
from openmm_cgflow.counts import indices
from openmm_cgflow.errors import InvalidInputError

__all__ = ["BeadPlan", "plan_beads"]

SlowTorsion = str | Sequence[int]


@dataclass
class BeadPlan:
    """What the Z-matrix needs to know about beads and soft torsions.

    Attributes:
        beads: atom indices, in the user's order if the user named the beads, else ascending. May be empty.
        adjacency: neighbours of each bead among the beads; bonds, or pseudo-bonds where the beads are not bonded.
        wanted: `{(end, its neighbour on the axis): (first atom to place, reference atom)}`, so that torsions
            are the named ones.
        soft: end bonds (`bond_key`) of the axes that turn, rotors included.
        names: torsion names by end bond.
        lowest: rotation from the input to the lowest torsion energy, rad, by end bond.
    """

    beads: list[int]
    adjacency: dict[int, list[int]]
    wanted: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    soft: set[tuple[int, int]] = field(default_factory=set)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    lowest: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, axis: Axis) -> None:
        """Make the axis' torsion the one by which its bond is described."""
        w, _, _, z = axis.atoms
        (x, inner_x), (y, inner_y) = axis.ends
        self.wanted[x, inner_x], self.wanted[y, inner_y] = (w, z), (z, w)
        for end in axis.ends:
            self.names[bond_key(*end)] = axis.name
            self.lowest[bond_key(*end)] = axis.lowest


def plan_beads(perceived: Perceived, beads: Sequence[int] | None, slow: Sequence[SlowTorsion] | None) -> BeadPlan:
    """Beads, and the torsions that are to be coordinates.

    Default: every soft torsion is slow except symmetric rotors; the beads are the atoms that define them and those on
    the shortest paths between. With `slow`, the named torsions instead (stiff ones such as omega become soft). With
    `beads`, these atoms, and every soft torsion that they define is slow.

    Raises:
        InvalidInputError: unknown names, torsions in rings, atoms that are not bonded in a row, too few beads.
    """
    molecule, axes = perceived.molecule, perceived.axes
    forced: list[Axis] = []
    if slow is not None:
        if isinstance(slow, str):
            slow = [slow]
        forced = _resolve(molecule, axes, slow)
    if beads is not None:
        chosen = _check_beads(molecule, beads)
        missing = sorted({i for axis in forced for i in (*axis.atoms, *axis.chain)} - set(chosen))
        if missing:
            raise InvalidInputError(
                f"the slow torsions need the atoms {[molecule.label(i) for i in missing]} ({missing}), which "
                "are not beads; "
                "add them to beads, or name only one of slow and beads"
            )
    else:
        picked = forced if slow is not None else [a for a in axes if a.soft and not a.symmetric]
        chosen = _connect(molecule, {i for axis in picked for i in (*axis.atoms, *axis.chain)})
    plan = BeadPlan(chosen, _adjacency(molecule, chosen))
    for group in (axes, find_axes(molecule, perceived.profiles, perceived.centres, among=chosen), forced):
        for axis in group:
            plan.add(axis)
    for axis in [*forced, *(a for a in axes if a.soft)]:
        plan.soft.update(bond_key(*end) for end in axis.ends)
    return plan


def _resolve(molecule: Molecule, axes: list[Axis], slow: Sequence[SlowTorsion]) -> list[Axis]:
    """The axes that the user named, each once."""
    found: dict[tuple[int, int], Axis] = {}
    for item in slow:
        matches = _by_name(molecule, axes, item) if isinstance(item, str) else [_by_atoms(molecule, axes, item)]
        for axis in matches:
            key = bond_key(axis.chain[0], axis.chain[-1])
            if key in found and set(found[key].atoms) != set(axis.atoms):
                raise InvalidInputError(
                    f"two slow torsions turn about the bond {molecule.label(key[0])}-{molecule.label(key[1])}: "
                    f"{found[key].atoms} and {axis.atoms}; name one of them"
                )
            found[key] = axis
    return list(found.values())


def _by_name(molecule: Molecule, axes: list[Axis], name: str) -> list[Axis]:
    residue, _, short = name.rpartition(":")

    def is_called(axis_name: str) -> bool:
        owner, _, own = axis_name.partition(":")
        digits = "".join(c for c in owner if not c.isalpha())
        return own.lower() == short.lower() and residue.upper() in ("", owner.upper(), digits)

    found = [axis for axis in axes if is_called(axis.name)]
    if not found:
        others = [(axis, chain, atoms) for axis in axes for chain, atoms in _torsions(molecule, axis)]
        found = [_about(molecule, *other) for other in others if is_called(_name_of(molecule, other[2]))]
    if not found:
        raise InvalidInputError(
            f"no torsion is called {name!r}; there are {', '.join(sorted(a.name for a in axes)) or 'none'}; "
            "or give the indices of four atoms"
        )
    return found


def _by_atoms(molecule: Molecule, axes: list[Axis], item: Sequence[int]) -> Axis:
    try:
        atoms = tuple(indices(item, "slow"))
    except InvalidInputError as error:
        raise InvalidInputError(
            f"slow contains {item!r}; give names such as 'phi' or tuples of four atom indices"
        ) from error
    if len(atoms) != 4 or len(set(atoms)) != 4 or not all(0 <= i < molecule.n_atoms for i in atoms):
        raise InvalidInputError(
            f"the slow torsion {atoms} is not four different atom indices from 0 to {molecule.n_atoms - 1}; "
            "fix the tuple"
        )
    w, x, y, z = atoms
    for i, j in ((w, x), (x, y), (y, z)):
        if not molecule.bonded(i, j):
            raise InvalidInputError(
                f"the slow torsion {atoms}: {molecule.label(i)} and {molecule.label(j)} are not bonded; "
                "give four atoms in a row (or name the beads instead)"
            )
    if bond_key(x, y) in molecule.ring_bonds:
        raise InvalidInputError(
            f"the slow torsion {atoms} is about {molecule.label(x)}-{molecule.label(y)}, a bond in a ring; "
            "only torsions about bonds outside rings can be slow"
        )
    axis = next((a for a in axes if {a.chain[0], a.chain[-1]} == {x, y}), None)
    if axis is None:
        raise InvalidInputError(
            f"the slow torsion {atoms} goes through a linear group, about which nothing turns; choose another"
        )
    return _about(molecule, axis, [x, y], (w, x, y, z))


def _torsions(molecule: Molecule, axis: Axis) -> Iterator[tuple[list[int], tuple[int, int, int, int]]]:
    """Every torsion about an axis, in both directions, after the chain of its axis."""
    for chain in (axis.chain, axis.chain[::-1]):
        for w, z in product(molecule.neighbours[chain[0]], molecule.neighbours[chain[-1]]):
            if w != chain[1] and z != chain[-2]:
                yield chain, (w, chain[0], chain[-1], z)


def _about(molecule: Molecule, axis: Axis, chain: list[int], atoms: tuple[int, int, int, int]) -> Axis:
    """The same axis, with the torsion of these atoms."""
    name = axis.name if set(axis.atoms) == set(atoms) else _name_of(molecule, atoms)
    return Axis(atoms, chain, name, axis.profile, False)


def _name_of(molecule: Molecule, atoms: tuple[int, int, int, int]) -> str:
    return f"{molecule.residues[atoms[1]]}:" + "-".join(molecule.names[i] for i in atoms)


def _check_beads(molecule: Molecule, beads: Sequence[int]) -> list[int]:
    if isinstance(beads, Sequence) and any(isinstance(item, list | tuple) for item in beads):
        raise InvalidInputError(
            "beads contain groups of atoms, but the beads of a flow are atoms: give one index each, that of the "
            "atom in the middle of its group, or fit a force field of centres of mass by CGForceField.fromFrames"
        )
    chosen = indices(beads, "beads")
    wrong = [i for i in chosen if not 0 <= i < molecule.n_atoms]
    if wrong:
        raise InvalidInputError(f"beads contain {wrong[0]}; give atom indices from 0 to {molecule.n_atoms - 1}")
    if len(set(chosen)) != len(chosen):
        raise InvalidInputError(f"beads contain an atom twice ({chosen}); give each once")
    if len(chosen) < 3:
        raise InvalidInputError(f"beads are {len(chosen)} atoms; give at least 3, better 4 (a torsion)")
    return chosen


def _connect(molecule: Molecule, atoms: set[int]) -> list[int]:
    """The atoms with those on shortest paths between them, so that they hang together by bonds."""
    if not atoms:
        return []
    joined = {min(atoms)}
    while atoms - joined:
        joined.update(molecule.shortest_path(joined, atoms - joined))
    return sorted(joined)


def _adjacency(molecule: Molecule, beads: list[int]) -> dict[int, list[int]]:
    """Bonds among the beads, or a spanning tree of pseudo-bonds between the nearest where these are not connected."""
    inside = set(beads)
    near = {i: [j for j in molecule.neighbours[i] if j in inside] for i in beads}
    if not beads:
        return near
    reached, queue = {beads[0]}, [beads[0]]
    while queue:
        for j in near[queue.pop()]:
            if j not in reached:
                reached.add(j)
                queue.append(j)
    if len(reached) == len(beads):
        return near
    return _pseudo_bonds(molecule, beads)


def _pseudo_bonds(molecule: Molecule, beads: list[int]) -> dict[int, list[int]]:
    """Prim's minimal spanning tree on the number of bonds between beads."""
    distance = {i: molecule.distances_from(i) for i in beads}
    near: dict[int, list[int]] = {i: [] for i in beads}
    joined = [beads[0]]
    while len(joined) < len(beads):
        outside = [j for j in beads if j not in joined]
        i, j = min(((i, j) for i in joined for j in outside), key=lambda pair: distance[pair[0]][pair[1]])
        near[i].append(j)
        near[j].append(i)
        joined.append(j)
    return near
