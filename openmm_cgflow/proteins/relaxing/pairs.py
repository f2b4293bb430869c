"""Pairs of atoms within reach: which of them count, their energies, and which are too near."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import networkx
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from openmm_cgflow.proteins.placing.contacts import STRONGEST, Nonbonded
from openmm_cgflow.proteins.placing.layout import ProteinLayout, greasy_hydrogens

__all__ = ["Judged", "NearPairs", "Pairs", "soft_energy"]

_REACH = 0.5  # nm, of pairs
_SOFT = 30.0  # kJ/mol of a pair of atoms, above which its energy grows as its logarithm
_GREASY_REACH = 0.4  # nm, of pairs with a hydrogen on a carbon, which hardly has a charge
_STERIC = -1.0  # in place of a scale: a pair that the free energy has, of which a part of the repulsion counts
_STERIC_SHARE = 0.3  # of the repulsion: on strained traces the free energy does not keep such a pair apart
_COULOMB = 138.935456 / 40.0
_CLOSEST = 0.0025  # nm^2
_HARD = 150.0  # kJ/mol of a pair of atoms, above which they are in one place
_TOUCHING, _IN_ONE_PLACE = 0.225, 1000.0  # nm of two heavy atoms, and kJ/mol that are said of them


@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms of all structures of a batch, as indices into `(batch x atoms)`.

    Attributes:
        first: `(pairs,)`.
        second: `(pairs,)`.
        charge: `(pairs,)`, of the energy, for `1 / r^2`.
        repulsion: `(pairs,)`, for `1 / r^12`.
        attraction: `(pairs,)`, for `1 / r^6`.
        whole: `(pairs,)`, whether it is no pair of 1-4, which counts by half.
    """

    first: Tensor
    second: Tensor
    charge: Tensor
    repulsion: Tensor
    attraction: Tensor
    whole: Tensor


class Judged(NamedTuple):
    """What `NearPairs.judged` gives. Pairs are hard above `_HARD`; heavy atoms nearer than `_TOUCHING` always are."""

    soft: Tensor
    """`(batch,)` kJ/mol."""
    hard: Tensor
    """`(batch,)` kJ/mol of hard pairs, each at most `_IN_ONE_PLACE`; 0 where there are none."""
    frame: Tensor
    """`(pairs,)`, of hard pairs: which structure."""
    atoms: Tensor
    """`(pairs, 2)`, of hard pairs."""


class NearPairs:
    """Finds pairs of atoms within reach of one another, but for those that bonds and free energies speak for.

    Arguments:
        layout: the protein.
        nonbonded: charges and Lennard-Jones parameters.
    """

    def __init__(self, layout: ProteinLayout, nonbonded: Nonbonded) -> None:
        self.n_atoms, self.nonbonded = layout.n_atoms, nonbonded
        self.heavy = torch.tensor([a.element.symbol != "H" for a in layout.topology.atoms()])
        self.greasy = np.zeros(layout.n_atoms, dtype=bool)
        self.greasy[greasy_hydrogens(layout)] = True
        self.residue = np.array([a.residue.index for a in layout.topology.atoms()])
        self.bonded = np.zeros(len(layout.sequence), dtype=bool)
        for pair in layout.disulfides:
            self.bonded[list(pair)] = True
        scale = self._scales(layout)
        self.codes = np.array(sorted(scale))
        self.scales = np.array([scale[code] for code in self.codes.tolist()], dtype=np.float32)

    def _scales(self, layout: ProteinLayout) -> dict[int, float]:
        """Of pairs that do not count, or by half, or by their repulsion alone, by `i * atoms + j`."""
        graph = networkx.Graph((a.index, b.index) for a, b in layout.topology.bonds())
        scale: dict[int, float] = {}
        for i in graph:
            for j, bonds in networkx.single_source_shortest_path_length(graph, i, cutoff=3).items():
                if j > i:
                    scale[i * self.n_atoms + j] = 0.5 if bonds == 3 else 0.0
        bonded, inner = set(scale), set(layout.sequence.inner)
        backbone: list[list[int]] = [[] for _ in layout.sequence.residues]
        for i in sorted(set(range(self.n_atoms)) - set(layout.side_atoms.tolist())):
            backbone[self.residue[i]].append(i)
        for k in range(len(backbone) - 1):  # what the free energy of phi and psi has; termini have none
            near = backbone[k] + backbone[k + 1] if {k, k + 1} <= inner else []
            for i, j in ((i, j) for i in near for j in near if j > i):
                apart = i * self.n_atoms + j not in bonded and bool(self.heavy[i] & self.heavy[j])
                scale[i * self.n_atoms + j] = _STERIC if apart else 0.0
        return scale

    def within_reach(self, x: Tensor, moved: Tensor | None = None) -> Pairs:
        """Pairs within reach, those of a `moved` atom if such are given."""
        atoms = self.n_atoms
        firsts, seconds, scales, shifts = [], [], [], []
        mask = np.ones(atoms, dtype=bool)
        if moved is not None:
            mask[:] = False
            mask[moved.numpy()] = True
        for frame, points in enumerate(x.cpu().numpy()):
            i, j = _near(points, mask)
            scale = np.ones(len(i), dtype=np.float32)
            a, b = self.residue[i], self.residue[j]
            near = np.flatnonzero((np.abs(a - b) <= 1) | (self.bonded[a] & self.bonded[b]))
            code = i[near] * atoms + j[near]
            place = np.searchsorted(self.codes, code).clip(max=len(self.codes) - 1)
            scale[near] = np.where(self.codes[place] == code, self.scales[place], 1.0)
            apart = points[i] - points[j]
            greasy = self.greasy[i] | self.greasy[j]
            keep = (scale != 0) & ~(greasy & (np.einsum("pk,pk->p", apart, apart) > _GREASY_REACH**2))
            firsts.append(i[keep])
            seconds.append(j[keep])
            scales.append(scale[keep])
            shifts.append(np.full(keep.sum(), frame * atoms))
        first, second = (torch.as_tensor(np.concatenate(rows)) for rows in (firsts, seconds))
        share, shift = torch.as_tensor(np.concatenate(scales)), torch.as_tensor(np.concatenate(shifts))
        whole, steric, share = share.abs() == 1, share == _STERIC, share.clamp_min(0)
        size = (0.5 * 0.97 * (self.nonbonded.sigma[first] + self.nonbonded.sigma[second])) ** 6
        depth = 4 * self.nonbonded.root_epsilon[first] * self.nonbonded.root_epsilon[second] * size
        repulsion = depth * size * torch.where(steric, _STERIC_SHARE, share)
        charge = _COULOMB * self.nonbonded.charge[first] * self.nonbonded.charge[second] * share
        device = x.device
        return Pairs(*(t.to(device) for t in (first + shift, second + shift, charge, repulsion, depth * share, whole)))

    def judged(self, x: Tensor, moved: Tensor | None = None) -> Judged:
        """Pairs that are too near, and soft energies of all pairs.

        Arguments:
            x: `(batch, atoms, 3)` nm.
            moved: atoms of which one has to be in a pair; all by default.
        """
        pairs = self.within_reach(x, moved)
        atoms = x.shape[1]
        energy, _, inverse = _pair_energies(_axes_first(x), pairs)
        heavy = self.heavy.to(x.device)
        close = (inverse > 1 / _TOUCHING**2) & pairs.whole
        close &= heavy[pairs.first % atoms] & heavy[pairs.second % atoms]
        energy = torch.where(close, energy.clamp_min(_IN_ONE_PLACE), energy)
        frame, hard = pairs.first // atoms, (energy > _HARD).nonzero().flatten()
        return Judged(
            x.new_zeros(len(x)).index_add_(0, frame, _softened(energy)[0]),
            x.new_zeros(len(x)).index_add_(0, frame[hard], energy[hard].clamp(max=_IN_ONE_PLACE)),
            frame[hard],
            torch.stack([pairs.first[hard], pairs.second[hard]], 1) % atoms,
        )


