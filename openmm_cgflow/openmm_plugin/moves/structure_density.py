"""The density of a flow as Monte Carlo moves need it: many structures at once, and that of one structure quickly."""

import copy
import math

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.compute import seeded
from openmm_cgflow.openmm_plugin.recorded.numpy_graph import replayed_by_numpy
from openmm_cgflow.sampling import Drawn
from openmm_cgflow.trained import Made, TrainedFlow, made_once

__all__ = ["StructureDensity"]


class StructureDensity:
    """A flow as it is now: training it further, or loading other weights into it, changes nothing here.

    Its energies are never asked for.

    Arguments:
        flow: the flow.
    """

    def __init__(self, flow: TrainedFlow) -> None:
        # one structure at a time, which takes longer to bring to a GPU than to compute
        self.coordinates = copy.deepcopy(flow.coordinates).cpu()
        self.flow = copy.deepcopy(flow.flow).cpu().requires_grad_(False)
        self._one = replayed_by_numpy(self._log_prob, torch.as_tensor(flow.positions._value)[None]).forward

    @classmethod
    def of(cls, flow: TrainedFlow) -> "StructureDensity":
        """That of a flow, made once for all who ask; made again after the flow has changed."""
        return made_once(_KNOWN, flow, cls)

    def _log_prob(self, x: Tensor) -> Tensor:
        q, logdet = self.coordinates.to_internal(x)
        log_prob = self.flow.log_prob(q.float()).double() - logdet
        return torch.where(self.coordinates.in_domain(q), log_prob, -torch.inf)

    def log_prob(self, x: np.ndarray) -> float:
        """The number that `CGFlow.logDensity` gives for one structure `(atoms, 3)` in nm; nothing is checked."""
        with np.errstate(all="ignore"):  # far from all that the flow gives, numbers may overflow
            value = float(self._one(x[None])[0])
        return -math.inf if math.isnan(value) else value

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`n` independent structures, those of `CGFlow.sample`, whatever their energy, each in a random labelling.

        Returns:
            positions `(n, atoms, 3)` in nm around their centroid, and their log-densities `(n,)`: plus infinity
            outside the domain of the coordinates, where the flow claims to give nothing.
        """
        generator = seeded(seed)
        q, log_q = self.flow.sample_from(self.flow.draw_noise(n, generator))
        drawn = Drawn.of(self.coordinates, q.double(), log_q)
        x = self.coordinates.relabelled(drawn.x - drawn.x.mean(1, keepdim=True), generator)
        log_density = torch.where(drawn.inside, drawn.log_density, torch.inf)
        return x.numpy(), log_density.nan_to_num(math.inf, math.inf, math.inf).numpy()


_KNOWN: Made[StructureDensity] = Made()
