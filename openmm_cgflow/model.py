"""The facade: an OpenMM System goes in, independent equilibrium samples come out."""

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.backmapping import Backmapped, backmap
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.openmm_plugin.cg_system import CGSystem, create_cg_system
from openmm_cgflow.openmm_plugin.force import Backend, BeadBackend, create_force
from openmm_cgflow.potentials import make_potential
from openmm_cgflow.sampling import Samples
from openmm_cgflow.storage import (
    read_file,
    system_from_xml,
    system_to_xml,
    topology_from_json,
    topology_to_json,
    write_file,
)
from openmm_cgflow.training import BoltzmannTarget, Budget, Metrics, Parallel, Reporter, Trainer, TrainSettings
from openmm_cgflow.training.checkpoint import CheckpointWriter, load_state
from openmm_cgflow.training.interrupt import Interruptible
from openmm_cgflow.units import KB, in_kelvin, in_nm, in_seconds
from openmm_cgflow.version import __version__

__all__ = ["CGFlow"]

logger = logging.getLogger("openmm_cgflow")

DEFAULT_SECONDS = 480.0


class CGFlow:
    """A normalizing flow with slow and fast variables for the Boltzmann distribution of one molecule.

    Built from a System alone; `train` needs energies, no trajectory.

    Arguments:
        topology: OpenMM Topology with bonds, one molecule.
        system: its System, without periodic box; implicit solvent or vacuum.
        positions: one structure, `(atoms, 3)`, Quantity or nm. Its chirality and its stiff isomers (such as peptide
            bonds) are those that the flow samples.
        temperature: Quantity or K.
        slow: the slow torsions, by names such as `"phi"` or four atom indices each; all soft torsions by default.
        beads: indices of the beads' atoms, instead of `slow`.
        seed: of everything random.

    Raises:
        InvalidInputError: for a System, Topology or positions that cannot be used; the message says why and the mend.

    Source: Stupp and Koutsourelakis, arXiv 2504.20940, with the changes that the README describes.
    """

    def __init__(
        self,
        topology: app.Topology,
        system: openmm.System,
        positions: Any,  # noqa: ANN401
        temperature: unit.Quantity | float = 300 * unit.kelvin,
        slow: Sequence[str | Sequence[int]] | None = None,
        beads: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        kelvin = in_kelvin(temperature)
        x = in_nm(positions)
        coordinates = InternalCoordinates.fromTopology(topology, system, x, beads=beads, slow=slow)
        self._assemble(topology, system, x, kelvin, coordinates, FlowSettings(seed=seed))
        self.seed = seed
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._trainer: Trainer | None = None

    def _assemble(
        self,
        topology: app.Topology,
        system: openmm.System,
        x: np.ndarray,
        kelvin: float,
        coordinates: InternalCoordinates,
        settings: FlowSettings,
    ) -> None:
        self.topology, self.system, self._positions, self._kelvin = topology, system, x, kelvin
        self.coordinates, self._settings = coordinates, settings
        self.potential = make_potential(system, x)
        self.target = BoltzmannTarget(self.potential, coordinates, KB * kelvin)
        self.flow = JointFlow.build(
            coordinates.sizes, coordinates.reference, coordinates.scale, coordinates.period, settings
        )

    # -- description ------------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> unit.Quantity:
        """Temperature of the distribution."""
        return self._kelvin * unit.kelvin

    @property
    def positions(self) -> unit.Quantity:
        """The structure that the flow was made from, `(atoms, 3)`."""
        return self._positions * unit.nanometer

    @property
    def slow_names(self) -> list[str]:
        """Names of the slow torsions."""
        return self.coordinates.names[: self.coordinates.sizes[0]]

    @property
    def slow_torsions(self) -> list[tuple[int, int, int, int]]:
        """Atom indices of the slow torsions."""
        return self.coordinates.slow_torsions

    @property
    def evaluations(self) -> int:
        """Energies of single configurations computed so far: what training and sampling cost."""
        return self.potential.evaluations

    @property
    def provenance(self) -> dict[str, Any]:
        """Where this model comes from: evaluations, training seconds, seed, version and machine."""
        trained = self.history[-1]["evaluations"] if self.history else 0
        return {
            "evaluations": trained,
            "seconds": self._seconds,
            "seed": self.seed,
            "version": __version__,
            "torch": torch.__version__,
            "openmm": openmm.Platform.getOpenMMVersion(),
            "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        }

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        time: unit.Quantity | float | None = None,
        evaluations: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = True,
        progress: bool = True,
        metrics: str | Path | None = None,
        frames: Any = None,  # noqa: ANN401
        settings: TrainSettings | None = None,
    ) -> "CGFlow":
        """Train until the time or the number of evaluations is spent; with neither, for eight minutes.

        Ctrl-C ends the training early and keeps what was learned. Called again, it goes on refining.

        Arguments:
            time: wall-clock time, Quantity or seconds.
            evaluations: energies of single configurations.
            checkpoint: file for the state, written every 15 s and at the end of each stage.
            resume: go on from `checkpoint` where it exists.
            progress: draw a progress bar.
            metrics: CSV file for a row of figures every few seconds.
            frames: MD frames of this molecule at this temperature (`(n, atoms, 3)`, trajectory, Quantity or nm), if any
                exist: the refinement learns from their likelihood too, at a quarter of the weight. Not needed.
            settings: how to train.

        Returns:
            the flow itself.

        Raises:
            TrainingError: if no energy is finite.
            ModelFileError: for a checkpoint that cannot be read or written.
            MismatchError: for a checkpoint of another System, or frames of another molecule.
        """
        seconds = None if time is None else in_seconds(time)
        if seconds is None and evaluations is None:
            seconds = DEFAULT_SECONDS
        for name, value in (("time", seconds), ("evaluations", evaluations)):
            if value is not None and value <= 0:
                raise InvalidInputError(f"train: {name} is {value}; give a positive number.")
        trainer = self._trainer or Trainer(self.flow, self.target, settings, self.seed)
        if frames is not None:
            trainer.frames = self._internal(frames)[0].float()
        budget = Budget(seconds, evaluations, evaluations_before=self.evaluations)
        history = [Metrics(**row) for row in self.history]
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and resume and path.exists():
            history = self._resume(trainer, budget, path)
        with Reporter(progress, metrics, history) as reporter, Parallel() as parallel, Interruptible() as interrupted:
            self._trainer = trainer
            save = CheckpointWriter(path, trainer, reporter, self._identity())
            try:
                trainer.run(budget, reporter, parallel, save, interrupted)
            finally:
                self.history = [asdict(row) for row in reporter.history]
                self._seconds += budget.elapsed
            save(force=True)
        return self

    def _resume(self, trainer: Trainer, budget: Budget, path: Path) -> list[Metrics]:
        tensors, header = read_file(path, "checkpoint")
        if header["identity"] != self._identity():
            raise MismatchError(
                f"{path} is the checkpoint of another System, temperature, choice of slow variables or seed; "
                "remove it, choose another checkpoint, or start anew with resume=False (--no-resume)."
            )
        history = load_state(trainer, tensors, header)
        budget.seconds_before, budget.evaluations_before = header["seconds"], 0
        logger.info("going on from %s: stage %s, %d evaluations", path, trainer.stage, header["evaluations"])
        return history

    def _identity(self) -> str:
        """A digest of what the training is for."""
        settings = self._settings.as_dict()
        parts = [system_to_xml(self.system), self._kelvin, self.coordinates.state(), settings, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    # -- use -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Samples:
        """`n` independent all-atom samples with importance weights.

        Equivalent hydrogens of symmetric rotors come in one of their labellings.

        Arguments:
            n: number of samples.
            seed: of the draw; a new one each call by default.

        Raises:
            InvalidInputError: if `n` is not a positive integer.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0:
            raise InvalidInputError(f"sample: n is {n!r}; give a positive number of samples.")
        seed = int(torch.randint(2**31, (1,))) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        with Parallel() as parallel:
            chunks = [self._sample_chunk(min(20_000, n - i), generator, parallel) for i in range(0, n, 20_000)]
        x, log_weights, u, log_density, slow = (torch.cat(column).numpy() for column in zip(*chunks, strict=True))
        return Samples(x, log_weights, u, log_density, slow, self._kelvin, self.topology, tuple(self.slow_names))

    def _sample_chunk(self, n: int, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, ...]:
        def draw(noise: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():  # each thread has its own gradient mode
                q, log_prob = self.flow.sample_from(noise)
                x, logdet = self.coordinates.to_cartesian(q)
                u = self.potential.energy(x) / self.target.kT
            return q, log_prob, x - x.mean(1, keepdim=True), logdet, u

        q, log_prob, x, logdet, u = parallel.map(draw, self.flow.draw_noise(n, generator))
        log_density = log_prob.double() - logdet.double()
        log_weights = -u.double() - log_density
        fine = torch.isfinite(log_weights) & self.coordinates.in_domain(q)
        return x, torch.where(fine, log_weights, -torch.inf), u, log_density, q[:, : self.coordinates.sizes[0]]

    def _internal(self, positions: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Internal coordinates and log-determinants of positions, after checking that they can be this molecule's."""
        x = in_nm(positions)
        x = x[None] if x.ndim == 2 else x
        n_atoms = self.topology.getNumAtoms()
        if x.ndim != 3 or x.shape[1:] != (n_atoms, 3):
            raise MismatchError(
                f"positions have shape {x.shape}, but this model is of a molecule with {n_atoms} atoms "
                f"({_formula(self.topology)}): give (frames, {n_atoms}, 3), in nm."
            )
        if not np.isfinite(x).all():
            raise InvalidInputError("positions hold NaN or infinite values; remove these frames.")
        return self.coordinates.to_internal(torch.as_tensor(x))

    @torch.no_grad()
    def logDensity(self, positions: Any) -> np.ndarray:  # noqa: ANN401
        """Log-density of the flow at positions, per nm^(3 atoms - 6), rigid motion taken out.

        Arguments:
            positions: `(atoms, 3)` or `(n, atoms, 3)`, trajectory, Quantity or nm, in any orientation.

        Returns:
            `(n,)`; minus infinity for the other chirality or another isomer.
        """
        q, logdet = self._internal(positions)
        log_prob = self.flow.log_prob(q.float()).double() - logdet
        return torch.where(self.coordinates.in_domain(q), log_prob, -torch.inf).numpy()

    @torch.no_grad()
    def slowVariables(self, positions: Any) -> np.ndarray:  # noqa: ANN401
        """The slow torsions `(n, n_slow)` of positions, in radians."""
        return self._internal(positions)[0][:, : self.coordinates.sizes[0]].numpy()

    @torch.no_grad()
    def freeEnergy(self, slow: Any) -> unit.Quantity:  # noqa: ANN401
        """The CG free energy `-kT log q(s)` of slow torsions, in kJ/mol.

        Arguments:
            slow: `(n, n_slow)` or `(n_slow,)`, Quantity or radians.

        Returns:
            Quantity `(n,)`, normalised: `exp(-F / kT)` integrates to one over the torsions.
        """
        values = slow.value_in_unit(unit.radian) if unit.is_quantity(slow) else slow
        s = torch.as_tensor(np.atleast_2d(np.asarray(values, dtype=np.float64)))
        n_slow = self.coordinates.sizes[0]
        if s.shape[1] != n_slow:
            raise MismatchError(f"freeEnergy: slow has shape {tuple(s.shape)}; give (n, {n_slow}): {self.slow_names}.")
        log_prob = self.flow.bead_flow.log_prob_slow(s.float()).double()
        return (-self.target.kT * log_prob).numpy() * unit.kilojoule_per_mole

    def createForce(
        self, backend: Backend | None = None, scale: float = 1.0, parameter: str = "cgflow_scale"
    ) -> openmm.Force:
        """The CG free energy of the slow torsions as a force for the all-atom System.

        Its energy is `scale * freeEnergy(slowVariables(x))`, in kJ/mol. The scale is a global parameter: with 1 the
        force is that of the free energy, with -1 a bias that flattens it, with 0 it is off.

        Arguments:
            backend: `"torch"`, a `TorchForce`; `"python"`, a `PythonForce`, which needs no openmm-torch, but whose XML
                holds a pickle: reading it runs code; `"tabulated"`, a native force of periodic splines for one to
                three torsions, by far the fastest, with a point each 1, 3 or 7.5 degrees. By default a TorchForce where
                it works, else a PythonForce; which one is logged.
            scale: default value of the parameter.
            parameter: its name.

        Raises:
            UnsupportedForceError: if a TorchForce is asked for, and openmmtorch is missing or does not work with the
                versions of torch and OpenMM here; the message says which do.
            InvalidInputError: without slow torsions, with too many for a table, or for another backend.
        """
        return create_force(self, backend, scale, parameter)

    def createCGSystem(self, backend: BeadBackend | None = None) -> CGSystem:
        """A System of the beads alone, on which molecular dynamics samples the flow's distribution of them.

        Its energy is `-kT log q(beads)` in the Cartesian positions of the beads, in kJ/mol: the many-body potential of
        mean force that the flow learned. In a geometry that the flow has never seen it goes on with a constant
        slope, so that the beads are driven back. The parameter `cgflow_scale` scales it, as in `createForce`.

        Arguments:
            backend: `"torch"` or `"python"`, as in `createForce`.

        Returns:
            `.topology` (elements and names of the beads' atoms), `.system` (each bead with the mass of the atoms that
            it stands for, and the constraints among beads) and `.positions` to start from.

        Raises:
            InvalidInputError: with fewer than four beads, or for another backend.
            UnsupportedForceError: if a TorchForce is asked for and cannot be had.
        """
        return create_cg_system(self, backend)

    def backmap(self, cg: Any, n: int = 1, relax: bool | int = False, seed: int | None = None) -> Backmapped:  # noqa: ANN401
        """All-atom structures around beads, drawn from the flow's conditional density, with weights.

        Every bead stays where it is. Frames whose beads are outside the region that the flow knows are named in a
        warning and marked in `outside`.

        Arguments:
            cg: the beads, in the order of `coordinates.bead_atoms`: an mdtraj trajectory, a file that mdtraj reads, or
                `(frames, beads, 3)` or `(beads, 3)`, Quantity or nm.
            n: number of structures for each frame. Reweighted, they are the ensemble `p(atoms | beads)`.
            relax: minimise each structure with its beads held, in at most so many iterations (True: 50).
            seed: of the draw; a new one each call by default.

        Raises:
            MismatchError: for another number or order of beads.
            InvalidInputError: for a flow with fewer than four beads, NaN, no frames, `n` below one, an unreadable file.
        """
        return backmap(self, cg, n, relax, seed)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model to one file that holds everything: flow, coordinates, System, topology, history.

        Raises:
            ModelFileError: if it cannot be written; an older file there stays.
        """
        header = {
            "topology": topology_to_json(self.topology),
            "system": system_to_xml(self.system),
            "coordinates": self.coordinates.state(),
            "temperature": self._kelvin,
            "settings": self._settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "seconds": self._seconds,
        }
        tensors = {f"flow.{name}": t for name, t in self.flow.state_dict().items()}
        write_file(path, "model", tensors | {"positions": torch.as_tensor(self._positions)}, header)

    @classmethod
    def load(cls, path: str | Path) -> "CGFlow":
        """Read a model that `save` wrote. Nothing in the file is run.

        Raises:
            ModelFileError: for a missing, truncated, foreign or newer file.
        """
        tensors, header = read_file(path, "model")
        self = cls.__new__(cls)
        self._assemble(
            topology_from_json(header["topology"]),
            system_from_xml(header["system"]),
            tensors.pop("positions").numpy(),
            header["temperature"],
            InternalCoordinates.from_state(header["coordinates"]),
            FlowSettings(**header["settings"]),
        )
        self.flow.load_state_dict({name.removeprefix("flow."): t for name, t in tensors.items()})
        self.seed, self.history, self._seconds = header["seed"], header["history"], header["seconds"]
        self._trainer = None
        if self.history:
            self.potential.evaluations = self.history[-1]["evaluations"]
        return self


def _formula(topology: app.Topology) -> str:
    """Residue names, the way a user knows the molecule."""
    return "-".join(residue.name for residue in topology.residues())
