"""Flow proposals as a move of openmmtools' Markov chains."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from openmmtools.mcmc import MCMCMove

from openmm_cgflow.errors import InvalidInputError, MismatchError, ModelFileError
from openmm_cgflow.openmm_plugin.moves.dynamics import ConstraintMetric
from openmm_cgflow.openmm_plugin.moves.matching import check_masses, check_system, check_temperature
from openmm_cgflow.openmm_plugin.moves.monte_carlo import attempt
from openmm_cgflow.openmm_plugin.moves.proposals import IndependenceSampler
from openmm_cgflow.trained import TrainedFlow

if TYPE_CHECKING:
    from openmmtools.cache import ContextCache
    from openmmtools.states import SamplerState, ThermodynamicState

__all__ = ["FlowMove"]


class FlowMove(MCMCMove):
    """An openmmtools move that proposes an independent structure of a flow, accepted by the exact ratio.

    For `SequenceMove`, `MCMCSampler`, `ReplicaExchangeSampler` and the like. Random numbers come from numpy's global
    generator, as in openmmtools' own moves. Energies are those of the force groups that the integrator of the cached
    Context integrates (all of them, with openmmtools' own moves), and constraints count as dynamics has them, as in
    `FlowMonteCarlo`. What is stored of it is the path of the model and a digest of the file.

    Arguments:
        model: the path of a model file, or a flow; only with a path can the move be stored and restored.
        any_temperature: propose at temperatures other than the flow's as well: exact, but seldom accepted far from it.
        context_cache: openmmtools' cache of Contexts; its global one by default.

    Attributes:
        n_proposed: proposals so far.
        n_accepted: accepted ones.

    Raises:
        InvalidInputError: for what is neither a path nor a flow of a molecule.
        ModelFileError: for a file that cannot be read.

    Example:
        move = SequenceMove([LangevinDynamicsMove(n_steps=500), FlowMove("aldp.cgflow")])
        MCMCSampler(thermodynamic_state, sampler_state, move=move).run(1000)
    """

    def __init__(
        self,
        model: str | Path | TrainedFlow,
        any_temperature: bool = False,
        context_cache: "ContextCache | None" = None,
    ) -> None:
        super().__init__(context_cache=context_cache)
        self._path: str | None = None
        self._digest: str | None = None
        if isinstance(model, str | Path):
            self._path = str(Path(model).resolve())
            self._digest, self.flow = _read(self._path)
        elif isinstance(model, TrainedFlow):
            self.flow = model
        else:
            raise InvalidInputError(
                f"FlowMove: model is a {type(model).__name__}; give the path of a model file, or a CGFlow."
            )
        self.any_temperature = any_temperature
        self._sampler: IndependenceSampler | None = None
        self.n_proposed = self.n_accepted = 0

    @property
    def statistics(self) -> dict[str, int]:
        """`n_accepted` and `n_proposed`."""
        return {"n_accepted": self.n_accepted, "n_proposed": self.n_proposed}

    @statistics.setter
    def statistics(self, value: dict[str, int]) -> None:
        self.n_accepted, self.n_proposed = value["n_accepted"], value["n_proposed"]

    def apply(
        self,
        thermodynamic_state: "ThermodynamicState",
        sampler_state: "SamplerState",
        context_cache: "ContextCache | None" = None,
    ) -> None:
        """Make one proposal; the sampler state is changed if it is accepted.

        Arguments:
            thermodynamic_state: NVT state of the flow's molecule, at its temperature unless `any_temperature`.
            sampler_state: is changed in place.
            context_cache: where the Context comes from.

        Raises:
            MismatchError: for another molecule, other constraints, or another temperature.
        """
        if not self.any_temperature:
            check_temperature(
                self.flow,
                thermodynamic_state.temperature,
                "give FlowMove(..., any_temperature=True) to propose there nevertheless, or another move.",
            )
        if self._sampler is None:
            self._sampler = IndependenceSampler(self.flow, int(np.random.randint(2**31 - 1)))
        context, _ = self._get_context_cache(context_cache).get_context(thermodynamic_state)
        system = context.getSystem()
        check_system(self.flow, system)
        check_masses(self.flow, system)
        sampler_state.apply_to_context(context, ignore_velocities=sampler_state.velocities is None)
        accepted, _ = attempt(context, self._sampler, thermodynamic_state.temperature, ConstraintMetric(system))
        if accepted:
            sampler_state.update_from_context(context)
        self.n_proposed += 1
        self.n_accepted += accepted

    def __deepcopy__(self, memo: dict) -> Self:
        """A move of its own, with its own random numbers, that shares the flow."""
        copy = type(self).__new__(type(self))
        copy.__dict__ = {**self.__dict__, "_sampler": None}
        return copy

    def __getstate__(self) -> dict[str, Any]:
        if self._path is None:
            raise ModelFileError(
                "a FlowMove that was made of a flow in memory cannot be stored: save the flow, and make the move of "
                'its path, FlowMove("model.cgflow").'
            )
        state = {"path": self._path, "digest": self._digest, "any_temperature": self.any_temperature}
        return {**state, **self.statistics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._path, self._digest, self.any_temperature = state["path"], state["digest"], state["any_temperature"]
        digest, self.flow = _read(state["path"])
        if digest != self._digest:
            raise MismatchError(
                f"{state['path']} is not the model that this move was stored with; put that file back, or start anew."
            )
        self._sampler = None
        self.statistics = state

    def __str__(self) -> str:
        return f"FlowMove({self._path or self.flow}, accepted {self.n_accepted} of {self.n_proposed})"


def _read(path: str) -> tuple[str, TrainedFlow]:
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest, _load(path, digest)


@lru_cache(maxsize=8)
def _load(path: str, digest: str) -> TrainedFlow:
    """The flow of a file, read once for the many moves that share it."""
    return TrainedFlow.load(path)
