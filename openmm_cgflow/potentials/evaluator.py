"""One OpenMM Context that evaluates many configurations, and the worker processes that hold more of them."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import openmm
from openmm import unit

from openmm_cgflow.errors import CGFlowError, InvalidInputError

__all__ = ["Evaluator", "WorkerPool", "fastest_platform"]

_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
Result = tuple[np.ndarray, np.ndarray]


class Evaluator:
    """A Context of `system` on a named platform: one thread on CPUs, mixed precision on GPUs."""

    def __init__(self, system: openmm.System, platform: str) -> None:
        try:
            chosen = openmm.Platform.getPlatformByName(platform)
        except openmm.OpenMMException as error:
            known = ", ".join(
                openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
            )
            raise InvalidInputError(f"no OpenMM platform is named {platform!r}; there are: {known}") from error
        properties = (
            {"Threads": "1"} if platform == "CPU" else {"Precision": "mixed"} if platform in _GPU_PLATFORMS else {}
        )
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen, properties)

    def __call__(self, x: np.ndarray) -> Result:
        """Energies (batch,) in kJ/mol and forces, as `x` (batch, atoms, 3) nm; NaN where positions are not finite."""
        energies = np.full(len(x), np.nan)
        forces = np.full(x.shape, np.nan)
        for k in np.flatnonzero(np.isfinite(x).all(axis=(1, 2))):
            self._context.setPositions(x[k])
            state = self._context.getState(getEnergy=True, getForces=True)
            energies[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            forces[k] = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return energies, forces

    def seconds(self, x: np.ndarray, repeats: int = 3) -> float:
        """Shortest time of one evaluation of `x` (atoms, 3), in seconds, after one that does not count."""
        self(x[None])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self(x[None])
            times.append(time.perf_counter() - start)
        return min(times)


def _starting_positions(n_atoms: int) -> np.ndarray:
    """Points on a cubic lattice, 0.15 nm apart, slightly shaken: good enough to time a force field."""
    side = int(np.ceil(n_atoms ** (1 / 3)))
    lattice = 0.15 * np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    return lattice + np.random.default_rng(0).normal(0.0, 0.01, (n_atoms, 3))


def fastest_platform(system: openmm.System) -> tuple[str, float]:
    """The platform to use and the seconds that one evaluation takes there.

    CUDA, then HIP, then OpenCL if such a Context can be made; else the faster of Reference and CPU (one thread).
    """
    x = _starting_positions(system.getNumParticles())
    present = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    for name in _GPU_PLATFORMS:
        if name in present:
            try:
                return name, Evaluator(system, name).seconds(x)
            except openmm.OpenMMException:
                continue
    timed = {name: Evaluator(system, name).seconds(x) for name in ("Reference", "CPU") if name in present}
    best = min(timed, key=lambda name: timed[name])
    return best, timed[best]


def _serve(connection: Connection, system_xml: str, platform: str) -> None:
    """Answer chunks of positions with (energies, forces), or with the text of an error, until told to stop."""
    try:
        evaluate = Evaluator(openmm.XmlSerializer.deserialize(system_xml), platform)
        while (x := connection.recv()) is not None:
            try:
                connection.send(evaluate(x))
            except Exception as error:
                connection.send(f"{type(error).__name__}: {error}")
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep spawned processes from running the user's script again: they need this package alone."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__.pop("__file__", None)
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


class WorkerPool:
    """Processes, each with a Context of its own, that evaluate one chunk of a batch each."""

    def __init__(self, system: openmm.System, platform: str, workers: int) -> None:
        xml = openmm.XmlSerializer.serialize(system)
        context = multiprocessing.get_context("spawn")
        self._workers = []
        with _script_hidden():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, xml, platform), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))

    def __call__(self, x: np.ndarray) -> Result:
        """As `Evaluator`, with the batch cut into one chunk a worker.

        Raises:
            CGFlowError: A worker failed or died; the message says how.
        """
        chunks = np.array_split(x, len(self._workers))
        try:
            for (_, connection), chunk in zip(self._workers, chunks, strict=True):
                connection.send(chunk)
            answers = [connection.recv() for _, connection in self._workers]
        except (EOFError, OSError) as error:
            codes = [process.exitcode for process, _ in self._workers]
            self.close()
            raise CGFlowError(f"a worker process that evaluates energies died (exit codes {codes})") from error
        if failed := [answer for answer in answers if isinstance(answer, str)]:
            raise CGFlowError(f"a worker process could not evaluate energies: {failed[0]}")
        return np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers])

    def close(self) -> None:
        """Stop the processes; may be called twice."""
        for _, connection in self._workers:
            with suppress(OSError):
                connection.send(None)
            connection.close()
        for process, _ in self._workers:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self._workers = []
