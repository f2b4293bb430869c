"""The facade: alpha carbons or other beads go in, all-atom structures come out."""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import openmm
import torch
from openmm import app

from openmm_cgflow.compute import plain_torch, seeded
from openmm_cgflow.copies import copied_system, copied_topology
from openmm_cgflow.counts import fits_memory, whole_number
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.proteins.beads.door import checked_beads, whole_beads
from openmm_cgflow.proteins.beads.kinds import (
    ATOMS,
    TOLERANCE,
    BeadKind,
    beads_in,
    bridged_cysteines,
    checked_kind,
)
from openmm_cgflow.proteins.beads.names import named_beads, order_of_beads
from openmm_cgflow.proteins.builder import Assemble, ProteinBuilder
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.chain.trace import warn_of_near
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.layout import ProteinLayout, disulfide_pairs, with_disulfides
from openmm_cgflow.proteins.placing.planes import CIS_BELOW
from openmm_cgflow.proteins.relaxing.bead_minimiser import BeadMinimiser
from openmm_cgflow.proteins.relaxing.force_field import amber14
from openmm_cgflow.proteins.result import BackmappedProtein
from openmm_cgflow.structures import given_structures
from openmm_cgflow.units import PositionsLike, in_kelvin, in_nm

__all__ = ["ProteinBackmapper"]

_log = logging.getLogger("openmm_cgflow")
_SAME = 0.01  # K
_DOUBTFUL = 20.0  # kT; of 256 traces of dynamics with and without 0.02 nm of noise none is likelier by more than 14
_AMBER14 = ["amber14-all.xml"]
_BY_ATOMS: dict[int, BeadKind] = {3: "n-ca-c", 4: "backbone"}
_RESIDUES = 1600  # that are worked on at a time, over all frames


