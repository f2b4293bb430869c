"""Flow proposals between the steps of a Simulation."""

import csv
import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import InvalidInputError, ModelFileError, TrainingError
from openmm_cgflow.openmm_plugin.moves.dynamics import (
    ConstraintMetric,
    integrated_groups,
    thermostat_temperatures,
)
from openmm_cgflow.openmm_plugin.moves.matching import (
    check_dynamics,
    check_masses,
    check_system,
    check_topology,
)
from openmm_cgflow.openmm_plugin.moves.proposals import IndependenceSampler
from openmm_cgflow.storage import write_whole
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import KB

__all__ = ["FlowMonteCarlo", "attempt"]

_FORMAT = "openmm_cgflow FlowMonteCarlo"
_COLUMNS = ("step", "attempted", "accepted", "outside", "acceptance", "log_ratio")


def attempt(
    context: openmm.Context, sampler: IndependenceSampler, temperature: unit.Quantity, metric: ConstraintMetric
) -> tuple[bool, float]:
    """One proposal for the structure of a Context, accepted or rejected exactly; velocities are redrawn if accepted.

    What is kept is the distribution that the Context's integrator samples: by the energy of the force groups that it
    integrates, and in the measure of constrained dynamics. If the proposal is rejected the Context is left as it was.

    Arguments:
        context: whose positions are replaced, and whose energy decides.
        sampler: makes the proposals.
        temperature: of the Context.
        metric: of the constraints of its System.

    Returns:
        whether it was accepted, and the log of the ratio of the weights.

    Raises:
        TrainingError: if the positions of the Context are not finite.
    """
    kT = KB * temperature.value_in_unit(unit.kelvin)
    groups = integrated_groups(context.getIntegrator())
    state = context.getState(positions=True, energy=True, groups=groups)
    old = state.getPositions(asNumpy=True)._value
    if not np.isfinite(old).all():
        raise TrainingError("the positions are not finite: the simulation has blown up; shorten its time step.")
    proposal, log_q_new = sampler.propose(old)
    log_q_old = sampler.density.log_prob(old)
    try:
        context.setPositions(proposal)
        u_old, u_new = (
            s.getPotentialEnergy()._value / kT - metric.log_factor(x)
            for s, x in ((state, old), (context.getState(energy=True, groups=groups), proposal))
        )
        accepted, log_ratio = sampler.decide(u_old, u_new, log_q_old, log_q_new)
    except BaseException:
        context.setPositions(old)
        raise
    if accepted:
        context.setVelocitiesToTemperature(temperature, sampler.velocity_seed())
    else:
        context.setPositions(old)
    return accepted, log_ratio


