"""What the plugin and backmapping need of a flow: they stand below the facade `CGFlow`, which has it all."""

from typing import Any, Protocol

import openmm
from openmm import app, unit

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.flows import JointFlow
from openmm_cgflow.potentials.base import Potential
from openmm_cgflow.training import BoltzmannTarget

__all__ = ["TrainedFlow"]


class TrainedFlow(Protocol):
    """A flow with the molecule that it is for.

    Attributes:
        coordinates: positions to internal coordinates and back.
        flow: the density over these.
        potential: batched energies of the System.
        target: the same in units of kT.
    """

    coordinates: InternalCoordinates
    flow: JointFlow
    potential: Potential
    target: BoltzmannTarget

    @property
    def topology(self) -> app.Topology:
        """The molecule; a copy at each call."""

    @property
    def system(self) -> openmm.System:
        """Its forces and constraints; a copy at each call."""

    @property
    def constraints(self) -> dict[tuple[int, int], float]:
        """Constrained distances, nm, by pairs of atoms."""

    @property
    def temperature(self) -> unit.Quantity:
        """Of the distribution."""

    @property
    def positions(self) -> unit.Quantity:
        """One structure `(atoms, 3)`."""

    @property
    def slow_names(self) -> list[str]:
        """Names of the slow torsions."""

    @property
    def slow_torsions(self) -> list[tuple[int, int, int, int]]:
        """Four atom indices of each slow torsion."""

    def freeEnergy(self, slow: Any) -> unit.Quantity:  # noqa: ANN401
        """Free energy `(n,)` at slow torsions `(n, n_slow)`, rad."""
