"""OpenMM Contexts as a batched, differentiable torch function."""

import logging
import os
import weakref

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.errors import CGFlowError, InvalidInputError
from openmm_cgflow.potentials.base import EnergyWithGradient, Potential, check_positions
from openmm_cgflow.potentials.evaluator import Evaluator, WorkerPool, fastest_platform
from openmm_cgflow.potentials.translate import check_system

__all__ = ["ContextPotential"]

_log = logging.getLogger(__name__)
_WORTH_SENDING = 0.02  # seconds of work below which a batch stays in this process
_MOST_WORKERS = 16


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ContextPotential(Potential):
    """Energies from OpenMM itself, for any force that OpenMM has.

    Arguments:
        system: An OpenMM System without a periodic box.
        platform: A platform's name; None takes CUDA, HIP or OpenCL where there is one, else the faster of Reference and
            CPU, found by timing.
        workers: Worker processes, each with one Context and one chunk of every batch; 0 evaluates in this process; None
            takes one a core on CPU platforms if there are several cores, and none on GPUs. Processes start at the first
            batch that is worth sending.

    Attributes:
        platform: The name of the platform in use.
        workers: The number of worker processes.

    Raises:
        InvalidInputError: The System is periodic, has virtual sites or no particles; the platform does not exist.
    """

    piece = 128

    def __init__(self, system: openmm.System, platform: str | None = None, workers: int | None = None) -> None:
        check_system(system)
        super().__init__(system.getNumParticles())
        if workers is not None and workers < 0:
            raise InvalidInputError(f"workers is {workers}; give 0 or more, or None")
        if platform is None:
            platform, self._seconds = fastest_platform(system)
        else:
            self._seconds = 1e-4
        self.platform = platform
        self._system = system
        self._evaluate = Evaluator(system, platform)
        self._automatic = workers is None
        if workers is None:
            cores = _available_cores() if platform in ("Reference", "CPU") else 1
            workers = min(cores, _MOST_WORKERS) if cores > 1 else 0
        self.workers = workers
        self._pool: WorkerPool | None = None

    def close(self) -> None:
        """Stop the worker processes; the potential goes on to work, in this process."""
        if self._pool is not None:
            self._pool.close()
        self._pool, self.workers = None, 0

    def _numpy(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        worth = len(x) >= 2 * self.workers and (not self._automatic or len(x) * self._seconds > _WORTH_SENDING)
        if self.workers == 0 or not worth:
            return self._evaluate(x)
        if self._pool is None:
            self._pool = WorkerPool(self._system, self.platform, self.workers)
            weakref.finalize(self, self._pool.close)
        try:
            return self._pool(x)
        except CGFlowError as error:
            self._pool.close()
            self._pool = None
            if not self._automatic:
                raise
            _log.warning("%s: going on in this process", error)
            self.workers = 0
            return self._evaluate(x)

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in kJ/mol and forces (batch, atoms, 3) in kJ/mol/nm, in the dtype of `x`, without a graph.

        Raises:
            InvalidInputError: `x` has another shape than (batch, atoms, 3).
            CGFlowError: A worker process failed and workers had been asked for.
        """
        check_positions(x, self.n_atoms)
        energies, forces = self._numpy(x.detach().cpu().double().numpy())
        self.evaluations += x.shape[0]
        return torch.from_numpy(energies).to(x), torch.from_numpy(forces).to(x)

    def energy(self, x: Tensor) -> Tensor:
        """Energies of `x` (batch, atoms, 3) in nm: (batch,) in kJ/mol, differentiable once in `x`."""
        energy, forces = self.energy_and_forces(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return EnergyWithGradient.apply(x, energy, -forces)
        return energy
