"""What beads that are no atoms say of planes, side chains and alpha carbons.

A bead is a weighted mean of the atoms of one residue. Where those of the backbone are is a function of the turns of the
planes before and after it, so that a bead is one more factor of the chain; a bead of a side chain is summed over its
candidates there. The alpha carbons, which are not given, are found by turns: planes for a trace, then the trace by what
beads are off.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.proteins.beads.kinds import BeadMapping
from openmm_cgflow.proteins.chain.geometry import place_planes, residue_frames
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.contacts import COARSE
from openmm_cgflow.proteins.placing.layout import ProteinLayout
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain, grid, local_factors
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.proteins.placing.side_chains import GridProposer, SelfEnergies, frames_of

__all__ = ["BeadTerms", "TiedBeads"]

_ENTRIES = 4_000_000
_OXT = 0.125 / 0.1335  # where the second oxygen is between C and N of the ghost's plane
_SIDE_SPREAD = 0.025  # nm, of beads with atoms of side chains, whose candidates are a grid
_SPREADS = (0.10, 0.07, 0.05, 0.035, 0.025, 0.02)  # nm, of beads, round by round
_STARTS = 4
"""Traces that are begun for each structure."""

_BESIDE = 0.05  # nm from the beads
_DRAWN = 3  # rounds in which planes are drawn; later ones take the likeliest
_LAST_ROUNDS = 2
_SEAM = 0.02  # nm, by which two traces differ where one goes over into the other
_VIRTUAL_BOND = 0.381
_PASSES = 30  # of bonds between alpha carbons, one after the other


@dataclass(frozen=True)
class _Kind:
    """Residues of one variant.

    Attributes:
        rows: which they are.
        local: `(candidates, beads, 3)` nm, what side chains add to beads in the frame of the residue.
        energy: `(candidates,)` in kT, within the residue.
        sided: `(beads,)` bool, beads with atoms of the side chain.
    """

    rows: Tensor
    local: Tensor
    energy: Tensor
    sided: Tensor


class _FoundPlanes(NamedTuple):
    """Planes of some traces."""

    backbone: Backbone
    gamma: Tensor
    """`(batch, planes)` rad."""
    score: Tensor
    """`(batch, residues)`, log of the factors at these turns."""


class BeadTerms:
    """Beads of a protein as factors.

    Arguments:
        layout: the protein.
        mapping: its beads.
        assembly: puts its backbone together.
        energies: of side chains.
        proposer: of candidates.
        library: of free energies.
        kT: kJ/mol.
    """

    def __init__(
        self,
        layout: ProteinLayout,
        mapping: BeadMapping,
        assembly: Assembly,
        energies: SelfEnergies,
        proposer: GridProposer,
        library: FragmentLibrary,
        kT: float,
    ) -> None:
        self.layout, self.mapping, self.assembly, self.library, self.kT = layout, mapping, assembly, library, kT
        self.planes = assembly.planes
        n = len(layout.sequence)
        counts = torch.bincount(mapping.residue, minlength=n)
        most = int(counts.max())
        self.slot = torch.full((n, most), -1)
        place = torch.cat([torch.arange(k) for k in counts.tolist()])
        self.slot[mapping.residue, place] = torch.arange(len(mapping))
        self.before, self.after = torch.zeros(n, most, 4), torch.zeros(n, most, 4)
        self.ca = torch.zeros(n, most)
        side = [torch.zeros(most, len(chain.names)) for chain in layout.side_chains]
        name_of = [{index: name for name, index in atoms.items()} for atoms in layout.index]
        for bead, atom, weight in zip(
            mapping.bead.tolist(), mapping.atom.tolist(), mapping.weight.tolist(), strict=True
        ):
            k, row = int(mapping.residue[bead]), int(place[bead])
            self._add(k, row, name_of[k][atom], weight, side[k])
        self.kinds = {
            variant: _Kind(
                rows,
                torch.einsum("bs,csd->cbd", side[int(rows[0])], proposer.local[variant]),
                energies.intrinsic(variant, proposer.local[variant]) / kT,
                side[int(rows[0])].sum(1) > 0,
            )
            for variant, rows in energies.members.items()
        }
        self.side_weight = torch.stack([weights.sum(1) for weights in side])
        self.ratio = torch.ones_like(self.side_weight)  # of a residue's beads to those of the first of its variant
        for kind in self.kinds.values():
            ratio = self.side_weight[kind.rows] / self.side_weight[kind.rows[0]]
            self.ratio[kind.rows] = torch.where(kind.sided, ratio, 1.0)
        bones = torch.ones(layout.n_atoms, dtype=torch.bool)
        bones[layout.side_atoms] = False
        self.bare = replace(mapping, weight=mapping.weight * bones[mapping.atom])

    def _add(self, k: int, row: int, name: str, weight: float, side: Tensor) -> None:
        first = self.layout.sequence.is_first(k)
        names = self.layout.side_chains[k].names
        if name in names:
            side[row, names.index(name)] += weight
        elif name == "CA":
            self.ca[k, row] += weight
        elif name == "OXT":
            self.after[k, row, 0] += weight * (1 - _OXT)
            self.after[k, row, 2] += weight * _OXT
        elif name in ("C", "O"):
            self.after[k, row, ("C", "O").index(name)] += weight
        else:  # hydrogens of a first N, which no plane has, count as N
            self.before[k, row, 3 if name == "H" and not first else 2] += weight

    def log_factors(self, backbone: Backbone, targets: Tensor, spread: float) -> Tensor:
        """Log of a factor of each residue, `(batch, residues, 24, 24)`, by the bins of the planes before and after it.

        Arguments:
            backbone: planes on a trace.
            targets: `(batch, beads, 3)` nm.
            spread: nm, by which beads may be off.
        """
        gamma = grid(targets, COARSE)
        axes = tuple(axis[:, :, None] for axis in backbone.axes)
        shape = (*backbone.starts.shape[:2], COARSE)
        atoms = place_planes(backbone.starts[:, :, None], axes, backbone.shape[:, :, None], gamma.expand(shape))  # type: ignore[arg-type]
        before, after = atoms[:, self.planes.before], atoms[:, self.planes.after]
        made = targets.new_zeros(*backbone.trace.shape[:2], COARSE, COARSE)
        for kind in self.kinds.values():
            reach = max(1, _ENTRIES // (len(targets) * COARSE**2 * (len(kind.local) + 9)))
            for rows in kind.rows.split(reach):
                made[:, rows] = self._factor(kind, rows, backbone.trace, before, after, targets, spread)
        return made

    def _factor(
        self, kind: _Kind, rows: Tensor, trace: Tensor, before: Tensor, after: Tensor, targets: Tensor, spread: float
    ) -> Tensor:
        ca, before, after = trace[:, rows], before[:, rows], after[:, rows]
        first = torch.einsum("rbk,xrgkd->xrbgd", self.before[rows], before)[:, :, :, :, None]
        second = torch.einsum("rbk,xrgkd->xrbgd", self.after[rows], after)[:, :, :, None]
        there = self.slot[rows] >= 0
        own = (self.ca[rows] + self.side_weight[rows])[..., None] * ca[:, :, None] - targets[:, self.slot[rows]]
        off = (first + second + own[..., None, None, :]) * there[..., None, None, None]  # (x, r, b, g, h, 3)
        bare = ~kind.sided
        log_f = -0.5 * off[:, :, bare].square().sum((2, -1)) / spread**2
        if not kind.sided.any():
            return log_f
        wide = max(spread, _SIDE_SPREAD)
        on_n = self.layout.is_proline[rows][:, None, None]
        frames = residue_frames(before[:, :, :, None, 2], ca[:, :, None, None], after[:, :, None, :, 0], on_n)
        local = torch.einsum("xrghij,xrbghj->xrghbi", frames, -off[:, :, kind.sided])
        places, ratio = kind.local[:, kind.sided], self.ratio[rows][:, kind.sided]
        sizes = ratio.square() @ places.square().sum(-1).T
        mixed = (local * ratio[:, None, None, :, None]).flatten(-2) @ places.flatten(1).T
        squared = local.square().sum((-1, -2))[..., None] + sizes[:, None, None] - 2 * mixed
        log_c = -kind.energy - 0.5 * squared / wide**2
        return log_f + torch.logsumexp(log_c, -1) - torch.logsumexp(-kind.energy, 0)

    def trace(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Alpha carbons for beads `(batch, beads, 3)`: `(batch, residues, 3)` nm.

        Some traces are begun beside the beads and drawn to where planes and beads agree; the best parts of them are put
        together, by what planes and beads say of each residue.
        """
        many = targets.repeat_interleave(_STARTS, 0)
        first = many[:, self.slot[:, 0]]
        noise = torch.randn(first.shape, generator=generator, device=first.device)
        trace = self._joined(first + _BESIDE * noise)
        for k, spread in enumerate(_SPREADS):
            found = self._planes_of(trace, many, spread, generator if k < _DRAWN else None)
            trace = self._moved(found, many, spread)
        trace = self._stitched(found)
        for _ in range(_LAST_ROUNDS):
            trace = self._moved(self._planes_of(trace, targets, _SPREADS[-1], None), targets, _SPREADS[-1])
        return trace

    def _planes_of(
        self, trace: Tensor, targets: Tensor, spread: float, generator: torch.Generator | None
    ) -> "_FoundPlanes":
        """Planes on traces: drawn from the chain, or each at its likeliest turn."""
        backbone = Backbone.of(self.planes, trace)
        factors = local_factors(backbone, self.layout.sequence, self.library, COARSE)
        factors = factors + self.log_factors(backbone, targets, spread)
        chain = PlaneChain(factors, self.planes.link, factors.new_zeros(len(trace), len(self.planes), COARSE))
        bins = chain.marginals().argmax(-1) if generator is None else chain.sample(generator)[0]
        here = torch.arange(len(trace))[:, None], torch.arange(trace.shape[1])
        score = factors[(*here, bins[:, self.planes.before], bins[:, self.planes.after])]
        return _FoundPlanes(backbone, grid(trace, COARSE)[bins], score)

    def _moved(self, found: "_FoundPlanes", targets: Tensor, spread: float) -> Tensor:
        return self._joined(found.backbone.trace - self._off(found.backbone, found.gamma, targets, spread))

    def _stitched(self, found: "_FoundPlanes") -> Tensor:
        """The best path through the starts of each structure, `(batch, residues, 3)` nm (Viterbi's algorithm)."""
        trace = found.backbone.trace.unflatten(0, (-1, _STARTS))
        score, gamma = (t.unflatten(0, (-1, _STARTS)) for t in (found.score, found.gamma[:, self.planes.after]))
        apart = (trace[:, :, None] - trace[:, None]).square().sum(-1) / (2 * _SEAM**2)
        turned = 2 * (1 - torch.cos(gamma[:, :, None] - gamma[:, None]))
        best, came = score[..., 0], []
        for k in range(trace.shape[2] - 1):
            total, source = (best[:, :, None] - (apart[..., k] + apart[..., k + 1] + turned[..., k])).max(1)
            came.append(source)
            best = total + score[..., k + 1]
        path = [best.argmax(-1, keepdim=True)]
        for source in reversed(came):
            path.append(source.gather(1, path[-1]))
        which = torch.cat(path[::-1], 1)[:, None, :, None]
        return trace.gather(1, which.expand(-1, 1, -1, 3))[:, 0]

    def _off(self, backbone: Backbone, gamma: Tensor, targets: Tensor, spread: float) -> Tensor:
        """How far beads are off, with the likeliest candidates at these turns: means, `(batch, residues, 3)`."""
        x = self.assembly.backbone(backbone, gamma)
        made = torch.empty_like(backbone.trace)
        for variant, kind in self.kinds.items():
            off = self.off(variant, kind.rows, x, targets)
            squared = off.square().sum((3, 4)) / max(spread, _SIDE_SPREAD) ** 2
            best = (kind.energy + 0.5 * squared).argmin(-1)[:, :, None, None, None]
            chosen = off.gather(2, best.expand(-1, -1, 1, *off.shape[3:]))[:, :, 0]
            made[:, kind.rows] = chosen.sum(2) / (self.slot[kind.rows] >= 0).sum(1)[:, None]
        return made

    def off(self, variant: str, rows: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        """Beads minus targets of candidates, `(batch, rows, candidates, beads, 3)` nm.

        Arguments:
            variant: of the residues.
            rows: which residues.
            x: `(batch, atoms, 3)` nm, of which backbones count.
            targets: `(batch, beads, 3)` nm.
        """
        kind, slot = self.kinds[variant], self.slot[rows]
        ca = x[:, self.layout.of("CA")[rows]]
        off = self.bare.beads_of(x)[:, slot] - targets[:, slot] + self.side_weight[rows][..., None] * ca[:, :, None]
        side = torch.einsum("cbi,xrij->xrcbj", kind.local, frames_of(self.layout, x)[:, rows])
        return (off[:, :, None] + side * self.ratio[rows][:, None, :, None]) * (slot >= 0)[:, None, :, None]

    def _joined(self, trace: Tensor) -> Tensor:
        """The same with neighbours at the distance of a virtual bond."""
        chain = torch.tensor([r.chain for r in self.layout.sequence.residues])
        inner = (chain[1:] == chain[:-1]).to(trace)[:, None]
        for _ in range(_PASSES):
            apart = trace.diff(dim=1)
            length = apart.norm(dim=-1, keepdim=True).clamp_min(1e-3)
            move = 0.25 * inner * apart * (1 - _VIRTUAL_BOND / length)
            trace = trace + torch.nn.functional.pad(move, (0, 0, 0, 1)) - torch.nn.functional.pad(move, (0, 0, 1, 0))
        return trace


@dataclass(frozen=True)
class TiedBeads:
    """Where the beads of a batch shall be.

    Attributes:
        terms: of the protein.
        targets: `(batch, beads, 3)` nm.
    """

    terms: BeadTerms
    targets: Tensor

    def log_factors(self, backbone: Backbone) -> Tensor:
        """What beads add to the chain's factors."""
        fine = BINS // COARSE
        made = self.terms.log_factors(backbone, self.targets, _SPREADS[-1])
        return made.repeat_interleave(fine, -1).repeat_interleave(fine, -2)

    def of_candidates(self, variant: str, rows: Tensor, x: Tensor) -> Tensor:
        """What beads cost candidates on these backbones, kJ/mol `(batch, rows, candidates)`."""
        off = self.terms.off(variant, rows, x, self.targets)[:, :, :, self.terms.kinds[variant].sided]
        return 0.5 * self.terms.kT * off.square().sum((3, 4)) / _SIDE_SPREAD**2

    def strain(self, x: Tensor) -> Tensor:
        """What beads cost each of the structures `(batch, atoms, 3)`, kJ/mol, as far off as candidates may be."""
        off = self.terms.mapping.beads_of(x) - self.targets
        return 0.5 * self.terms.kT * off.square().sum((1, 2)) / _SIDE_SPREAD**2

    def energy(self, x: Tensor, spread: float) -> Tensor:
        """What beads cost structures `(batch, atoms, 3)`, kJ/mol, in all."""
        off = self.terms.mapping.beads_of(x) - self.targets
        return 0.5 * self.terms.kT * off.square().sum() / spread**2

    def __getitem__(self, rows: Tensor | slice) -> "TiedBeads":
        return TiedBeads(self.terms, self.targets[rows])
