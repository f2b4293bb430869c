"""Networks that learn the same from several splits of the frames, and their mean, which is one network again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from openmm_cgflow.compute import seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.forcematching.density.likelihood import Fitted
from openmm_cgflow.forcematching.density.splits import held_out_pieces
from openmm_cgflow.forcematching.students.bead_network import BeadNetwork, StudentSettings, make_network

__all__ = ["MatchSettings", "Matched", "batch_of", "fit_members", "student_of_members"]

_PIECES = 50  # of the trajectory, that are held out as a whole


@dataclass(frozen=True)
class MatchSettings:
    """How a student is fitted to frames directly; budgets are in steps, so that one seed gives one result.

    Attributes:
        members: splits of the frames, each of which one network is fitted to; the student is their mean.
        steps: of AdamW, with a rate that falls to zero as a cosine.
        batch: frames of each.
        rate: at the beginning.
        decay: weight decay of AdamW.
        student: size of the network of each member.

    Raises:
        InvalidInputError: for a number that cannot be; by name.

    Example:
        >>> MatchSettings(members=2).members
        2
    """

    members: int = 4
    steps: int = 2_000
    batch: int = 512
    rate: float = 1e-3
    decay: float = 0.01
    student: StudentSettings = field(default_factory=StudentSettings)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "student":
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            if name not in ("rate", "decay"):
                if not whole or value < 1:
                    raise InvalidInputError(
                        f"{type(self).__name__}: {name} is {value!r}; give a whole number of at least 1"
                    )
            elif not (whole or isinstance(value, float)) or not 0 <= value < math.inf:
                raise InvalidInputError(f"{type(self).__name__}: {name} is {value!r}; give a number of 0 or more")


@dataclass(frozen=True)
class Matched:
    """A student that was fitted to frames directly.

    Attributes:
        student: the energy, as `distil` gives it.
        members: how the fit of each member ended, by the frames that were held out of it.
        frames: how many there were.
        seconds: that it took.
    """

    student: BeadNetwork
    members: tuple[Fitted, ...]
    frames: int
    seconds: float

    @property
    def held_out(self) -> float:
        """The loss of frames that were held out, the mean of all members."""
        return sum(member.loss for member in self.members) / len(self.members)


def student_of_members(coordinates: InternalCoordinates, kT: float, q: Tensor, settings: MatchSettings) -> BeadNetwork:
    """A student that has room for the networks of all members, with springs, units and ranges of frames.

    Arguments:
        coordinates: of the beads alone.
        kT: thermal energy, kJ/mol.
        q: `(frames, dof)`.
        settings: of each member.
    """
    wide = replace(settings.student, hidden=settings.members * settings.student.hidden)
    student = BeadNetwork(coordinates, kT, wide)
    student.calibrate(q)
    return student


def fit_members(
    student: BeadNetwork,
    n: int,
    settings: MatchSettings,
    seed: int,
    fit: Callable[[nn.Sequential, Tensor, Tensor, torch.Generator], Fitted],
) -> tuple[Fitted, ...]:
    """Fit the network of each member to its frames, and let the student have their mean.

    Arguments:
        student: from `student_of_members`; its network is set.
        n: number of frames.
        settings: number of members, and their sizes.
        seed: of splits, start weights and batches.
        fit: fits a network, in single precision, to the frames of its second argument and judges it by those of the
            third, both by number.
    """
    pieces, networks, ended = torch.arange(n) * min(_PIECES, n) // n, [], []
    for k in range(settings.members):
        out = held_out_pieces(pieces, k, seed)
        network = make_network(student.n_features, settings.student, 1009 * seed + k).float()
        split = torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()
        ended.append(fit(network, *split, seeded(1009 * seed + k)))
        networks.append(network.double())
    student.network.load_state_dict(_mean_of(networks).state_dict())
    student.requires_grad_(False)
    return tuple(ended)


def batch_of(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Some of n rows by number, with repeats; all of them where there are no more than the size."""
    return torch.arange(n) if n <= size else torch.randint(n, (size,), generator=generator)


def _mean_of(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """The mean of networks of one shape as a network with the hidden layers of all of them side by side."""
    joined: list[nn.Module] = []
    for k, parts in enumerate(zip(*networks, strict=True)):
        layers = [part for part in parts if isinstance(part, nn.Linear)]
        if not layers:
            joined.append(parts[0])
            continue
        weights, biases = [layer.weight for layer in layers], torch.stack([layer.bias for layer in layers])
        if k == 0:
            weight, bias = torch.cat(weights), biases.flatten()
        elif k == len(networks[0]) - 1:
            weight, bias = torch.cat(weights, dim=1) / len(layers), biases.mean(0)
        else:
            weight, bias = torch.block_diag(*weights), biases.flatten()
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.load_state_dict({"weight": weight, "bias": bias})
        joined.append(layer)
    return nn.Sequential(*joined)
