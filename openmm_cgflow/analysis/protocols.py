"""What a report needs of a flow (`CGFlow` has it)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from openmm import System, unit
    from openmm.app import Topology

    from openmm_cgflow.audit import Coverage

__all__ = ["Flow", "Row"]

Row = Mapping[str, Any]
"""A row of a training history: stage, seconds, evaluations, ess, logZ, loss, beta; any value may be None."""


class Flow(Protocol):
    """A trained flow."""

    @property
    def topology(self) -> "Topology":
        """The molecule."""

    @property
    def system(self) -> "System":
        """Its forces and constraints."""

    @property
    def slow_names(self) -> Sequence[str]:
        """Names of the slow torsions."""

    @property
    def slow_torsions(self) -> Sequence[Sequence[int]]:
        """Four atom indices of each slow torsion."""

    @property
    def history(self) -> Sequence[Row]:
        """Rows of the training history."""

    @property
    def coverage(self) -> "Coverage | None":
        """What the last audit found."""

    @property
    def provenance(self) -> Row:
        """Evaluations, seconds, version and machine of the training."""

    def freeEnergy(self, slow: np.ndarray) -> "unit.Quantity":
        """Free energy at slow torsions `(n, n_slow)`, rad."""
