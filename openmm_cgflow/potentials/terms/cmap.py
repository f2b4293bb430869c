"""CMAP torsions: periodic bicubic maps of two torsion angles."""

import math

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.potentials.terms.bonded import torsion
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term
from openmm_cgflow.potentials.terms.ops import local_energy
from openmm_cgflow.potentials.terms.splines import Bicubic

__all__ = ["CMAPTerm"]


class CMAPTerm(Term):
    """A CMAPTorsionForce whose maps all have `size` points a side.

    Arguments:
        table: Where to ask for bond vectors.
        maps: (maps, size, size), first index along the first torsion, values in kJ/mol at 0, 2 pi / size, ...
        numbers: Which map each row uses, (rows,).
        atoms: (rows, 8).
    """

    number: Tensor

    def __init__(self, table: DifferenceTable, maps: np.ndarray, numbers: np.ndarray, atoms: np.ndarray) -> None:
        super().__init__()
        self.slots = [table.add(atoms[:, k + 1], atoms[:, k]) for k in (0, 1, 2, 4, 5, 6)]
        closed = np.pad(maps, ((0, 0), (0, 1), (0, 1)), mode="wrap")
        self._maps = Bicubic(closed, (0.0, 2 * math.pi), (0.0, 2 * math.pi), periodic=True)
        self.register_buffer("number", torch.from_numpy(numbers.astype(np.int64)).reshape(-1, 1), persistent=False)

    @classmethod
    def from_force(cls, force: openmm.CMAPTorsionForce, table: DifferenceTable) -> list[Term]:
        """One term for each size of map."""
        maps = []
        for k in range(force.getNumMaps()):
            size, energy = force.getMapParameters(k)
            values = energy.value_in_unit(unit.kilojoule_per_mole) if unit.is_quantity(energy) else energy
            maps.append(np.reshape(values, (size, size)).T)
        rows = np.array([force.getTorsionParameters(k) for k in range(force.getNumTorsions())], dtype=np.int64)
        terms: list[Term] = []
        for size in sorted({len(m) for m in maps}) if len(rows) else []:
            same = [k for k, m in enumerate(maps) if len(m) == size]
            chosen = rows[np.isin(rows[:, 0], same)]
            if len(chosen):
                numbers = np.array([same.index(k) for k in chosen[:, 0]])
                terms.append(cls(table, np.stack([maps[k] for k in same]), numbers, chosen[:, 1:]))
        return terms

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""

        def energy(*b: Tensor) -> Tensor:
            return self._maps(torsion(*b[:3]), torsion(*b[3:]), self.number)

        return local_energy(energy, *(frame.vectors(slot) for slot in self.slots)).sum(0)
