"""Flow proposals in OpenMM's own replica exchange."""

from typing import Any

from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.openmm_plugin.moves.dynamics import ConstraintMetric
from openmm_cgflow.openmm_plugin.moves.matching import (
    check_masses,
    check_system,
    check_temperature,
    check_topology,
    same_temperature,
)
from openmm_cgflow.openmm_plugin.moves.monte_carlo import attempt
from openmm_cgflow.openmm_plugin.moves.proposals import IndependenceSampler
from openmm_cgflow.trained import TrainedFlow

__all__ = ["FlowReplicaExchangeSampler"]

_Base: Any = getattr(app, "ReplicaExchangeSampler", object)  # OpenMM 8.6 brought it


class FlowReplicaExchangeSampler(_Base):
    """OpenMM's `ReplicaExchangeSampler`, with proposals of a flow for the replica that is at its temperature.

    Arguments:
        states: as OpenMM takes them; at least one must have the temperature of the flow.
        simulation: as OpenMM takes it.
        stepsPerIteration: time steps of each replica between exchanges.
        flow: where the proposals come from.
        proposals: number of them in each iteration.
        seed: of proposals, decisions and velocities.
        reinitializeVelocities: as OpenMM takes it.

    Raises:
        MismatchError: for a Simulation of another molecule, or when no state has the temperature of the flow.
        InvalidInputError: for states that weigh force groups, and for an OpenMM before 8.6.
    """

    def __init__(
        self,
        states: list[dict],
        simulation: app.Simulation,
        stepsPerIteration: int,
        flow: TrainedFlow,
        proposals: int = 1,
        seed: int = 0,
        reinitializeVelocities: bool = False,
    ) -> None:
        if _Base is object:
            raise InvalidInputError(
                "FlowReplicaExchangeSampler needs the replica exchange of OpenMM 8.6 or later; with this OpenMM, use "
                "FlowMove in openmmtools' ReplicaExchangeSampler."
            )
        check_topology(flow, simulation.topology)
        check_system(flow, simulation.system)
        check_masses(flow, simulation.system)
        if any("groups" in state for state in states):
            raise InvalidInputError(
                "FlowReplicaExchangeSampler: states with 'groups' are not supported; leave them out."
            )
        super().__init__(states, simulation, stepsPerIteration, reinitializeVelocities)
        self._flow_sampler, self._proposals = IndependenceSampler(flow, seed), proposals
        self._metric = ConstraintMetric(simulation.system)
        kelvin = flow.temperature.value_in_unit(unit.kelvin)
        nearest = min((self._temperature(state) for state in states), key=lambda t: abs(t._value - kelvin))
        check_temperature(flow, nearest, "that is the nearest of the states; add one at the flow's temperature.")

    def _temperature(self, state: dict) -> unit.Quantity:
        temperature = state.get("temperature")
        if temperature is None:
            temperature = self.simulation.integrator.getTemperature()
        return temperature.in_units_of(unit.kelvin) if unit.is_quantity(temperature) else temperature * unit.kelvin

    @property
    def attempted(self) -> int:
        """Proposals so far."""
        return self._flow_sampler.attempted

    @property
    def acceptance(self) -> float:
        """Share of accepted proposals; NaN before the first."""
        return self._flow_sampler.acceptance

    def simulateReplica(self, index: int, steps: int | None = None) -> None:
        """Dynamics of one replica, then proposals if it is at the flow's temperature."""
        super().simulateReplica(index, steps)
        temperature = self._temperature(self.states[self.replicaStateIndex[index]])
        if not same_temperature(self._flow_sampler.flow, temperature):
            return
        for _ in range(self._proposals):
            attempt(self.simulation.context, self._flow_sampler, temperature, self._metric)
        self.replicaConformation[index] = self.simulation.context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
