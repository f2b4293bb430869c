"""The densities of slow and fast variables, and the two joined into one over all internal coordinates."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from openmm_cgflow.counts import whole_number
from openmm_cgflow.flows.factor import Chain
from openmm_cgflow.flows.soft import SoftVariables
from openmm_cgflow.flows.stiff import StiffDensity

__all__ = ["AtomFlow", "BeadFlow", "FlowSettings", "JointFlow"]


@dataclass(frozen=True)
class FlowSettings:
    """How large the networks are.

    Attributes:
        components: mixture components of each slow variable.
        rotor_components: mixture components of each rotor.
        slow_hidden: width of the networks of the soft densities.
        harmonics: Fourier pairs of each circular variable.
        bead_couplings: coupling layers of the beads' stiff coordinates.
        atom_couplings: coupling layers of the atoms' stiff coordinates.
        hidden: width of the coupling networks.
        rank: number of matrices of which the atoms' covariance is mixed.
        seed: of the choice of masks and start weights.

    Raises:
        InvalidInputError: for a number that cannot be, by its name.
    """

    components: int = 16
    rotor_components: int = 6
    slow_hidden: int = 64
    harmonics: int = 3
    bead_couplings: int = 4
    atom_couplings: int = 8
    hidden: int = 128
    rank: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            object.__setattr__(self, name, whole_number(getattr(self, name), f"FlowSettings: {name}", least))

    def as_dict(self) -> dict[str, int]:
        """Settings as plain numbers, to be stored."""
        return asdict(self)


_LEAST = dict.fromkeys(("components", "rotor_components", "slow_hidden", "harmonics", "rank"), 1)
_LEAST |= {"bead_couplings": 0, "atom_couplings": 0, "hidden": 2, "seed": 0}


class BeadFlow(Chain):
    """The slow density: `q(beads) = q(slow torsions) q(bead bonds, angles, stiff torsions | slow torsions)`.

    Arguments:
        slow: density of the slow variables.
        stiff: density of the beads' other internal coordinates given the features of the slow ones.
    """

    slow: SoftVariables
    stiff: StiffDensity

    def __init__(self, slow: SoftVariables, stiff: StiffDensity) -> None:
        super().__init__(slow=slow, stiff=stiff)


class AtomFlow(Chain):
    """The fast density: `q(atoms | beads) = q(rotors | beads) q(bonds, angles, stiff torsions | rotors, beads)`.

    Arguments:
        rotors: circular density of the rotors given the features of the beads.
        stiff: density of the stiff coordinates given these and the features of the rotors.
    """

    rotors: SoftVariables
    stiff: StiffDensity

    def __init__(self, rotors: SoftVariables, stiff: StiffDensity) -> None:
        super().__init__(rotors=rotors, stiff=stiff)


class JointFlow(Chain):
    """`q(beads) q(atoms | beads)` over rows of internal coordinates `[slow | bead | rotor | atom]`.

    Arguments:
        bead_flow: density of the first two blocks.
        atom_flow: conditional density of the last two.
    """

    bead_flow: BeadFlow
    atom_flow: AtomFlow

    def __init__(self, bead_flow: BeadFlow, atom_flow: AtomFlow) -> None:
        super().__init__(bead_flow=bead_flow, atom_flow=atom_flow)

    @classmethod
    def build(
        cls,
        sizes: Sequence[int],
        centre: Tensor,
        scale: Tensor,
        period: Tensor,
        settings: FlowSettings | None = None,
    ) -> "JointFlow":
        """A flow for coordinates in four blocks.

        Arguments:
            sizes: numbers of slow, bead, rotor and atom coordinates.
            centre: `(dof,)` start values, and the middle of the window of circular coordinates.
            scale: `(dof,)` rough thermal widths.
            period: `(dof,)` periods of the slow and rotor coordinates, 0 where there is none.
            settings: sizes of the networks.
        """
        settings = settings or FlowSettings()
        starts, widths, periods = (torch.split(t.float(), list(sizes)) for t in (centre, scale, period))
        wide, couplings, seed = settings.slow_hidden, (settings.bead_couplings, settings.atom_couplings), settings.seed
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # blocks may be empty
            torch.manual_seed(seed)
            slow = SoftVariables(starts[0], periods[0], 0, settings.components, wide, settings.harmonics)
            bead = StiffDensity(starts[1], widths[1], slow.n_features, couplings[0], settings.hidden // 2, seed=seed)
            beads = BeadFlow(slow, bead)
            rotors = SoftVariables(
                starts[2], periods[2], beads.n_features, settings.rotor_components, wide, settings.harmonics
            )
            context = beads.n_features + rotors.n_features
            atom = StiffDensity(starts[3], widths[3], context, couplings[1], settings.hidden, settings.rank, seed)
        return cls(beads, AtomFlow(rotors, atom))

    def stiff_densities(self) -> tuple[StiffDensity, StiffDensity]:
        """Those of the beads and of the atoms."""
        return self.bead_flow.stiff, self.atom_flow.stiff

    def nonlinear_parameters(self) -> list[nn.Parameter]:
        """All by which the stiff densities differ from normal ones with a linear mean; they start without effect."""
        return [p for density in self.stiff_densities() for p in density.nonlinear_parameters()]

    @contextmanager
    def gaussian(self) -> Iterator[None]:
        """Within it the couplings are left out: the same, and faster, as long as they are the identity."""
        densities = self.stiff_densities()
        before = [density.gaussian for density in densities]
        try:
            for density in densities:
                density.gaussian = True
            yield
        finally:
            for density, was in zip(densities, before, strict=True):
                density.gaussian = was

    def sample_from(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Samples `(batch, dof)` made of noise, and their log-densities `(batch,)`, differentiable."""
        q, log_prob, _ = self.decode(noise, noise[:, :0])
        return q, log_prob

    def log_prob_stiff(self, q: Tensor) -> Tensor:
        """Log-density `(batch,)` of the stiff coordinates of `q (batch, dof)` given its soft ones."""
        slow, bead, rotors, atom = self.split(q)
        features = self.bead_flow.slow.features(slow)
        beads = self.bead_flow.stiff.encode(bead, features)
        context = torch.cat([features, beads.features, self.atom_flow.rotors.features(rotors)], dim=1)
        return beads.log_prob + self.atom_flow.stiff.encode(atom, context).log_prob

    def log_prob_soft(self, q: Tensor) -> Tensor:
        """`log q(slow) + log q(rotors | beads)`, `(batch,)`, of `q (batch, dof)`; only parameters have gradients."""
        slow, bead, rotors, _ = self.split(q)
        with torch.no_grad():
            context = self.bead_flow.features(torch.cat([slow, bead], dim=1), slow[:, :0])
        log_prob = self.bead_flow.slow.learned_log_prob(slow)
        return log_prob + self.atom_flow.rotors.learned_log_prob(rotors, context)
