"""A training's state as tensors and plain values, from which it goes on as if it had not been interrupted."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.storage import fill, read_as, write_file
from openmm_cgflow.training.reporter import Metrics, Reporter
from openmm_cgflow.training.trainer import Trainer

__all__ = ["CheckpointWriter", "load_state", "save_state"]

_SECONDS = 15.0


def save_state(trainer: Trainer, history: list[Metrics]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest as JSON-able values."""
    tensors = {f"flow.{name}": t for name, t in trainer.flow.state_dict().items()}
    tensors |= {f"average.{name}": t for name, t in trainer.average.state_dict().items()}
    tensors |= {f"coordinates.{name}": t for name, t in trainer.target.coordinates.state_dict().items()}
    if trainer.broad is not None:
        tensors |= {f"broad.{name}": t for name, t in trainer.broad.state_dict().items()}
    tensors["generator"] = trainer.generator.get_state()
    if trainer.optimizer is not None:
        for index, state in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(t) for name, t in state.items()}
    header = {"stage": trainer.stage, "dropped": trainer.replay.dropped, "evaluations": trainer.target.evaluations}
    header |= {"seconds": trainer.budget.elapsed, "history": [asdict(row) for row in history]}
    if trainer.settings.tempering is not None:
        header["tempering"] = vars(trainer.settings.tempering)
    return tensors, header


@dataclass
class StoredState:
    """What a checkpoint says beside its tensors."""

    stage: Literal["laplace", "tempering", "soft", "refine"]
    dropped: int
    evaluations: int
    seconds: float
    identity: str
    history: list[Metrics] = field(metadata={"finite": False})
    tempering: dict[str, int | float | None] = field(default_factory=dict)


def load_state(trainer: Trainer, tensors: dict[str, Tensor], header: dict[str, Any]) -> list[Metrics]:
    """Set the trainer to the saved state; returns the rows of its history.

    Raises:
        ModelFileError: for a state that is not one of this trainer.
    """
    stored = read_as(StoredState, header, "the description")
    if stored.tempering and set(stored.tempering) != set(vars(trainer.settings.tempering or object)):
        raise ModelFileError("the description has another kind of tempering than the settings")
    modules: dict[str, nn.Module] = {
        "flow": trainer.flow,
        "average": trainer.average,
        "coordinates": trainer.target.coordinates,
    }
    if any(name.startswith("broad.") for name in tensors):
        trainer.broad = modules["broad"] = copy.deepcopy(trainer.flow.bead_flow.slow)
    for name, module in modules.items():
        fill(module, tensors, name)
    trainer.generator.set_state(tensors["generator"])
    trainer.stage, trainer.replay.dropped = stored.stage, stored.dropped
    trainer.target.potential.evaluations = stored.evaluations
    for name, value in stored.tempering.items():
        setattr(trainer.settings.tempering, name, value)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    if state:
        trainer.make_optimizer()
        assert trainer.optimizer is not None
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    return stored.history


class CheckpointWriter:
    """Writes the trainer's state, not more often than every few seconds unless forced."""

    def __init__(self, path: Path | None, trainer: Trainer, reporter: Reporter, identity: str) -> None:
        self._path, self._trainer, self._reporter, self._identity = path, trainer, reporter, identity
        self._last = 0.0

    def __call__(self, force: bool = False) -> None:
        """Write, if it is time or `force`."""
        elapsed = self._trainer.budget.elapsed
        if self._path is None or not (force or elapsed - self._last > _SECONDS):
            return
        tensors, header = save_state(self._trainer, self._reporter.history)
        write_file(self._path, "checkpoint", tensors, header | {"identity": self._identity})
        self._last = elapsed