class FlowMonteCarlo:
    """Molecular dynamics with global moves: every so many steps, a structure of the flow is proposed.

    A proposal replaces all positions (its centroid stays) and is accepted with the exact probability, by the energy
    that the Simulation's own Context gives, so that the distribution that its dynamics samples is kept, whatever the
    quality of the flow: that of the force groups which the integrator integrates and, with constraints, with the factor
    `sqrt(det Z)` of constrained dynamics (see `ConstraintMetric`). The System may differ from the one that the flow was
    trained on in its forces and masses, not in atoms, constraints or temperature. When a proposal is accepted,
    velocities are drawn anew; when it is rejected, positions and velocities are left as they were.

    The flow is taken as it is: training it further does not change the proposals of a FlowMonteCarlo made before.

    Arguments:
        simulation: of this molecule, with a thermostat at the flow's temperature.
        flow: where the proposals come from.
        frequency: steps between proposals.
        seed: of proposals, decisions and velocities.
        log: a path or an open text file, for one CSV row a proposal: step, counts, acceptance so far, log-ratio. A file
            that is opened here is closed by `close`, at the end of a `with` block, or with the object.
        append: go on writing at the end of an existing log.

    Raises:
        MismatchError: for a Simulation of another molecule, with other constraints or at another temperature.
        InvalidInputError: for what is no Simulation or no flow of a molecule, if `frequency` is not a positive integer,
            or the log cannot be written.

    Example:
        monte_carlo = cgf.FlowMonteCarlo(simulation, flow, frequency=500)  # as openmm.app.Metadynamics is used
        monte_carlo.step(simulation, 1_000_000)
        print(monte_carlo.acceptance)
    """

    def __init__(
        self,
        simulation: app.Simulation,
        flow: TrainedFlow,
        frequency: int = 1000,
        seed: int = 0,
        log: str | Path | TextIO | None = None,
        append: bool = False,
    ) -> None:
        self._log: _Log | None = None
        self.flow, self.frequency = flow, whole_number(frequency, "FlowMonteCarlo: frequency")
        self._check(simulation)
        self._sampler = IndependenceSampler(flow, seed)
        if log is not None:
            self._log = _Log(log, append)

    def _check(self, simulation: app.Simulation) -> None:
        """Whether flow and Simulation belong together, and what the dynamics of this System samples."""
        if not isinstance(self.flow, TrainedFlow) or not isinstance(simulation, app.Simulation):
            raise InvalidInputError(
                f"FlowMonteCarlo: simulation is a {type(simulation).__name__} and flow a {type(self.flow).__name__}; "
                "give an openmm.app.Simulation and a CGFlow (of a file: CGFlow.load)."
            )
        check_topology(self.flow, simulation.topology)
        check_system(self.flow, simulation.system)
        check_masses(self.flow, simulation.system)
        self._check_dynamics(simulation)
        if not thermostat_temperatures(simulation.context):
            logging.getLogger("openmm_cgflow").warning(
                "FlowMonteCarlo: no temperature can be read from this integrator (%s); if it has a thermostat, it must "
                "be at %g K, the temperature of the flow.",
                type(simulation.integrator).__name__,
                self.flow.temperature.value_in_unit(unit.kelvin),
            )
        self._simulation, self._metric = simulation, ConstraintMetric(simulation.system)

    def _check_dynamics(self, simulation: app.Simulation) -> None:
        check_dynamics(
            self.flow, simulation.context, "set the thermostat to that, or train a flow at this temperature."
        )

    @property
    def attempted(self) -> int:
        """Proposals so far."""
        return self._sampler.attempted

    @property
    def accepted(self) -> int:
        """Accepted proposals."""
        return self._sampler.accepted

    @property
    def acceptance(self) -> float:
        """Share of accepted proposals; NaN before the first."""
        return self._sampler.acceptance

    @property
    def outside(self) -> int:
        """Proposals made from a structure that the flow never gives, such as another isomer: they must be rejected."""
        return self._sampler.outside

    def step(self, simulation: app.Simulation, steps: int) -> None:
        """Advance the Simulation, with a proposal whenever its step is a multiple of `frequency`.

        Arguments:
            simulation: the Simulation that this was made for.
            steps: number of time steps.
        """
        end = simulation.currentStep + whole_number(steps, "FlowMonteCarlo: steps", least=0)
        while simulation.currentStep < end:
            simulation.step(min(end - simulation.currentStep, self.frequency - simulation.currentStep % self.frequency))
            if simulation.currentStep % self.frequency == 0:
                self.attempt(simulation)

    def attempt(self, simulation: app.Simulation) -> bool:
        """Make one proposal now.

        Returns:
            whether it was accepted.

        Raises:
            MismatchError: if the thermostat was changed meanwhile, or for another Simulation that does not belong.
            TrainingError: if the positions are not finite.
        """
        if simulation is not self._simulation:
            self._check(simulation)
        self._check_dynamics(simulation)
        accepted, log_ratio = attempt(simulation.context, self._sampler, self.flow.temperature, self._metric)
        if self._log is not None:
            s = self._sampler
            self._log.write(
                simulation.currentStep, s.attempted, s.accepted, s.outside, f"{s.acceptance:.6g}", f"{log_ratio:.6g}"
            )
        return accepted

    def close(self) -> None:
        """Close the log, if it was opened here; proposals can still be made, and are no longer written."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_log", None) is not None:
            self.close()

    def saveState(self, file: str | Path) -> None:
        """Write counts and random numbers as JSON; positions are saved by `Simulation.saveState`.

        Raises:
            ModelFileError: if the file cannot be written; an older one there stays.
        """
        write_whole(file, json.dumps({"format": _FORMAT, **self._sampler.state()}).encode())

    def loadState(self, file: str | Path) -> None:
        """Go on with the counts and random numbers that `saveState` wrote.

        Raises:
            ModelFileError: for a file that is missing, damaged, or something else; all stays as it was.
        """
        try:
            state = json.loads(Path(file).read_text(encoding="utf-8"))
            if state.pop("format") != _FORMAT:
                raise ValueError("it says that it is something else")
            self._sampler.restore(state)
        except Exception as error:
            raise ModelFileError(f"{file} is not a state that FlowMonteCarlo.saveState wrote ({error}).") from error


class _Log:
    """CSV rows in a file of someone else's, which stays open, or in one of its own.

    Raises:
        InvalidInputError: if the file cannot be written.
    """

    def __init__(self, target: str | Path | TextIO, append: bool) -> None:
        self._owned = isinstance(target, str | Path)
        new = True
        if isinstance(target, str | Path):
            path = Path(target)
            new = not (append and path.exists() and path.stat().st_size)
            try:
                target = path.open("a" if append else "w", newline="", encoding="utf-8")
            except OSError as error:
                raise InvalidInputError(
                    f"FlowMonteCarlo: the log {path} cannot be written: {error.strerror or error}."
                ) from error
        self._file = target
        self._writer = csv.writer(target)
        if new:
            self._writer.writerow(_COLUMNS)

    def write(self, *row: object) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        if self._owned:
            self._file.close()
