"""Free energies, basins and the report of a trained flow."""

from openmm_cgflow.analysis.basins import Basin, basin_labels, basins, populations
from openmm_cgflow.analysis.free_energy import (
    FreeEnergy1D,
    FreeEnergy2D,
    free_energy_1d,
    free_energy_2d,
    weighted_histogram,
)
from openmm_cgflow.analysis.report import report, torsion_pairs
from openmm_cgflow.analysis.summary import duration, summary, trust
from openmm_cgflow.analysis.training_curves import curve
from openmm_cgflow.analysis.verdict import judge

__all__ = [
    "Basin",
    "FreeEnergy1D",
    "FreeEnergy2D",
    "basin_labels",
    "basins",
    "curve",
    "duration",
    "free_energy_1d",
    "free_energy_2d",
    "judge",
    "populations",
    "report",
    "summary",
    "torsion_pairs",
    "trust",
    "weighted_histogram",
]
