"""Reading beads, asking a placer, and what is said of frames that it does not know."""

import logging

import numpy as np
import torch
from openmm import unit

from openmm_cgflow.backmapping.placer import FlowPlacer, Placer
from openmm_cgflow.backmapping.relax import relaxed
from openmm_cgflow.backmapping.result import Backmapped, listed, warn_of_failed
from openmm_cgflow.compute import BATCH, seeded
from openmm_cgflow.counts import fits_memory, whole_number
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import PositionsLike

__all__ = ["backmap", "place_atoms", "relax_steps", "warn_of_strange"]

_log = logging.getLogger("openmm_cgflow")
_RELAX_STEPS = 50


def backmap(
    flow: TrainedFlow, cg: PositionsLike, n: int = 1, relax: bool | int = False, seed: int | None = None
) -> Backmapped:
    """The structures of `CGFlow.backmap`, which see."""
    n, steps = whole_number(n, "backmap: n"), relax_steps(relax, "backmap")
    result, placer = place_atoms(flow, flow.beads.read(cg, "backmap"), n, steps, seed)
    warn_of_strange(placer, "backmap")
    warn_of_failed(result.failed, "backmap", "Draw more (n), or leave these frames out (see `failed`).")
    return result


def relax_steps(relax: bool | int, what: str) -> int:
    """How many steps structures are relaxed by.

    Raises:
        InvalidInputError: for a number that cannot be.
    """
    if isinstance(relax, bool | np.bool_):
        return _RELAX_STEPS if relax else 0
    return whole_number(relax, f"{what}: relax", least=0)


def place_atoms(
    flow: TrainedFlow, beads: np.ndarray, n: int, relax: int, seed: int | None
) -> tuple[Backmapped, Placer]:
    """Structures around beads `(frames, beads, 3)` that were read, and the placer, which knows what is strange."""
    fits_memory(n * len(beads), 3 * flow.coordinates.n_atoms, "backmap: the number of structures")
    placer: Placer = FlowPlacer(flow, flow.compute.tensor(beads))
    generator = seeded(seed)
    with flow.compute.parallel() as parallel, torch.no_grad():
        rows = torch.arange(len(beads)).split(max(1, BATCH // n))
        chunks = [placer.place(part.repeat_interleave(n), generator, parallel) for part in rows]
    x, log_density, u = (torch.cat(column).cpu().numpy() for column in zip(*chunks, strict=True))
    shape = (len(beads), n)
    x = x.reshape(*shape, *x.shape[1:])
    if relax:
        x = relaxed(flow, x, relax)
    result = Backmapped(
        positions=x,
        log_densities=log_density.reshape(shape),
        reduced_energies=u.reshape(shape),
        outside=placer.outside.cpu().numpy(),
        relaxed=bool(relax),
        temperature=flow.temperature.value_in_unit(unit.kelvin),
        topology=flow.topology,
        reference=flow.positions._value,
    )
    return result, placer


def warn_of_strange(placer: Placer, what: str) -> None:
    """Name the frames whose beads a placer does not know, if there are any, and why of one; `what` says who asked."""
    strange = placer.outside.nonzero().flatten().tolist()
    if not strange:
        return
    _log.warning(
        "%s: the beads of %d of %d frames are outside the region that the flow was trained on: %s. "
        "In frame %d, %s. What is made of these frames is a guess.",
        what,
        len(strange),
        len(placer.outside),
        listed(strange),
        strange[0],
        placer.reason(strange[0]),
    )
