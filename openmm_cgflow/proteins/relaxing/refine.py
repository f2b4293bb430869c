"""Planes and side chains move together once more: descent in their turns, with alpha carbons, bonds and angles rigid.

What is descended is the free energy of phi, psi and N-CA-C, the torsions of side chains, and soft nonbonded energies
(4 r, see `contacts`) of pairs within reach. As alpha carbons stay, every turn moves few atoms, and a plain step size
does.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from openmm_cgflow.proteins.beads.terms import TiedBeads
from openmm_cgflow.proteins.chain.geometry import dihedrals
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.layout import MOST_CHI, ProteinLayout
from openmm_cgflow.proteins.placing.plane_chain import interpolated
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.proteins.placing.side_chains import PeriodicTorsions, frames_of
from openmm_cgflow.proteins.relaxing.pairs import NearPairs, Pairs, soft_energy
from openmm_cgflow.units import KB

__all__ = ["Refiner"]

_RATE, _LAST_RATE = 0.08, 0.01  # rad a step, first and last
_LONGER = 3  # times the steps of descent where alpha carbons move as well
_TRACE_SHARE = 0.1  # nm of an alpha carbon for a rad of a turn
_SPREAD, _LAST_SPREAD = 0.03, 0.006  # nm, by which beads may be off, first and last
_VIRTUAL_BOND, _VIRTUAL_SPRING = 0.381, 3.0e4  # nm, kJ/mol/nm^2, of alpha carbons that move
_BETAS, _TINY = (0.8, 0.95), 1e-8  # of Adam
_REBUILD = 15  # steps between lists of pairs
_SULFUR, _ACROSS = 0.2038, 0.3030  # nm, S-S and CB-S of a disulfide
_SPRING = 2.0e4  # kJ/mol/nm^2 of these two, in place of the bond
_ANGLE_BROADER = math.radians(2.5)
_HARMONICS = 6


class Refiner:
    """Descends in the turns of planes and side chains.

    Arguments:
        layout: the protein.
        assembly: puts its backbone together.
        pairs: finds atoms that are near.
        torsions: of its System.
        library: of free energies.
    """

    def __init__(
        self,
        layout: ProteinLayout,
        assembly: Assembly,
        pairs: NearPairs,
        torsions: PeriodicTorsions,
        library: FragmentLibrary,
    ) -> None:
        self.layout, self.assembly, self.pairs = layout, assembly, pairs
        sides = layout.side_chains
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
        self.inner = torch.tensor(sequence.inner)
        springs = []
        for s, t in ([layout.index[k] for k in pair] for pair in layout.disulfides):
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
                    pairs = self.pairs.within_reach(x.detach())
                energy = self._energy(x, chi, pairs)
                gradients = torch.autograd.grad(energy if more is None else energy + more(x, done), turns)
            with torch.no_grad():
                for turn, gradient, mean, square, share in zip(turns, gradients, means, squares, shares, strict=False):
                    mean.lerp_(gradient, 1 - _BETAS[0])
                    square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
                    width = (square / (1 - _BETAS[1] ** (step + 1))).sqrt_().add_(_TINY)
                    turn.addcdiv_(mean, width, value=-share * rate / (1 - _BETAS[0] ** (step + 1)))

    def _energy(self, x: Tensor, chi: Tensor, pairs: Pairs) -> Tensor:
        """The sum over the batch, kJ/mol."""
        total = soft_energy(x, pairs)
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
