"""One batch of traces through all stages: planes, side chains, descent; and repair where something is in the way."""

import math
from typing import Literal, NamedTuple

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.proteins.beads.kinds import ATOMS, BeadKind, BeadMapping
from openmm_cgflow.proteins.beads.terms import BeadTerms, TiedBeads
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.contacts import COARSE, Nonbonded, plane_pairs, plane_sterics
from openmm_cgflow.proteins.placing.layout import ProteinLayout
from openmm_cgflow.proteins.placing.packing import chosen, pack, pair_tables
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain, grid, local_factors, turns_of
from openmm_cgflow.proteins.placing.planes import Backbone, Planes
from openmm_cgflow.proteins.placing.side_chains import Candidates, GridProposer, SelfEnergies
from openmm_cgflow.proteins.placing.twisted_smc import draw_planes
from openmm_cgflow.proteins.relaxing.bead_minimiser import BeadMinimiser
from openmm_cgflow.proteins.relaxing.force_field import Minimiser, expected_lengths
from openmm_cgflow.proteins.relaxing.pairs import NearPairs
from openmm_cgflow.proteins.relaxing.refine import Refiner
from openmm_cgflow.proteins.relaxing.repair import Repair, State
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
        pairs, torsions = NearPairs(layout, self.nonbonded), self.self_energies.torsions
        self.refiner = Refiner(layout, self.assembly, pairs, torsions, library)
        self.repair = Repair(self.assembly, self.self_energies, self.proposer, self.refiner, self.nonbonded, self.kT)
        self.bond_lengths = expected_lengths(layout.topology, system)
        self._minimisers: dict[BeadKind, Minimiser] = {}
        self._mappings: dict[BeadKind, BeadMapping] = {}
        self._terms: dict[BeadKind, BeadTerms] = {}

    def held(self, kind: BeadKind) -> list[int]:
        """Atoms that are given, residue by residue."""
        return torch.stack([self.layout.of(name) for name in ATOMS[kind]], 1).flatten().tolist()

    def minimiser_of(self, kind: BeadKind) -> Minimiser:
        """One that holds what is given; made at its first use, for it takes a moment."""
        if kind not in self._minimisers:
            threads = torch.get_num_threads()
            self._minimisers[kind] = (
                Minimiser(self.system, self.held(kind), threads)
                if kind in ATOMS
                else BeadMinimiser(self.system, self.mapping_of(kind), threads)
            )
        return self._minimisers[kind]

    def mapping_of(self, kind: BeadKind) -> BeadMapping:
        """What beads stand for."""
        if kind not in self._mappings:
            self._mappings[kind] = BeadMapping.of(self.layout, kind)
        return self._mappings[kind]

    def terms_of(self, kind: BeadKind) -> BeadTerms:
        """What beads that are no atoms say; made at its first use."""
        if kind not in self._terms:
            self._terms[kind] = BeadTerms(
                self.layout,
                self.mapping_of(kind),
                self.assembly,
                self.self_energies,
                self.proposer,
                self.library,
                self.kT,
            )
        return self._terms[kind]

    def bead_error(self, kind: BeadKind, x: np.ndarray, beads: np.ndarray) -> np.ndarray:
        """How far the worst bead of each structure `(n, atoms, 3)` is from where it shall be, `(n,)` nm."""
        made = self.mapping_of(kind).beads_of(torch.as_tensor(x, dtype=torch.float64)).numpy()
        return np.linalg.norm(made - beads.reshape(made.shape), axis=2).max(1)

    def draw_given(self, beads: np.ndarray, generator: torch.Generator, assemble: Assemble, refine: int) -> Built:
        """Side chains, H and O around given N, CA, C (and O).

        Arguments:
            beads: `(batch, residues, 3 or 4, 3)` nm.
            generator: of everything random.
            assemble: `"packed"`, or `"chain"` for side chains that do not see one another.
            refine: steps of descent.
        """
        centre = beads[:, :, :3].mean((1, 2), keepdims=True)
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
        self,
        beads: np.ndarray,
        generator: torch.Generator,
        assemble: Assemble,
        particles: int,
        refine: int,
        kind: BeadKind = "ca",
    ) -> Built:
        """One structure around each of some traces, or of some sets of beads that are no atoms.

        Arguments:
            beads: `(batch, residues, 3)` nm; `(batch, beads, 3)` of other kinds.
            generator: of everything random.
            assemble: `"packed"` or `"chain"`, see `ProteinBackmapper.backmap`.
            particles: of sequential Monte Carlo.
            refine: steps of descent.
            kind: of the beads.
        """
        centre = beads.mean(1, keepdims=True)
        trace = torch.as_tensor(beads - centre, dtype=torch.float32, device=self.device)
        back = torch.as_tensor(centre, dtype=torch.float32, device=self.device)
        tied = None
        if kind not in ATOMS:
            tied = TiedBeads(self.terms_of(kind), trace)
            trace = tied.terms.trace(trace, generator)
        if assemble == "chain":
            built = self._chain(trace, generator)
            return built._replace(x=built.x + back)
        state, log_evidence, ess = self._packed(trace, generator, particles, refine, tied)
        x = self.repair.mended(state, generator, refine, tied).x
        unknown = torch.full_like(log_evidence, torch.nan)
        return Built(x + back, log_evidence, unknown, ess[:, self.planes.after])

    def log_evidence(self, traces: np.ndarray) -> Tensor:
        """How likely traces `(batch, residues, 3)` nm are by the chain of planes: its log-normaliser `(batch,)`."""
        return self._planes(torch.as_tensor(traces, dtype=torch.float32, device=self.device))[1].log_z

    def _planes(self, trace: Tensor, tied: TiedBeads | None = None) -> tuple[Backbone, PlaneChain]:
        backbone = Backbone.of(self.planes, trace)
        sterics = plane_sterics(backbone, grid(trace, COARSE)).repeat_interleave(BINS // COARSE, -1)
        factors = local_factors(backbone, self.layout.sequence, self.library)
        if tied:
            factors = factors + tied.log_factors(backbone)
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
        self, trace: Tensor, generator: torch.Generator, particles: int, refine: int, tied: TiedBeads | None
    ) -> tuple[State, Tensor, Tensor]:
        """Planes that see one another, side chains that are packed, and both refined together; evidence, ESS."""
        backbone, chain = self._planes(trace, tied)
        pairs = plane_pairs(backbone, self.assembly.indices, self.nonbonded, grid(trace, COARSE))
        bins, log_evidence, ess = draw_planes(chain, pairs, self.kT, particles, generator)
        turns = turns_of(bins, generator)
        candidates = self._candidates(self.assembly.backbone(backbone, turns), tied)
        tables = pair_tables(candidates, self.self_energies, self.nonbonded)
        chi = chosen(candidates, pack(candidates.energy, tables, self.kT, _RESTARTS, generator).state)
        if refine:
            backbone, turns, chi = self.refiner.refined_on(backbone, turns, chi, refine, tied)
        x = self.refiner.structures(backbone, turns, chi)
        return State(backbone, chain, turns, chi, x), log_evidence, ess

    def _candidates(self, x: Tensor, tied: TiedBeads | None = None) -> Candidates:
        more = tied.of_candidates if tied else None
        return self.self_energies.choose(x, self.proposer.chi, self.proposer.local, self.kT, more)
