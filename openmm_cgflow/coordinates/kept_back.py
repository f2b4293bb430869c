"""What could turn but is no slow torsion by itself: stiff bonds, symmetric rotors, rings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm

from openmm_cgflow.coordinates.axes import find_axes
from openmm_cgflow.coordinates.barriers import STIFF_BARRIER, torsion_profiles
from openmm_cgflow.coordinates.checks import check_inputs
from openmm_cgflow.coordinates.molecule import bond_key
from openmm_cgflow.coordinates.puckers import flipping_bonds
from openmm_cgflow.coordinates.symmetry import symmetric_centres

__all__ = ["KeptBack", "find_kept_back"]


@dataclass(frozen=True)
class KeptBack:
    """One thing that is not among the torsions that may be slow.

    Attributes:
        name: of the torsion, or the bonds of a ring.
        reason: why, and what becomes of it.
        axes: the bonds that it turns about, each with the lower atom first.
    """

    name: str
    reason: str
    axes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def find_kept_back(topology: Any, system: openmm.System, positions: Any) -> list[KeptBack]:  # noqa: ANN401
    """Stiff torsions, symmetric rotors and flipping rings of a molecule.

    Raises:
        InvalidInputError: see `check_inputs`.
    """
    molecule = check_inputs(topology, system, positions)
    found = []
    for axis in find_axes(molecule, torsion_profiles(molecule, system), symmetric_centres(molecule, system)):
        ends = (bond_key(axis.chain[0], axis.chain[-1]),)
        if not axis.soft:
            barrier = float(np.ptp(axis.profile))
            reason = f"stiff ({barrier:.0f} kJ/mol, above {STIFF_BARRIER:.0f}); stays in the isomer of the input"
            found.append(KeptBack(axis.name, reason, ends))
        elif axis.symmetric:
            found.append(KeptBack(axis.name, "symmetric rotor; one of its equivalent labellings is sampled", ends))
    bonds = sorted(flipping_bonds(molecule, system))
    if bonds:
        names = ", ".join(f"{molecule.label(i)}-{molecule.names[j]}" for i, j in bonds)
        reason = "puckers; sampled as soft variables, but not offered as slow ones"
        found.append(KeptBack(f"ring bonds {names}", reason, tuple(bonds)))
    return found
