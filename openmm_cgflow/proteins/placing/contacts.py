"""Nonbonded energies between parts of a protein, by its own charges and Lennard-Jones terms, made soft and short.

Distances of pairs are taken a little larger than they are (rigid parts cannot give way), the energy of a pair of atoms
is capped, and the dielectric constant is 4 r (r in Angstrom), which stands in for the solvent.
"""

from dataclasses import dataclass

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.proteins.chain.geometry import place_planes
from openmm_cgflow.proteins.placing.planes import Backbone

__all__ = ["Nonbonded", "PlanePairs", "grouped", "pair_energies", "plane_pairs", "plane_sterics", "squared_distances"]

_COULOMB = 138.935456 / 40.0  # kJ nm^2/mol: 1 / (4 pi eps_0) over 4 r, with r in Angstrom
_SHRINK = 0.95
"""Of the Lennard-Jones sizes."""

PLANE_REACH = 0.72
"""nm between the middles of two planes within which they see one another."""

COARSE = 24
"""Points of a circle in tables of pairs: bins of three of the chain's."""

_CAP = 30.0  # kJ/mol, of a pair of atoms of two planes
_ENTRIES = 400_000
_CLOSEST = 0.01  # nm^2
STRONGEST = 1 / 0.16**2
"""nm^-2, the largest `1/r^2` between charges: hydrogens of hydroxyls have no size that would keep them off."""


