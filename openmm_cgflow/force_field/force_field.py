"""The facade of a student: a coarse-grained force field of one molecule, in one file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.beads import BeadParticles
from openmm_cgflow.compute import Device, plain_torch
from openmm_cgflow.coordinates import InternalCoordinates, chain_coordinates
from openmm_cgflow.copies import copied_topology
from openmm_cgflow.errors import InvalidInputError, MismatchError, UnsupportedForceError
from openmm_cgflow.force_field.stored import Fitted, StoredForceField, positions_in, student_in
from openmm_cgflow.forcematching import (
    BatchedLangevin,
    BeadMapping,
    BeadModel,
    Chain,
    ChainNetwork,
    Distilled,
    DistilSettings,
    FitSettings,
    FittedBeads,
    SchNetSettings,
    Student,
    Teacher,
    aggregated_map,
    bead_types,
    distil,
    distil_many,
    fit_beads,
)
from openmm_cgflow.forcematching.students.nnpops import record
from openmm_cgflow.openmm_plugin.forces.cg_system import CGSystem, system_of_beads
from openmm_cgflow.openmm_plugin.forces.force import BeadBackend, force_from_energy
from openmm_cgflow.openmm_plugin.forces.torch_force import make_torch_force
from openmm_cgflow.storage import (
    read_as,
    read_file,
    reading,
    topology_from_json,
    topology_to_json,
    write_file,
)
from openmm_cgflow.trained import Made, TrainedFlow, made_once
from openmm_cgflow.units import KB, PositionsLike, in_kelvin, in_nm, scalar_in

__all__ = ["CGForceField", "student_of"]

_KIND = "force field"


class CGForceField:
    """A coarse-grained force field of one molecule: a fast, smooth energy of its beads, fitted to an exact density.

    The energy is a `BeadNetwork`, of this molecule alone, or with `DistilSettings(student=SchNetSettings())` a
    `ChainNetwork`, whose weights are for other chains of the same beads too: see `fromFits` and `forBeads`.

    Arguments:
        student: the energy of bead positions.
        beads: as particles.
        temperature: at which it is valid, Quantity or K.
        fitted: how it was fitted.

    Attributes:
        student: the energy, a torch module of positions `(beads, 3)` or `(n, beads, 3)` in nm that gives kJ/mol.
        beads: as particles.
        fitted: how it was fitted, and how well.

    Raises:
        MismatchError: if the student is of another number of beads.

    Source: Köhler et al., arXiv 2203.11167; `fromFlow` does it without a frame of a simulation.

    Example:
        force_field = CGForceField.fromFlow(CGFlow.load("model.cgflow"))
        force_field.save("model.cgff")
        cg = CGForceField.load("model.cgff").createCGSystem()
    """

    def __init__(
        self,
        student: Student,
        beads: BeadParticles,
        temperature: unit.Quantity | float,
        fitted: Fitted,
    ) -> None:
        self.student, self.beads, self.fitted = student, beads, fitted
        self._kelvin = in_kelvin(temperature)
        if student.coordinates.n_atoms != len(beads.masses):
            raise MismatchError(
                f"the student is of {student.coordinates.n_atoms} beads, and there are {len(beads.masses)}"
            )

    @classmethod
    @plain_torch
    def fromFlow(cls, flow: TrainedFlow, settings: DistilSettings | None = None) -> Self:
        """The force field of a trained flow: its exact density of beads is the teacher, and no frame is needed.

        Arguments:
            flow: a trained flow with at least four beads.
            settings: how the student is fitted: budgets, size and seed.

        Raises:
            InvalidInputError: with fewer than four beads, or settings that cannot be.
            TrainingError: if the flow's density is not finite.

        Example:
            force_field = CGForceField.fromFlow(flow)
            print(force_field.fitted)
        """
        return cls.fromTeacher(
            flow.flow.bead_flow,
            flow.coordinates.bead_coordinates(),
            flow.beads.particles,
            flow.temperature,
            settings,
        )

    @classmethod
    @plain_torch
    def fromTeacher(
        cls,
        teacher: Teacher,
        coordinates: InternalCoordinates,
        beads: BeadParticles,
        temperature: unit.Quantity | float,
        settings: DistilSettings | None = None,
    ) -> Self:
        """The force field of any exact density of beads.

        Arguments:
            teacher: a density of the beads' internal coordinates, see `forcematching.Teacher`.
            coordinates: of the beads alone, as `bead_coordinates()` gives them.
            beads: as particles.
            temperature: of the density, Quantity or K.
            settings: how the student is fitted.

        Raises:
            InvalidInputError: for settings that cannot be.
            MismatchError: if the parts are not of the same number of beads.
            TrainingError: if the density is not finite.
        """
        settings = settings or DistilSettings()
        found = distil(teacher, coordinates, KB * in_kelvin(temperature), settings, bead_types(beads.topology))
        return cls(found.student, beads, temperature, _fitted(found, settings))

    @classmethod
    @plain_torch
    def fromFrames(
        cls,
        topology: Any,  # noqa: ANN401
        frames: PositionsLike,
        beads: BeadMapping = "ca",
        forces: Any = None,  # noqa: ANN401
        temperature: unit.Quantity | float = 300 * unit.kelvin,
        weights: Sequence[float] | np.ndarray | None = None,
        fixed: Sequence[tuple[int, int]] = (),
        fit: FitSettings | None = None,
        settings: DistilSettings | None = None,
        seed: int = 0,
    ) -> Self:
        """The force field that gives what frames of a simulation show of the beads; no System is needed.

        A density of the beads is fitted to the frames by maximum likelihood, and its forces and energies are what the
        force field learns: forces of the simulation are not needed, and where they exist, they help with bonds and
        angles alone.

        Arguments:
            topology: OpenMM or mdtraj Topology of all atoms, with bonds; or a `forcematching.BeadModel`.
            frames: of all atoms or of the beads: an mdtraj Trajectory, a file that mdtraj reads (or several), or
                `(frames, atoms or beads, 3)`, nm or a Quantity.
            beads: which atoms make them, as `BeadModel.fromTopology` takes it: `"ca"`, `"backbone"`, `"dipeptide"`, a
                selection of mdtraj, indices of atoms, or groups of atoms.
            forces: on the beads or on all atoms, `(frames, beads or atoms, 3)`, kJ/mol/nm or a Quantity, if there are
                any; those on atoms are added up for each bead.
            temperature: of the frames, Quantity or K.
            weights: `(frames,)` of biased frames; all the same by default.
            fixed: bonds between beads of one length (constraints), pairs of beads.
            fit: of the density.
            settings: of the force field.
            seed: of the fit's splits, start weights and batches.

        Raises:
            InvalidInputError: for frames that are too few, broken or of one structure, and settings that cannot be.
            MismatchError: for frames, forces or weights of other beads or of another number.
            TrainingError: if the density is not finite.

        Source: Köhler et al. 2023 (arXiv 2203.11167).

        Example:
            force_field = CGForceField.fromFrames(pdb.topology, "md.xtc", beads="ca", temperature=300)
            cg = force_field.createCGSystem()
        """
        model = topology if isinstance(topology, BeadModel) else BeadModel.fromTopology(topology, beads)
        if forces is not None and model.owners is not None and np.ndim(forces) == 3:
            n = len(forces[0])
            if n == len(model.owners) != model.n_beads:
                forces = aggregated_map(model)(forces)
        temperature = in_kelvin(temperature)  # before the fit, which takes a while
        found = fit_beads(frames, model, forces, temperature, weights, fit, fixed, seed)
        return cls.fromTeacher(found.density, found.coordinates, found.particles, temperature, settings)

    @classmethod
    @plain_torch
    def fromFits(
        cls,
        fits: Sequence[FittedBeads],
        temperature: unit.Quantity | float = 300 * unit.kelvin,
        settings: DistilSettings | None = None,
    ) -> list[Self]:
        """One transferable force field of several sequences: a student for each, with the same weights.

        Arguments:
            fits: of frames of each sequence, see `forcematching.fit_beads`.
            temperature: of the frames, Quantity or K.
            settings: how the students are fitted; `student` is `SchNetSettings` for more than one sequence, and by
                default.

        Returns:
            a force field for each; `forBeads` of any of them makes that of another sequence.

        Raises:
            InvalidInputError: for settings that cannot be, or no fit.
            TrainingError: if a density is not finite.

        Example:
            fits = [fit_beads(frames, BeadModel.fromTopology(top), temperature=300) for top, frames in proteins]
            first, second = CGForceField.fromFits(fits, temperature=300)
            third = first.forBeads(BeadModel.fromSequence("YYDPETGTWY"), positions)
        """
        settings = settings or DistilSettings(student=SchNetSettings())
        chains = [Chain(fit.density, fit.coordinates, bead_types(fit.model.topology)) for fit in fits]
        return [
            cls(found.student, fit.particles, temperature, _fitted(found, settings))
            for fit, found in zip(fits, distil_many(chains, KB * in_kelvin(temperature), settings), strict=True)
        ]

    @plain_torch
    def forBeads(self, model: BeadModel, positions: PositionsLike) -> Self:
        """The force field of another chain of beads by the same weights; it was not trained on this sequence.

        Arguments:
            model: the beads.
            positions: a structure of them, `(beads, 3)`, Quantity or nm, from which nothing is learned.

        Raises:
            InvalidInputError: if the student is a `BeadNetwork`, or does not know a residue, or for positions of other
                beads.

        Example:
            other = force_field.forBeads(BeadModel.fromSequence("YYDPETGTWY"), positions)
        """
        if not isinstance(self.student, ChainNetwork):
            raise InvalidInputError(
                "forBeads: this student is of one molecule; fit one with DistilSettings(student=SchNetSettings())"
            )
        x = in_nm(positions)
        model.check(x[None])
        residues = [label.split(":")[0] for label in model.labels]
        coordinates = chain_coordinates(model.names, residues, model.bonds, x)
        student = self.student.on(coordinates, bead_types(model.topology)).requires_grad_(False)
        return type(self)(student, BeadParticles(model.topology, x, model.masses), self._kelvin, self.fitted)

    @property
    def topology(self) -> app.Topology:
        """The beads: a copy at each call."""
        return copied_topology(self.beads.topology)

    @property
    def positions(self) -> unit.Quantity:
        """A structure of the beads, `(beads, 3)`; a copy."""
        return self.beads.positions.copy() * unit.nanometer

    @property
    def masses(self) -> tuple[float, ...]:
        """Of the beads, dalton."""
        return self.beads.masses

    @property
    def constraints(self) -> Mapping[tuple[int, int], float]:
        """Distances (nm) between beads, by their numbers."""
        return self.beads.constraints

    @property
    def temperature(self) -> unit.Quantity:
        """At which dynamics with this energy samples the teacher's distribution."""
        return self._kelvin * unit.kelvin

    @plain_torch
    def createCGSystem(self, backend: BeadBackend | Literal["nnpops"] | None = None) -> CGSystem:
        """A System of the beads with this energy; the parameter `cgflow_scale` scales it.

        It runs in replica exchange as it is, openmmtools' or that of OpenMM 8.6. The energy is a free energy at one
        temperature: a replica at another samples this energy at its own kT, which helps to cross barriers, but is not
        how the molecule's beads are distributed at that temperature.

        Arguments:
            backend: `"torch"`, a `TorchForce`; `"python"`, a `PythonForce`; `"compiled"`, the same as machine code,
                the fastest, after half a minute at the first step; `"nnpops"`, of a `ChainNetwork` alone, a TorchForce
                with the convolutions and neighbours of NNPOps. By default a TorchForce where it works.

        Returns:
            `.topology`, `.system` and `.positions`, as `CGFlow.createCGSystem` gives them.

        Raises:
            InvalidInputError: for another backend.
            UnsupportedForceError: if a TorchForce is asked for and cannot be had; for `"compiled"` without a compiler;
                for `"nnpops"` without NNPOps, or of another student.

        Example:
            cg = force_field.createCGSystem("compiled")
        """
        if backend == "nnpops":
            force = self._nnpops_force()
        else:
            force = force_from_energy(self.student, self.beads.positions, backend)
        return system_of_beads(self.beads, force)

    def _nnpops_force(self) -> openmm.Force:
        if not isinstance(self.student, ChainNetwork):
            raise UnsupportedForceError(
                'the backend "nnpops" has the convolutions of a ChainNetwork, and this student has none; use "torch"'
            )
        force: Any = make_torch_force(record(self.student, torch.as_tensor(self.beads.positions)))
        force.addGlobalParameter("cgflow_scale", 1.0)
        return force

    @plain_torch
    def createWalkers(
        self,
        positions: PositionsLike,
        friction: float = 1.0,
        timestep: float = 0.002,
        seed: int = 0,
        device: Device | None = None,
    ) -> BatchedLangevin:
        """Langevin dynamics of many copies of the beads at once, at this temperature.

        Arguments:
            positions: where they start, `(walkers, beads, 3)`, Quantity or nm.
            friction: Quantity or 1/ps.
            timestep: Quantity or ps.
            seed: of velocities and noise.
            device: where they are; by default the GPU where there is one.

        Raises:
            InvalidInputError: where beads are constrained, or for positions of another shape.

        Example:
            frames = force_field.createWalkers(samples.positions[:1000, flow.coordinates.bead_atoms]).run(5000)
        """
        if self.constraints:
            raise InvalidInputError(
                f"createWalkers: {len(self.constraints)} distances between beads are constrained, which walkers cannot "
                "keep; use createCGSystem, whose System has the constraints"
            )
        x = torch.as_tensor(in_nm(positions))
        friction = scalar_in(friction, unit.picosecond**-1, "createWalkers: friction")
        timestep = scalar_in(timestep, unit.picosecond, "createWalkers: timestep")
        return BatchedLangevin(
            self.student, x, self.masses, KB * self._kelvin, friction, timestep, seed, device, centred=True
        )

    @plain_torch
    @torch.no_grad()
    def outside(self, frames: PositionsLike) -> np.ndarray:
        """Whether beads are where no point of the fit was: there walls drive them back, and nothing else is known.

        Arguments:
            frames: `(frames, beads, 3)`, Quantity or nm.

        Returns:
            `(frames,)`, bool.

        Raises:
            MismatchError: for another number of beads.
            InvalidInputError: for NaN.
        """
        x = in_nm(frames)
        x = x[None] if x.ndim == 2 else x
        if x.ndim != 3 or x.shape[1:] != (len(self.masses), 3):
            raise MismatchError(f"outside: frames have shape {x.shape}; give (frames, {len(self.masses)}, 3), in nm")
        if not np.isfinite(x).all():
            raise InvalidInputError("outside: frames hold NaN or infinite values; remove them")
        return self.student.outside(torch.as_tensor(x, dtype=torch.float64)).numpy()

    @plain_torch
    def save(self, path: str | Path) -> None:
        """Write everything to one file, usually with the suffix `.cgff`.

        Raises:
            ModelFileError: if it cannot be written; an older file there stays.
        """
        header: dict[str, Any] = {
            "temperature": self._kelvin,
            "kind": "mlp",
            "student": self.student.settings.as_dict(),
            "topology": topology_to_json(self.beads.topology),
            "masses": list(self.masses),
            "constraints": [[i, j, distance] for (i, j), distance in self.constraints.items()],
            "coordinates": self.student.coordinates.state(),
            "fitted": asdict(self.fitted),
        }
        if isinstance(self.student, ChainNetwork):
            known = {"types": list(self.student.network.types), "kinds": list(self.student.network.kinds)}
            header |= {"kind": "schnet", "knows": known}
        tensors = {f"student.{name}": t for name, t in self.student.state_dict().items()}
        write_file(path, _KIND, tensors | {"positions": torch.as_tensor(self.beads.positions)}, header)

    @classmethod
    @plain_torch
    def load(cls, path: str | Path) -> Self:
        """Read a force field that `save` wrote. Nothing in the file is run.

        Raises:
            ModelFileError: for a missing, damaged, foreign or newer file.
        """
        with reading(path, _KIND):
            return cls._of(*read_file(path, _KIND))

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], header: Any) -> Self:  # noqa: ANN401
        """What a file holds, checked."""
        stored = read_as(StoredForceField, header, "the description")
        student = student_in(stored, tensors)
        beads = BeadParticles(
            topology_from_json(stored.topology),
            positions_in(tensors, len(stored.masses)),
            stored.masses,
            {(i, j): distance for i, j, distance in stored.constraints},
        )
        return cls(student, beads, stored.temperature, stored.fitted)


def _fitted(found: Distilled, settings: DistilSettings) -> Fitted:
    """What there is to say of a student, as it is stored."""
    return Fitted(found.force_error, found.energy_error, found.points, settings.steps, settings.seed, found.seconds)


def student_of(flow: TrainedFlow) -> CGForceField:
    """The force field of a flow by the default settings, made once; made again after the flow has changed."""
    return made_once(_KNOWN, flow, CGForceField.fromFlow)


_KNOWN: Made[CGForceField] = Made()
