"""CustomGBForce: computed values and energy terms given by expressions."""

from collections.abc import Callable, Mapping

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term, all_pairs
from openmm_cgflow.potentials.terms.lepton import Expression, Value
from openmm_cgflow.potentials.terms.ops import RowIndex, gather, local_energy, scatter

__all__ = ["CustomGBTerm"]


class _PairSet(torch.nn.Module):
    """Pairs of atoms i < j, with the row gathers of both ends."""

    def __init__(self, table: DifferenceTable, n: int, i: np.ndarray, j: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__()
        self.slot = table.add(i, j)
        self.first = RowIndex(n, torch.from_numpy(i), None, dtype)
        self.second = RowIndex(n, torch.from_numpy(j), None, dtype)


class CustomGBTerm(Term):
    """A CustomGBForce, without a periodic box.

    Both directed values of a pair, f(1, 2) and f(2, 1), come from one distance; each pair function is differentiated
    where it is evaluated, so that only its value and derivatives stay in memory.

    Arguments:
        table: Where to ask for pair distances.
        force: The OpenMM force.
        functions: Its tabulated functions by name.
        dtype: Of the parameters.

    Raises:
        UnsupportedForceError: An expression cannot be translated.
    """

    def __init__(
        self,
        table: DifferenceTable,
        force: openmm.CustomGBForce,
        functions: Mapping[str, Callable[..., Value]],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        n = force.getNumParticles()
        self.n = n
        self.cutoff = 0.0
        if force.getNonbondedMethod() == openmm.CustomGBForce.CutoffNonPeriodic:
            self.cutoff = force.getCutoffDistance().value_in_unit(openmm.unit.nanometer)
        self.globals = {
            force.getGlobalParameterName(k): force.getGlobalParameterDefaultValue(k)
            for k in range(force.getNumGlobalParameters())
        }
        values = np.array([force.getParticleParameters(k) for k in range(n)]).reshape(n, -1)
        self.names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
        i, j = all_pairs(n)
        self._pair_sets(table, force, i, j, dtype)
        for k, name in enumerate(self.names):
            self.column(f"atom_{name}", values[:, k], dtype)
        self.computed = [
            (name, Expression(text, functions), kind)
            for name, text, kind in map(force.getComputedValueParameters, range(force.getNumComputedValues()))
        ]
        self.terms = [
            (Expression(text, functions), kind)
            for text, kind in map(force.getEnergyTermParameters, range(force.getNumEnergyTerms()))
        ]
        self._check_names()

    def _pair_sets(self, table: DifferenceTable, force: openmm.CustomGBForce, i: np.ndarray, j: np.ndarray,
                   dtype: torch.dtype) -> None:  # fmt: skip
        self.every = _PairSet(table, self.n, i, j, dtype)
        self.kept = self.every
        excluded = {tuple(sorted(force.getExclusionParticles(k))) for k in range(force.getNumExclusions())}
        if excluded:
            live = np.array([(a, b) not in excluded for a, b in zip(i.tolist(), j.tolist(), strict=True)])
            self.kept = _PairSet(table, self.n, i[live], j[live], dtype)

    def _check_names(self) -> None:
        known = {*self.globals, *self.names}
        for name, expression, kind in self.computed:
            self._check(expression, known, kind)
            known.add(name)
        for expression, kind in self.terms:
            self._check(expression, known, kind)

    def _check(self, expression: Expression, known: set[str], kind: int) -> None:
        if kind == openmm.CustomGBForce.SingleParticle:
            allowed = known | {"x", "y", "z"}
        else:
            allowed = {"r", *self.globals} | {f"{name}{end}" for name in known for end in (1, 2)}
        if unknown := expression.names - allowed:
            raise UnsupportedForceError(f"CustomGBForce: {expression.text!r} uses {sorted(unknown)}")

    def _pairs(self, kind: int) -> _PairSet:
        return self.every if kind == openmm.CustomGBForce.ParticlePairNoExclusions else self.kept

    def _split(self, expression: Expression, pairs: _PairSet, values: Mapping[str, Tensor], flip: bool
               ) -> tuple[dict[str, Value], dict[str, Tensor]]:  # fmt: skip
        """The constants and the position-dependent inputs of a pair expression."""
        ends = (pairs.second, pairs.first) if flip else (pairs.first, pairs.second)
        constants: dict[str, Value] = dict(self.globals)
        inputs: dict[str, Tensor] = {}
        for end, index in zip("12", ends, strict=True):
            for name in self.names:
                if name + end in expression.names:
                    constants[name + end] = getattr(self, f"atom_{name}").index_select(0, index.plus)
            for name, value in values.items():
                if name + end in expression.names:
                    inputs[name + end] = gather(value, index)
        return constants, inputs

    def _pair_values(
        self, expression: Expression, pairs: _PairSet, frame: Frame, values: Mapping[str, Tensor], flip: bool
    ) -> Tensor:
        r = frame.distances(pairs.slot)
        constants, inputs = self._split(expression, pairs, values, flip)
        names = list(inputs)

        def function(r: Tensor, *others: Tensor) -> Tensor:
            out = expression({**constants, "r": r, **dict(zip(names, others, strict=True))})
            out = out if isinstance(out, Tensor) else torch.full_like(r, out)
            out = out.expand_as(r) if out.shape != r.shape else out
            return out if self.cutoff == 0.0 else torch.where(r < self.cutoff, out, torch.zeros_like(out))

        return local_energy(function, r, *inputs.values())

    def _atom_values(self, expression: Expression, frame: Frame, values: Mapping[str, Tensor]) -> Tensor:
        x, y, z = frame.x.unbind(1)
        environment: dict[str, Value] = {**self.globals, "x": x, "y": y, "z": z, **values}
        environment.update({name: getattr(self, f"atom_{name}") for name in self.names})
        out = expression(environment)
        return out.expand_as(x) if isinstance(out, Tensor) else torch.full_like(x, out)

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""
        values: dict[str, Tensor] = {}
        for name, expression, kind in self.computed:
            if kind == openmm.CustomGBForce.SingleParticle:
                values[name] = self._atom_values(expression, frame, values)
                continue
            pairs = self._pairs(kind)
            forward = self._pair_values(expression, pairs, frame, values, flip=False)
            backward = self._pair_values(expression, pairs, frame, values, flip=True)
            values[name] = scatter(forward, pairs.first) + scatter(backward, pairs.second)
        energy = frame.x.new_zeros(frame.x.shape[-1])
        for expression, kind in self.terms:
            if kind == openmm.CustomGBForce.SingleParticle:
                energy = energy + self._atom_values(expression, frame, values).sum(0)
            else:
                energy = energy + self._pair_values(expression, self._pairs(kind), frame, values, flip=False).sum(0)
        return energy
