"""How a density is fitted to frames of beads."""

import math
from dataclasses import asdict, dataclass

from openmm_cgflow.errors import InvalidInputError

__all__ = ["FitSettings"]


@dataclass(frozen=True)
class FitSettings:
    """How the density of beads is fitted.

    Attributes:
        members: splits of the frames, each of which one density is fitted to.
        components: mixture components of each torsion.
        hidden: width of the networks.
        harmonics: Fourier pairs by which torsions are shown.
        own_networks: torsions up to which each has a network of its own; more share one (see `ChainTorsions`).
        couplings: coupling layers of the stiff coordinates; by default 4 above 10,000 frames, else none.
        rank: number of matrices of which their covariance is mixed.
        rate: learning rate; by default 5e-4, and 1e-3 from 5,000 frames on.
        steps: at most, of each member and part; by default 600 sqrt(frames / 1,000), from 400 to 6,000.
        force_weight: of forces beside the likelihood of the stiff coordinates.

    Raises:
        InvalidInputError: for a number that cannot be, by its name.

    Example:
        >>> FitSettings(members=2).members
        2
    """

    members: int = 4
    components: int = 16
    hidden: int = 64
    harmonics: int = 3
    own_networks: int = 4
    couplings: int | None = None
    rank: int = 8
    rate: float | None = None
    steps: int | None = None
    force_weight: float = 10.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("couplings", "own_networks", "steps", "force_weight") else 1
            whole = name not in ("rate", "force_weight")
            if value is None and name in ("couplings", "rate", "steps"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise InvalidInputError(f"FitSettings: {name} is {value!r}; give a {'whole ' if whole else ''}number")
            if not math.isfinite(value) or (value < least if name != "rate" else not 0 < value < 1):
                wanted = "between 0 and 1" if name == "rate" else f"of {least} or more"
                raise InvalidInputError(f"FitSettings: {name} is {value!r}; give one {wanted}")
