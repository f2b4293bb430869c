"""What flows of molecules and of plain vectors have in common: training, samples, densities, free energies."""

import copy
import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError, ModelFileError, TrainingError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.potentials import Potential
from openmm_cgflow.sampling import Samples
from openmm_cgflow.storage import fill, locked, read_file
from openmm_cgflow.training import BoltzmannTarget, Budget, Metrics, Parallel, Reporter, Trainer, TrainSettings
from openmm_cgflow.training.checkpoint import CheckpointWriter, flatten, unflatten
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
            coordinates.sizes, coordinates.centre, coordinates.scale, coordinates.period, settings
        )
        self.seed = settings.seed
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._evaluations_before = 0
        self._training: dict[str, Any] | None = None  # what `load` found of it
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
        return self._evaluations_before + self.potential.evaluations

    @property
    def ended_early(self) -> bool:
        """Whether the last call of `train` was ended before its budget was spent, by Ctrl-C."""
        return self._trainer is not None and self._trainer.loop.call is not None

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

        Every call adds its budget to what was done before: called again, or after `load`, training goes on refining.
        Both limits are kept to a batch. Ctrl-C ends the training early and keeps what was learned.

        With a checkpoint, a call that did not come to its end (killed, or ended by Ctrl-C) is finished by the same call
        in another process: its budget goes on where it was. Of a call that came to its end the checkpoint is a state
        like that of a model: the same call again adds its budget once more. A flow that has been trained further than
        the checkpoint goes on from itself.

        With one seed and a limit of evaluations alone, the result is the same, bit for bit, on one machine, for any
        number of threads.

        Arguments:
            time: wall-clock time, Quantity or seconds.
            evaluations: energies of single configurations.
            checkpoint: file for the state, written every 15 s and at the end of each stage.
            resume: go on from `checkpoint` where it exists.
            progress: draw a progress bar.
            metrics: CSV file for a row of figures every few seconds.
            frames: MD frames of this molecule at this temperature (`(n, atoms, 3)`, trajectory, Quantity or nm), if any
                exist: the refinement of this call learns from their likelihood too, at a quarter of the weight. Not
                needed.
            settings: how to train, from here on; as before by default. A flow that has its start goes on with the other
                stages: a Laplace start or tempering is not done again.

        Returns:
            the flow itself.

        Raises:
            InvalidInputError: for a budget that is too small for anything, or frames of the mirror image or of another
                isomer only.
            TrainingError: if no energy is finite, or if energies turn out to take so long that no start was made.
            ModelFileError: for a checkpoint that cannot be read or written.
            MismatchError: for a checkpoint of another System or another training, or frames of another molecule.

        Example:
            >>> import openmm_cgflow as cgf
            >>> from openmm_cgflow.potentials import DoubleWell
            >>> flow = cgf.VectorFlow(DoubleWell(), slow=[0], width=2.0)
            >>> flow = flow.train(evaluations=2000, progress=False).train(evaluations=1000, progress=False)
            >>> 2900 < flow.provenance["evaluations"] <= 3000
            True
        """
        seconds, limit = _budget(time, evaluations)
        rows = None if frames is None else self._frames(frames)
        trainer = self._trainer or self._new_trainer(settings)
        path = None if checkpoint is None else Path(checkpoint)
        call = (0.0, 0)
        with locked(path):
            if path is not None and resume and path.exists():
                call = self._resume(trainer, path, settings)
            if settings is not None:
                trainer.follow(settings)
            trainer.task.frames, self._trainer = rows, trainer
            fresh = not trainer.history
            with Interruptible() as interrupted, Parallel() as parallel, Reporter(progress, metrics, fresh) as reporter:
                budget = Budget(seconds, limit, call[0], call[1], interrupted)
                save = CheckpointWriter(path, trainer, self._identity())
                before = trainer.loop.evaluations
                try:
                    trainer.run(budget, parallel, reporter, save, interrupted.at_once)
                finally:
                    self.history = [asdict(row) for row in trainer.history]
                    self._seconds = trainer.loop.seconds
                save(force=True)
                if trainer.loop.evaluations == before and not interrupted():
                    logger.warning("train: nothing was trained: what was left of the budget is too little for a batch")
                if trainer.loop.stage == "laplace":
                    if not interrupted():
                        raise TrainingError("train: the time was spent before the start was made; give more of it.")
                    logger.warning("ended before the start was complete: what the flow has learned is of little use")
        return self

    def _new_trainer(self, settings: TrainSettings | None) -> Trainer:
        """A trainer that goes on from what this flow was loaded with."""
        trainer = Trainer(self.flow, self.target, None, self.seed)
        trainer.loop.history = [Metrics(**row) for row in self.history]
        if self._training is not None:
            with _readable("the state of the training in the model file", "train a new CGFlow"):
                trainer.load_state_dict(self._training, settings)
        elif self.history:  # a file of an earlier version
            trainer.loop.seconds, trainer.loop.evaluations = self._seconds, self.history[-1]["evaluations"]
            trainer.trained()
        return trainer

    def _resume(self, trainer: Trainer, path: Path, settings: TrainSettings | None) -> tuple[float, int]:
        """Go on from a checkpoint that is further than this flow; returns what its last call spent, if unfinished."""
        tensors, header = read_file(path, "checkpoint")
        if header.get("identity") != self._identity():
            raise MismatchError(
                f"{path} is the checkpoint of another System, temperature, choice of slow variables or seed; "
                "remove it, choose another checkpoint, or start anew with resume=False (--no-resume)."
            )
        before, recipe = copy.deepcopy(trainer.state_dict()), trainer.task.settings
        try:
            with _readable(path, "remove it, or start anew with resume=False (--no-resume)"):
                ours, theirs = ([json.dumps(row) for row in rows] for rows in (before["history"], header["history"]))
                if ours != theirs[: len(ours)]:
                    if theirs == ours[: len(theirs)]:  # an earlier state of this flow
                        return 0.0, 0
                    raise MismatchError(
                        f"{path} is the checkpoint of another training than this flow's: choose another checkpoint, or "
                        "have it replaced with resume=False (--no-resume)."
                    )
                if self._trainer is not None and ours == theirs:
                    return 0.0, 0
                trainer.load_state_dict(unflatten(tensors, header), settings)
        except CGFlowError:
            trainer.load_state_dict(before, recipe)
            raise
        self._count(trainer.loop.evaluations)
        logger.info("going on from %s: stage %s, %d evaluations", path, trainer.loop.stage, trainer.loop.evaluations)
        return trainer.loop.call or (0.0, 0)

    def _count(self, evaluations: int) -> None:
        """Let `evaluations` go on from here; the potential, which others may use too, keeps its own count."""
        self._evaluations_before = evaluations - self.potential.evaluations

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
        learned |= {f"coordinates.{name}": t for name, t in self.coordinates.state_dict().items()}
        return learned | flatten(self._training_state(), "training/")[0]

    def _header(self) -> dict[str, Any]:
        """What belongs to a stored model beside its tensors and its target."""
        return {
            "temperature": self._kelvin,
            "settings": self._settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "seconds": self._seconds,
            "training": flatten(self._training_state())[1],
        }

    def _training_state(self) -> dict[str, Any]:
        """What a training that goes on from this flow needs beside the flow."""
        return (self._training or {}) if self._trainer is None else self._trainer.state_dict(whole=False)

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Set what `_tensors` and `_header` gave."""
        for name, module in (("flow", self.flow), ("coordinates", self.coordinates)):
            fill(module, tensors, name)
        self.seed, self.history, self._seconds = header["seed"], header["history"], header["seconds"]
        if header.get("training"):
            self._training = unflatten(tensors, header["training"], "training/")
        if self.history:
            self._count(self.history[-1]["evaluations"])

    # -- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Samples:
        """`n` independent samples with importance weights.

        Equivalent hydrogens of symmetric rotors come in one of their labellings, and `logZ` counts one of them:
        `samples.log_labellings`, log 3 for each such rotor, is what it lacks.

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
        return Samples(
            x,
            log_weights,
            u,
            log_density,
            slow,
            self._kelvin,
            self.topology,
            tuple(self.slow_names),
            self.coordinates.log_symmetry,
            self.system,
        )

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
        return x, torch.where(fine, log_weights, -torch.inf), u.double(), log_density, q[:, : self.coordinates.sizes[0]]

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
            `(n,)`; minus infinity for the other chirality or another isomer, and where the density is too small to be
            told from zero.
        """
        return self._log_density(torch.as_tensor(self._read(positions))).numpy()

    def _log_density(self, x: Tensor) -> Tensor:
        """Log-density `(n,)` at structures or vectors `(n, ...)` that need no check."""
        q, logdet = self.coordinates.to_internal(x)
        log_prob = self.flow.log_prob(q.float()).double() - logdet
        fine = self.coordinates.in_domain(q) & ~torch.isnan(log_prob)
        return torch.where(fine, log_prob, -torch.inf)

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


@contextmanager
def _readable(what: str | Path, mend: str) -> Iterator[None]:
    """Whatever goes wrong where stored values are taken over is one error.

    Raises:
        ModelFileError: for values that are missing or of another kind or shape.
    """
    try:
        yield
    except CGFlowError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{what} is damaged, or of another version of openmm_cgflow "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); {mend}."
        ) from error


def _budget(time: Any, evaluations: int | None) -> tuple[float | None, int | None]:  # noqa: ANN401
    """Seconds and evaluations of a call, after checking them."""
    seconds = None if time is None else in_seconds(time)
    if seconds is None and evaluations is None:
        seconds = DEFAULT_SECONDS
    for name, value in (("time", seconds), ("evaluations", evaluations)):
        if value is not None and not 0 < value < np.inf:
            raise InvalidInputError(f"train: {name} is {value}; give a positive number.")
    return seconds, None if evaluations is None else max(1, int(evaluations))
