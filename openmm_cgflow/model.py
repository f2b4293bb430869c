"""The facade: an OpenMM System goes in, independent equilibrium samples come out."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.audit import LEAST
from openmm_cgflow.audit import audit as run_audit
from openmm_cgflow.backmapping import Backmapped, JoinedDensity, backmap
from openmm_cgflow.chemistry import kept_isomers, perceive
from openmm_cgflow.chemistry.forms import fours_of
from openmm_cgflow.chemistry.puckers import flipped_forms, puckered_rings
from openmm_cgflow.compute import Compute, Device, plain_torch
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.counts import many, seed_number
from openmm_cgflow.coverage import Coverage
from openmm_cgflow.door import Bonds, admit
from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError, ModelFileError
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.force_field import student_of
from openmm_cgflow.forcematching import FittedBeads
from openmm_cgflow.openmm_plugin.forces.cg_system import CGSystem, create_cg_system
from openmm_cgflow.openmm_plugin.forces.force import Backend, BeadBackend, create_force, create_force_on_bead_atoms
from openmm_cgflow.openmm_plugin.moves.matching import find_molecule
from openmm_cgflow.potentials import make_potential
from openmm_cgflow.slow_scan import scan_torsions
from openmm_cgflow.storage import check_storable, system_to_xml
from openmm_cgflow.structures import CONSTRAINT_TOLERANCE, OVERLAP
from openmm_cgflow.trainable import Trainable
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.trained.stored import Molecule
from openmm_cgflow.training.interrupt import Interruptible
from openmm_cgflow.units import PositionsLike, in_kelvin, in_seconds

__all__ = ["CGFlow"]

_log = logging.getLogger("openmm_cgflow")


class CGFlow(TrainedFlow, Trainable[InternalCoordinates]):
    """A normalizing flow with slow and fast variables for the Boltzmann distribution of one molecule.

    Built from a System alone; `train` needs energies, no trajectory.

    Arguments:
        topology: OpenMM Topology with bonds, one molecule.
        system: its System, without periodic box; implicit solvent or vacuum. Topology, System and positions are copied:
            what is done to them later (such as `system.addForce(flow.createForce())`) does not change the flow.
        positions: one structure, `(atoms, 3)`, Quantity or nm, or an mdtraj Trajectory of one frame, whose names and
            box are taken into account. Its chirality and its stiff isomers (such as peptide bonds) are those that the
            flow samples.
        temperature: Quantity or K.
        slow: the slow torsions, by names such as `"phi"` or four atom indices each; `"auto"` for those that have more
            than one basin within reach, which are logged (see `scanTorsions`); all soft torsions by default.
        beads: indices of the beads' atoms, instead of `slow`.
        seed: of everything random.
        bonds: `"topology"`: the bonds of the Topology, which must be those of the System; `"system"`: take them from
            the System's terms and constraints.
        device: where flow, coordinates and energies live and work, such as `"cpu"` or `"cuda"`; by default the GPU
            where there is one. With one seed the results are the same anywhere, but for rounding.

    Raises:
        InvalidInputError: for a System, Topology or positions that cannot be used; the message says why and the fix.
        MismatchError: for a Trajectory of another molecule.

    Source: Stupp and Koutsourelakis, arXiv 2504.20940, with the changes that docs/method.md describes.

    Example:
        pdb = app.PDBFile("alanine_dipeptide.pdb")
        system = app.ForceField("amber96.xml", "implicit/obc1.xml").createSystem(pdb.topology)
        flow = CGFlow(pdb.topology, system, pdb.positions, temperature=300 * unit.kelvin).train(time=240)
        print(flow.sample(10_000), flow.coverage)
    """

    @plain_torch
    def __init__(
        self,
        topology: app.Topology,
        system: openmm.System,
        positions: PositionsLike,
        temperature: unit.Quantity | float = 300 * unit.kelvin,
        slow: Literal["auto"] | Sequence[str | Sequence[int]] | None = None,
        beads: Sequence[int] | None = None,
        seed: int = 0,
        bonds: Bonds = "topology",
        device: Device | None = None,
    ) -> None:
        kelvin, seed, device = in_kelvin(temperature), seed_number(seed), Compute.on(device).device
        topology, system, x, reference = admit(topology, system, positions, kelvin, bonds)
        perceived, potential = perceive(topology, system, x, reference), None
        if isinstance(slow, str) and slow == "auto":
            potential = make_potential(system, x, kelvin, reference)
            scan = scan_torsions(perceived, system, potential, kelvin, seed)
            _log.info("slow='auto': %s", scan)
            slow = scan.slow
        coordinates = InternalCoordinates.of(perceived, system, beads, slow)
        potential = potential or make_potential(system, x, kelvin, reference)
        super().__init__(Molecule(topology, system, x, coordinates), kelvin, FlowSettings(seed=seed), device, potential)
        try:
            check_storable(system)
        except ModelFileError as error:
            _log.warning("this flow can be trained and used, but not saved: %s", error)
        for kept in kept_isomers(perceived, coordinates.turning(perceived.axes)):
            _log.info("kept as in the input: %s; name it in slow= to have both forms", kept)

    def _described(self) -> list[Any]:
        return [system_to_xml(self._system), self.coordinates.state()]

    def _forms(self) -> Tensor | None:
        molecule = perceive(self.topology, self._system, self.positions).molecule
        forms = flipped_forms(molecule, self._system)
        rings = [four for ring in puckered_rings(molecule) for four in fours_of(ring)]
        turned = self.coordinates.turned_torsions(rings).any(1) if forms else np.zeros(1, dtype=bool)
        if not turned.any():
            return None
        q, _ = self.coordinates.to_internal(self.compute.tensor(np.stack(forms)))
        free = torch.nonzero(self.coordinates.period > 0).flatten()[torch.as_tensor(~turned, device=q.device)]
        q[:, free] = self.coordinates.reference[free].to(q)  # of all else the input's: only rings have these forms
        inside = self.coordinates.in_domain(q)
        return q[inside].float() if bool(inside.any()) else None

    def _read_frames(self, frames: PositionsLike) -> np.ndarray:
        x = self._structures.read(frames, closest=OVERLAP)
        if not len(x):
            raise InvalidInputError("train: frames holds no frames; give some, or leave it out.")
        off = self._structures.off_constraints(x)
        wrong = np.flatnonzero(off > CONSTRAINT_TOLERANCE)
        if len(wrong):
            raise MismatchError(
                f"train: in {len(wrong)} of {len(x)} frames constraints of the System do not hold (frame {wrong[0]}: "
                f"{self._structures.worst_constraint(x[wrong[0]])}): give frames of a simulation of this System, with "
                "the same constraints."
            )
        odd = self._structures.mean_lengths(x)
        if odd is not None:
            _log.warning("train: on average over the frames, the bond %s: are they of this force field?", odd)
        return x

    @contextmanager
    def _followed_up(
        self, seconds: float | None, evaluations: int | None, wanted: bool
    ) -> Iterator[tuple[float | None, int | None]]:
        """The audit takes a tenth of what the training takes."""
        share = 1.1 if wanted and (evaluations is None or evaluations // 11 >= LEAST) else 1.0
        start, before, spent = monotonic(), self.coverage, self._spent
        self.coverage = Coverage(why_not="the training did not end" if wanted else "no audit was asked for")
        try:
            yield None if seconds is None else seconds / share, evaluations and max(1, int(evaluations / share))
        except BaseException:
            if self._spent == spent:  # nothing was trained
                self.coverage = before
            raise
        if self.ended_early:
            self.coverage = Coverage(why_not="the training was ended early; flow.audit() makes one")
        elif wanted:
            assert self._trainer is not None
            used = self._trainer.loop.budget.used
            self._audit_training(max(1, -(-used // 10) if share > 1 else used // 11), (monotonic() - start) / 10)

    def _audit_training(self, evaluations: int, seconds: float) -> None:
        try:
            self.audit(evaluations, seconds)
        except CGFlowError as error:  # what was learned is not lost for it
            self.coverage = Coverage(why_not=str(error))
            _log.warning("the audit failed: %s", error)

    @plain_torch
    def audit(self, evaluations: int | None = None, time: unit.Quantity | float | None = None) -> Coverage:
        """Look for forms of the molecule that the flow does not reach, by hot dynamics from its samples, quenched.

        `train` ends with one. What is found is kept with the model, and said in summaries and reports.

        Arguments:
            evaluations: that it may cost; a tenth of the training's by default, at least 30,000, at most 300,000.
            time: Quantity or seconds; no limit by default.

        Returns:
            the forms that are missing, each with its energy, an estimate of its weight and how to include it; those
            that are left out as the input's isomers are kept; and what was done.

        Raises:
            InvalidInputError: for a flow that was not trained, or a limit that is not positive.

        Example:
            coverage = flow.audit()
            print(coverage.verdict, [form.energy for form in coverage.forms])
        """
        if not self.history:
            raise InvalidInputError("audit: the flow was not trained; train it first")
        seconds = None if time is None else in_seconds(time)
        if seconds is not None and seconds <= 0:
            raise InvalidInputError(f"audit: time is {seconds}; give a positive number")
        if evaluations is None:
            evaluations = min(300_000, max(30_000, int(self.provenance["evaluations"]) // 10))
        evaluations = many(evaluations, "audit: evaluations")
        start = monotonic()
        with Interruptible() as interrupted:
            self.coverage = run_audit(
                self, evaluations, lambda: interrupted() or (seconds is not None and monotonic() - start > seconds)
            )
        for form in self.coverage.forms:
            _log.warning("the flow does not reach a form of the molecule. %s. To include it: %s", form, form.include)
        return self.coverage

    def findAtoms(self, topology: app.Topology) -> list[int]:
        """Which atoms of a larger Topology, such as that of a solvated molecule, are this molecule's, in its order.

        Arguments:
            topology: OpenMM's or mdtraj's, with bonds, or what has one, such as a PDBFile.

        Raises:
            MismatchError: the molecule is not there, or more than once.
            InvalidInputError: for what is and has no Topology.

        Example:
            atoms = flow.findAtoms(modeller.topology)
            system.addForce(flow.createForce(scale=-1, atoms=atoms))
        """
        return find_molecule(self, topology)

    @plain_torch
    def createForce(
        self,
        backend: Backend | None = None,
        scale: float = 1.0,
        parameter: str = "cgflow_scale",
        atoms: Sequence[int] | None = None,
    ) -> openmm.Force:
        """The CG free energy of the slow torsions as a force for the all-atom System, or for a larger one.

        Its energy is `scale * freeEnergy(slowVariables(x))`, in kJ/mol. The scale is a global parameter: with 1 the
        force is that of the free energy, with -1 a bias that flattens it, with 0 it is off.

        Arguments:
            backend: `"torch"`, a `TorchForce`; `"python"`, a `PythonForce`, which needs no openmm-torch, but whose XML
                holds a pickle: reading it runs code; `"compiled"`, the same as machine code, several times faster after
                most of a minute at the first step (needs a C++ compiler); `"tabulated"`, a native force of periodic
                splines for one to three torsions, by far the fastest, with a point each 1, 3 or 7.5 degrees. By default
                a TorchForce where it works, else a PythonForce; which one is logged.
            scale: default value of the parameter.
            parameter: its name.
            atoms: the particles of a larger System that are this molecule's atoms, in its order, as `findAtoms` gives
                them; there may be solvent and a periodic box. By default the System is that of the molecule alone; a
                `"tabulated"` force cannot see whether that is so, and acts on the first particles of any other.

        Raises:
            UnsupportedForceError: if a TorchForce is asked for, and openmmtorch is missing or does not work with the
                versions of torch and OpenMM here (the message says which do); for `"compiled"` without a compiler.
            InvalidInputError: without slow torsions, with too many for a table, for another backend, or for atoms that
                cannot be this molecule's.

        Example:
            system.addForce(flow.createForce(scale=-1))  # dynamics in which the slow torsions feel no barriers
        """
        return create_force(self, backend, scale, parameter, atoms)

    @plain_torch
    def createBeadForce(
        self,
        backend: BeadBackend | None = None,
        scale: float = 1.0,
        parameter: str = "cgflow_scale",
        atoms: Sequence[int] | None = None,
    ) -> openmm.Force:
        """The CG free energy of the beads as a force on the atoms that are beads, of the System or of a larger one.

        That is the force of `createCGSystem`, `-kT log q(beads)` in their Cartesian positions, beside the atoms' own.

        Arguments:
            backend: `"torch"`, `"python"` or `"compiled"`, as in `createForce`.
            scale: default value of the parameter.
            parameter: its name.
            atoms: as in `createForce`.

        Raises:
            InvalidInputError: with fewer than four beads, for another backend, or for atoms that cannot be this
                molecule's.
            UnsupportedForceError: as in `createForce`.

        Example:
            system.addForce(flow.createBeadForce(scale=0.5))
        """
        return create_force_on_bead_atoms(self, backend, scale, parameter, atoms)

    @plain_torch
    def createCGSystem(
        self, backend: BeadBackend | None = None, model: Literal["flow", "student"] = "flow"
    ) -> CGSystem:
        """A System of the beads alone, on which molecular dynamics samples the flow's distribution of them.

        Its energy is `-kT log q(beads)` in the Cartesian positions of the beads, in kJ/mol: the many-body potential of
        mean force that the flow learned. In a geometry that the flow has never seen it goes on with a constant
        slope, so that the beads are driven back. The parameter `cgflow_scale` scales it, as in `createForce`.

        Arguments:
            backend: `"torch"`, `"python"` or `"compiled"`, as in `createForce`.
            model: `"flow"`, that energy as it is; `"student"`, a network that is fitted to it, once for a flow, in most
                of a minute, and whose steps take a fifth of the time: see `CGForceField`, which can be saved.

        Returns:
            `.topology` (elements and names of the beads' atoms), `.system` (each bead with the mass of the atoms that
            it stands for, and the constraints among beads) and `.positions` to start from.

        Raises:
            InvalidInputError: with fewer than four beads, or for another backend or model.
            UnsupportedForceError: if a TorchForce is asked for and cannot be had.

        Example:
            cg = flow.createCGSystem()
            integrator = openmm.LangevinMiddleIntegrator(flow.temperature, 1 / unit.picosecond, 2 * unit.femtosecond)
            simulation = app.Simulation(cg.topology, cg.system, integrator)
            simulation.context.setPositions(cg.positions)
        """
        if model not in ("flow", "student"):
            raise InvalidInputError(f'createCGSystem: model is {model!r}; give "flow" or "student".')
        return create_cg_system(self, backend) if model == "flow" else student_of(self).createCGSystem(backend)

    @plain_torch
    def backmap(self, cg: PositionsLike, n: int = 1, relax: bool | int = False, seed: int | None = None) -> Backmapped:
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

        Example:
            atoms = flow.backmap("cg.dcd", n=8)
            atoms.resample().save("atoms.dcd")  # one structure a frame, drawn by its weight
            print(atoms.outside.sum(), atoms.checks.summary())
        """
        return backmap(self, cg, n, relax, seed)

    @plain_torch
    def withBeads(self, beads: FittedBeads) -> JoinedDensity:
        """A density of all atoms whose beads are those of other frames, and whose atoms around them are this flow's.

        Arguments:
            beads: what `forcematching.fit_beads` makes of frames of the same beads, from whatever model they come.

        Returns:
            with `sample(n)` and `logDensity(positions)`.

        Raises:
            MismatchError: for other beads, another order of them, or other constraints between them.
            InvalidInputError: for beads at other distances, or what `fit_beads` did not make.

        Example:
            model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
            joined = flow.withBeads(fit_beads("cg.dcd", model))
            samples = joined.sample(1000)
            samples.trajectory.save("atoms.dcd")
        """
        return JoinedDensity(self, beads)
