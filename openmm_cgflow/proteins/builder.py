"""One batch of traces through all stages: planes, side chains, descent; and repair where something is in the way."""

import math
from typing import Literal, NamedTuple

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.proteins.assembly import Assembly
from openmm_cgflow.proteins.backbone import Backbone, Planes
from openmm_cgflow.proteins.contacts import COARSE, Nonbonded, plane_pairs, plane_sterics
from openmm_cgflow.proteins.force_field import Minimiser, expected_lengths
from openmm_cgflow.proteins.layout import ProteinLayout
from openmm_cgflow.proteins.library import BINS, FragmentLibrary
from openmm_cgflow.proteins.packing import chosen, pack, pair_tables
from openmm_cgflow.proteins.plane_chain import PlaneChain, coarse_grid, local_factors, turns_of
from openmm_cgflow.proteins.refine import Refiner
from openmm_cgflow.proteins.repair import Repair, State
from openmm_cgflow.proteins.side_chains import Candidates, GridProposer, SelfEnergies
from openmm_cgflow.proteins.twisted_smc import draw_planes
from openmm_cgflow.units import KB

__all__ = ["Assemble", "Built", "ProteinBuilder"]

Assemble = Literal["packed", "chain"]

_RESTARTS = 3


class Built(NamedTuple):
    """What `ProteinBuilder.draw` gives."""

    x: Tensor
    """`(batch, atoms, 3)` nm."""
    log_evidence: Tensor
    """`(batch,)`."""
    log_density: Tensor
    """`(batch,)`; NaN where it is not known."""
    ess: Tensor
    """`(batch, residues)`."""


