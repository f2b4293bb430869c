"""Independent proposals of a flow, and the ratio by which they are accepted."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_cgflow.compute import plain_torch
from openmm_cgflow.counts import seed_number
from openmm_cgflow.openmm_plugin.moves.structure_density import StructureDensity
from openmm_cgflow.storage import read_as
from openmm_cgflow.trained import TrainedFlow

__all__ = ["IndependenceSampler"]

_log = logging.getLogger("openmm_cgflow")

_LARGEST_BATCH = 1_000_000


class IndependenceSampler:
    """Metropolis-Hastings with proposals that do not depend on the current structure.

    A proposal is accepted with probability `min(1, w(x') / w(x))`, `w(x) = exp(-u(x)) / q(x)`. The energy is the
    caller's, so that any System of these atoms is sampled exactly; how often proposals are accepted depends on how
    close it is to the one that the flow was trained on. Proposals come in random orientations, and with the leaves of
    symmetric rotors in a random one of their labellings. They are those of the flow as it was when this was made.

    Source: Hastings, Biometrika 57, 97 (1970); Tierney, Ann. Stat. 22, 1701 (1994), section 2.3.3.

    Arguments:
        flow: where the proposals come from.
        seed: of proposals and decisions.
        batch: proposals drawn at a time.

    Attributes:
        density: the flow's density, of which proposals are drawn.
        attempted: proposals so far.
        accepted: how many were accepted.
        outside: how many found a structure that the flow never gives (another isomer), where it cannot be left.
    """

    @plain_torch
    def __init__(self, flow: TrainedFlow, seed: int, batch: int = 1024) -> None:
        self.flow, self._batch = flow, batch
        self.density = StructureDensity.of(flow)
        self._generator = np.random.default_rng(seed_number(seed))
        self._batch_seed, self._next = 0, batch
        self.attempted = self.accepted = self.outside = 0

    @property
    def acceptance(self) -> float:
        """Share of the proposals that were accepted; NaN before the first."""
        return self.accepted / self.attempted if self.attempted else math.nan

    @plain_torch
    def propose(self, positions: np.ndarray) -> tuple[np.ndarray, float]:
        """A proposal `(atoms, 3)` in nm around the centroid of the current positions, and its log-density.

        The log-density is plus infinity for what is no proposal, since it lies outside the flow's domain.
        """
        if self._next >= self._batch:
            self._batch_seed, self._next = int(self._generator.integers(2**31)), 0
            self._draw()
        k = self._next
        self._next += 1
        return self._structures[k] @ _rotation(self._generator).T + positions.mean(0), float(self._log_densities[k])

    def _draw(self) -> None:
        self._structures, self._log_densities = self.density.draw(self._batch, self._batch_seed)

    def decide(self, u_old: float, u_new: float, log_q_old: float, log_q_new: float) -> tuple[bool, float]:
        """Whether to accept, and the log of the ratio of the weights.

        Arguments:
            u_old: minus the log of what is sampled, up to a constant, at the current structure: its reduced energy.
            u_new: the same of the proposal; NaN is refused like plus infinity.
            log_q_old: log-density of the flow at the current structure.
            log_q_new: log-density of the flow at the proposal.
        """
        self.attempted += 1
        if log_q_old == -math.inf:
            if not self.outside:
                _log.warning(
                    "attempt %d: the current structure is outside the domain of the flow: no proposal is accepted "
                    "until dynamics leaves it. If this goes on, it is another isomer than the flow's, or two atoms are "
                    "the other way round; `outside` counts such attempts.",
                    self.attempted,
                )
            self.outside += 1
        log_ratio = (u_old - u_new) + (log_q_old - log_q_new)
        if math.isnan(log_ratio):
            log_ratio = -math.inf
        accept = log_ratio >= 0 or bool(self._generator.random() < math.exp(log_ratio))
        self.accepted += accept
        return accept, log_ratio

    def velocity_seed(self) -> int:
        """A seed for new velocities."""
        return int(self._generator.integers(1, 2**31 - 1))

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, fit for JSON."""
        return {
            "attempted": self.attempted,
            "accepted": self.accepted,
            "outside": self.outside,
            "batch": self._batch,
            "batch_seed": self._batch_seed,
            "next": self._next,
            "generator": self._generator.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the same random numbers.

        Raises:
            ModelFileError, TypeError, ValueError, OverflowError: for what no sampler gives; this one stays as it was.
        """
        stored = read_as(_State, state, "the state")
        generator = np.random.default_rng(0)
        generator.bit_generator.state = stored.generator
        if generator.bit_generator.state != stored.generator:
            raise ValueError("the state of the random numbers is none")
        if stored.next < stored.batch:
            self._structures, self._log_densities = self.density.draw(stored.batch, stored.batch_seed)
        self.attempted, self.accepted, self.outside = stored.attempted, stored.accepted, stored.outside
        self._batch, self._batch_seed, self._next = stored.batch, stored.batch_seed, stored.next
        self._generator = generator


@dataclass(frozen=True)
class _State:
    """What `IndependenceSampler.state` gives."""

    attempted: int
    accepted: int
    outside: int
    batch: int
    batch_seed: int
    next: int
    generator: dict[str, Any]

    def __post_init__(self) -> None:
        if not (0 <= self.accepted <= self.attempted and 0 <= self.outside <= self.attempted):
            raise ValueError(f"{self.accepted} accepted and {self.outside} outside of {self.attempted} proposals")
        if not 0 <= self.next <= self.batch <= _LARGEST_BATCH or not self.batch or not 0 <= self.batch_seed < 2**31:
            raise ValueError(f"proposal {self.next} of {self.batch}, of the seed {self.batch_seed}")


def _rotation(generator: np.random.Generator) -> np.ndarray:
    """A rotation matrix, uniform over all orientations, of a normal quaternion."""
    w, x, y, z = ((q := generator.normal(size=4)) / np.linalg.norm(q)).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
