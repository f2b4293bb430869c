"""What every student is: an energy of the positions of beads, by way of their internal coordinates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError

__all__ = ["BeadEnergy", "held", "on_circle", "spring_energy"]

_SLOPE = 8.0  # of the energy outside, kT for each standard deviation


def held(z: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(n, k)` that go on by less than one outside a range, and the energy of the walls there, `(n,)` in kT.

    Both are twice continuously differentiable.
    """
    over, under = torch.relu(z - high), torch.relu(low - z)
    over, under = over - torch.tanh(over), under - torch.tanh(under)
    return z - over + under, _SLOPE * (over + under).sum(1)


def spring_energy(stiff: Tensor, rest: Tensor, stiffness: Tensor, is_torsion: Tensor) -> Tensor:
    """Energy `(n,)` of springs at stiff coordinates `(n, k)`, kT; that of a torsion is a cosine.

    Arguments:
        stiff: nm or rad.
        rest: `(k,)`, where each spring rests.
        stiffness: `(k,)`, kT/nm^2 or kT/rad^2.
        is_torsion: `(k,)`, bool.
    """
    apart = stiff - rest
    squares = torch.where(is_torsion, 2 - 2 * torch.cos(apart), apart * apart)
    return 0.5 * (squares * stiffness).sum(1)


def on_circle(angles: Tensor) -> Tensor:
    """Mean of angles over their first axis, rad."""
    return torch.atan2(torch.sin(angles).mean(0), torch.cos(angles).mean(0))


class BeadEnergy(nn.Module):
    """An energy of bead positions (nm) in kJ/mol that is a function of the shape alone.

    A subclass has `reduced_energy`, and says in `outside` where it was never trained.

    Arguments:
        coordinates: of the beads alone, as `bead_coordinates()` gives them.
        kT: thermal energy, kJ/mol.

    Attributes:
        offset: a constant, kT; it is no force.

    Raises:
        InvalidInputError: for coordinates of atoms that are not beads.
    """

    offset: Tensor
    straight: Tensor
    turning: Tensor
    is_torsion: Tensor

    def __init__(self, coordinates: InternalCoordinates, kT: float) -> None:
        super().__init__()
        n_slow, _, n_rotor, n_atom = coordinates.sizes
        if n_rotor or n_atom:
            raise InvalidInputError(
                "a student is of beads alone; give it coordinates.bead_coordinates(), not those of all atoms"
            )
        self.coordinates, self.kT = coordinates, kT
        entries = coordinates.layout.coordinates
        self._keep("straight", [k for k, entry in enumerate(entries) if not entry.torsion])
        self._keep("turning", [k for k, entry in enumerate(entries) if entry.torsion])
        self._keep("is_torsion", [entry.torsion for entry in entries[n_slow:]], torch.bool)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    def _keep(self, name: str, values: Sequence | bool, dtype: torch.dtype = torch.int64) -> None:
        """A buffer that is made of the coordinates, and not stored."""
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def reduced_energy(self, q: Tensor, x: Tensor) -> Tensor:
        """Energy `(n,)` in kT of internal coordinates `q (n, dof)` and their positions `x (n, beads, 3)`."""
        raise NotImplementedError

    def outside(self, positions: Tensor) -> Tensor:
        """Whether beads are where no point of the training was, so that walls drive them back: `(n,)` bool.

        Arguments:
            positions: `(n, beads, 3)`, nm.
        """
        raise NotImplementedError

    def forward(self, positions: Tensor) -> Tensor:
        """Energy in kJ/mol, in the precision of the module.

        Arguments:
            positions: of the beads, nm, in any orientation: `(beads, 3)` or `(n, beads, 3)`.

        Returns:
            one number, or `(n,)`.
        """
        x = positions.unsqueeze(0) if positions.dim() == 2 else positions
        energy = self.kT * self.reduced_energy(self.coordinates.to_internal(x)[0], x)
        return energy.squeeze(0) if positions.dim() == 2 else energy
