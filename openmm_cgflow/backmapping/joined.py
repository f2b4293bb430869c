"""Beads of one model and atoms of another: a density that was fitted to frames of beads, and a flow's of the atoms."""

import numpy as np
import torch
from openmm import unit

from openmm_cgflow.backmapping.backmap import warn_of_strange
from openmm_cgflow.backmapping.placer import FlowPlacer
from openmm_cgflow.compute import BATCH, plain_torch, seeded
from openmm_cgflow.counts import whole_number
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching import FittedBeads
from openmm_cgflow.sampling import Samples
from openmm_cgflow.structures import CONSTRAINT_TOLERANCE
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import PositionsLike

__all__ = ["JoinedDensity"]


class JoinedDensity:
    """All atoms whose beads are those of somebody's frames: `q(x) = q(beads) q(atoms | beads)`.

    The first factor was fitted to frames of the beads, which may come from another force field or from a
    coarse-grained model; the second is that of a flow, which was trained on energies. No frame of all atoms is needed.
    Made by `CGFlow.withBeads`.

    Arguments:
        flow: puts the atoms.
        beads: the density of the beads, of `forcematching.fit_beads`.

    Raises:
        MismatchError: if the beads are not those of the flow, one by one and in the same order, or have other
            constraints.
        InvalidInputError: if they are at other distances than those of the flow, or `fit_beads` did not make them.
    """

    @plain_torch
    def __init__(self, flow: TrainedFlow, beads: FittedBeads) -> None:
        if not isinstance(beads, FittedBeads):
            raise InvalidInputError(
                f"withBeads: beads is a {type(beads).__name__}; give what forcematching.fit_beads makes of frames of "
                "them (to put atoms around them: flow.backmap)"
            )
        self.flow, self.beads = flow, beads
        wide = [name for name, group in zip(beads.model.labels, beads.model.groups or (), strict=False) if group[1:]]
        if wide:
            raise MismatchError(
                f"withBeads: {wide[0]} is the centre of mass of several atoms, a bead of the flow is one atom: fit the "
                "frames of BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)"
            )
        flow.beads.check(list(beads.model.topology.atoms()))
        flow.beads.read(beads.positions, "withBeads")
        ours, theirs = flow.beads.constraints, beads.constraints
        pairs = sorted(ours)
        if pairs != sorted(theirs):
            raise MismatchError(
                f"withBeads: the flow has constraints between the beads {pairs}, the density of the frames "
                f"{sorted(theirs)}: give fit_beads fixed={pairs} and frames that have them, or take a System with "
                "those of the frames"
            )
        off = max(pairs, key=lambda pair: abs(ours[pair] - theirs[pair]), default=None)
        if off is not None and abs(ours[off] - theirs[off]) > CONSTRAINT_TOLERANCE:
            raise MismatchError(
                f"withBeads: the distance between the beads {off} is constrained to {ours[off]:.4f} nm in the flow's "
                f"System, and {theirs[off]:.4f} nm in the frames: take a System with the lengths of the frames"
            )

    @plain_torch
    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Samples:
        """`n` independent structures of all atoms; their beads are distributed as the frames were.

        Without weights they are this density. The weights make Boltzmann samples of the flow's System of them, whose
        beads are the System's own: `ess` says how much the two have in common, and `-kT logZ` is the free energy of the
        System less that of the joined density, which is zero. To have the System's own distribution of the atoms around
        beads of this density, draw several structures for each frame: `flow.backmap(beads.sample(n), n=8).resample()`.

        Arguments:
            n: number of structures.
            seed: of the draw; a new one each call by default.

        Raises:
            InvalidInputError: if `n` is not a positive integer.
        """
        n, generator = whole_number(n, "sample: n"), seeded(seed)
        frames = self.beads.sample(n, int(torch.randint(2**31, (1,), generator=generator)))
        placer = FlowPlacer(self.flow, self.flow.compute.tensor(frames))
        warn_of_strange(placer, "withBeads")
        with self.flow.compute.parallel() as parallel:
            parts = [placer.place(rows, generator, parallel) for rows in torch.arange(n).split(BATCH)]
        x, log_atoms, u = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        log_densities = self.beads.logDensity(frames) + log_atoms
        return Samples(
            positions=x,
            log_weights=np.where(np.isfinite(u), -u - log_densities, -np.inf),
            reduced_energies=u,
            log_densities=log_densities,
            slow=placer.q[:, : self.flow.coordinates.sizes[0]].cpu().numpy(),
            temperature=self.flow.temperature.value_in_unit(unit.kelvin),
            topology=self.flow.topology,
            slow_names=tuple(self.flow.slow_names),
            log_labellings=self.flow.coordinates.log_symmetry,
            system=self.flow.system,
        )

    @plain_torch
    @torch.no_grad()
    def logDensity(self, positions: PositionsLike) -> np.ndarray:
        """Log-density at positions of all atoms, per nm^(3 atoms - 6), rigid motion taken out.

        Arguments:
            positions: as `CGFlow.logDensity` takes them, but for files.

        Returns:
            `(n,)`; minus infinity where the flow has it.
        """
        known = np.isfinite(self.flow.logDensity(positions))
        q, log_measure = self.flow.internal(positions)
        flow, coordinates = self.flow.flow, self.flow.coordinates.bead_coordinates().to(q.device)
        bead, atom = torch.split(q, [flow.bead_flow.n, flow.atom_flow.n], dim=1)
        frames, bead_measure = coordinates.to_cartesian(bead)
        context = flow.bead_flow.features(bead.float(), q[:, :0].float())
        log_atoms = flow.atom_flow.log_prob(atom.float(), context).double() - (log_measure - bead_measure)
        result = np.full(len(q), -np.inf)
        if known.any():
            result[known] = self.beads.logDensity(frames.cpu().numpy()[known]) + log_atoms.cpu().numpy()[known]
        return result
