"""The student: a smooth energy of bead positions, a network of their shape beside harmonic springs."""

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.forcematching.students.bead_energy import BeadEnergy, held, on_circle, spring_energy

__all__ = ["BeadNetwork", "StudentSettings", "make_network"]

_MARGIN = 0.5  # by which the range of each feature is widened, in standard deviations
_NARROWEST = 1e-6  # standard deviation, nm or rad: what varies less is a constant


@dataclass(frozen=True)
class StudentSettings:
    """How large the network of a student is.

    Attributes:
        hidden: width of each hidden layer.
        layers: number of hidden layers.
    """

    hidden: int = 96
    layers: int = 3

    def as_dict(self) -> dict[str, int]:
        """Settings as plain numbers, to be stored."""
        return asdict(self)


def make_network(n_features: int, settings: StudentSettings, seed: int) -> nn.Sequential:
    """The network of a student, in double precision.

    Arguments:
        n_features: what it sees.
        settings: its size.
        seed: of its start weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([n_features, *[settings.hidden] * settings.layers]):
            layers += [nn.Linear(n_in, n_out, dtype=torch.float64), nn.SiLU()]
        return nn.Sequential(*layers, nn.Linear(settings.hidden, 1, dtype=torch.float64))


class BeadNetwork(BeadEnergy):
    """An energy of bead positions (nm) in kJ/mol: `kT (springs(q) + network(features) + walls)`.

    It is a function of the shape alone: features are bonds, angles, sines and cosines of torsions, and distances of
    beads that are not bonded, each less its mean and in units of its standard deviation. Springs with `k = 1/variance`
    hold every stiff coordinate. The network sees each feature as far as the points of its training went; beyond, it
    sees a constant, and a wall of 8 kT for each standard deviation drives the beads back, twice continuously
    differentiable.

    Before `calibrate` was called, and the network trained, it is not an energy of anything.

    Arguments:
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.
        settings: size of the network.
        seed: of its start weights.

    Raises:
        InvalidInputError: for sizes that are not positive, or atoms that are not beads.

    Source: the features and springs of CGnet (Wang et al., arXiv 1812.01736), without raw torsion angles, which jump.

    Example:
        >>> from importlib.resources import files
        >>> from openmm import app
        >>> pdb = app.PDBFile(str(files("openmm_cgflow") / "data" / "alanine_dipeptide.pdb"))
        >>> system = app.ForceField("amber96.xml").createSystem(pdb.topology)
        >>> beads = InternalCoordinates.fromTopology(pdb.topology, system, pdb.positions).bead_coordinates()
        >>> network = BeadNetwork(beads, kT=2.494)
        >>> network.calibrate(beads.reference + beads.scale * torch.randn(100, beads.dof))
        >>> network(torch.zeros(7, 5, 3).double().normal_()).shape  # any positions, kJ/mol
        torch.Size([7])
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    rest: Tensor
    stiffness: Tensor
    middle: Tensor
    first: Tensor
    second: Tensor

    def __init__(
        self, coordinates: InternalCoordinates, kT: float, settings: StudentSettings | None = None, seed: int = 0
    ) -> None:
        super().__init__(coordinates, kT)
        settings = settings or StudentSettings()
        if settings.hidden < 1 or settings.layers < 1:
            raise InvalidInputError(
                f"the student has {settings.layers} hidden layers of width {settings.hidden}; give at least 1 of both"
            )
        self.settings, n_slow = settings, coordinates.sizes[0]
        bonded = {frozenset(pair) for pair in coordinates.bead_bonds}
        n = coordinates.n_atoms
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if frozenset((i, j)) not in bonded]
        self._keep("first", [i for i, _ in pairs])
        self._keep("second", [j for _, j in pairs])
        middle = torch.where(coordinates.period > 0, 0.0, coordinates.reference)[self.turning]
        self.register_buffer("middle", middle, persistent=False)
        self.n_features = len(self.straight) + 2 * len(self.turning) + len(pairs)
        zeros, ones = torch.zeros(self.n_features).double(), torch.ones(self.n_features).double()
        for name, start in (("mean", zeros), ("scale", ones), ("low", -ones), ("high", ones)):
            self.register_buffer(name, start.clone())
        self.register_buffer("rest", coordinates.reference[n_slow:].clone())
        self.register_buffer("stiffness", coordinates.scale[n_slow:] ** -2)
        self.network = make_network(self.n_features, settings, seed)

    @staticmethod
    def count_features(coordinates: InternalCoordinates) -> int:
        """How many features a student of these beads has, without making one."""
        n, torsions = coordinates.n_atoms, sum(entry.torsion for entry in coordinates.layout.coordinates)
        return coordinates.dof + torsions + n * (n - 1) // 2 - len({frozenset(p) for p in coordinates.bead_bonds})

    def features(self, q: Tensor, x: Tensor) -> Tensor:
        """What the network sees, before it is put in units: `(n, n_features)` of `q (n, dof)` and its positions `x`."""
        angles = q.index_select(1, self.turning) - self.middle.to(q.dtype)
        apart = x.index_select(1, self.first) - x.index_select(1, self.second)
        distances = ((apart * apart).sum(2) + 1e-30).sqrt()
        return torch.cat([q.index_select(1, self.straight), torch.sin(angles), torch.cos(angles), distances], dim=1)

    def springs(self, q: Tensor) -> Tensor:
        """Energy `(n,)` of the springs, kT, at `q (n, dof)`."""
        return spring_energy(q[:, self.coordinates.sizes[0] :], self.rest, self.stiffness, self.is_torsion)

    @torch.no_grad()
    def calibrate(self, own: Tensor, q: Tensor | None = None) -> None:
        """Take springs, units and ranges from points, which must have been drawn before anything is learned.

        Arguments:
            own: `(n, dof)`, drawn from the teacher: means and variances of the stiff coordinates.
            q: `(n, dof)`, all points of the training: units and ranges of the features; the same by default.

        Raises:
            InvalidInputError: for fewer than two points.
        """
        q = own if q is None else q
        if min(len(own), len(q)) < 2:
            raise InvalidInputError(f"a student is calibrated by {len(own)} points; give at least 2")
        stiff = own[:, self.coordinates.sizes[0] :].double()
        self.rest.copy_(torch.where(self.is_torsion, on_circle(stiff), stiff.mean(0)))
        apart = stiff - self.rest
        squares = torch.where(self.is_torsion, 2 - 2 * torch.cos(apart), apart * apart)
        self.stiffness.copy_(1 / squares.mean(0).clamp(min=_NARROWEST**2))
        features = self.features(q.double(), self.coordinates.to_cartesian(q.double())[0])
        spread = features.std(0)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(torch.where(spread > _NARROWEST, spread, torch.ones_like(spread)))
        z = (features - self.mean) / self.scale
        self.low.copy_(z.amin(0) - _MARGIN)
        self.high.copy_(z.amax(0) + _MARGIN)

    def reduced_energy(self, q: Tensor, x: Tensor) -> Tensor:
        """Energy `(n,)` in kT of internal coordinates `q (n, dof)` and their positions `x (n, beads, 3)`."""
        z, beside = self.seen(q, x)
        return self.network(z).squeeze(1) + beside

    def seen(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into the network, `(n, n_features)`, and the energy `(n,)` beside it, kT: springs and walls."""
        z, wall = held((self.features(q, x) - self.mean) / self.scale, self.low, self.high)
        return z, self.springs(q) + self.offset + wall

    @torch.no_grad()
    def outside(self, positions: Tensor) -> Tensor:
        """Whether beads are where no point of the training was, so that walls drive them back: `(n,)` bool.

        Arguments:
            positions: `(n, beads, 3)`, nm.
        """
        z = (self.features(self.coordinates.to_internal(positions)[0], positions) - self.mean) / self.scale
        return ((z > self.high) | (z < self.low)).any(1)
