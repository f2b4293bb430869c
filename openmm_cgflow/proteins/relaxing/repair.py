"""Atoms in one place: the planes and side chains around them are drawn anew, given all else, and descend once more.

A window is the planes beside the two residues of a pair, and the residues that these planes move. Its planes are drawn
from the chain given the planes beyond, with the energies of atoms that stay; its side chains are packed around each
draw. The draw with the lowest energies of pairs is kept, if it is better than what was there. Windows are wider each
time. So the work is that of the pairs that are too near, however long the protein is.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.proteins.beads.terms import TiedBeads
from openmm_cgflow.proteins.chain.geometry import place_planes
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.contacts import COARSE, Nonbonded, pair_energies, squared_distances
from openmm_cgflow.proteins.placing.packing import chosen, pack, pair_tables
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain, grid, turns_of
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.proteins.placing.side_chains import GridProposer, SelfEnergies, Window
from openmm_cgflow.proteins.relaxing.pairs import Judged
from openmm_cgflow.proteins.relaxing.refine import Refiner

__all__ = ["Repair", "State"]

_WIDER = (0, 1, 2)
"""Planes that are drawn anew on each side of the two of a residue, one time after the other."""

_DRAWS = 8  # of a window, the first of which has the planes that were there
_SEEN = 1.3  # nm around alpha carbons of a window, within which atoms count
_TOLERATED = 20.0  # kJ/mol by which disulfides, or beads, may become worse for a clash less
_CAP = 30.0  # kJ/mol, of a pair of an atom of a plane and one that stays


class State(NamedTuple):
    """Structures of a batch, and what they are made of."""

    backbone: Backbone
    chain: PlaneChain
    turns: Tensor
    """`(batch, planes)` rad."""
    chi: Tensor
    """`(batch, residues, MOST_CHI)` rad."""
    x: Tensor
    """`(batch, atoms, 3)` nm."""

    def of(self, rows: slice) -> "State":
        """Some structures of the batch."""
        return State(self.backbone[rows], self.chain[rows], self.turns[rows], self.chi[rows], self.x[rows])


class Repair:
    """Draws windows of structures anew.

    Arguments:
        assembly: puts backbones together.
        energies: of candidates of side chains.
        proposer: of candidates.
        refiner: descends.
        nonbonded: charges and Lennard-Jones parameters.
        kT: kJ/mol.
    """

    def __init__(
        self,
        assembly: Assembly,
        energies: SelfEnergies,
        proposer: GridProposer,
        refiner: Refiner,
        nonbonded: Nonbonded,
        kT: float,
    ) -> None:
        self.layout, self.planes, self.assembly = assembly.layout, assembly.planes, assembly
        self.energies, self.proposer, self.refiner, self.pairs = energies, proposer, refiner, refiner.pairs
        self.nonbonded, self.kT = nonbonded, kT
        self.residue = torch.as_tensor(self.pairs.residue)
        self.is_side = torch.zeros(self.layout.n_atoms, dtype=torch.bool)
        self.is_side[self.layout.side_atoms] = True
        placed = self.assembly.indices[self.assembly.indices >= 0]
        self.of_ends = ~self.is_side  # atoms of termini that no plane has, and that move with the last one
        self.of_ends[placed] = False
        self.of_ends[self.layout.of("CA")] = False
        self.chain = torch.tensor([residue.chain for residue in self.layout.sequence.residues])

    def mended(self, state: State, generator: torch.Generator, refine: int, tied: TiedBeads | None = None) -> State:
        """The same structures, fewer of whose atoms are in one place.

        Arguments:
            state: the structures; its tensors are used up.
            generator: of everything random.
            refine: steps of descent after windows were drawn anew.
            tied: beads that are no atoms, to which the structures are tied.
        """
        judged = self.pairs.judged(state.x)
        for wider in _WIDER:
            changed = []
            for frame in torch.unique(judged.frame).tolist():
                old = state.of(slice(frame, frame + 1))
                new = old
                for starts, width in self._windows(judged, frame, wider):
                    new = self._redrawn(new, starts, width, generator, tied and tied[frame : frame + 1])
                changed += [] if new is old else [(frame, new)]
            if not changed:
                continue
            frames = torch.tensor([frame for frame, _ in changed])
            turns, chi = (torch.cat([getattr(new, name) for _, new in changed]) for name in ("turns", "chi"))
            backbone = state.backbone[frames]
            if refine:
                backbone, turns, chi = self.refiner.refined_on(backbone, turns, chi, refine, tied and tied[frames])
            x = self.refiner.structures(backbone, turns, chi)
            better = self.pairs.judged(x).hard < judged.hard[frames]
            better &= self.refiner.strain(x) < self.refiner.strain(state.x[frames]) + _TOLERATED
            if tied:
                better &= tied[frames].strain(x) < tied[frames].strain(state.x[frames]) + _TOLERATED
            for part, made in ((state.turns, turns), (state.chi, chi), (state.x, x)):
                part[frames[better]] = made[better]
            if tied:
                state.backbone.put(frames[better], backbone[better])
            judged = self.pairs.judged(state.x)
        return state

    def _windows(self, judged: Judged, frame: int, wider: int) -> Iterator[tuple[list[int], int]]:
        """First planes of the segments of each window, and how many planes a segment has; windows do not touch."""
        pairs = self.residue[judged.atoms[judged.frame == frame]]
        width, taken = min(2 + 2 * wider, len(self.planes)), torch.zeros(len(self.planes) + 2, dtype=torch.bool)
        for pair in torch.unique(pairs.sort(1).values, dim=0).tolist():
            starts = sorted({min(max(0, int(self.planes.before[k]) - wider), len(self.planes) - width) for k in pair})
            spans = [slice(start, start + width + 2) for start in starts]  # with a plane on each side
            if not any(bool(taken[span].any()) for span in spans):
                for span in spans:
                    taken[span] = True
                yield starts, width

    def _redrawn(
        self, one: State, starts: list[int], width: int, generator: torch.Generator, tied: TiedBeads | None
    ) -> State:
        """One structure with the planes of a window and their side chains drawn anew, if that is better."""
        segments = [torch.arange(start, start + width) for start in starts]
        planes = torch.unique(torch.cat(segments))
        inside = torch.isin(self.planes.before, planes) | torch.isin(self.planes.after, planes)
        residues = inside.nonzero().flatten()
        ca = one.x[:, self.layout.of("CA")[residues]]
        near = torch.cdist(one.x[0], ca[0]).amin(1) < _SEEN
        others = (near & self.is_side & ~inside[self.residue]).nonzero().flatten()
        moving = torch.zeros(self.layout.n_atoms, dtype=torch.bool)
        moving[(self.is_side | self.of_ends) & inside[self.residue]] = True
        atoms = self.assembly.indices[planes]
        moving[atoms[atoms >= 0]] = True
        staying = (near & ~moving).nonzero().flatten()
        many = torch.zeros(_DRAWS, dtype=torch.long)
        backbone, turns = one.backbone[many], one.turns[many].clone()
        for segment in segments:
            unary = one.chain.unary[0, segment] - self._field(one, segment, staying) / self.kT
            turns[1:, segment] = self._turns(one.chain, turns[1:], segment, unary, generator)
        chi = one.chi[many].clone()
        x = self.refiner.structures(backbone, turns, chi)
        window = Window(residues, others)
        more = tied[many].of_candidates if tied else None
        candidates = self.energies.choose(x, self.proposer.chi, self.proposer.local, self.kT, more, window)
        tables = pair_tables(candidates, self.energies, self.nonbonded)
        chi[:, residues] = chosen(candidates, pack(candidates.energy, tables, self.kT, 1, generator).state)
        x = self.refiner.structures_of(x, chi)
        moved = moving.nonzero().flatten()
        before, after = self.pairs.judged(one.x, moved), self.pairs.judged(x, moved)
        worse = (self.refiner.strain(x) - self.refiner.strain(one.x)).clamp_min(0)
        best = int((after.hard + after.soft + worse).argmin())
        if float(after.hard[best]) >= float(before.hard[0]) or float(worse[best]) > _TOLERATED:
            return one
        return one._replace(turns=turns[best : best + 1], chi=chi[best : best + 1], x=x[best : best + 1])

    def _field(self, one: State, segment: Tensor, staying: Tensor) -> Tensor:
        """Energies of planes with atoms that stay, `(planes, 72)` kJ/mol, of those that the free energies lack."""
        backbone, gamma = one.backbone, grid(one.turns, COARSE)
        placed = place_planes(
            backbone.starts[0, segment, None],
            tuple(axis[0, segment, None] for axis in backbone.axes),  # type: ignore[arg-type]
            backbone.shape[0, segment, None],
            gamma.expand(len(segment), -1),
        ).flatten(1, 2)  # (planes, 24 x 4, 3)
        squared = squared_distances(placed, one.x[:, staying].expand(len(segment), -1, -1))
        factors = self.nonbonded.between(self.assembly.indices[segment], staying)
        spread = tuple(factor[:, None] for factor in factors)
        shape = (len(segment), COARSE, 4, len(staying))
        energy = pair_energies(squared.reshape(shape), spread, _CAP)  # type: ignore[arg-type]
        of, ends = self.residue[staying], torch.stack([self.planes.first, self.planes.second], 1)[segment]
        beside = ((of[None, None] - ends[..., None]).abs() <= 1) & (ends >= 0)[..., None]
        beside &= self.chain[of][None, None] == self.chain[ends.clamp_min(0)][..., None]
        counted = ~(beside.any(1) & ~self.is_side[staying])
        return (energy * counted[:, None, None]).sum((2, 3)).repeat_interleave(BINS // COARSE, -1)

    def _turns(
        self, chain: PlaneChain, turns: Tensor, segment: Tensor, unary: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Turns of a segment `(draws, planes)` rad from the chain, given those of the planes beyond it."""
        first, last = int(segment[0]), int(segment[-1])
        bins = torch.floor((turns + math.pi) * (BINS / (2 * math.pi))).long() % BINS
        unary = unary.expand(len(turns), -1, -1).clone()
        links = [chain.link[p] for p in range(first, last)]
        if first > 0 and chain.link[first - 1] >= 0:
            unary[:, 0] += chain.log_factors[0, chain.link[first - 1]][bins[:, first - 1]]
        if last < len(self.planes) - 1 and chain.link[last] >= 0:
            unary[:, -1] += chain.log_factors[0, chain.link[last]][:, bins[:, last + 1]].T
        rows = [k for k in links if k >= 0]
        factors = chain.log_factors[0, rows].expand(len(turns), -1, -1, -1)
        local = [rows.index(k) if k >= 0 else -1 for k in links]
        return turns_of(PlaneChain(factors, local, unary).sample(generator)[0], generator)
