"""Planes and side chains move together once more: descent in their turns, with alpha carbons, bonds and angles rigid.

What is descended is the free energy of phi, psi and N-CA-C, the torsions of side chains, and nonbonded energies (4 r,
see `contacts`) of pairs within reach, made soft above `_SOFT`. As alpha carbons stay, every turn moves few atoms, and a
plain step size does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import networkx
import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from openmm_cgflow.proteins.beads.terms import TiedBeads
from openmm_cgflow.proteins.chain.geometry import dihedrals
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.contacts import STRONGEST, Nonbonded
from openmm_cgflow.proteins.placing.layout import MOST_CHI, ProteinLayout, greasy_hydrogens
from openmm_cgflow.proteins.placing.plane_chain import interpolated
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.proteins.placing.side_chains import PeriodicTorsions, frames_of
from openmm_cgflow.units import KB

__all__ = ["Judged", "Refiner"]

_REACH = 0.5  # nm, of pairs
_SOFT = 30.0  # kJ/mol of a pair of atoms, above which its energy grows as its logarithm
_RATE, _LAST_RATE = 0.08, 0.01  # rad a step, first and last
_LONGER = 3  # times the steps of descent where alpha carbons move as well
_TRACE_SHARE = 0.1  # nm of an alpha carbon for a rad of a turn
_SPREAD, _LAST_SPREAD = 0.03, 0.006  # nm, by which beads may be off, first and last
_VIRTUAL_BOND, _VIRTUAL_SPRING = 0.381, 3.0e4  # nm, kJ/mol/nm^2, of alpha carbons that move
_BETAS, _TINY = (0.8, 0.95), 1e-8  # of Adam
_GREASY_REACH = 0.4  # nm, of pairs with a hydrogen on a carbon, which hardly has a charge
_REBUILD = 15  # steps between lists of pairs
_STERIC = -1.0  # in place of a scale: a pair that the free energy has, of which a small part of the repulsion counts,
_STERIC_SHARE = 0.3  # for on strained traces the free energy does not keep the pair apart
_SULFUR, _ACROSS = 0.2038, 0.3030  # nm, S-S and CB-S of a disulfide
_SPRING = 2.0e4  # kJ/mol/nm^2 of these two, in place of the bond
_COULOMB = 138.935456 / 40.0
_CLOSEST = 0.0025  # nm^2
_ANGLE_BROADER = math.radians(2.5)
_HARMONICS = 6
_HARD = 150.0  # kJ/mol of a pair of atoms, above which they are in one place
_TOUCHING, _IN_ONE_PLACE = 0.225, 1000.0  # nm of two heavy atoms, and kJ/mol that are said of them


@dataclass(frozen=True)
class _Pairs:
    """Pairs of atoms of all structures of a batch, as indices into `(batch x atoms)`."""

    first: Tensor
    second: Tensor
    charge: Tensor
    repulsion: Tensor
    attraction: Tensor
    whole: Tensor


class Judged(NamedTuple):
    """What `Refiner.judged` gives. Pairs are hard above `_HARD`; heavy atoms nearer than `_TOUCHING` always are."""

    soft: Tensor
    """`(batch,)` kJ/mol."""
    hard: Tensor
    """`(batch,)` kJ/mol of hard pairs, each at most `_IN_ONE_PLACE`; 0 where there are none."""
    frame: Tensor
    """`(pairs,)`, of hard pairs: which structure."""
    atoms: Tensor
    """`(pairs, 2)`, of hard pairs."""


class Refiner:
    """Descends in the turns of planes and side chains.

    Arguments:
        layout: the protein.
        assembly: puts its backbone together.
        nonbonded: charges and Lennard-Jones parameters.
        torsions: of its System.
        library: of free energies.
    """

    def __init__(
        self,
        layout: ProteinLayout,
        assembly: Assembly,
        nonbonded: Nonbonded,
        torsions: PeriodicTorsions,
        library: FragmentLibrary,
    ) -> None:
        self.layout, self.assembly, self.nonbonded = layout, assembly, nonbonded
        sides, n = layout.side_chains, len(layout.sequence)
        self.local = torch.cat([side.local for side in sides]).float()
        self.depth = torch.cat([side.depth for side in sides])
        self.points = torch.stack([side.points for side in sides]).float()
        self.directions = torch.stack([side.directions for side in sides]).float()
        self.reference = torch.stack([side.reference for side in sides]).float()
        self.levels = [torch.nonzero(self.depth > k).flatten() for k in range(MOST_CHI)]
        self.turns = torch.tensor([[k < side.n_chi for k in range(MOST_CHI)] for side in sides])
        self.fourier = self._fourier(torsions)
        classes = sorted(library.free_energy)
        sequence, names = layout.sequence, library.classes(layout.sequence)
        self.kind = torch.tensor([classes.index(name) for name in names])
        self.free_energy = torch.stack([library.free_energy[name] for name in classes]).float()
        self.angle = torch.stack([library.angle[name] for name in names]).float()
        self.kT = KB * library.temperature
        self.inner = torch.tensor([k for k in range(n) if not (sequence.is_first(k) or sequence.is_last(k))])
        self._lists(n)

    def _lists(self, n: int) -> None:
        """Which pairs do not count, or by half, by codes in order; springs of disulfides."""
        atoms = self.layout.n_atoms
        graph = networkx.Graph((a.index, b.index) for a, b in self.layout.topology.bonds())
        backbone = set(range(atoms)) - set(self.layout.side_atoms.tolist())
        self.heavy = torch.tensor([a.element.symbol != "H" for a in self.layout.topology.atoms()])
        self.greasy = np.zeros(atoms, dtype=bool)
        self.greasy[greasy_hydrogens(self.layout)] = True
        self.residue = np.array([a.residue.index for a in self.layout.topology.atoms()])
        scale: dict[int, float] = {}
        for i in graph:
            for j, bonds in networkx.single_source_shortest_path_length(graph, i, cutoff=3).items():
                if j > i:
                    scale[i * atoms + j] = 0.5 if bonds == 3 else 0.0
        bonded = set(scale)
        by_residue: list[list[int]] = [[] for _ in range(n)]
        for i in sorted(backbone):
            by_residue[self.residue[i]].append(i)
        inner = set(self.inner.tolist())
        for k in range(n - 1):  # what the free energy of phi and psi has; termini have none
            near = by_residue[k] + by_residue[k + 1] if {k, k + 1} <= inner else []
            for i, j in ((i, j) for i in near for j in near if j > i):
                apart = i * atoms + j not in bonded and bool(self.heavy[i] & self.heavy[j])
                scale[i * atoms + j] = _STERIC if apart else 0.0
        self.codes = np.array(sorted(scale))
        self.scales = np.array([scale[code] for code in self.codes.tolist()], dtype=np.float32)
        self.bonded = np.zeros(n, dtype=bool)
        springs = []
        for a, b in self.layout.disulfides:
            self.bonded[[a, b]] = True
            s, t = self.layout.index[a], self.layout.index[b]
            springs += [(s["SG"], t["SG"], _SULFUR), (s["CB"], t["SG"], _ACROSS), (s["SG"], t["CB"], _ACROSS)]
        self.springs = torch.tensor([row[:2] for row in springs], dtype=torch.long).reshape(-1, 2)
        self.spring_lengths = torch.tensor([row[2] for row in springs])

    def _fourier(self, torsions: PeriodicTorsions) -> Tensor:
        """Torsional energy about each axis: factors of cos and sin of n chi, `(residues, MOST_CHI, 6, 2)`."""
        made = torch.zeros(len(self.layout.sequence), MOST_CHI, _HARMONICS + 1, 2)
        axes: dict[tuple[int, int], tuple[int, int]] = {}
        for k, residue in enumerate(self.layout.sequence.residues):
            for j, (_, b, c, _) in enumerate(self.layout.chi_of(residue.variant)):
                axes[self.layout.index[k][b], self.layout.index[k][c]] = (k, j)
        template = self.layout.template_positions()
        bonds = {frozenset((a.index, b.index)) for a, b in self.layout.topology.bonds()}
        for row, (period, phase, height) in zip(torsions.rows.tolist(), torsions.terms.tolist(), strict=True):
            quartet = row if (row[1], row[2]) in axes else row[::-1]
            found = axes.get((quartet[1], quartet[2]))
            if found is None or not all(frozenset(pair) in bonds for pair in pairwise(row)):  # an improper
                continue
            k, j = found
            offset = float(dihedrals(*(template[a] for a in quartet))) - float(self.reference[k, j])
            made[k, j, int(period), 0] += height * math.cos(period * offset - phase)
            made[k, j, int(period), 1] -= height * math.sin(period * offset - phase)
        return made[:, :, 1:]

    def sides(self, x: Tensor, chi: Tensor) -> Tensor:
        """Side chains `(batch, side atoms, 3)` on backbones `(batch, atoms, 3)`, at `chi` as `structures` has it."""
        device = x.device
        of = self.layout.side_residue.to(device)
        y = self.local.to(device).expand(len(x), -1, -1)
        for k in reversed(range(MOST_CHI)):
            rows = self.levels[k].to(device)
            if not len(rows):
                continue
            residues = of[rows]
            angle = (chi[:, :, k] - self.reference[:, k].to(device))[:, residues, None]
            point, axis = self.points[:, k].to(device)[residues], self.directions[:, k].to(device)[residues]
            rest = y[:, rows] - point
            along = (rest * axis).sum(-1, keepdim=True) * axis
            around = torch.linalg.cross(axis.expand_as(rest), rest)
            y = y.index_copy(1, rows, point + along + torch.cos(angle) * (rest - along) + torch.sin(angle) * around)
        frames = frames_of(self.layout, x)[:, of]
        return (y[..., None, :] @ frames)[..., 0, :] + x[:, self.layout.of("CA").to(device)][:, of]

    def structures_of(self, x: Tensor, chi: Tensor) -> Tensor:
        """Backbones `(batch, atoms, 3)` with side chains at `chi`."""
        return self.assembly.with_sides(x, self.sides(x, chi))

    def judged(self, x: Tensor, moved: Tensor | None = None) -> Judged:
        """Pairs that are too near, and soft energies of all pairs.

        Arguments:
            x: `(batch, atoms, 3)` nm.
            moved: atoms of which one has to be in a pair; all by default.
        """
        pairs = self._pairs(x, moved)
        atoms = x.shape[1]
        energy, _, inverse = _pair_energies(_axes_first(x), pairs)
        heavy = self.heavy.to(x.device)
        close = (inverse > 1 / _TOUCHING**2) & pairs.whole
        close &= heavy[pairs.first % atoms] & heavy[pairs.second % atoms]
        energy = torch.where(close, energy.clamp_min(_IN_ONE_PLACE), energy)
        frame, hard = pairs.first // atoms, (energy > _HARD).nonzero().flatten()
        soft = torch.where(energy > _SOFT, _SOFT * (1 + torch.log(energy.clamp_min(_SOFT) / _SOFT)), energy)
        return Judged(
            x.new_zeros(len(x)).index_add_(0, frame, soft),
            x.new_zeros(len(x)).index_add_(0, frame[hard], energy[hard].clamp(max=_IN_ONE_PLACE)),
            frame[hard],
            torch.stack([pairs.first[hard], pairs.second[hard]], 1) % atoms,
        )

    def strain(self, x: Tensor) -> Tensor:
        """Energies of disulfides of structures `(batch, atoms, 3)`, kJ/mol `(batch,)`."""
        length = (x[:, self.springs[:, 0]] - x[:, self.springs[:, 1]]).norm(dim=-1)
        return 0.5 * _SPRING * (length - self.spring_lengths.to(x.device)).square().sum(-1)

    def structures(self, backbone: Backbone, gamma: Tensor, chi: Tensor) -> Tensor:
        """All atoms, `(batch, atoms, 3)` nm."""
        return self.structures_of(self.assembly.backbone(backbone, gamma), chi)

    def refined(self, backbone: Backbone, gamma: Tensor, chi: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Turns of planes `(batch, planes)` and of side chains `(batch, residues, MOST_CHI)` after some steps."""
        gamma, chi = gamma.clone().requires_grad_(True), chi.clone().requires_grad_(True)
        self._descend([gamma, chi], lambda: self.structures(backbone, gamma, chi), chi, steps)
        return gamma.detach(), chi.detach()

    def refined_on(
        self, backbone: Backbone, gamma: Tensor, chi: Tensor, steps: int, tied: TiedBeads | None
    ) -> tuple[Backbone, Tensor, Tensor]:
        """The same on a trace that is given; or on one that moves, tied to beads, after more steps."""
        if tied is None:
            return backbone, *self.refined(backbone, gamma, chi, steps)
        return self.refined_with_trace(backbone, gamma, chi, _LONGER * steps, tied)

    def refined_with_trace(
        self, backbone: Backbone, gamma: Tensor, chi: Tensor, steps: int, tied: TiedBeads
    ) -> tuple[Backbone, Tensor, Tensor]:
        """The same with alpha carbons that move too, tied to beads ever more."""
        trace, gamma, chi = (t.clone().requires_grad_(True) for t in (backbone.trace, gamma, chi))
        real = ~self.assembly.planes.ghost
        lengths = (backbone.ends - backbone.starts)[:, real].norm(dim=-1)
        lengths = torch.where(backbone.cis[:, real], lengths, _VIRTUAL_BOND)

        def more(x: Tensor, done: float) -> Tensor:
            now = backbone.moved(trace)
            off = (now.ends - now.starts)[:, real].norm(dim=-1) - lengths
            spread = _SPREAD * (_LAST_SPREAD / _SPREAD) ** done
            return tied.energy(x, spread) + 0.5 * _VIRTUAL_SPRING * off.square().sum()

        moving, shares = [gamma, chi, trace], (1.0, 1.0, _TRACE_SHARE)
        self._descend(moving, lambda: self.structures(backbone.moved(trace), gamma, chi), chi, steps, shares, more)
        return backbone.moved(trace.detach()), gamma.detach(), chi.detach()

    def refined_sides(self, x: Tensor, chi: Tensor, steps: int) -> Tensor:
        """Turns of side chains alone after some steps, on backbones `(batch, atoms, 3)` that stay."""
        chi = chi.clone().requires_grad_(True)
        self._descend([chi], lambda: self.structures_of(x, chi), chi, steps)
        return chi.detach()

    def _descend(
        self,
        turns: list[Tensor],
        structures: Callable[[], Tensor],
        chi: Tensor,
        steps: int,
        shares: Sequence[float] = (1.0, 1.0),
        more: Callable[[Tensor, float], Tensor] | None = None,
    ) -> None:
        """Steps of Adam, written out: to load torch's optimizers takes seconds.

        Arguments:
            turns: what moves, in place.
            structures: made of it.
            chi: turns of side chains.
            steps: how many.
            shares: of the rate, of each that moves.
            more: what else it costs, of the structures and how much is done; kJ/mol.
        """
        means, squares = ([torch.zeros_like(turn) for turn in turns] for _ in range(2))
        for step in range(steps):
            done = step / max(1, steps - 1)
            rate = _RATE * (_LAST_RATE / _RATE) ** done
            with torch.enable_grad():
                x = structures()
                if step % _REBUILD == 0:
                    pairs = self._pairs(x.detach())
                energy = self._energy(x, chi, pairs)
                gradients = torch.autograd.grad(energy if more is None else energy + more(x, done), turns)
            with torch.no_grad():
                for turn, gradient, mean, square, share in zip(turns, gradients, means, squares, shares, strict=False):
                    mean.lerp_(gradient, 1 - _BETAS[0])
                    square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
                    width = (square / (1 - _BETAS[1] ** (step + 1))).sqrt_().add_(_TINY)
                    turn.addcdiv_(mean, width, value=-share * rate / (1 - _BETAS[0] ** (step + 1)))

    def _energy(self, x: Tensor, chi: Tensor, pairs: _Pairs) -> Tensor:
        """The sum over the batch, kJ/mol."""
        total = _PairEnergy.apply(x, pairs)
        order = torch.arange(1, _HARMONICS + 1, device=x.device)
        turns = chi[..., None] * order
        fourier = self.fourier.to(x.device)
        total = total + (fourier[..., 0] * torch.cos(turns) + fourier[..., 1] * torch.sin(turns)).sum()
        if len(self.inner):
            total = total + self._local(x)
        if len(self.springs):
            length = (x[:, self.springs[:, 0]] - x[:, self.springs[:, 1]]).norm(dim=-1)
            off = (length - self.spring_lengths.to(x.device)).clamp(-0.1, 0.1)
            total = total + 0.5 * _SPRING * off.square().sum()
        return total

    def _local(self, x: Tensor) -> Tensor:
        """Free energies of phi and psi, and strains of N-CA-C."""
        rows = self.inner
        n, ca, c = (x[:, self.layout.of(name)[rows]] for name in ("N", "CA", "C"))
        before, after = x[:, self.layout.of("C")[rows - 1]], x[:, self.layout.of("N")[rows + 1]]
        phi, psi = dihedrals(before, n, ca, c), dihedrals(n, ca, c, after)
        energy = interpolated(
            self.free_energy.to(x.device), self.kind.to(x.device)[rows], phi[..., None, None], psi[..., None, None]
        )
        u, v = n - ca, c - ca
        cosine = (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))
        mean, spread = self.angle.to(x.device)[rows].unbind(1)
        off = torch.acos(cosine.clamp(-0.9999, 0.9999)) - mean
        return energy.sum() + (0.5 * self.kT * off**2 / (spread**2 + _ANGLE_BROADER**2)).sum()

    def _pairs(self, x: Tensor, moved: Tensor | None = None) -> _Pairs:
        """Pairs within reach, those of a `moved` atom if such are given."""
        atoms = self.layout.n_atoms
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
        return _Pairs(*(t.to(device) for t in (first + shift, second + shift, charge, repulsion, depth * share, whole)))


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


def _pair_energies(flat: Tensor, pairs: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
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


class _PairEnergy(torch.autograd.Function):
    """Sum of the soft energies of pairs, with its gradient made on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: _Pairs) -> Tensor:  # noqa: ANN401
        flat = _axes_first(x)
        energy, force, _ = _pair_energies(flat, pairs)
        share = (_SOFT / energy.clamp_min(_SOFT)).clamp_(max=1.0)
        soft = energy.clamp(max=_SOFT).sub_(_SOFT * torch.log(share))
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
