"""CustomNonbondedForce: an expression of every pair of atoms."""

import math

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials.terms.custom import global_parameters
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term, all_pairs
from openmm_cgflow.potentials.terms.lepton import Expression, Value
from openmm_cgflow.potentials.terms.nonbonded import switching
from openmm_cgflow.potentials.terms.ops import local_energy
from openmm_cgflow.potentials.terms.tabulated import tabulated_functions

__all__ = ["CustomNonbondedTerm"]


def _pairs(force: openmm.CustomNonbondedForce) -> tuple[np.ndarray, np.ndarray]:
    """First and second atoms of the pairs that interact; a pair in several interaction groups stands several times."""
    excluded = {tuple(sorted(force.getExclusionParticles(k))) for k in range(force.getNumExclusions())}
    if force.getNumInteractionGroups() == 0:
        found = zip(*(a.tolist() for a in all_pairs(force.getNumParticles())), strict=True)
        kept = [p for p in found if p not in excluded]
    else:
        kept = []
        for k in range(force.getNumInteractionGroups()):
            first, second = (set(s) for s in force.getInteractionGroupParameters(k))
            for a in sorted(first):
                for b in sorted(second):
                    twice = a > b and b in first and a in second
                    if a != b and not twice and tuple(sorted((a, b))) not in excluded:
                        kept.append((a, b))
    array = np.array(kept, dtype=np.int64).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


class CustomNonbondedTerm(Term):
    """A CustomNonbondedForce without a periodic box: exclusions, cutoff, switching function, interaction groups.

    Raises:
        UnsupportedForceError: The force has computed values, or an expression that cannot be translated.
    """

    def __init__(self, table: DifferenceTable, force: openmm.CustomNonbondedForce, dtype: torch.dtype) -> None:
        super().__init__()
        if force.getNonbondedMethod() == force.CutoffPeriodic:
            raise InvalidInputError("CustomNonbondedForce uses a periodic method; build the System with NoCutoff")
        if force.getNumComputedValues():
            raise UnsupportedForceError("computed values")
        i, j = _pairs(force)
        self.slot = table.add(i, j)
        n = force.getNumParticles()
        values = np.array([force.getParticleParameters(k) for k in range(n)]).reshape(n, -1)
        self.expression = Expression(force.getEnergyFunction(), tabulated_functions(force))
        self.constants = global_parameters(force)
        self.names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
        for k, name in enumerate(self.names):
            self.column(f"pair_{name}1", values[i, k], dtype)
            self.column(f"pair_{name}2", values[j, k], dtype)
        ends = {f"{name}{end}" for name in self.names for end in (1, 2)}
        if unknown := self.expression.names - {"r"} - set(self.constants) - ends:
            raise UnsupportedForceError(f"the expression {self.expression.text!r} uses {sorted(unknown)}")
        self.cutoff = self.switch = math.inf
        if force.getNonbondedMethod() == force.CutoffNonPeriodic:
            self.cutoff = force.getCutoffDistance().value_in_unit(unit.nanometer)
            if force.getUseSwitchingFunction():
                self.switch = force.getSwitchingDistance().value_in_unit(unit.nanometer)

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""
        environment: dict[str, Value] = dict(self.constants)
        for name in self.names:
            environment[f"{name}1"] = getattr(self, f"pair_{name}1")
            environment[f"{name}2"] = getattr(self, f"pair_{name}2")

        def energy(r: Tensor) -> Tensor:
            out = self.expression({**environment, "r": r})
            pair = out.expand_as(r) if isinstance(out, Tensor) else torch.full_like(r, out)
            if self.switch < self.cutoff:
                pair = pair * switching(r, self.switch, self.cutoff)
            return pair if self.cutoff == math.inf else torch.where(r < self.cutoff, pair, torch.zeros_like(pair))

        return local_energy(energy, frame.distances(self.slot)).sum(0)
