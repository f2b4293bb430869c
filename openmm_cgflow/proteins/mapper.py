"""The facade: alpha carbons go in, all-atom structures come out."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import openmm
import torch
from openmm import app
from torch import Tensor

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.proteins.assembly import Assembly
from openmm_cgflow.proteins.backbone import Backbone, Planes
from openmm_cgflow.proteins.contacts import COARSE, Nonbonded, plane_pairs, plane_sterics
from openmm_cgflow.proteins.force_field import Minimiser, amber14, expected_lengths
from openmm_cgflow.proteins.layout import MOST_CHI, ProteinLayout, with_disulfides
from openmm_cgflow.proteins.library import BINS, FragmentLibrary
from openmm_cgflow.proteins.packing import pack, pair_tables
from openmm_cgflow.proteins.plane_chain import PlaneChain, grid, local_factors
from openmm_cgflow.proteins.refine import Refiner
from openmm_cgflow.proteins.result import BackmappedProtein
from openmm_cgflow.proteins.sequence import ProteinSequence
from openmm_cgflow.proteins.side_chains import GridProposer, SelfEnergies
from openmm_cgflow.proteins.trace import checked_trace, near_cysteines
from openmm_cgflow.proteins.twisted_smc import draw_planes
from openmm_cgflow.units import KB, PositionsLike

__all__ = ["ProteinBackmapper"]

_log = logging.getLogger("openmm_cgflow")
_RESIDUES = 1600  # that are worked on at a time, over all frames
Assemble = Literal["packed", "chain"]


class _Drawn(NamedTuple):
    x: Tensor
    log_evidence: Tensor
    log_density: Tensor
    ess: Tensor


class ProteinBackmapper:
    """Puts atoms around the alpha carbons of a protein, by energies alone.

    Each peptide plane turns about its virtual bond; the chain of planes is drawn exactly or with the energies between
    planes (sequential Monte Carlo); side chains are candidates among which the protein's own energies choose.

    Arguments:
        protein: its sequence in one-letter codes (chains divided by `/`), names of residues, or a Topology, of alpha
            carbons or of all atoms, whose order is kept.
        library: free energies and templates of residues; the shipped one by default.
        system: an OpenMM System of the all-atom protein, for its charges and sizes and to relax in; amber14 with OBC2
            by default.
        temperature: K.
        disulfides: pairs of residues counted from 0; `"auto"` takes those of the Topology, or else cysteines that are
            near in the first trace.
        device: for torch, such as `"cpu"` or `"cuda"`.

    Raises:
        InvalidInputError: for residues that cannot be built, by name.
        MismatchError: the System has another number of atoms than the protein.

    Example:
        mapper = ProteinBackmapper("GYDPETGTWG")
        structures = mapper.backmap(alpha_carbons, n=4, relax=50)
        structures.save("chignolin.pdb")
    """

    def __init__(
        self,
        protein: Any,  # noqa: ANN401
        library: FragmentLibrary | None = None,
        system: openmm.System | None = None,
        temperature: float = 300.0,
        disulfides: Literal["auto"] | Sequence[tuple[int, int]] = "auto",
        device: str = "cpu",
    ) -> None:
        self.library = library if library is not None else FragmentLibrary.load()
        self.given = ProteinSequence.of(protein)
        self.all_atoms = _all_atom_topology(protein)
        self.temperature, self.kT, self.device = temperature, KB * temperature, torch.device(device)
        self._system = system
        self._asked = disulfides
        self._parts: _Parts | None = None
        if disulfides != "auto":
            self._parts = self._made([tuple(pair) for pair in disulfides])
        elif self.all_atoms is not None:
            self._parts = self._made(_bonded_cysteines(self.all_atoms))
        elif not _near_is_possible(self.given):
            self._parts = self._made([])

    def _made(self, disulfides: Sequence[Any]) -> "_Parts":
        sequence = with_disulfides(self.given, disulfides)
        layout = ProteinLayout(sequence, self.library, disulfides, self.all_atoms)
        system = self._system if self._system is not None else amber14(layout.topology)
        if system.getNumParticles() != layout.n_atoms:
            raise MismatchError(
                f"the System has {system.getNumParticles()} particles, the protein {layout.n_atoms} atoms "
                f"({len(sequence)} residues with all hydrogens); make it of the Topology that `topology` gives"
            )
        return _Parts(layout, system, self.library)

    def _of_trace(self, trace: np.ndarray) -> "_Parts":
        """Tables of the protein; cysteines that are near in the first trace are bonded, if that was left open."""
        if self._parts is None:
            pairs = near_cysteines(self.given, trace[0])
            for a, b in pairs:
                names = self.given.residues[a].label, self.given.residues[b].label
                _log.info("%s and %s are near: a disulfide is built; disulfides=[...] has the last word", *names)
            self._parts = self._made(pairs)
        return self._parts

    @property
    def topology(self) -> app.Topology:
        """OpenMM Topology of all atoms; while disulfides are open until a trace is seen, there is none.

        Raises:
            InvalidInputError: a trace must be seen first.
        """
        if self._parts is None:
            raise InvalidInputError("which cysteines are bonded is seen from the first trace: call backmap first")
        return self._parts.layout.topology

    @property
    def system(self) -> openmm.System:
        """The System that energies are taken from."""
        if self._parts is None:
            raise InvalidInputError("which cysteines are bonded is seen from the first trace: call backmap first")
        return self._parts.system

    def backmap(
        self,
        trace: PositionsLike,
        n: int = 1,
        relax: int = 50,
        seed: int | None = None,
        assemble: Assemble = "packed",
        particles: int = 64,
        refine: int = 30,
    ) -> BackmappedProtein:
        """Structures around alpha carbons.

        Arguments:
            trace: `(residues, 3)` or `(frames, residues, 3)`, Quantity or nm, or whatever holds positions.
            n: structures for each frame.
            relax: iterations of minimisation with the alpha carbons held; 0 for none.
            seed: of everything random; a new one by default.
            assemble: `"packed"`: energies between planes and between side chains choose; `"chain"`: the chain of planes
                and independent side chains, the density of which is known.
            particles: of sequential Monte Carlo, for each structure.
            refine: steps of descent in the turns of planes and side chains together, after packing.

        Returns:
            the structures, with alpha carbons where they are given.

        Raises:
            InvalidInputError: for a trace that cannot be one, by residue, with the way out.
        """
        _check_numbers(n, relax, particles)
        if assemble not in ("packed", "chain"):
            raise InvalidInputError(f'assemble is {assemble!r}; give "packed" or "chain"')
        beads = checked_trace(trace, self.given)
        parts = self._of_trace(beads)
        generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**31, (1,))) if seed is None else seed)
        rows = np.repeat(np.arange(len(beads)), n)
        pieces = [
            self._drawn(parts, beads[piece], generator, assemble, particles, refine)
            for piece in np.array_split(rows, max(1, -(-len(rows) * len(self.given) // _RESIDUES)))
        ]
        x, log_evidence, log_density, ess = (torch.cat(column).cpu().numpy() for column in zip(*pieces, strict=True))
        if relax:
            x, energies = parts.minimiser.minimised(x, relax)
        else:
            energies = parts.minimiser.energies(x)
        x[:, parts.ca] = beads[rows].astype(np.float32)
        shape = (len(beads), n)
        return BackmappedProtein(
            positions=x.reshape(*shape, *x.shape[1:]),
            energies=energies.reshape(shape),
            log_evidence=log_evidence.reshape(shape) if assemble == "packed" else None,
            log_density=log_density.reshape(shape) if assemble == "chain" else None,
            ess=ess.reshape(*shape, -1),
            relaxed=bool(relax),
            temperature=self.temperature,
            topology=parts.layout.topology,
            bond_lengths=parts.bond_lengths,
        )

    def _drawn(
        self, parts: "_Parts", beads: np.ndarray, generator: torch.Generator, assemble: Assemble, particles: int, refine: int = 30
    ) -> _Drawn:
        centre = beads.mean(1, keepdims=True)
        trace = torch.as_tensor(beads - centre, dtype=torch.float32, device=self.device)
        layout, assembly = parts.layout, parts.assembly
        backbone = Backbone.of(parts.planes, trace)
        gamma = grid(trace)
        coarse = (torch.arange(COARSE, device=trace.device) + 0.5) * (2 * torch.pi / COARSE) - torch.pi
        unary = -plane_sterics(backbone, coarse).repeat_interleave(BINS // COARSE, -1) / self.kT
        chain = PlaneChain(local_factors(backbone, layout.sequence, self.library), parts.planes.link, unary)
        within = -len(parts.planes) * np.log(2 * np.pi / BINS)
        if assemble == "chain":
            bins, log_density = chain.sample(generator)
            log_density = log_density + within
            log_evidence = chain.log_z
            ess = torch.ones_like(unary[..., 0])
        else:
            pairs = plane_pairs(backbone, assembly.indices, parts.nonbonded, coarse)
            bins, log_evidence, ess = draw_planes(chain, pairs, self.kT, particles, generator)
            log_density = torch.full_like(log_evidence, torch.nan)
        jitter = torch.rand(bins.shape, generator=generator, device=trace.device) - 0.5
        turns = gamma[bins] + jitter * (2 * torch.pi / BINS)
        x = assembly.backbone(backbone, turns)
        candidates = parts.self_energies.choose(x, parts.proposer.chi, parts.proposer.local, self.kT)
        if assemble == "chain":
            logits = -candidates.energy / self.kT
            state = torch.distributions.Categorical(logits=logits)
            chosen = torch.multinomial(state.probs.flatten(0, 1), 1, generator=generator).reshape(logits.shape[:2])
            log_density = log_density + state.log_prob(chosen).sum(-1)
        else:
            tables = pair_tables(candidates, parts.self_energies, parts.nonbonded)
            chosen = pack(candidates.energy, tables, self.kT, 3, generator).state
        if assemble == "packed" and refine:
            chi = candidates.chi.gather(2, chosen[..., None, None].expand(-1, -1, 1, MOST_CHI))[:, :, 0]
            turns, chi = parts.refiner.refined(backbone, turns, chi, refine)
            x = parts.refiner.structures(backbone, turns, chi)
        else:
            x = parts.placed(x, candidates.placed, chosen)
        back = torch.as_tensor(centre, dtype=torch.float32, device=self.device)
        return _Drawn(x + back, log_evidence, log_density, ess[:, parts.planes.after])


class _Parts:
    """All that is made once of a protein."""

    def __init__(self, layout: ProteinLayout, system: openmm.System, library: FragmentLibrary) -> None:
        self.layout, self.system = layout, system
        self.planes = Planes.of(layout.sequence)
        self.assembly = Assembly(layout, self.planes)
        self.nonbonded = Nonbonded.of(system)
        self.proposer = GridProposer(layout)
        self.self_energies = SelfEnergies(layout, system, self.nonbonded)
        self.refiner = Refiner(layout, self.assembly, self.nonbonded, self.self_energies.torsions, library)
        self.ca = layout.of("CA").numpy()
        self.bond_lengths = expected_lengths(layout.topology, system)
        self._minimiser: Minimiser | None = None

    @property
    def minimiser(self) -> Minimiser:
        """Made at its first use, for it takes a moment."""
        if self._minimiser is None:
            self._minimiser = Minimiser(self.system, self.ca.tolist())
        return self._minimiser

    def placed(self, x: Tensor, candidates: dict[str, tuple[Tensor, Tensor]], state: Tensor) -> Tensor:
        """Structures with the chosen candidates of side chains."""
        at = torch.arange(len(x), device=x.device)[:, None]
        for rows, positions in candidates.values():
            of = torch.arange(len(rows), device=x.device)[None]
            chosen = positions[at, of, state[:, rows]]
            index = self.self_energies.side_indices(rows).reshape(-1).to(x.device)
            x = x.index_copy(1, index, chosen.flatten(1, 2))
        return x


def _all_atom_topology(protein: Any) -> app.Topology | None:  # noqa: ANN401
    """The Topology that was given, if it has all atoms."""
    if hasattr(protein, "to_openmm"):
        protein = protein.to_openmm()
    if not isinstance(protein, app.Topology):
        return None
    hydrogens = any(atom.element is not None and atom.element.symbol == "H" for atom in protein.atoms())
    return protein if hydrogens else None


def _bonded_cysteines(topology: app.Topology) -> list[tuple[int, int]]:
    return [
        (min(a.residue.index, b.residue.index), max(a.residue.index, b.residue.index))
        for a, b in topology.bonds()
        if a.name == b.name == "SG"
    ]


def _near_is_possible(sequence: ProteinSequence) -> bool:
    return sum(residue.variant in ("CYS", "CYX") for residue in sequence.residues) > 1


def _check_numbers(n: int, relax: int, particles: int) -> None:
    for name, value, least in (("n", n, 1), ("relax", relax, 0), ("particles", particles, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInputError(f"backmap: {name} is {value!r}; give a whole number of {least} or more")