def soft_energy(x: Tensor, pairs: Pairs) -> Tensor:
    """The sum over structures `(batch, atoms, 3)`, kJ/mol: beyond `_SOFT` a pair's energy grows as its logarithm."""
    return _SoftEnergy.apply(x, pairs)


def _near(points: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points `i < j` within reach of one another, of which at least one is in the mask."""
    if mask.all():
        found = cKDTree(points).query_pairs(_REACH, output_type="ndarray")
        return found[:, 0], found[:, 1]
    low, high = points[mask].min(0) - _REACH, points[mask].max(0) + _REACH
    box = np.flatnonzero(((points > low) & (points < high)).all(1))
    found = box[cKDTree(points[box]).query_pairs(_REACH, output_type="ndarray")]
    found = found[mask[found].any(1)]
    return found[:, 0], found[:, 1]


def _pair_energies(flat: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of pairs of points `(3, batch x atoms)`, kJ/mol, their gradients by the first point, and `1/r^2`.

    Axes come first throughout: so gathering and adding up take half the time.
    """
    apart = flat.index_select(1, pairs.first).sub_(flat.index_select(1, pairs.second))
    inverse = apart.square().sum(0).clamp_(min=_CLOSEST).reciprocal_()
    cubed = (inverse * inverse).mul_(inverse)
    attraction = pairs.attraction * cubed
    repulsion = (pairs.repulsion * cubed).mul_(cubed)
    near = inverse.clamp_max(STRONGEST)
    charge = pairs.charge * near
    energy = repulsion - attraction + charge
    slope = attraction.mul_(6).sub_(repulsion.mul_(12)).sub_(charge.mul_(2).mul_(near == inverse)).mul_(inverse)
    return energy, apart.mul_(slope), inverse


def _softened(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Energies of pairs, beyond `_SOFT` as their logarithm; and what is left of their slopes, at most 1."""
    share = _SOFT / energy.clamp_min(_SOFT)
    return energy.clamp(max=_SOFT).sub_(_SOFT * torch.log(share)), share


class _SoftEnergy(torch.autograd.Function):
    """Sum of the soft energies of pairs, with its gradient made on the way.

    `ctx` is of `Any` type, as torch's own type of it does not know `saved_tensors`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Pairs) -> Tensor:  # noqa: ANN401
        flat = _axes_first(x)
        energy, force, _ = _pair_energies(flat, pairs)
        soft, share = _softened(energy)
        force.mul_(share)
        gradient = torch.zeros_like(flat)
        gradient.index_add_(1, pairs.first, force)
        gradient.index_add_(1, pairs.second, force.neg_())
        ctx.save_for_backward(gradient.T.reshape(x.shape))
        return soft.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.saved_tensors[0] * grad, None


def _axes_first(x: Tensor) -> Tensor:
    """Points `(batch, atoms, 3)` as `(3, batch x atoms)`."""
    return x.detach().reshape(-1, 3).T.contiguous()
