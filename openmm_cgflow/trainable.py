"""How flows are trained: a call has a budget, may be interrupted, and goes on from a file, or from what was there."""

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from openmm import unit
from torch import Tensor

from openmm_cgflow.compute import plain_torch
from openmm_cgflow.counts import many
from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError, ModelFileError, TrainingError
from openmm_cgflow.storage import digest_of, locked, read_file
from openmm_cgflow.trained.base import Coordinates, Trained
from openmm_cgflow.training import Budget, Metrics, Reporter, Trainer, TrainSettings
from openmm_cgflow.training.checkpoint import CheckpointWriter, unflatten
from openmm_cgflow.training.interrupt import Interruptible
from openmm_cgflow.training.metrics_file import drop_rows_after
from openmm_cgflow.units import PositionsLike, in_seconds

__all__ = ["Trainable"]

_log = logging.getLogger("openmm_cgflow")
_DEFAULT_SECONDS = 480.0


class Trainable(Trained[Coordinates]):
    """A flow with `train`."""

    _trainer: Trainer | None = None
    _ended_early = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A flow of its own, which goes on with its training as one that was loaded does."""
        made = copy.copy(self)
        memo[id(self)] = made
        vars(made).pop("_trainer", None)
        vars(made).update({name: copy.deepcopy(value, memo) for name, value in vars(made).items()})
        return made

    @property
    def ended_early(self) -> bool:
        """Whether the last call of `train` was ended before its budget was spent, by Ctrl-C."""
        return self._ended_early

    @plain_torch
    def train(
        self,
        time: unit.Quantity | float | None = None,
        evaluations: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = True,
        progress: bool = True,
        metrics: str | Path | None = None,
        frames: PositionsLike = None,
        settings: TrainSettings | None = None,
        audit: bool = True,
    ) -> Self:
        """Train until the time or the number of evaluations is spent; with neither, for eight minutes.

        Of a molecule, it then looks for forms that the flow does not reach: see `audit`, and `coverage` afterwards.
        This takes at most a tenth of what the training took, out of the time or evaluations that are given here. A
        training that was ended by Ctrl-C, or is too short, is not audited, and `coverage` says so.

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
            metrics: CSV file for a row of figures every few seconds. Rows that are beyond the checkpoint are dropped.
            frames: MD frames of this molecule at this temperature (`(n, atoms, 3)`, trajectory, Quantity or nm), if any
                exist: the refinement of this call learns from their likelihood too, at a quarter of the weight. Not
                needed.
            settings: how to train, from here on; as before by default. A flow that has its start goes on with the other
                stages: a Laplace start or tempering is not done again.
            audit: whether to make one, of a molecule.

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
        with self._followed_up(*_budget(time, evaluations), audit) as (seconds, limit):
            self._train(seconds, limit, checkpoint, resume, progress, metrics, frames, settings)
        return self

    @contextmanager
    def _followed_up(
        self, seconds: float | None, evaluations: int | None, wanted: bool
    ) -> Iterator[tuple[float | None, int | None]]:
        """Gives what the training may take of a budget, and after it does, if it is wanted, what follows a training."""
        yield seconds, evaluations

    def _train(
        self,
        seconds: float | None,
        limit: int | None,
        checkpoint: str | Path | None,
        resume: bool,
        progress: bool,
        metrics: str | Path | None,
        frames: PositionsLike,
        settings: TrainSettings | None,
    ) -> None:
        self._ended_early = False
        if settings is not None and not isinstance(settings, TrainSettings):
            raise InvalidInputError(f"train: settings is a {type(settings).__name__}; give TrainSettings(...).")
        rows = None if frames is None else self._frames(frames)
        trainer = self._trainer or self._new_trainer(settings)
        path = None if checkpoint is None else Path(checkpoint)
        call = (0.0, 0)
        with locked(path):
            if path is not None and resume and path.exists():
                call = self._resume(trainer, path, settings)
                if metrics is not None:
                    drop_rows_after(metrics, trainer.history)
            if settings is not None:
                trainer.follow(settings)
            trainer.task.frames, self._trainer = rows, trainer
            self._take_over(trainer)  # the checkpoint's, whatever happens now
            trainer.task.forms = self._forms() if trainer.loop.stage == "laplace" else None
            fresh = not trainer.history
            with (
                Interruptible() as interrupted,
                self.compute.parallel(self.target.potential.recordable) as parallel,
                Reporter(progress, metrics, fresh) as reporter,
            ):
                budget = Budget(seconds, limit, call[0], call[1], interrupted)
                save = CheckpointWriter(path, trainer, "" if path is None else self._identity())
                before = trainer.loop.evaluations
                try:
                    trainer.run(budget, parallel, reporter, save, interrupted.at_once)
                finally:
                    self._ended_early = trainer.loop.call is not None and interrupted()
                    self._take_over(trainer, trainer.loop.evaluations > before)
                save(force=True)
                if trainer.loop.evaluations == before and not interrupted():
                    _log.warning("train: nothing was trained: what was left of the budget is too little for a batch")
                if trainer.loop.stage == "laplace":
                    if not interrupted():
                        raise TrainingError("train: the time was spent before the start was made; give more of it.")
                    _log.warning("ended before the start was complete: what the flow has learned is of little use")

    def _take_over(self, trainer: Trainer, here: bool = False) -> None:
        """What a model file keeps of a training; `here` if something was trained by this process."""
        self.history = [asdict(row) for row in trainer.history]
        self._seconds = trainer.loop.seconds
        self._keep_training(trainer.state_dict(whole=False), here)

    @property
    def _spent(self) -> int:
        """Evaluations of all trainings."""
        if self._trainer is not None:
            return self._trainer.loop.evaluations
        return self._training.get("evaluations", self.history[-1]["evaluations"] if self.history else 0)

    def _new_trainer(self, settings: TrainSettings | None) -> Trainer:
        """A trainer that goes on from what this flow was loaded with."""
        trainer = Trainer(self.flow, self.target, None, self.seed)
        trainer.loop.history = [Metrics(**row) for row in self.history]
        if self._training:
            with _readable("the state of the training in the model file", "train a new CGFlow"):
                trainer.load_state_dict(self._training, settings)
        elif self.history:  # a file of an earlier version
            trainer.loop.seconds, trainer.loop.evaluations = self._seconds, self.history[-1]["evaluations"]
            trainer.trained()
        return trainer

    def _resume(self, trainer: Trainer, path: Path, settings: TrainSettings | None) -> tuple[float, int]:
        """Go on from a checkpoint that is further than this flow; returns what its last call spent, if unfinished."""
        tensors, header = read_file(path, "checkpoint")
        if all(header.get("identity") != self._identity(with_version) for with_version in (False, True)):
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
        _log.info("going on from %s: stage %s, %d evaluations", path, trainer.loop.stage, trainer.loop.evaluations)
        return trainer.loop.call or (0.0, 0)

    def _identity(self, with_version: bool = False) -> str:
        """A digest of what the training is for, see `digest_of`."""
        return digest_of([*self._described(), self._kelvin, self._settings.as_dict(), self.seed], with_version)

    def _described(self) -> list[Any]:
        """What tells the target apart from others, as what JSON can hold."""
        raise NotImplementedError

    def _forms(self) -> Tensor | None:
        """Rows `(k, dof)` of minima that are known before the training, if there are any."""
        return None

    def _read_frames(self, frames: PositionsLike) -> np.ndarray:
        """Frames to learn from `(n, ...)`, checked."""
        return self._read(frames)

    def _frames(self, frames: PositionsLike) -> Tensor:
        """Rows `(n, dof)` of frames, without those that the flow cannot give."""
        q, _ = self.coordinates.to_internal(self.compute.tensor(self._read_frames(frames)))
        inside = self.coordinates.in_domain(q)
        outside = int((~inside).sum())
        if outside == len(q):
            raise InvalidInputError(
                f"train: all {outside:,} frames are of the mirror image or of another isomer than the flow's "
                "structure, which it never gives; build the CGFlow from one of the frames, or leave them out."
            )
        if outside:
            _log.warning(
                "train: %d of %d frames are left out: of the mirror image or another isomer than the flow's structure",
                outside,
                len(q),
            )
        return q[inside].float()


@contextmanager
def _readable(what: str | Path, fix: str) -> Iterator[None]:
    """Whatever goes wrong where stored values are taken over is one error.

    Raises:
        ModelFileError: for values that are missing or of another kind or shape.
    """
    try:
        yield
    except (InvalidInputError, MismatchError):
        raise
    except (AttributeError, IndexError, KeyError, ModelFileError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{what} is damaged, or of another version of openmm_cgflow "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); {fix}."
        ) from error


def _budget(time: unit.Quantity | float | None, evaluations: int | None) -> tuple[float | None, int | None]:
    """Seconds and evaluations of a call, after checking them."""
    seconds = None if time is None else in_seconds(time)
    if seconds is None and evaluations is None:
        seconds = _DEFAULT_SECONDS
    if seconds is not None and seconds <= 0:
        raise InvalidInputError(f"train: time is {seconds}; give a positive number.")
    return seconds, None if evaluations is None else many(evaluations, "train: evaluations")
