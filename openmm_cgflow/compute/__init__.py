"""Where things run: a device, the threads of a CPU, and seeds that give the same anywhere.

`Compute` says where; `Parallel` spreads batches there, on a GPU by `Graphs`. Random numbers are always drawn on the
CPU, by `seeded`, and go to the device with the batches.
"""

from openmm_cgflow.compute.compiler import record, without_trial
from openmm_cgflow.compute.device import Compute, Device, choose, seeded
from openmm_cgflow.compute.graphs import Graphs, on_host
from openmm_cgflow.compute.parallel import BATCH, CHUNK, Parallel, available_cores
from openmm_cgflow.compute.plain import plain_torch, with_plain_torch

__all__ = [
    "BATCH",
    "CHUNK",
    "Compute",
    "Device",
    "Graphs",
    "Parallel",
    "available_cores",
    "choose",
    "on_host",
    "plain_torch",
    "record",
    "seeded",
    "with_plain_torch",
    "without_trial",
]
