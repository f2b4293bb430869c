"""What the stages of a training share: the flow, its target, and what they hand to one another."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openmm_cgflow.compute import CHUNK
from openmm_cgflow.flows import JointFlow
from openmm_cgflow.sampling import BoltzmannTarget, Drawn
from openmm_cgflow.storage import fill, read_as
from openmm_cgflow.training.broad import Broad
from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.replay import Replay
from openmm_cgflow.training.settings import TrainSettings
from openmm_cgflow.training.start import soft_and_stiff

__all__ = ["BUFFER", "Task"]

BUFFER = 0.05  # of the budget: a buffer
_PROBING = 0.05  # of the seconds, and of the evaluations, at most, to see how long energies take


@dataclass
class Task:
    """A flow to be trained on a target.

    Attributes:
        flow: trained in place.
        target: what to sample.
        settings: the recipe.
        generator: of everything random.
        frames: rows `(n, dof)` of a simulation to learn from as well, if there are any.
        forms: rows `(k, dof)`, minima that are known before, such as the other chair of a ring: the start has them.
        broad: the densities of the soft variables at the start, once there are any.
        soft: `(n_soft,)` indices of the soft variables.
        stiff: `(n_stiff,)` indices of the stiff coordinates.
        replay: own samples, kept.
    """

    flow: JointFlow
    target: BoltzmannTarget
    settings: TrainSettings
    generator: torch.Generator
    frames: Tensor | None = None
    forms: Tensor | None = None
    broad: Broad | None = None
    soft: Tensor = field(init=False)
    stiff: Tensor = field(init=False)
    replay: Replay = field(init=False)

    def __post_init__(self) -> None:
        self.soft, self.stiff = soft_and_stiff(self.flow.sizes, self.target.coordinates.reference.device)
        self.replay = Replay(self.settings, self.soft, self.target.coordinates.span, self.generator)

    def follow(self, settings: TrainSettings) -> None:
        """Go on with another recipe."""
        self.settings = self.replay.settings = settings

    def begin_anew(self) -> None:
        """Forget what another start has left: its samples, and the couplings, which a start takes for the identity."""
        self.replay.clear()
        for density in self.flow.stiff_densities():
            density.reset_couplings()

    def soft_parameters(self) -> list[nn.Parameter]:
        """Parameters of the densities of the soft variables."""
        return [*self.flow.bead_flow.slow.parameters(), *self.flow.atom_flow.rotors.parameters()]

    def stiff_parameters(self) -> list[nn.Parameter]:
        """Parameters of the densities of the stiff coordinates."""
        return [p for density in self.flow.stiff_densities() for p in density.parameters()]

    def seed(self) -> int:
        """A seed for what has no generator."""
        return int(torch.randint(2**31, (1,), generator=self.generator))

    def time_energies(self, loop: Loop) -> None:
        """See how long energies take, in batches that grow as long as that is quick, where time is limited."""
        budget, rows = loop.budget, 8  # a single one takes nearly as long, where energies are quick
        if budget.seconds is None:
            return
        few = math.inf if budget.evaluations is None else _PROBING * budget.evaluations
        structure = self.target.coordinates.reference.float().unsqueeze(0)
        loop.parallel.map(self.target.action_and_gradient, structure)  # the first one of all takes longer
        while True:
            began = budget.clock()
            with loop.timed():
                loop.parallel.map(self.target.action_and_gradient, structure.expand(rows, -1))
            rows *= 8
            if rows > CHUNK or rows > few or 8 * (budget.clock() - began) > _PROBING * budget.seconds:
                return

    def draw_buffer(self, loop: Loop, most: int, beta: float = 1.0) -> dict[str, float]:
        """Keep up to `most` own samples, with their weights at an inverse temperature; returns the flow's figures.

        Raises:
            Spent: if the budget does not have enough for any.
        """
        noise = self.flow.draw_noise(loop.rows(most, BUFFER), self.generator)
        drawn = self.draw(loop, noise, chunk=loop.rows(CHUNK))
        return self.replay.keep(drawn.q, drawn.log_weights(beta))

    def draw(self, loop: Loop, noise: Tensor, chunk: int | None = None) -> Drawn:
        """Own samples made of noise, with their energies."""
        self.settle(loop)
        with loop.timed():
            return Drawn(
                *loop.parallel.map(lambda part: self.target.weigh(*self.flow.sample_from(part)), noise, chunk=chunk)
            )

    def step(
        self, loop: Loop, rate: float, loss: Callable[..., Tensor | tuple[Tensor, ...]], *rows: Tensor
    ) -> tuple[float, list[Tensor]]:
        """A step of the loop; the rows of one that had to be left out are counted."""
        self.settle(loop)
        value, kept = loop.step(rate, loss, *rows)
        if math.isnan(value):
            self.replay.dropped += len(rows[0])
        return value, kept

    def settle(self, loop: Loop) -> None:
        """Let the potential change how it computes energies, which it does here and nowhere else."""
        if self.target.settle():
            loop.parallel.forget()

    def rate(self, stage: int, progress: float) -> float:
        """Half a cosine from the stage's learning rate to a hundredth of it."""
        highest = self.settings.learning_rates[stage]
        return highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))))

    def state_dict(self) -> dict[str, Any]:
        """What was learned beside the flow's own parameters."""
        broad = None if self.broad is None else self.broad.state_dict()
        return {"generator": self.generator.get_state(), "broad": broad, "dropped": self.replay.dropped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` gave."""
        self.generator.set_state(state["generator"])
        self.replay.clear()
        self.replay.dropped = read_as(int, state["dropped"], "dropped")
        self.broad = None
        if state["broad"] is not None:
            self.broad = Broad(self.flow)
            if not any(name.startswith("slow.") for name in state["broad"]):  # of 0.2.0: that of the slow variables
                self.broad.rotors = None
                fill(self.broad.slow, state["broad"])
            else:
                fill(self.broad, state["broad"])
