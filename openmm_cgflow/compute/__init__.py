"""Where things run: a device, the threads of a CPU, and seeds that give the same anywhere.

`Compute` says where; `Parallel` spreads batches there. Random numbers are always drawn on the CPU, by `seeded`, and go
to the device with the batches.
"""

from openmm_cgflow.compute.device import Compute, Device, choose, seeded
from openmm_cgflow.compute.parallel import BATCH, CHUNK, Parallel, available_cores

__all__ = ["BATCH", "CHUNK", "Compute", "Device", "Parallel", "available_cores", "choose", "seeded"]