class ProteinBackmapper:
    """Puts atoms around the alpha carbons, or other beads, of a protein, by energies alone.

    Each peptide plane turns about its virtual bond; the chain of planes is drawn exactly or with the energies between
    planes (sequential Monte Carlo); side chains are candidates among which the protein's own energies choose.

    Arguments:
        protein: its sequence in one-letter codes (chains divided by `/`), names of residues, or a Topology, of alpha
            carbons or of all atoms, whose order is kept.
        library: free energies and templates of residues; the shipped one by default.
        system: an OpenMM System of the all-atom protein, for its charges and sizes and to relax in; amber14 with OBC2
            by default.
        temperature: K; that of the library by default.
        disulfides: pairs of residues counted from 0; `"auto"` takes those of a Topology that has sulfurs and bonds, or
            else cysteines that are near in the first trace, if four residues or more are between them (by SC1 of
            Martini: whatever is between).
        beads: `"ca"`; `"n-ca-c"`, `"backbone"` (N, CA, C, O): atoms, which are kept; `"martini2"`, `"martini3"` (BB,
            SC1, ...), `"com"` (of whole residues): centres of mass, as martinize2 has them. `"auto"`: what the names in
            a Topology of beads tell, or else alpha carbons.

    Attributes:
        beads: their kind.
        topology: OpenMM Topology of all atoms, a copy; not there before the first trace where it decides on disulfides.
        system: the System that energies are taken from; as above, a copy.

    Raises:
        InvalidInputError: for residues that cannot be built, by name.
        MismatchError: the System has another number of atoms than the protein.

    Example:
        mapper = ProteinBackmapper("GYDPETGTWG")
        structures = mapper.backmap(alpha_carbons, n=4, relax=50)
        structures.save("chignolin.pdb")
    """

    @plain_torch
    def __init__(
        self,
        protein: Any,  # noqa: ANN401
        library: FragmentLibrary | None = None,
        system: openmm.System | None = None,
        temperature: float | None = None,
        disulfides: Literal["auto"] | Sequence[tuple[int, int]] = "auto",
        beads: Literal["auto"] | BeadKind = "auto",
    ) -> None:
        checked_kind(beads)
        if not isinstance(library, FragmentLibrary | None):
            raise InvalidInputError(
                f"library is a {type(library).__name__}; give a FragmentLibrary, such as FragmentLibrary.load(path)"
            )
        if not isinstance(system, openmm.System | None):
            raise InvalidInputError(f"system is a {type(system).__name__}; give an openmm.System")
        self.library = library if library is not None else FragmentLibrary.load()
        self.given = ProteinSequence.of(protein)
        self.all_atoms = _all_atom_topology(protein)
        self.beads, self._order = beads_in(protein, self.given, beads, self.all_atoms is not None)
        self._numbered = hasattr(protein, "atoms")
        self._n_given = _number_of_atoms(protein) if self._order is not None else 0
        self.temperature = self.library.temperature if temperature is None else in_kelvin(temperature)
        if abs(self.temperature - self.library.temperature) > _SAME:
            _log.warning(
                "free energies of residues are of %g K, all else is done at %g K: a mixture of both",
                self.library.temperature, self.temperature,
            )  # fmt: skip
        self._system = None if system is None else copied_system(system)
        self._parts: ProteinBuilder | None = None
        self._doubted, self._unbonded = False, False
        if not isinstance(disulfides, str) or disulfides != "auto":
            self._parts = self._made(disulfide_pairs(disulfides))
        elif (bonded := _bonded_cysteines(protein)) is not None or self.all_atoms is not None:
            self._parts = self._made(bonded or [])
            self._unbonded = bonded == [] and _near_is_possible(self.given)
        elif not _near_is_possible(self.given):
            self._parts = self._made([])

    def _made(self, disulfides: Sequence[Any]) -> ProteinBuilder:
        sequence = with_disulfides(self.given, disulfides, self.all_atoms is not None)
        layout = ProteinLayout(sequence, self.library, disulfides, self.all_atoms)
        if self._system is None and self.library.provenance.get("forcefield", _AMBER14) != _AMBER14:
            _log.warning("the library is of %s, the System of amber14; give system= of the same force field",
                         self.library.provenance["forcefield"])  # fmt: skip
        system = self._system if self._system is not None else amber14(layout.topology)
        if system.getNumParticles() != layout.n_atoms:
            raise MismatchError(
                f"the System has {system.getNumParticles()} particles, the protein {layout.n_atoms} atoms "
                f"({len(sequence)} residues with all hydrogens); make it of the Topology that `topology` gives"
            )
        return ProteinBuilder(layout, system, self.library, self.temperature, torch.device("cpu"))

    def _of_beads(self, beads: np.ndarray, kind: BeadKind) -> ProteinBuilder:
        """Tables of the protein; cysteines that are near in the first frame are bonded, if that was left open."""
        if self._parts is None:
            pairs = bridged_cysteines(beads, self.given, kind)
            for a, b in pairs:
                names = self.given.residues[a].label, self.given.residues[b].label
                _log.warning("%s and %s are near: a disulfide is built; disulfides=[] leaves it out", *names)
            self._parts = self._made(pairs)
        elif self._unbonded:
            self._unbonded = False
            for a, b in bridged_cysteines(beads, self.given, kind):
                names = self.given.residues[a].label, self.given.residues[b].label
                _log.warning("%s and %s are near, and no bond of the Topology joins them: disulfides=[(%d, %d), ...] "
                             "builds a disulfide", *names, a, b)  # fmt: skip
        return self._parts

    def _doubt(self, parts: ProteinBuilder, trace: np.ndarray) -> None:
        """Warn, once, of a trace that is far likelier as its own mirror image, or read from the other ends."""
        if self._doubted:
            return
        self._doubted, trace = True, trace - trace.mean(0)
        ends = np.cumsum([0, *self.given.lengths])
        backwards = np.concatenate([np.arange(first, last)[::-1] for first, last in pairwise(ends)])
        as_it_is, mirrored, reversed_ = parts.log_evidence(np.stack([trace, -trace, trace[backwards]])).tolist()
        likelier, what = max((mirrored, "as its mirror image"), (reversed_, "with its residues in reverse order"))
        if likelier - as_it_is > _DOUBTFUL:
            _log.warning(
                "the first trace is likelier %s, by exp(%.0f): see whether an axis, or the order of the residues, was "
                "turned round; if the trace is right, so is this structure",
                what,
                likelier - as_it_is,
            )

    def _in_order(self, x: np.ndarray, atoms: Sequence[Any] | None) -> np.ndarray:
        """Beads `(beads, 3)` or `(frames, beads, 3)`, residue by residue, by the Topology and by their own names."""
        if x.ndim not in (2, 3):
            return x
        if self._order is not None and x.shape[-2] == self._n_given:
            x = x[..., self._order, :]
            atoms = None if atoms is None else [atoms[k] for k in self._order]
        ours = named_beads(self.given, self.beads)
        if atoms is None or not len(atoms) == x.shape[-2] == len(ours):
            return x
        order = order_of_beads(ours, atoms, self._numbered, "the trace")
        if order is None:
            return x
        _log.info("the trace has its beads in another order than the protein; they are found by their names")
        return x[..., order, :]

    def beadsOf(self, positions: PositionsLike) -> np.ndarray:
        """Beads of this kind of all-atom structures.

        Arguments:
            positions: `(atoms, 3)` or `(frames, atoms, 3)`, Quantity or nm, in the order of `topology`.

        Returns:
            `(frames, beads, 3)` nm, residue by residue.
        """
        x = in_nm(positions)
        x = x[None] if x.ndim == 2 else x
        n = self._known().layout.n_atoms
        if x.ndim != 3 or x.shape[1:] != (n, 3):
            raise MismatchError(f"positions have the shape {x.shape}; give (frames, {n}, 3), of all atoms")
        return self._known().mapping_of(self.beads).beads_of(torch.as_tensor(x)).numpy()

    def _known(self) -> ProteinBuilder:
        if self._parts is None:
            raise InvalidInputError("which cysteines are bonded is seen from the first trace: call backmap first")
        return self._parts

    @property
    def topology(self) -> app.Topology:
        """OpenMM Topology of all atoms, a copy; while disulfides are open until a trace is seen, there is none.

        Raises:
            InvalidInputError: a trace must be seen first.
        """
        return copied_topology(self._known().layout.topology)

    @property
    def system(self) -> openmm.System:
        """The System that energies are taken from, a copy."""
        return copied_system(self._known().system)

    @plain_torch
    def backmap(
        self,
        trace: PositionsLike,
        n: int = 1,
        relax: int = 50,
        seed: int | None = None,
        assemble: Assemble = "packed",
        particles: int = 32,
        refine: int = 24,
    ) -> BackmappedProtein:
        """Structures around beads.

        Arguments:
            trace: beads `(beads, 3)` or `(frames, beads, 3)`, Quantity or nm, or whatever holds positions (what has its
                box is made whole, with chains side by side): alpha carbons, or those of the kind `beads`, residue by
                residue, or as the Topology has them; names that come with them decide. What is
                `(frames, residues, 3, 3)` is N, CA and C of each residue whatever the kind; `(frames, residues, 4, 3)`
                has O too.
            n: structures for each frame.
            relax: iterations of minimisation with the beads held; 0 for none, which leaves centres of mass some
                hundredths of a nm off.
            seed: of everything random; a new one by default.
            assemble: `"packed"`: energies between planes and between side chains choose; `"chain"`: the chain of planes
                and independent side chains, the density of which is known.
            particles: of sequential Monte Carlo, for each structure.
            refine: steps of descent in the turns of planes and side chains together, after packing.

        Returns:
            the structures, with beads where they are given, and by how much they are not (`bead_error`).

        Raises:
            InvalidInputError: for beads that cannot be, by residue, with the way out.
            MismatchError: another number of beads than this kind has, or names of other residues.
        """
        for name, value, least in (
            ("n", n, 1),
            ("relax", relax, 0),
            ("particles", particles, 1),
            ("refine", refine, 0),
        ):
            whole_number(value, f"backmap: {name}", least)
        if assemble not in ("packed", "chain"):
            raise InvalidInputError(f'assemble is {assemble!r}; give "packed" or "chain"')
        given = given_structures(trace)
        x = given.x
        kind = _BY_ATOMS.get(x.shape[2], self.beads) if x.ndim == 4 else self.beads
        if x.ndim < 4:
            x = self._in_order(x, given.atoms)
            x = x[None] if x.ndim == 2 else x
            x = whole_beads(x, given.box, self.given, kind)
        beads = checked_beads(x, self.given, kind)
        if assemble == "chain" and kind not in ATOMS:
            raise InvalidInputError(f'the density of structures around beads of kind {kind!r} is not known: give '
                                    'assemble="packed"')  # fmt: skip
        if kind == "ca":
            warn_of_near(beads, self.given, CIS_BELOW)
        parts = self._of_beads(beads, kind)
        fits_memory(n, 3 * parts.layout.n_atoms * len(beads), "backmap: n")
        if kind == "ca":
            self._doubt(parts, beads[0])
        generator = seeded(seed)
        rows = np.repeat(np.arange(len(beads)), n)
        pieces = [
            parts.draw_given(beads[piece], generator, assemble, refine)
            if beads.ndim == 4
            else parts.draw(beads[piece], generator, assemble, particles, refine, kind)
            for piece in np.array_split(rows, max(1, -(-len(rows) * len(self.given) // _RESIDUES)))
        ]
        x, log_evidence, log_density, ess = (torch.cat(column).cpu().numpy() for column in zip(*pieces, strict=True))
        minimiser = parts.minimiser_of(kind)
        if kind in ATOMS:
            x[:, minimiser.held] = beads[rows].reshape(len(rows), -1, 3).astype(np.float32)
        if relax and isinstance(minimiser, BeadMinimiser):
            x, energies = minimiser.minimised_on(x, relax, beads[rows])
        else:
            x, energies = minimiser.minimised(x, relax) if relax else (x, minimiser.energies(x))
        error = parts.bead_error(kind, x, beads[rows])
        if relax and (error > TOLERANCE).any():
            _log.warning("in %d of %d structures beads are more than %g nm off, up to %.3f nm: see bead_error",
                         (error > TOLERANCE).sum(), len(error), TOLERANCE, error.max())  # fmt: skip
        shape = (len(beads), n)
        return BackmappedProtein(
            positions=x.reshape(*shape, *x.shape[1:]),
            energies=energies.reshape(shape),
            log_evidence=log_evidence.reshape(shape) if assemble == "packed" and kind == "ca" else None,
            log_density=log_density.reshape(shape) if assemble == "chain" and not relax else None,
            ess=ess.reshape(*shape, -1),
            relaxed=bool(relax),
            temperature=self.temperature,
            topology=copied_topology(parts.layout.topology),
            bond_lengths=parts.bond_lengths,
            bead_error=error.reshape(shape),
        )


def _all_atom_topology(protein: Any) -> app.Topology | None:  # noqa: ANN401
    """The Topology that was given, if it has all atoms."""
    topology = _openmm_topology(protein)
    if topology is None:
        return None
    hydrogens = any(atom.element is not None and atom.element.symbol == "H" for atom in topology.atoms())
    return copied_topology(topology) if hydrogens else None


def _openmm_topology(protein: object) -> app.Topology | None:
    if hasattr(protein, "to_openmm"):
        protein = protein.to_openmm()
    return protein if isinstance(protein, app.Topology) else None


def _number_of_atoms(topology: Any) -> int:  # noqa: ANN401
    return int(topology.n_atoms if hasattr(topology, "n_atoms") else topology.getNumAtoms())


def _bonded_cysteines(protein: object) -> list[tuple[int, int]] | None:
    """Disulfides by the bonds of a Topology; None where there are no bonds, or no sulfurs, that would tell."""
    topology = _openmm_topology(protein)
    if topology is None or not topology.getNumBonds() or all(atom.name != "SG" for atom in topology.atoms()):
        return None
    return [
        (min(a.residue.index, b.residue.index), max(a.residue.index, b.residue.index))
        for a, b in topology.bonds()
        if a.name == b.name == "SG"
    ]


def _near_is_possible(sequence: ProteinSequence) -> bool:
    return sum(residue.variant in ("CYS", "CYX") for residue in sequence.residues) > 1
