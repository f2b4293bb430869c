"""A network of beads and their neighbours, whose weights are for any chain of the beads that it knows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.forcematching.students.convolution import FilterConvolution, shifted_softplus

__all__ = ["SchNet", "SchNetSettings"]

ROLES = (2, 3, 8)
"""Numbers that a bead gets of a bond, an angle and a torsion: by its place in it, of a torsion a sine and a cosine."""


Convolve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SchNetSettings:
    """How large a `SchNet` is, and how far beads see.

    Attributes:
        width: number of features of a bead.
        gaussians: of the distance, from 0 to the cutoff.
        layers: how often beads hear of their neighbours.
        cutoff: beyond which they do not, nm.

    Raises:
        InvalidInputError: for numbers that cannot be; by name.
    """

    width: int = 32
    gaussians: int = 16
    layers: int = 2
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("gaussians", 2), ("layers", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInputError(f"SchNetSettings: {name} is {value!r}; give a whole number of at least {least}")
        if not 0.1 <= self.cutoff <= 100:
            raise InvalidInputError(f"SchNetSettings: cutoff is {self.cutoff!r}; give a number from 0.1 to 100, in nm")

    def as_dict(self) -> dict[str, int | float]:
        """Settings as plain numbers, to be stored."""
        return asdict(self)


class _Layer(nn.Module):
    """What is done to the features of beads before and after one convolution."""

    def __init__(self, settings: SchNetSettings) -> None:
        super().__init__()
        width = settings.width
        self.before = nn.Linear(width, width, bias=False, dtype=torch.float64)
        self.convolution = FilterConvolution(width, settings.gaussians, settings.cutoff)
        self.middle = nn.Linear(width, width, dtype=torch.float64)
        self.after = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        given = convolve(self.before(x))
        added: Tensor = self.after(shifted_softplus(self.middle(given)))
        return x + added


class SchNet(nn.Module):
    """What all chains have in common: features of bead types, layers of convolutions, and springs of each kind.

    A bead begins with the features of its type and of the bonds, angles and torsions that it is in. The sines of
    torsions are what tells a chain from its mirror image, which distances do not.

    Arguments:
        types: of beads, such as `"ALA:CA"`.
        kinds: of stiff coordinates, see `ChainNetwork`.
        settings: its size.
        seed: of its start weights.

    Attributes:
        types, kinds: as given.
        rest, stiffness, low, high: of each kind, nm or rad: where its springs rest, `1 / variance`, and the range that
            the network sees, in standard deviations.
        closest: the shortest distance that is between beads which no bond or angle joins, nm; below it they repel.

    Source: Schütt et al. 2017 (arXiv 1706.08566); for beads, Husic et al. 2020 (arXiv 2007.11412), which have distances
    alone.
    """

    rest: Tensor
    stiffness: Tensor
    low: Tensor
    high: Tensor
    closest: Tensor

    def __init__(self, types: Sequence[str], kinds: Sequence[str], settings: SchNetSettings, seed: int = 0) -> None:
        super().__init__()
        self.types, self.kinds, self.settings = tuple(types), tuple(kinds), settings
        ones = torch.ones(len(kinds), dtype=torch.float64)
        for name, start in (("rest", 0 * ones), ("stiffness", ones), ("low", -ones), ("high", ones)):
            self.register_buffer(name, start.clone())
        self.register_buffer("closest", torch.tensor(0.1, dtype=torch.float64))
        width = settings.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Parameter(torch.randn(len(types), width, dtype=torch.float64))
            self.shape = nn.Linear(2 * sum(ROLES), width, dtype=torch.float64)
            self.mixed = nn.Linear(width, width, dtype=torch.float64)
            self.layers = nn.ModuleList(_Layer(settings) for _ in range(settings.layers))
            self.hidden = nn.Linear(width, width, dtype=torch.float64)
            self.energy = nn.Linear(width, 1, dtype=torch.float64)

    @property
    def convolutions(self) -> list[FilterConvolution]:
        """That of each layer."""
        return [module for module in self.layers.modules() if isinstance(module, FilterConvolution)]

    def forward(self, beads: Tensor, shape: Tensor, convolve: Sequence[Convolve]) -> Tensor:
        """Energy `(n,)`, kT.

        Arguments:
            beads: `(beads,)`, the type of each by its number.
            shape: `(n, beads, 26)`, what each has of bonds, angles and torsions, and which of these it is in.
            convolve: the convolution of each layer, a function of features `(n, beads, width)`.
        """
        x = self.embedding.index_select(0, beads) + self.shape(shape)
        x = x + self.mixed(shifted_softplus(x))
        for layer, its in zip(self.layers, convolve, strict=True):
            x = layer(x, its)
        energies: Tensor = self.energy(shifted_softplus(self.hidden(x)))
        return energies.sum((1, 2))
