"""What could turn but is no slow torsion by itself: stiff bonds, symmetric rotors, rings."""

from dataclasses import dataclass

import numpy as np

from openmm_cgflow.chemistry.axes import Axis
from openmm_cgflow.chemistry.barriers import STIFF_BARRIER
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.chemistry.perception import Perceived
from openmm_cgflow.chemistry.puckers import flipping_bonds

__all__ = ["KeptBack", "find_kept_back", "kept_isomers"]


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


def _other(axis: Axis) -> str:
    """What is known of the form that is left out."""
    form = axis.kept_from
    if form is None:
        return f" ({float(np.ptp(axis.profile)):.0f} kJ/mol, above {STIFF_BARRIER:.0f}; no other form within reach)"
    where = f"{abs(form.energy):.0f} kJ/mol {'higher' if form.energy >= 0 else 'lower'}"
    return f" (another form, {where}, behind a barrier of {form.barrier:.0f} kJ/mol)"


def find_kept_back(perceived: Perceived) -> list[KeptBack]:
    """Stiff torsions, symmetric rotors and flipping rings of a molecule."""
    molecule = perceived.molecule
    found = []
    for axis in perceived.axes:
        ends = (bond_key(axis.chain[0], axis.chain[-1]),)
        if not axis.soft:
            found.append(KeptBack(axis.name, f"stiff{_other(axis)}; stays in the isomer of the input", ends))
        elif axis.symmetric:
            found.append(KeptBack(axis.name, "symmetric rotor; one of its equivalent labellings is sampled", ends))
    bonds = sorted(flipping_bonds(perceived.flips))
    if bonds:
        names = ", ".join(f"{molecule.label(i)}-{molecule.names[j]}" for i, j in bonds)
        reason = "puckers; sampled as soft variables, but not offered as slow ones"
        found.append(KeptBack(f"ring bonds {names}", reason, tuple(bonds)))
    return found


def kept_isomers(perceived: Perceived, turning: set[tuple[int, int]]) -> list[KeptBack]:
    """Stiff torsions that have another form, and are in none of the bonds that turn."""
    axes = [axis for axis in perceived.axes if axis.kept_from is not None]
    return [
        KeptBack(axis.name, f"stiff{_other(axis)}", (bond_key(axis.chain[0], axis.chain[-1]),))
        for axis in axes
        if not turning & {bond_key(*end) for end in axis.ends}
    ]