class ProteinBuilder:
    """All that is made once of a protein, and how a batch of traces goes through it.

    Arguments:
        layout: the protein.
        system: its System.
        library: free energies and templates.
        temperature: K.
        device: of tensors.
    """

    def __init__(
        self,
        layout: ProteinLayout,
        system: openmm.System,
        library: FragmentLibrary,
        temperature: float,
        device: torch.device,
    ) -> None:
        self.layout, self.system, self.library = layout, system, library
        self.kT, self.device = KB * temperature, device
        self.planes = Planes.of(layout.sequence)
        self.assembly = Assembly(layout, self.planes)
        self.nonbonded = Nonbonded.of(system)
        self.proposer = GridProposer(layout)
        self.self_energies = SelfEnergies(layout, system, self.nonbonded)
        self.refiner = Refiner(layout, self.assembly, self.nonbonded, self.self_energies.torsions, library)
        self.repair = Repair(self.assembly, self.self_energies, self.proposer, self.refiner, self.nonbonded, self.kT)
        self.ca = layout.of("CA").numpy()
        self.bond_lengths = expected_lengths(layout.topology, system)
        backbone = torch.stack([layout.of(name) for name in ("N", "CA", "C")], 1)
        self.held = {3: self.ca.tolist(), 4: backbone.flatten().tolist()}
        """Atoms that are given, by the number of dimensions of what was given."""
        self._minimisers: dict[int, Minimiser] = {}

    def minimiser_of(self, dimensions: int) -> Minimiser:
        """One that holds what is given; made at its first use, for it takes a moment."""
        if dimensions not in self._minimisers:
            self._minimisers[dimensions] = Minimiser(self.system, self.held[dimensions], torch.get_num_threads())
        return self._minimisers[dimensions]

    def draw_given(self, beads: np.ndarray, generator: torch.Generator, assemble: Assemble, refine: int) -> Built:
        """Side chains, O and H around given N, CA and C.

        Arguments:
            beads: `(batch, residues, 3, 3)` nm.
            generator: of everything random.
            assemble: `"packed"`, or `"chain"` for side chains that do not see one another.
            refine: steps of descent.
        """
        centre = beads.mean((1, 2), keepdims=True)
        given = torch.as_tensor(beads - centre, dtype=torch.float32, device=self.device)
        back = torch.as_tensor(centre[:, 0], dtype=torch.float32, device=self.device)
        x = self.assembly.given(given)
        candidates = self._candidates(x)
        log_density = x.new_full((len(x),), torch.nan)
        if assemble == "chain":
            state, log_density = self._independent(candidates, generator)
            chi = chosen(candidates, state)
        else:
            tables = pair_tables(candidates, self.self_energies, self.nonbonded)
            chi = chosen(candidates, pack(candidates.energy, tables, self.kT, _RESTARTS, generator).state)
            chi = self.refiner.refined_sides(x, chi, refine) if refine else chi
        x = self.refiner.structures_of(x, chi)
        ones = x.new_ones(len(x), len(self.layout.sequence))
        return Built(x + back, x.new_full((len(x),), torch.nan), log_density, ones)

    def _independent(self, candidates: Candidates, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Candidates by their own Boltzmann factors, and the log of the probability of all."""
        log_p = torch.log_softmax(-candidates.energy / self.kT, -1)
        state = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).reshape(log_p.shape[:2])
        return state, log_p.gather(2, state[..., None]).sum((1, 2))

    def draw(
        self, beads: np.ndarray, generator: torch.Generator, assemble: Assemble, particles: int, refine: int
    ) -> Built:
        """One structure around each of some traces.

        Arguments:
            beads: `(batch, residues, 3)` nm.
            generator: of everything random.
            assemble: `"packed"` or `"chain"`, see `ProteinBackmapper.backmap`.
            particles: of sequential Monte Carlo.
            refine: steps of descent.
        """
        centre = beads.mean(1, keepdims=True)
        trace = torch.as_tensor(beads - centre, dtype=torch.float32, device=self.device)
        back = torch.as_tensor(centre, dtype=torch.float32, device=self.device)
        if assemble == "chain":
            built = self._chain(trace, generator)
            return built._replace(x=built.x + back)
        state, log_evidence, ess = self._packed(trace, generator, particles, refine)
        x = self.repair.mended(state, generator, refine).x
        unknown = torch.full_like(log_evidence, torch.nan)
        return Built(x + back, log_evidence, unknown, ess[:, self.planes.after])

    def _planes(self, trace: Tensor) -> tuple[Backbone, PlaneChain]:
        backbone = Backbone.of(self.planes, trace)
        sterics = plane_sterics(backbone, coarse_grid(trace)).repeat_interleave(BINS // COARSE, -1)
        factors = local_factors(backbone, self.layout.sequence, self.library)
        return backbone, PlaneChain(factors, self.planes.link, -sterics / self.kT)

    def _chain(self, trace: Tensor, generator: torch.Generator) -> Built:
        """Planes of the chain alone, and side chains that do not see one another: of known density."""
        backbone, chain = self._planes(trace)
        bins, log_density = chain.sample(generator)
        x = self.assembly.backbone(backbone, turns_of(bins, generator))
        candidates = self._candidates(x)
        state, log_p = self._independent(candidates, generator)
        log_density = log_density + log_p - len(self.planes) * math.log(2 * math.pi / BINS)
        x = self.refiner.structures_of(x, chosen(candidates, state))
        return Built(x, chain.log_z, log_density, x.new_ones(len(x), len(self.layout.sequence)))

    def _packed(
        self, trace: Tensor, generator: torch.Generator, particles: int, refine: int
    ) -> tuple[State, Tensor, Tensor]:
        """Planes that see one another, side chains that are packed, and both refined together; evidence, ESS."""
        backbone, chain = self._planes(trace)
        pairs = plane_pairs(backbone, self.assembly.indices, self.nonbonded, coarse_grid(trace))
        bins, log_evidence, ess = draw_planes(chain, pairs, self.kT, particles, generator)
        turns = turns_of(bins, generator)
        candidates = self._candidates(self.assembly.backbone(backbone, turns))
        tables = pair_tables(candidates, self.self_energies, self.nonbonded)
        chi = chosen(candidates, pack(candidates.energy, tables, self.kT, _RESTARTS, generator).state)
        if refine:
            turns, chi = self.refiner.refined(backbone, turns, chi, refine)
        x = self.refiner.structures(backbone, turns, chi)
        return State(backbone, chain, turns, chi, x), log_evidence, ess

    def _candidates(self, x: Tensor) -> Candidates:
        return self.self_energies.choose(x, self.proposer.chi, self.proposer.local, self.kT)
