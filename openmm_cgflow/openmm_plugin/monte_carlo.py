"""Flow proposals between the steps of a Simulation."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import openmm
from openmm import app, unit

from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.openmm_plugin.matching import check_system, check_temperature, check_topology
from openmm_cgflow.openmm_plugin.proposals import IndependenceSampler
from openmm_cgflow.units import KB

if TYPE_CHECKING:
    from openmm_cgflow.model import CGFlow

__all__ = ["FlowMonteCarlo", "attempt"]

_COLUMNS = ("step", "attempted", "accepted", "outside", "acceptance", "log_ratio")


def attempt(context: openmm.Context, sampler: IndependenceSampler, temperature: unit.Quantity) -> tuple[bool, float]:
    """One proposal for the structure of a Context, accepted or rejected exactly; velocities are redrawn if accepted.

    Arguments:
        context: whose positions are replaced, and whose energy decides.
        sampler: makes the proposals.
        temperature: of the Context.

    Returns:
        whether it was accepted, and the log of the ratio of the weights.
    """
    beta = 1 / (KB * temperature.value_in_unit(unit.kelvin))
    state = context.getState(positions=True, energy=True)
    old = state.getPositions(asNumpy=True)
    x = old.value_in_unit(unit.nanometer)
    proposal, log_q_new = sampler.propose(x)
    log_q_old = float(sampler.flow.logDensity(x)[0])
    context.setPositions(proposal)
    u_old, u_new = (
        beta * s.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        for s in (state, context.getState(energy=True))
    )
    accepted, log_ratio = sampler.decide(u_old, u_new, log_q_old, log_q_new)
    if accepted:
        context.setVelocitiesToTemperature(temperature, sampler.velocity_seed())
    else:
        context.setPositions(old)
    return accepted, log_ratio


class FlowMonteCarlo:
    """Molecular dynamics with global moves: every so many steps, a structure of the flow is proposed.

    Used like `openmm.app.Metadynamics`:

        monte_carlo = cgf.FlowMonteCarlo(simulation, flow, frequency=500)
        monte_carlo.step(simulation, 1_000_000)

    A proposal replaces all positions (its centroid stays) and is accepted with the exact probability, by the energy
    that the Simulation's own Context gives, so that the Boltzmann distribution of its System is kept, whatever the
    quality of the flow. The System may differ from the one that the flow was trained on in its forces, not in atoms,
    constraints or temperature. When a proposal is accepted, velocities are drawn anew.

    Arguments:
        simulation: of this molecule, with a thermostat at the flow's temperature.
        flow: where the proposals come from.
        frequency: steps between proposals.
        seed: of proposals, decisions and velocities.
        log: a path or an open text file, for one CSV row a proposal: step, counts, acceptance so far, log-ratio.
        append: go on writing at the end of an existing log.

    Raises:
        MismatchError: for a Simulation of another molecule, with other constraints or at another temperature.
        InvalidInputError: if `frequency` is not a positive integer.
    """

    def __init__(
        self,
        simulation: app.Simulation,
        flow: "CGFlow",
        frequency: int = 1000,
        seed: int = 0,
        log: str | Path | TextIO | None = None,
        append: bool = False,
    ) -> None:
        if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
            raise InvalidInputError(f"FlowMonteCarlo: frequency is {frequency!r}; give a positive number of steps.")
        check_topology(flow, simulation.topology)
        check_system(flow, simulation.system)
        self.flow, self.frequency = flow, frequency
        self._sampler = IndependenceSampler(flow, seed)
        self._check_temperature(simulation)
        self._file: TextIO | None = None
        self._writer: Any = None
        if log is not None:
            new = not (append and isinstance(log, str | Path) and Path(log).exists())
            self._file = (
                open(log, "a" if append else "w", newline="", encoding="utf-8")  # noqa: SIM115 (stays open for later rows)
                if isinstance(log, str | Path)
                else log
            )
            self._writer = csv.writer(self._file)
            if new:
                self._writer.writerow(_COLUMNS)

    def _check_temperature(self, simulation: app.Simulation) -> None:
        if hasattr(simulation.integrator, "getTemperature"):
            temperature = simulation.integrator.getTemperature()
            check_temperature(self.flow, temperature, "set the integrator to that, or train a flow at this one.")

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
        end = simulation.currentStep + steps
        while simulation.currentStep < end:
            simulation.step(min(end - simulation.currentStep, self.frequency - simulation.currentStep % self.frequency))
            if simulation.currentStep % self.frequency == 0:
                self.attempt(simulation)

    def attempt(self, simulation: app.Simulation) -> bool:
        """Make one proposal now.

        Returns:
            whether it was accepted.

        Raises:
            MismatchError: if the integrator's temperature was changed meanwhile.
        """
        self._check_temperature(simulation)
        accepted, log_ratio = attempt(simulation.context, self._sampler, self.flow.temperature)
        if self._writer is not None and self._file is not None:
            s = self._sampler
            row = (s.attempted, s.accepted, s.outside, f"{s.acceptance:.6g}", f"{log_ratio:.6g}")
            self._writer.writerow((simulation.currentStep, *row))
            self._file.flush()
        return accepted

    def saveState(self, file: str | Path) -> None:
        """Write counts and random numbers as JSON; positions are saved by `Simulation.saveState`.

        Raises:
            ModelFileError: if the file cannot be written.
        """
        try:
            Path(file).write_text(json.dumps({"format": "openmm_cgflow FlowMonteCarlo", **self._sampler.state()}))
        except OSError as error:
            raise ModelFileError(f"{file} cannot be written: {error.strerror or error}.") from error

    def loadState(self, file: str | Path) -> None:
        """Go on with the counts and random numbers that `saveState` wrote.

        Raises:
            ModelFileError: for a file that is missing, damaged, or something else.
        """
        try:
            self._sampler.restore(json.loads(Path(file).read_text()))
        except Exception as error:
            raise ModelFileError(f"{file} is not a state that FlowMonteCarlo.saveState wrote ({error}).") from error
