"""What flows of molecules and of plain vectors have in common: training, samples, densities, free energies."""

import hashlib
import json
import logging
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.potentials import Potential
from openmm_cgflow.sampling import Samples
from openmm_cgflow.storage import read_file
from openmm_cgflow.training import BoltzmannTarget, Budget, Metrics, Parallel, Reporter, Trainer, TrainSettings
from openmm_cgflow.training.checkpoint import CheckpointWriter, load_state
from openmm_cgflow.training.interrupt import Interruptible
from openmm_cgflow.units import KB, in_seconds
from openmm_cgflow.version import __version__

__all__ = ["BaseFlow"]

logger = logging.getLogger("openmm_cgflow")

DEFAULT_SECONDS = 480.0


Coordinates = TypeVar("Coordinates", InternalCoordinates, LinearCoordinates)


class BaseFlow(Generic[Coordinates]):
    """A normalizing flow with slow and fast variables, and the potential that it is trained on.

    Arguments:
        potential: energies in kJ/mol.
        coordinates: slow and fast variables.
        kelvin: temperature, K.
        settings: sizes of the networks.
    """

    def __init__(self, potential: Potential, coordinates: Coordinates, kelvin: float, settings: FlowSettings) -> None:
        self.potential, self._kelvin, self._settings = potential, kelvin, settings
        self.coordinates: Coordinates = coordinates
        self.target = BoltzmannTarget(potential, coordinates, KB * kelvin)
        self.flow = JointFlow.build(
            coordinates.sizes, coordinates.reference, coordinates.scale, coordinates.period, settings
        )
        self.seed = settings.seed
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._trainer: Trainer | None = None

    # -- description ------------------------------------------------------------------------------------------------

    @property
    def topology(self) -> app.Topology | None:
        """The molecule; None for vectors."""
        return None

    @property
    def system(self) -> openmm.System | None:
        """Its System; None for vectors."""
        return None

    @property
    def temperature(self) -> unit.Quantity:
        """Temperature of the distribution."""
        return self._kelvin * unit.kelvin

    @property
    def slow_names(self) -> list[str]:
        """Names of the slow variables."""
        return self.coordinates.names[: self.coordinates.sizes[0]]

    @property
    def evaluations(self) -> int:
        """Energies of single configurations computed so far: what training and sampling cost."""
        return self.potential.evaluations

    @property
    def provenance(self) -> dict[str, Any]:
        """Where this model comes from: evaluations, training seconds, seed, version and machine."""
        trained = self.history[-1]["evaluations"] if self.history else 0
        return {
            "evaluations": trained,
            "seconds": self._seconds,
            "seed": self.seed,
            "version": __version__,
            "torch": torch.__version__,
            "openmm": openmm.Platform.getOpenMMVersion(),
            "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        }

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        time: unit.Quantity | float | None = None,
        evaluations: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = True,
        progress: bool = True,
        metrics: str | Path | None = None,
        frames: Any = None,  # noqa: ANN401
        settings: TrainSettings | None = None,
    ) -> Self:
        """Train until the time or the number of evaluations is spent; with neither, for eight minutes.

        Ctrl-C ends the training early and keeps what was learned. Called again, it goes on refining.

        Arguments:
            time: wall-clock time, Quantity or seconds.
            evaluations: energies of single configurations.
            checkpoint: file for the state, written every 15 s and at the end of each stage.
            resume: go on from `checkpoint` where it exists.
            progress: draw a progress bar.
            metrics: CSV file for a row of figures every few seconds.
            frames: MD frames of this molecule at this temperature (`(n, atoms, 3)`, trajectory, Quantity or nm), if any
                exist: the refinement learns from their likelihood too, at a quarter of the weight. Not needed.
            settings: how to train.

        Returns:
            the flow itself.

        Raises:
            TrainingError: if no energy is finite.
            ModelFileError: for a checkpoint that cannot be read or written.
            MismatchError: for a checkpoint of another System, or frames of another molecule.
        """
        seconds = None if time is None else in_seconds(time)
        if seconds is None and evaluations is None:
            seconds = DEFAULT_SECONDS
        for name, value in (("time", seconds), ("evaluations", evaluations)):
            if value is not None and value <= 0:
                raise InvalidInputError(f"train: {name} is {value}; give a positive number.")
        trainer = self._trainer or Trainer(self.flow, self.target, settings, self.seed)
        if frames is not None:
            trainer.frames = self._frames(frames)
        budget = Budget(seconds, evaluations, evaluations_before=self.evaluations)
        history = [Metrics(**row) for row in self.history]
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and resume and path.exists():
            history = self._resume(trainer, budget, path)
        with Reporter(progress, metrics, history) as reporter, Parallel() as parallel, Interruptible() as interrupted:
            self._trainer = trainer
            save = CheckpointWriter(path, trainer, reporter, self._identity())
            try:
                trainer.run(budget, reporter, parallel, save, interrupted)
            finally:
                self.history = [asdict(row) for row in reporter.history]
                self._seconds += budget.elapsed
            save(force=True)
        return self

    def _resume(self, trainer: Trainer, budget: Budget, path: Path) -> list[Metrics]:
        tensors, header = read_file(path, "checkpoint")
        if header["identity"] != self._identity():
            raise MismatchError(
                f"{path} is the checkpoint of another System, temperature, choice of slow variables or seed; "
                "remove it, choose another checkpoint, or start anew with resume=False (--no-resume)."
            )
        history = load_state(trainer, tensors, header)
        budget.seconds_before, budget.evaluations_before = header["seconds"], 0
        logger.info("going on from %s: stage %s, %d evaluations", path, trainer.stage, header["evaluations"])
        return history

    def _identity(self) -> str:
        """A digest of what the training is for."""
        parts = [*self._described(), self._kelvin, self._settings.as_dict(), self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _described(self) -> list[Any]:
        """What tells the target apart from others, as what JSON can hold."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        """What was learned, by name."""
        learned = {f"flow.{name}": t for name, t in self.flow.state_dict().items()}
        return learned | {f"coordinates.{name}": t for name, t in self.coordinates.state_dict().items()}

    def _header(self) -> dict[str, Any]:
        """What belongs to a stored model beside its tensors and its target."""
        return {
            "temperature": self._kelvin,
            "settings": self._settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "seconds": self._seconds,
        }

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Set what `_tensors` and `_header` gave."""
        for name, module in (("flow", self.flow), ("coordinates", self.coordinates)):
            prefix = f"{name}."
            module.load_state_dict({key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)})
        self.seed, self.history, self._seconds = header["seed"], header["history"], header["seconds"]
        if self.history:
            self.potential.evaluations = self.history[-1]["evaluations"]

    # -- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Samples:
        """`n` independent samples with importance weights.

        Equivalent hydrogens of symmetric rotors come in one of their labellings.

        Arguments:
            n: number of samples.
            seed: of the draw; a new one each call by default.

        Raises:
            InvalidInputError: if `n` is not a positive integer.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0:
            raise InvalidInputError(f"sample: n is {n!r}; give a positive number of samples.")
        seed = int(torch.randint(2**31, (1,))) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        with Parallel() as parallel:
            chunks = [self._sample_chunk(min(20_000, n - i), generator, parallel) for i in range(0, n, 20_000)]
        x, log_weights, u, log_density, slow = (torch.cat(column).numpy() for column in zip(*chunks, strict=True))
        return Samples(x, log_weights, u, log_density, slow, self._kelvin, self.topology, tuple(self.slow_names))

    def _sample_chunk(self, n: int, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, ...]:
        def draw(noise: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():  # each thread has its own gradient mode
                q, log_prob = self.flow.sample_from(noise)
                x, logdet = self.coordinates.to_cartesian(q)
                u = self.potential.energy(x) / self.target.kT
            centred = x - x.mean(1, keepdim=True) if x.dim() == 3 else x
            return q, log_prob, centred, logdet, u

        q, log_prob, x, logdet, u = parallel.map(draw, self.flow.draw_noise(n, generator))
        log_density = log_prob.double() - logdet.double()
        log_weights = -u.double() - log_density
        fine = torch.isfinite(log_weights) & self.coordinates.in_domain(q)
        return x, torch.where(fine, log_weights, -torch.inf), u, log_density, q[:, : self.coordinates.sizes[0]]

    def _internal(self, positions: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Internal coordinates and log-determinants of positions, after checking that they can be this molecule's."""
        return self.coordinates.to_internal(torch.as_tensor(self._read(positions)))

    def _read(self, positions: Any) -> np.ndarray:  # noqa: ANN401
        """Structures or vectors `(n, ...)` that may be this flow's, checked."""
        raise NotImplementedError

    def _read_frames(self, frames: Any) -> np.ndarray:  # noqa: ANN401
        """Frames to learn from `(n, ...)`, checked."""
        return self._read(frames)

    def _frames(self, frames: Any) -> Tensor:  # noqa: ANN401
        """Rows `(n, dof)` of frames, without those that the flow cannot give."""
        q, _ = self.coordinates.to_internal(torch.as_tensor(self._read_frames(frames)))
        inside = self.coordinates.in_domain(q)
        outside = int((~inside).sum())
        if outside == len(q):
            raise InvalidInputError(
                f"train: all {outside:,} frames are of the mirror image or of another isomer than the flow's "
                "structure, which it never gives; build the CGFlow from one of the frames, or leave them out."
            )
        if outside:
            logger.warning(
                "train: %d of %d frames are left out: of the mirror image or another isomer than the flow's structure",
                outside,
                len(q),
            )
        return q[inside].float()

    @torch.no_grad()
    def logDensity(self, positions: Any) -> np.ndarray:  # noqa: ANN401
        """Log-density of the flow at positions, per nm^(3 atoms - 6), rigid motion taken out (for vectors: in x).

        Arguments:
            positions: `(atoms, 3)` or `(n, atoms, 3)`, trajectory, Quantity or nm, in any orientation.

        Returns:
            `(n,)`; minus infinity for the other chirality or another isomer.
        """
        return self._log_density(torch.as_tensor(self._read(positions))).numpy()

    def _log_density(self, x: Tensor) -> Tensor:
        """Log-density `(n,)` at structures or vectors `(n, ...)` that need no check."""
        q, logdet = self.coordinates.to_internal(x)
        log_prob = self.flow.log_prob(q.float()).double() - logdet
        return torch.where(self.coordinates.in_domain(q), log_prob, -torch.inf)

    @torch.no_grad()
    def slowVariables(self, positions: Any) -> np.ndarray:  # noqa: ANN401
        """The slow variables `(n, n_slow)` of positions: torsions in radians."""
        return self._internal(positions)[0][:, : self.coordinates.sizes[0]].numpy()

    @torch.no_grad()
    def freeEnergy(self, slow: Any) -> unit.Quantity:  # noqa: ANN401
        """The CG free energy `-kT log q(s)` of slow torsions, in kJ/mol.

        Arguments:
            slow: `(n, n_slow)` or `(n_slow,)`, Quantity or radians.

        Returns:
            Quantity `(n,)`, normalised: `exp(-F / kT)` integrates to one over the torsions.
        """
        values = slow.value_in_unit(unit.radian) if unit.is_quantity(slow) else slow
        s = torch.as_tensor(np.atleast_2d(np.asarray(values, dtype=np.float64)))
        n_slow = self.coordinates.sizes[0]
        if s.shape[1] != n_slow:
            raise MismatchError(f"freeEnergy: slow has shape {tuple(s.shape)}; give (n, {n_slow}): {self.slow_names}.")
        log_prob = self.flow.bead_flow.log_prob_slow(s.float()).double()
        return (-self.target.kT * log_prob).numpy() * unit.kilojoule_per_mole
