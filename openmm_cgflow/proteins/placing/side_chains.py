"""Side chains for a given backbone: candidates of each residue, and what each costs by itself.

`GridProposer` turns templates of minimised Ace-X-Nme through grids of their torsions; conditional flows
of fragments can take its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import networkx
import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.proteins.chain.geometry import dihedrals, residue_frames
from openmm_cgflow.proteins.chain.residues import grid_of
from openmm_cgflow.proteins.placing.contacts import Nonbonded, pair_energies, squared_distances
from openmm_cgflow.proteins.placing.layout import (
    MOST_CHI,
    ProteinLayout,
    SideChain,
    backbone_of_template,
    greasy_hydrogens,
    turned,
)

__all__ = ["Candidates", "GridProposer", "PeriodicTorsions", "SelfEnergies", "Window", "frames_of"]

KEPT = 20
"""Candidates of a residue that go on to packing: those of the lowest energies with the backbone."""

_CAP = 60.0  # kJ/mol, of a pair of atoms
_NEIGHBOURS = 72  # backbone atoms that a side chain sees, the nearest ones
_LOCAL = 18  # those of its own residue and of the two beside it
_ONE_FOUR = 0.5
_UNITED = 0.02  # nm that carbons gain in size by the hydrogens that are not seen
_ENTRIES = 400_000


def frames_of(layout: ProteinLayout, x: Tensor) -> Tensor:
    """Axes of all residues, `(batch, residues, 3, 3)`, of atoms `(batch, atoms, 3)`."""
    n, ca, c = (x[:, layout.of(name)] for name in ("N", "CA", "C"))
    return residue_frames(n, ca, c, layout.is_proline.to(x.device))


class GridProposer:
    """All combinations of a grid of torsions.

    Arguments:
        layout: the protein.
    """

    def __init__(self, layout: ProteinLayout) -> None:
        self.layout = layout
        self.chi: dict[str, Tensor] = {}
        self.local: dict[str, Tensor] = {}
        for residue, side in zip(layout.sequence.residues, layout.side_chains, strict=True):
            if residue.variant not in self.chi:
                chi = torch.as_tensor(grid_of(residue.variant), dtype=torch.float32)
                self.chi[residue.variant] = chi
                self.local[residue.variant] = turned(side, chi).float()


@dataclass(frozen=True)
class Candidates:
    """Candidates of all residues, `KEPT` each at most.

    Attributes:
        residues: `(residues,)`, which residues of the protein these are.
        chi: `(batch, residues, kept, MOST_CHI)` rad; zeros for torsions that are not there.
        energy: `(batch, residues, kept)` kJ/mol, of each with the backbone; infinite for places that are not filled.
        log_partition: `(batch, residues)`, log of the sum of Boltzmann factors over all candidates.
        placed: by variant: places in `residues`, and positions `(batch, residues, kept, atoms, 3)` nm.
    """

    residues: Tensor
    chi: Tensor
    energy: Tensor
    log_partition: Tensor
    placed: dict[str, tuple[Tensor, Tensor]]


class Window(NamedTuple):
    """Some residues whose side chains are placed anew."""

    residues: Tensor
    """`(residues,)`."""
    others: Tensor
    """Atoms of side chains nearby, which stay."""


class SelfEnergies:
    """Energies of side chains with the backbone and within themselves.

    Arguments:
        layout: the protein.
        system: its System, for torsions.
        nonbonded: its charges and Lennard-Jones parameters.
    """

    def __init__(self, layout: ProteinLayout, system: openmm.System, nonbonded: Nonbonded) -> None:
        self.layout, self.nonbonded = layout, nonbonded
        self.members = _by_variant(layout)
        graph = networkx.Graph((a.index, b.index) for a, b in layout.topology.bonds())
        side = set(layout.side_atoms.tolist())
        self.backbone = torch.tensor([a.index for a in layout.topology.atoms() if a.index not in side])
        self.of = torch.tensor([a.residue.index for a in layout.topology.atoms() if a.index not in side])
        chain = torch.tensor([residue.chain for residue in layout.sequence.residues])
        beside = (self.of[None, :] - torch.arange(len(chain))[:, None]).abs() <= 1
        self.beside = beside & (chain[self.of][None, :] == chain[:, None])
        self.bridged = torch.zeros(len(chain), layout.n_atoms, dtype=torch.bool)
        for a, b in layout.disulfides:  # springs have these
            for k, other in ((a, b), (b, a)):
                self.bridged[k, list(layout.index[other].values())] = True
        self.local_atoms, self.scales = self._local(graph)
        self.torsions = PeriodicTorsions(system)
        greasy = set(greasy_hydrogens(layout))
        self.seen = {
            variant: torch.tensor([int(atom) not in greasy for atom in self.side_indices(rows[:1])[0]])
            .nonzero()
            .flatten()
            for variant, rows in self.members.items()
        }
        charge, sigma = nonbonded.charge.clone(), nonbonded.sigma.clone()
        for hydrogen in greasy:
            carbon = next(iter(graph[hydrogen]))
            charge[carbon] += charge[hydrogen]
            charge[hydrogen] = 0
            sigma[carbon] = nonbonded.sigma[carbon] + _UNITED
        self.united = Nonbonded(charge, sigma, nonbonded.root_epsilon)
        """By variant, atoms of the side chain that others see while packing: all but hydrogens on carbons."""
        self.within = {variant: self._within(graph, int(rows[0])) for variant, rows in self.members.items()}

    def side_indices(self, rows: Tensor) -> Tensor:
        """Indices of the atoms of the side chains of residues of one variant, `(residues, atoms)`."""
        start = self.layout.side_start
        return torch.stack([self.layout.side_atoms[start[k] : start[k + 1]] for k in rows.tolist()])

    def _local(self, graph: networkx.Graph) -> tuple[Tensor, list[Tensor]]:
        """Backbone atoms beside each residue, `(residues, 18)`, and how much of each pair counts, `(atoms, 18)`."""
        atoms, scales = torch.full((len(self.layout.sequence), _LOCAL), -1), []
        start, side = self.layout.side_start, self.layout.side_atoms
        for k in range(len(atoms)):
            near = self.backbone[self.beside[k]]
            atoms[k, : len(near)] = near
            own = side[start[k] : start[k + 1]].tolist()
            scales.append(_scales(graph, own, atoms[k].tolist()))
        return atoms, scales

    def _within(self, graph: networkx.Graph, k: int) -> "_Within":
        start, side = self.layout.side_start, self.layout.side_chains[k]
        own = self.layout.side_atoms[start[k] : start[k + 1]]
        names = self.layout.index[k]
        frame = torch.tensor([names["N"], names["CA"], names["C"]])
        scale = torch.triu(_scales(graph, own.tolist(), own.tolist()), 1)
        return _Within(side, own, scale, self.torsions.of([*frame.tolist(), *own.tolist()]), self.nonbonded)

    def intrinsic(self, variant: str, local: Tensor) -> Tensor:
        """Energy within a residue, kJ/mol `(candidates,)`, of candidates `(candidates, atoms, 3)` in its frame."""
        return self.within[variant].energy(local)

    def choose(
        self,
        x: Tensor,
        chi: dict[str, Tensor],
        local: dict[str, Tensor],
        kT: float,
        more: Callable[[str, Tensor, Tensor], Tensor] | None = None,
        window: Window | None = None,
    ) -> Candidates:
        """Candidates with the lowest energies.

        Arguments:
            x: `(batch, atoms, 3)` nm, of which backbones are there.
            chi: torsions of candidates by variant.
            local: candidates by variant, in the frame of the residue.
            kT: kJ/mol.
            more: what else candidates cost, of a variant, its residues and `x`: `(batch, residues, candidates)` kJ/mol.
            window: the residues that are wanted, and side chains that stay; by default all, and none.
        """
        residues = torch.arange(len(self.layout.sequence)) if window is None else window.residues
        batch, n = len(x), len(residues)
        place = {k: i for i, k in enumerate(residues.tolist())}
        frames, ca = frames_of(self.layout, x), x[:, self.layout.of("CA")]
        made = Candidates(
            residues, x.new_zeros(batch, n, KEPT, MOST_CHI), x.new_full((batch, n, KEPT), torch.inf),
            x.new_zeros(batch, n), {},
        )  # fmt: skip
        near = _Near.of(self, x, window)
        for variant, members in self.members.items():
            rows = torch.tensor([k for k in members.tolist() if k in place], dtype=torch.long)
            if not len(rows):
                continue
            at = torch.tensor([place[k] for k in rows.tolist()])
            shape = local[variant].to(x)
            inner = self.intrinsic(variant, shape)
            own = self.side_indices(rows)
            reach = _ENTRIES // max(1, len(rows) * shape.shape[0] * shape.shape[1] * near.seen)
            parts = []
            for frames_here in torch.arange(batch, device=x.device).split(max(1, reach)):
                placed = shape @ frames[frames_here][:, rows][:, :, None] + ca[frames_here][:, rows][:, :, None, None]
                parts.append(self._with_others(placed, rows, own, x[frames_here], near.rows(frames_here)))
            energy = torch.cat(parts) + inner
            if more is not None:
                energy = energy + more(variant, rows, x)
            made.log_partition[:, at] = torch.logsumexp(-energy / kT, -1)
            kept = min(KEPT, energy.shape[-1])
            least, which = torch.topk(energy, kept, dim=-1, largest=False)
            made.energy[:, at, :kept] = least
            if chi[variant].shape[1]:
                made.chi[:, at, :kept, : chi[variant].shape[1]] = chi[variant].to(x)[which]
            axes = frames[:, rows][:, :, None]
            made.placed[variant] = (at, shape[which] @ axes + ca[:, rows][:, :, None, None])
        return made

    def _with_others(self, placed: Tensor, rows: Tensor, own: Tensor, x: Tensor, near: "_Near") -> Tensor:
        """`(batch, residues, candidates)` kJ/mol of candidates `(batch, residues, candidates, atoms, 3)`."""
        batch, n, k, a = placed.shape[:4]
        flat = placed.reshape(batch, n, k * a, 3)
        local = x[:, self.local_atoms[rows]]
        squared = squared_distances(flat, local).reshape(batch, n, k, a, _LOCAL)
        scale = torch.stack([self.scales[r] for r in rows.tolist()])
        factors = tuple((f * scale)[None, :, None] for f in self.nonbonded.between(own, self.local_atoms[rows]))
        energy = pair_energies(squared, factors, _CAP).sum((3, 4))  # type: ignore[arg-type]
        apart = torch.cdist(flat.mean(2), near.x)
        apart = torch.where(near.beside[rows].to(x.device), torch.inf, apart)
        nearest = torch.topk(apart, near.seen, largest=False)
        index = torch.where(nearest.values.isfinite(), near.atoms.to(x.device)[nearest.indices], -1)
        others = near.x[torch.arange(batch)[:, None, None], nearest.indices]
        squared = squared_distances(flat, others).reshape(batch, n, k, a, -1)
        factors = tuple(f[:, :, None] for f in self.nonbonded.between(own.expand(batch, -1, -1), index))
        return energy + pair_energies(squared, factors, _CAP).sum((3, 4))  # type: ignore[arg-type]


class _Near(NamedTuple):
    """Atoms that stay, among which each side chain sees the nearest ones."""

    atoms: Tensor
    """`(others,)`."""
    x: Tensor
    """`(batch, others, 3)` nm."""
    beside: Tensor
    """`(residues, others)` bool: those of the backbone beside a residue, which are counted by `local_atoms`, and side
    chains that a disulfide joins to it."""
    seen: int
    """How many each side chain sees."""

    @classmethod
    def of(cls, energies: SelfEnergies, x: Tensor, window: Window | None) -> "_Near":
        atoms, beside, seen = energies.backbone, energies.beside, _NEIGHBOURS
        if window is not None:
            atoms = torch.cat([atoms, window.others])
            beside = torch.cat([beside, energies.bridged[:, window.others]], 1)
            seen = 2 * _NEIGHBOURS
        return cls(atoms, x[:, atoms], beside, min(seen, len(atoms)))

    def rows(self, frames: Tensor) -> "_Near":
        return self._replace(x=self.x[frames])


class _Within:
    """Energy within one residue: its torsions, and pairs of atoms of its side chain."""

    def __init__(
        self, side: SideChain, own: Tensor, scale: Tensor, torsions: tuple[Tensor, Tensor], nonbonded: Nonbonded
    ) -> None:
        places = backbone_of_template(side.names)
        self.frame = torch.stack([places[name] for name in ("N", "CA", "C")]).float()
        self.torsions, self.terms = torsions
        self.scale = scale
        self.factors = nonbonded.between(own, own)

    def energy(self, local: Tensor) -> Tensor:
        k = len(local)
        x = torch.cat([self.frame.to(local).expand(k, -1, -1), local], 1)
        squared = squared_distances(local, local)
        factors = tuple(f * self.scale for f in self.factors)
        energy = pair_energies(squared, factors, _CAP).sum((1, 2))  # type: ignore[arg-type]
        if len(self.torsions):
            angle = dihedrals(*(x[:, self.torsions[:, j]] for j in range(4)))
            period, phase, height = self.terms.unbind(1)
            energy = energy + (height * (1 + torch.cos(period * angle - phase))).sum(1)
        return energy


class PeriodicTorsions:
    """The periodic torsions of a System."""

    def __init__(self, system: openmm.System) -> None:
        rows, terms = [], []
        for force in system.getForces():
            if isinstance(force, openmm.PeriodicTorsionForce):
                for t in range(force.getNumTorsions()):
                    *atoms, period, phase, height = force.getTorsionParameters(t)
                    rows.append(atoms)
                    terms.append((period, phase._value, height.value_in_unit(unit.kilojoule_per_mole)))
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self.terms = torch.tensor(np.array(terms, dtype=float).reshape(-1, 3), dtype=torch.float32)

    def of(self, atoms: list[int]) -> tuple[Tensor, Tensor]:
        """Torsions among these atoms alone, as places in the list, and their period, phase and height."""
        place = {atom: k for k, atom in enumerate(atoms)}
        inside = np.isin(self.rows, atoms).all(1)
        rows = [[place[a] for a in row] for row in self.rows[inside].tolist()]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 4), self.terms[torch.as_tensor(inside)]


def _by_variant(layout: ProteinLayout) -> dict[str, Tensor]:
    rows: dict[str, list[int]] = {}
    for k, residue in enumerate(layout.sequence.residues):
        rows.setdefault(residue.variant, []).append(k)
    return {variant: torch.tensor(found) for variant, found in rows.items()}


def _scales(graph: networkx.Graph, first: list[int], second: list[int]) -> Tensor:
    """How much of the energy of each pair counts: none up to two bonds, half at three, all beyond."""
    made = torch.ones(len(first), len(second))
    for i, atom in enumerate(first):
        near = networkx.single_source_shortest_path_length(graph, atom, cutoff=3)
        for j, other in enumerate(second):
            if other in near:
                made[i, j] = _ONE_FOUR if near[other] == 3 else 0.0
    return made