@dataclass(frozen=True)
class Nonbonded:
    """Charges and Lennard-Jones parameters of all atoms, with one more row of zeros for atoms that are not there.

    Attributes:
        charge: `(atoms + 1,)` e.
        sigma: `(atoms + 1,)` nm.
        root_epsilon: `(atoms + 1,)`, `(kJ/mol)^(1/2)`.
    """

    charge: Tensor
    sigma: Tensor
    root_epsilon: Tensor

    @classmethod
    def of(cls, system: openmm.System) -> "Nonbonded":
        """Those of a System's NonbondedForce.

        Raises:
            InvalidInputError: it has none, or one without Lennard-Jones terms.
        """
        force = next((f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)), None)
        if force is None:
            raise InvalidInputError(
                "the System has no NonbondedForce, from which charges and sizes of atoms are taken; make it by "
                "ForceField.createSystem, or leave it out to have amber14's"
            )
        rows = [
            [p.value_in_unit_system(unit.md_unit_system) for p in force.getParticleParameters(i)]
            for i in range(force.getNumParticles())
        ]
        if not any(row[2] > 0 for row in rows):
            raise InvalidInputError(
                "the System's NonbondedForce has no Lennard-Jones terms (OpenMM's CHARMM36 has them in a "
                "CustomNonbondedForce, which is not read here); leave the System out to have amber14's"
            )
        charge, sigma, epsilon = torch.tensor(np.array([*rows, [0.0, 0.1, 0.0]]), dtype=torch.float32).unbind(1)
        return cls(charge, sigma, epsilon.clamp_min(0).sqrt())

    def between(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of `1/r^2`, `1/r^12` and `-1/r^6` of pairs, `(..., first, second)`; -1 is an atom that is not there.

        Arguments:
            first: `(..., first)` indices of atoms.
            second: `(..., second)`.
        """
        a, b = first[..., :, None], second[..., None, :]
        size = (0.5 * _SHRINK * (self.sigma[a] + self.sigma[b])) ** 6
        depth = 4 * self.root_epsilon[a] * self.root_epsilon[b] * size
        return _COULOMB * self.charge[a] * self.charge[b], depth * size, depth


def pair_energies(squared: Tensor, factors: tuple[Tensor, Tensor, Tensor], cap: float) -> Tensor:
    """Capped energies of pairs at squared distances, kJ/mol; the squared distances are used up."""
    charge, repulsion, attraction = factors
    inverse = squared.clamp_min_(_CLOSEST).reciprocal_()
    cubed = inverse * inverse
    cubed.mul_(inverse)
    energy = cubed * repulsion
    energy.sub_(attraction).mul_(cubed)
    return energy.addcmul_(charge.expand_as(energy), inverse.clamp_max_(STRONGEST)).clamp_max_(cap)


@dataclass(frozen=True)
class PlanePairs:
    """Tables of the energies of pairs of planes, for all traces of a batch.

    Attributes:
        frame: `(pairs,)`, which trace.
        first: `(pairs,)`, the plane that comes first in sequence.
        second: `(pairs,)`.
        energy: `(pairs, 24, 24)` kJ/mol.
    """

    frame: Tensor
    first: Tensor
    second: Tensor
    energy: Tensor


def plane_pairs(backbone: Backbone, indices: Tensor, nonbonded: Nonbonded, gamma: Tensor) -> PlanePairs:
    """Energies of all pairs of planes that are near and not neighbours.

    Arguments:
        backbone: the planes.
        indices: `(planes, 4)`, of the atoms of each plane; -1 for those that are not there.
        nonbonded: parameters.
        gamma: `(24,)` rad, the grid.
    """
    middle = 0.5 * (backbone.starts + backbone.ends)
    near = torch.cdist(middle, middle) < PLANE_REACH
    n = len(backbone.planes)
    apart = torch.arange(n, device=middle.device)
    near &= (apart[None, :] - apart[:, None]) >= 2
    frame, first, second = near.nonzero().unbind(1)
    batch = len(middle)
    placed = place_planes(
        backbone.starts[:, :, None],
        tuple(axis[:, :, None] for axis in backbone.axes),  # type: ignore[arg-type]
        backbone.shape[:, :, None],
        gamma.expand(batch, n, -1),
    ).reshape(batch, n, len(gamma) * 4, 3)
    tables = middle.new_empty(len(frame), len(gamma), len(gamma))
    for rows in torch.arange(len(frame)).split(max(1, _ENTRIES // (len(gamma) * 4) ** 2)):
        squared = squared_distances(placed[frame[rows], first[rows]], placed[frame[rows], second[rows]])
        shape = (len(rows), len(gamma), 4, len(gamma), 4)
        factors = nonbonded.between(indices[first[rows]], indices[second[rows]])
        spread = tuple(factor[:, None, :, None, :] for factor in factors)
        tables[rows] = pair_energies(squared.reshape(shape), spread, _CAP).sum((2, 4))  # type: ignore[arg-type]
    return PlanePairs(frame, first, second, tables)


def plane_sterics(backbone: Backbone, gamma: Tensor) -> Tensor:
    """Soft repulsion of planes from alpha and beta carbons of other residues, `(batch, planes, bins)` kJ/mol."""
    batch, n = backbone.starts.shape[:2]
    atoms = place_planes(
        backbone.starts[:, :, None],
        tuple(axis[:, :, None] for axis in backbone.axes),  # type: ignore[arg-type]
        backbone.shape[:, :, None],
        gamma.expand(batch, n, -1),
    )
    planes, residues = backbone.planes, backbone.trace.shape[1]
    own = torch.zeros(n, residues, dtype=torch.bool)
    for column in (planes.first, planes.second):
        real = column >= 0
        own[torch.nonzero(real).flatten(), column[real]] = True
    beyond = own.clone()
    beyond[:, 1:] |= own[:, :-1]
    beyond[:, :-1] |= own[:, 1:]
    real_atoms = torch.stack([planes.first, planes.first, planes.second, planes.second], 1) >= 0
    sizes = torch.tensor([0.34, 0.31, 0.32, 0.24], device=atoms.device)
    total = atoms.new_zeros(batch, n, len(gamma))
    middle = 0.5 * (backbone.starts + backbone.ends)
    for carbons in (backbone.trace, backbone.virtual_cb):
        frame, plane, residue = ((torch.cdist(middle, carbons) < 0.65) & ~beyond.to(atoms.device)).nonzero().unbind(1)
        squared = (atoms[frame, plane] - carbons[frame, residue][:, None, None]).square().sum(-1)
        ratio = (sizes**2 / squared.clamp_min(0.02)).pow(6) * real_atoms.to(atoms.device)[plane][:, None]
        total.index_put_((frame, plane), (0.4 * ratio.sum(-1)).clamp(max=40.0), accumulate=True)
    return total


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances `(..., first, second)`, in one product; centred so that single precision does."""
    middle = second.mean(-2, keepdim=True)
    a, b = first - middle, second - middle
    one = [torch.ones_like(side[..., :1]) for side in (a, b)]
    a = torch.cat([-2 * a, a.square().sum(-1, keepdim=True), one[0]], -1)
    b = torch.cat([b, one[1], b.square().sum(-1, keepdim=True)], -1)
    return a @ b.transpose(-1, -2)


def grouped(values: Tensor, n: int) -> list[Tensor]:
    """Where each of the numbers below `n` is."""
    order = torch.argsort(values, stable=True)
    return list(order.split(torch.bincount(values, minlength=n).tolist()))
