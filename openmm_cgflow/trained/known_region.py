"""The region of bead space that a flow knows: where its own samples are."""

import copy
from typing import NamedTuple

from torch import Tensor

from openmm_cgflow.compute import BATCH, seeded
from openmm_cgflow.flows import BeadFlow
from openmm_cgflow.trained.made_once import Made, made_once
from openmm_cgflow.trained.molecule import TrainedFlow

__all__ = ["Extent", "KnownRegion"]


class Extent(NamedTuple):
    """Smallest and largest values of some variables, `(n,)` each."""

    low: Tensor
    high: Tensor


class KnownRegion:
    """What 20,000 beads drawn from a flow, as it is now, reach; in double precision, on the CPU.

    Bead forces go on from its rim with a constant slope, and backmapping calls frames strange that are beyond it.

    Arguments:
        flow: the flow.

    Attributes:
        bead_flow: a copy of the flow's density of beads.
        stiff: extent of the beads' stiff coordinates.
        whitened: the same, whitened by the flow.
        least_log_prob: log-density of the least likely one.
    """

    def __init__(self, flow: TrainedFlow) -> None:
        self.bead_flow: BeadFlow = copy.deepcopy(flow.flow.bead_flow).cpu().double().requires_grad_(False)
        known = self.bead_flow.sample(BATCH, seeded(0))
        _, stiff = self.bead_flow.split(known.value)
        whitened = known.features[:, self.bead_flow.slow.n_features :]
        self.stiff, self.whitened = (Extent(values.amin(0), values.amax(0)) for values in (stiff, whitened))
        self.least_log_prob = float(known.log_prob.min())

    @classmethod
    def of(cls, flow: TrainedFlow) -> "KnownRegion":
        """That of a flow, made once for all who ask; made again after the flow has changed."""
        return made_once(_KNOWN, flow, cls)


_KNOWN: Made[KnownRegion] = Made()
