"""Lennard-Jones and Coulomb interactions of NonbondedForce, without periodic boxes."""

import math

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term, all_pairs

__all__ = ["COULOMB", "NonbondedTerm", "nonbonded_parameters", "switching"]

COULOMB = 138.93545764438198  # kJ/mol nm/e^2: ONE_4PI_EPS0 of OpenMM's SimTKOpenMMRealType.h (CODATA 2018)


def switching(r: Tensor, start: float, stop: float) -> Tensor:
    """OpenMM's switching function, 1 - 6 t^5 + 15 t^4 - 10 t^3; t = (r - start) / (stop - start) clamped to [0, 1]."""
    t = ((r - start) / (stop - start)).clamp(0.0, 1.0)
    return 1.0 + t * t * t * (-10.0 + t * (15.0 - t * 6.0))


def nonbonded_parameters(force: openmm.NonbondedForce) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles (n, 3): charge, sigma, epsilon; exception atoms (m, 2); exceptions (m, 3): qq, sigma, epsilon.

    Global parameters stand at their defaults: offsets are added.
    """
    defaults = [force.getGlobalParameterDefaultValue(i) for i in range(force.getNumGlobalParameters())]
    names = [force.getGlobalParameterName(i) for i in range(force.getNumGlobalParameters())]
    values = dict(zip(names, defaults, strict=True))

    def plain(row: tuple) -> list[float]:
        return [v.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(v) else float(v) for v in row]

    particles = np.array([plain(force.getParticleParameters(i)) for i in range(force.getNumParticles())]).reshape(-1, 3)
    for i in range(force.getNumParticleParameterOffsets()):
        name, particle, *scales = force.getParticleParameterOffset(i)
        particles[particle] += values[name] * np.array(scales)
    raw = [force.getExceptionParameters(i) for i in range(force.getNumExceptions())]
    atoms = np.array([row[:2] for row in raw], dtype=np.int64).reshape(-1, 2)
    exceptions = np.array([plain(row[2:]) for row in raw]).reshape(-1, 3)
    for i in range(force.getNumExceptionParameterOffsets()):
        name, number, *scales = force.getExceptionParameterOffset(i)
        exceptions[number] += values[name] * np.array(scales)
    return particles, atoms, exceptions


class NonbondedTerm(Term):
    """NonbondedForce with NoCutoff or CutoffNonPeriodic (reaction field, switching function).

    Without a cutoff, exceptions are pairs like any other with parameters of their own. With one, exceptions are
    computed without it, as OpenMM does.

    Arguments:
        table: Where to ask for pair distances.
        force: The OpenMM force.
        dtype: Of the parameters.
        share: Keep pairs that do not interact, because another force needs their distances anyway.
    """

    qq: Tensor
    sigma: Tensor
    four_epsilon: Tensor
    kept: Tensor
    exception_qq: Tensor
    exception_sigma: Tensor
    exception_four_epsilon: Tensor

    def __init__(self, table: DifferenceTable, force: openmm.NonbondedForce, dtype: torch.dtype, share: bool) -> None:
        super().__init__()
        particles, exception_atoms, exceptions = nonbonded_parameters(force)
        q, sigma, epsilon = particles.T
        n = len(particles)
        i, j = all_pairs(n)
        qq, ss, ee = q[i] * q[j], 0.5 * (sigma[i] + sigma[j]), np.sqrt(epsilon[i] * epsilon[j])
        row = np.zeros((n, n), dtype=np.int64)
        row[i, j] = row[j, i] = np.arange(len(i))
        excluded = row[exception_atoms[:, 0], exception_atoms[:, 1]]
        self.cutoff = 0.0
        self.exception_slot = -1
        if force.getNonbondedMethod() == openmm.NonbondedForce.CutoffNonPeriodic:
            self._set_cutoff(force)
            qq[excluded] = ee[excluded] = 0.0
            live = (exceptions[:, 0] != 0) | (exceptions[:, 2] != 0)
            if live.any():
                self.exception_slot = table.add(exception_atoms[live, 0], exception_atoms[live, 1])
                self._columns("exception_", exceptions[live], dtype)
        else:
            qq[excluded], ss[excluded], ee[excluded] = exceptions.T
        live = np.ones(len(i), dtype=bool) if share else (qq != 0) | (ee != 0)
        if not share and live.sum() == 0:
            live[:1] = True
        self.slot = table.add(i[live], j[live])
        kept = np.ones(len(i), dtype=bool)
        kept[excluded] = False
        self._columns("", np.stack([qq, ss, ee], 1)[live], dtype)
        self.column("kept", kept[live], dtype)

    def _set_cutoff(self, force: openmm.NonbondedForce) -> None:
        self.cutoff = force.getCutoffDistance().value_in_unit(unit.nanometer)
        solvent = force.getReactionFieldDielectric()
        self.krf = (solvent - 1.0) / (2.0 * solvent + 1.0) / self.cutoff**3
        self.crf = 3.0 * solvent / (2.0 * solvent + 1.0) / self.cutoff
        self.switch = math.inf
        if force.getUseSwitchingFunction():
            self.switch = force.getSwitchingDistance().value_in_unit(unit.nanometer)

    def _columns(self, prefix: str, rows: np.ndarray, dtype: torch.dtype) -> None:
        qq, sigma, epsilon = rows.T
        self.column(prefix + "qq", COULOMB * qq, dtype)
        self.column(prefix + "sigma", np.where(epsilon == 0, 0.0, sigma), dtype)
        self.column(prefix + "four_epsilon", 4.0 * epsilon, dtype)

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""
        r = frame.distances(self.slot)
        inverse = 1.0 / r
        s2 = (self.sigma * inverse) ** 2
        s6 = s2 * s2 * s2
        lennard_jones = self.four_epsilon * (s6 * s6 - s6)
        if self.cutoff == 0.0:
            return (lennard_jones + self.qq * inverse).sum(0)
        if self.switch < self.cutoff:
            lennard_jones = lennard_jones * switching(r, self.switch, self.cutoff)
        pair = lennard_jones + self.qq * (inverse + self.krf * r * r - self.crf)
        energy = torch.where((r < self.cutoff) & (self.kept > 0), pair, torch.zeros_like(pair)).sum(0)
        if self.exception_slot >= 0:
            inverse = 1.0 / frame.distances(self.exception_slot)
            s6 = (self.exception_sigma * inverse) ** 6
            energy = energy + (self.exception_four_epsilon * (s6 * s6 - s6) + self.exception_qq * inverse).sum(0)
        return energy
