"""OpenMM Contexts as a batched, differentiable torch function."""

import logging
import os
import threading
import weakref
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.compute import available_cores
from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.potentials.base import EnergyWithGradient, Potential, check_positions
from openmm_cgflow.potentials.contexts.evaluator import Evaluator, Result, fastest_platform
from openmm_cgflow.potentials.contexts.workers import WorkerPool
from openmm_cgflow.potentials.systems import check_system, without_barostats

__all__ = ["ContextPotential"]

_log = logging.getLogger("openmm_cgflow")
_WORTH_SENDING = 0.02  # seconds of work below which a batch stays in this process
_MOST_WORKERS = 16


def _as_xml(system: openmm.System) -> str | None:
    """The System as it is now, or None where it cannot be written."""
    try:
        return openmm.XmlSerializer.serialize(system)
    except Exception as error:  # whatever a pickle of the user's own function raises
        _log.debug("no XML of the System: %s", error)
        return None


class ContextPotential(Potential):
    """Energies from OpenMM itself, for any force that OpenMM has.

    Threads may share a potential: they wait for one another, since a Context holds one set of positions at a time and
    the worker processes work on one batch at a time. A fork of the process makes Contexts of its own.

    Arguments:
        system: An OpenMM System without a periodic box. Changes that are made to it later do not count.
        platform: A platform's name; None takes CUDA, HIP or OpenCL where there is one, else CPU or Reference,
            whichever should be faster for this System.
        workers: Worker processes, each with one Context and one chunk of every batch; 0 evaluates in this process; None
            takes one a core on CPU platforms if there are several cores, and none on GPUs. Processes start at the first
            batch that is worth sending.

    Attributes:
        platform: The name of the platform in use.
        workers: The number of worker processes.

    Raises:
        InvalidInputError: The System is periodic, has virtual sites or no particles; the platform does not exist; or
            OpenMM cannot make a Context.

    Example:
        >>> import openmm, torch
        >>> system, spring = openmm.System(), openmm.HarmonicBondForce()
        >>> _ = system.addParticle(1.0), system.addParticle(1.0), spring.addBond(0, 1, 0.1, 1000.0)
        >>> _ = system.addForce(spring)
        >>> potential = ContextPotential(system, platform="Reference", workers=0)
        >>> round(potential.energy(torch.tensor([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]])).item(), 4)
        5.0
    """

    piece = 128

    def __init__(self, system: openmm.System, platform: str | None = None, workers: int | None = None) -> None:
        check_system(system)
        super().__init__(system.getNumParticles())
        if workers is not None and workers < 0:
            raise InvalidInputError(f"workers is {workers}; give 0 or more, or None")
        self._system = without_barostats(system)
        self._evaluator: Evaluator | None
        if platform is None:
            platform, self._evaluator, self._seconds = fastest_platform(self._system)
        else:
            self._evaluator, self._seconds = Evaluator(self._system, platform), 1e-4
        self.platform = platform
        self._automatic = workers is None
        if workers is None:
            cores = available_cores() if platform in ("Reference", "CPU") else 1
            workers = min(cores, _MOST_WORKERS) if cores > 1 else 0
        self.workers = workers
        self._xml = _as_xml(self._system)
        if self._xml is None and self._automatic:
            self.workers = 0
        self._pool: WorkerPool | None = None
        self._asking = threading.Lock()
        _LIVING.add(self)

    def close(self) -> None:
        """Stop the worker processes; the potential goes on to work, in this process."""
        with self._asking:
            self._stop()

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool, self.workers = None, 0

    def start_anew(self) -> None:
        """Begin with other Contexts and workers than those of the process that this one is a fork of."""
        _ABANDONED.append((self._evaluator, self._pool))
        self._evaluator, self._pool, self._asking = None, None, threading.Lock()

    def energies_here(self, x: np.ndarray) -> np.ndarray:
        """Energies (batch,) in kJ/mol of `x` (batch, atoms, 3) nm, computed in this process, and not counted."""
        with self._asking:
            return self._ask_here(x)[0]

    def _ask(self, x: np.ndarray) -> Result:
        """The one place where energies come from: one question at a time."""
        with self._asking:
            worth = len(x) >= 2 * self.workers and (not self._automatic or len(x) * self._seconds > _WORTH_SENDING)
            return self._ask_workers(x) if self.workers and worth else self._ask_here(x)

    def _ask_here(self, x: np.ndarray) -> Result:
        if self._evaluator is None:
            system = self._system if self._xml is None else openmm.XmlSerializer.deserialize(self._xml)
            self._evaluator = Evaluator(system, self.platform)
        return self._evaluator(x)

    def _ask_workers(self, x: np.ndarray) -> Result:
        if self._xml is None:
            raise InvalidInputError(
                "worker processes need the System as XML, which cannot be made of it (is there a PythonForce of a "
                "lambda or of an inner function?): define that function at the top of a module, or give workers=0"
            )
        if self._pool is None:
            self._pool = WorkerPool(self._xml, self.platform, self.workers)
            weakref.finalize(self, self._pool.close)
        try:
            if self._automatic and not self._pool.ready():  # nobody waits while processes start
                return self._ask_here(x)
            return self._pool(x)
        except CGFlowError as error:
            self._pool.close()
            self._pool = None
            if not self._automatic:
                raise
            _log.warning("%s: going on in this process", error)
            self.workers = 0
            return self._ask_here(x)
        except BaseException:  # the pool has ended its workers
            self._pool = None
            raise

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in kJ/mol and forces, shaped as `x`, in kJ/mol/nm, without a graph.

        Energies are in double precision, forces in the dtype of `x`.

        Raises:
            InvalidInputError: `x` has another shape than (batch, atoms, 3).
            CGFlowError: A worker process failed and workers had been asked for.
        """
        check_positions(x, self.n_atoms)
        energies, forces = self._ask(x.detach().cpu().double().numpy())
        self.count(x.shape[0])
        return torch.from_numpy(energies).to(x.device), torch.from_numpy(forces).to(x)

    def energy(self, x: Tensor) -> Tensor:
        """Energies of `x` (batch, atoms, 3) in nm: (batch,) in kJ/mol, float64, differentiable once in `x`."""
        energy, forces = self.energy_and_forces(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return EnergyWithGradient.apply(x, energy, -forces)
        return energy


_LIVING: "weakref.WeakSet[ContextPotential]" = weakref.WeakSet()
_ABANDONED: list[Any] = []  # Contexts of another process: to destroy one here would wait for threads that do not exist


def _after_fork() -> None:
    for potential in list(_LIVING):
        potential.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
