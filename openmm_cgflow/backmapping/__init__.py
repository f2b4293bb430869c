"""From beads to atoms: structures around given beads, drawn from a conditional density, with weights.

A `Placer` puts atoms around beads and knows their density; the flow's own is `FlowPlacer`. `backmap` reads the beads,
asks the placer, and gives `Backmapped`; `backmap_file` does so for files of any length. `JoinedDensity` has beads of a
density that was fitted to frames, and atoms of a flow. `all_pieces` is how long files are done, for other rooms too.
"""

from openmm_cgflow.backmapping.backmap import backmap
from openmm_cgflow.backmapping.joined import JoinedDensity
from openmm_cgflow.backmapping.long_files import BackmappedFile, backmap_file
from openmm_cgflow.backmapping.pieces import (
    Joined,
    all_pieces,
    in_processes,
    kept_pieces,
    outputs_beside,
    progress_bar,
)
from openmm_cgflow.backmapping.placer import FlowPlacer, Placer
from openmm_cgflow.backmapping.result import Backmapped

__all__ = [
    "Backmapped",
    "BackmappedFile",
    "FlowPlacer",
    "Joined",
    "JoinedDensity",
    "Placer",
    "all_pieces",
    "backmap",
    "backmap_file",
    "in_processes",
    "kept_pieces",
    "outputs_beside",
    "progress_bar",
]
