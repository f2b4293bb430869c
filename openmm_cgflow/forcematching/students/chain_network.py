"""The student of chains: a `SchNet` on the beads of one chain, beside harmonic springs and repulsion."""

from collections.abc import Iterable, Sequence
from functools import partial

import networkx
import torch
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.forcematching.density.slots import beads_of_coordinates
from openmm_cgflow.forcematching.density.teacher import Points
from openmm_cgflow.forcematching.students.bead_energy import BeadEnergy, held, on_circle, spring_energy
from openmm_cgflow.forcematching.students.convolution import Pairs
from openmm_cgflow.forcematching.students.schnet import ROLES, SchNet, SchNetSettings

__all__ = ["REPULSION", "ChainNetwork", "calibrate", "shared_network"]

REPULSION = 1600.0  # kT/nm^2
_APART, _APART_GLYCINE = 0.42, 0.36  # nm, of alpha carbons
_BETWEEN = 2  # bonds between beads that do not repel
_TORSION = 3  # dashes in the name of a kind
_FEWEST = 100  # points that must be left
_NARROWEST = 1e-6  # standard deviation, nm or rad
_MARGIN = 0.5  # by which ranges are widened, in standard deviations


class ChainNetwork(BeadEnergy):
    """An energy of the positions of a chain of beads (nm) in kJ/mol: `kT (springs + repulsion + walls + network)`.

    It is a function of the shape alone. The network is a `SchNet`, whose weights are the same for every chain of the
    beads that it knows: `on` makes the energy of another one. Springs with `k = 1/variance` hold bonds and angles; a
    kind of them, such as all bonds `CA-CA`, has one spring. Beads with more than two bonds between them repel by
    `1600 (d - d0)^2` kT/nm^2 within `d0`: 0.42 nm where the beads are alpha carbons alone, 0.36 nm with glycine, and
    else the shortest distance of the training. As of a `BeadNetwork`, the network sees bonds and angles as far as the
    training went, and walls of 8 kT for each standard deviation are beyond.

    Before `calibrate` was called, and the network trained, it is not an energy of anything.

    Arguments:
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.
        types: of the beads, residue and name: `"ALA:CA"`, as `bead_types` gives them.
        network: a `SchNet`, see `shared_network`.

    Attributes:
        network: the `SchNet`.
        offset: a constant of this chain alone, kT; it is no force.

    Raises:
        InvalidInputError: for types or kinds that the network does not know, another number of types, or atoms that
            are not beads.

    Source: the prior is that of Köhler et al. 2023 (arXiv 2203.11167).

    Example:
        >>> from importlib.resources import files
        >>> from openmm import app
        >>> pdb = app.PDBFile(str(files("openmm_cgflow") / "data" / "alanine_dipeptide.pdb"))
        >>> system = app.ForceField("amber96.xml").createSystem(pdb.topology)
        >>> beads = InternalCoordinates.fromTopology(pdb.topology, system, pdb.positions).bead_coordinates()
        >>> types = ["ACE:C", "ALA:N", "ALA:CA", "ALA:C", "NME:N"]
        >>> energy = ChainNetwork(beads, 2.494, types, shared_network([(beads, types)]))
        >>> energy(torch.zeros(7, 5, 3).double().normal_()).shape  # any positions, kJ/mol
        torch.Size([7])
    """

    beads: Tensor
    kinds: Tensor
    places: Tensor
    present: Tensor
    first: Tensor
    second: Tensor
    contact: Tensor
    is_alpha: Tensor
    apart: Tensor

    def __init__(self, coordinates: InternalCoordinates, kT: float, types: Sequence[str], network: SchNet) -> None:
        super().__init__(coordinates, kT)
        n = coordinates.n_atoms
        if len(types) != n:
            raise InvalidInputError(f"there are {len(types)} types of {n} beads; give one for each")
        self.types, self.network = tuple(types), network
        self.settings = network.settings
        self._keep("beads", _numbers(types, network.types, "beads"))
        self._keep("kinds", _numbers(kinds_of(coordinates, types), network.kinds, "bonds or angles"))
        places = self._places()
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("present", (places != 0).any(0).double().reshape(n, -1), persistent=False)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        self._keep("first", [i for i, _ in pairs])
        self._keep("second", [j for _, j in pairs])
        near = dict(networkx.all_pairs_shortest_path_length(networkx.Graph(coordinates.bead_bonds), _BETWEEN))
        self._keep("contact", [j not in near[i] for i, j in pairs], torch.bool)
        alpha = all(kind.endswith(":CA") for kind in types)
        self._keep("is_alpha", alpha, torch.bool)
        glycine = [any(types[k].startswith("GLY:") for k in pair) for pair in pairs]
        self._keep("apart", [_APART_GLYCINE if one else _APART for one in glycine], torch.float64)

    def _places(self) -> Tensor:
        """`(columns, beads * 13)`: which bead gets each number of the shape, and in which place."""
        beads = beads_of_coordinates(self.coordinates)
        straight, turning = self.straight.tolist(), self.turning.tolist()
        width = sum(ROLES)
        places = torch.zeros(len(straight) + 2 * len(turning), self.coordinates.n_atoms, width, dtype=torch.float64)
        for column, slot in enumerate(straight):
            start = 0 if len(beads[slot]) == ROLES[0] else ROLES[0]
            for role, bead in enumerate(beads[slot]):
                places[column, bead, start + role] = 1
        for k, slot in enumerate(turning):
            for half in (0, 1):
                for role, bead in enumerate(beads[slot]):
                    places[len(straight) + half * len(turning) + k, bead, sum(ROLES[:2]) + 4 * half + role] = 1
        return places.flatten(1)

    def on(self, coordinates: InternalCoordinates, types: Sequence[str]) -> "ChainNetwork":
        """The energy of another chain by the same network.

        Raises:
            InvalidInputError: for beads, bonds or angles of a kind that the network was not trained on.
        """
        return ChainNetwork(coordinates, self.kT, types, self.network)

    @property
    def rest(self) -> Tensor:
        """Where the spring of each stiff coordinate rests, nm or rad."""
        return self.network.rest[self.kinds]

    @property
    def stiffness(self) -> Tensor:
        """`1 / variance` of each stiff coordinate."""
        return self.network.stiffness[self.kinds]

    def springs(self, q: Tensor) -> Tensor:
        """Energy `(n,)` of the springs, kT, at `q (n, dof)`."""
        return spring_energy(q[:, self.coordinates.sizes[0] :], self.rest, self.stiffness, self.is_torsion)

    def distances(self, x: Tensor) -> Tensor:
        """Distances `(n, pairs)` of all pairs of beads, nm."""
        apart = x.index_select(1, self.first) - x.index_select(1, self.second)
        return ((apart * apart).sum(2) + 1e-30).sqrt()

    @property
    def least_distances(self) -> Tensor:
        """Below which the beads of each pair repel, nm; 0 for those that do not."""
        return torch.where(self.is_alpha, self.apart, self.network.closest) * self.contact

    def repulsion(self, distances: Tensor) -> Tensor:
        """Energy `(n,)` of beads that are too near, kT."""
        within = torch.relu(self.least_distances - distances)
        return REPULSION * (within * within).sum(1)

    @torch.no_grad()
    def thinned(self, points: Points, generator: torch.Generator) -> Points:
        """Points as they are by a density times `exp(-repulsion)`: each is kept with that probability.

        Raises:
            TrainingError: if hardly one is kept.
        """
        if not bool(self.is_alpha):
            return points
        kept = []
        for q in points:
            chance = torch.exp(-self.repulsion(self.distances(self.coordinates.to_cartesian(q)[0])))
            kept.append(q[torch.rand(len(q), generator=generator, dtype=q.dtype) < chance])
        if len(kept[0]) < _FEWEST:
            raise TrainingError(
                f"of {len(points.own):,} samples of the teacher, {len(kept[0])} have no beads on one another; train it "
                "further, or take another student"
            )
        return Points(*kept)

    def shape(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What each bead has of bonds, angles and torsions, `(n, beads, 26)`, and the energy of the walls, `(n,)`."""
        angles = q.index_select(1, self.turning)
        z, wall = held(self._scaled(q), self.network.low[self._straight_kinds], self.network.high[self._straight_kinds])
        columns = torch.cat([z, torch.sin(angles), torch.cos(angles)], dim=1)
        shape = (columns @ self.places).reshape(len(q), len(self.beads), -1)
        return torch.cat([shape, self.present.expand_as(shape)], dim=2), wall

    @property
    def _straight_kinds(self) -> Tensor:
        """Kinds of bonds and angles."""
        return self.kinds.index_select(0, self.straight - self.coordinates.sizes[0])

    def _scaled(self, q: Tensor) -> Tensor:
        """Bonds and angles `(n, straight)` as what they are off, in standard deviations of their kind."""
        kinds = self._straight_kinds
        return (q.index_select(1, self.straight) - self.network.rest[kinds]) * self.network.stiffness[kinds].sqrt()

    def learned(self, q: Tensor, x: Tensor) -> Tensor:
        """Energy `(n,)` of the network alone, kT, of internal coordinates `q (n, dof)` and positions `x`."""
        return self._learned(self.shape(q)[0], self.distances(x))

    def _learned(self, shape: Tensor, distances: Tensor) -> Tensor:
        pairs = Pairs(self.first, self.second, distances)
        energy: Tensor = self.network(
            self.beads, shape, [partial(one, pairs=pairs) for one in self.network.convolutions]
        )
        return energy

    def reduced_energy(self, q: Tensor, x: Tensor) -> Tensor:
        """Energy `(n,)` in kT of internal coordinates `q (n, dof)` and their positions `x (n, beads, 3)`."""
        shape, wall = self.shape(q)
        distances = self.distances(x)
        return self.springs(q) + self.repulsion(distances) + wall + self._learned(shape, distances) + self.offset

    @torch.no_grad()
    def outside(self, positions: Tensor) -> Tensor:
        """Whether bonds or angles are where no point of the training was, so that walls drive them back: `(n,)` bool.

        Arguments:
            positions: `(n, beads, 3)`, nm.
        """
        z, kinds = self._scaled(self.coordinates.to_internal(positions)[0]), self._straight_kinds
        return ((z > self.network.high[kinds]) | (z < self.network.low[kinds])).any(1)


def shared_network(
    chains: Iterable[tuple[InternalCoordinates, Sequence[str]]], settings: SchNetSettings | None = None, seed: int = 0
) -> SchNet:
    """A network for the beads, bonds and angles of these chains, coordinates and types of each."""
    chains = list(chains)
    types = sorted({one for _, types in chains for one in types})
    kinds = sorted({kind for coordinates, types in chains for kind in kinds_of(coordinates, types)})
    return SchNet(types, kinds, settings or SchNetSettings(), seed)


def kinds_of(coordinates: InternalCoordinates, types: Sequence[str]) -> list[str]:
    """The kind of each stiff coordinate: the names of its beads, without the residues, such as `CA-CA-CA`."""
    names = [one.rpartition(":")[2] for one in types]
    found = []
    for beads in beads_of_coordinates(coordinates)[coordinates.sizes[0] :]:
        own = [names[bead] for bead in beads]
        found.append("-".join(min(own, own[::-1])))
    return found


def _numbers(wanted: Sequence[str], known: Sequence[str], what: str) -> list[int]:
    """The place of each in what is known."""
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise InvalidInputError(
            f"the network was not trained on {what} of {', '.join(unknown)}, only on {', '.join(known)}; train it on "
            "a chain that has them"
        )
    return [known.index(one) for one in wanted]


@torch.no_grad()
def calibrate(students: Sequence[ChainNetwork], points: Sequence[Points]) -> None:
    """Take springs and ranges of each kind from points, which must have been drawn before anything is learned.

    Arguments:
        students: of one network.
        points: of the training of each: means and variances are of the teacher's own, ranges of all.
    """
    network = students[0].network
    stiff = torch.cat([its.own[:, s.coordinates.sizes[0] :].flatten() for s, its in zip(students, points, strict=True)])
    kinds = torch.cat([s.kinds.repeat(len(its.own)) for s, its in zip(students, points, strict=True)])
    for kind, name in enumerate(network.kinds):
        values = stiff[kinds == kind]
        if name.count("-") == _TORSION:
            rest = on_circle(values)
            square = (2 - 2 * torch.cos(values - rest)).mean()
        else:
            rest, square = values.mean(), values.var()
        network.rest[kind], network.stiffness[kind] = rest, 1 / square.clamp(min=_NARROWEST**2)
    low, high, closest = [], [], []
    for student, its in zip(students, points, strict=True):
        z = torch.zeros(2, len(student.kinds), dtype=torch.float64)
        seen = student._scaled(its.q)
        z[:, ~student.is_torsion] = torch.stack([seen.amin(0) - _MARGIN, seen.amax(0) + _MARGIN])
        low.append(z[0])
        high.append(z[1])
        distances = student.distances(student.coordinates.to_cartesian(its.q)[0])[:, student.contact]
        closest.append(distances.flatten())
    owners = torch.cat([student.kinds for student in students])
    network.low.scatter_reduce_(0, owners, torch.cat(low), "amin")
    network.high.scatter_reduce_(0, owners, torch.cat(high), "amax")
    if any(len(distances) for distances in closest):  # in a star of beads none are far enough apart
        network.closest.copy_(torch.cat(closest).amin())
