"""From beads to atoms: structures around given beads, drawn from the flow's conditional density, with weights."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import mdtraj
import networkx
import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.analysis.structure_checks import StructureChecks, check_structures
from openmm_cgflow.atom_matching import order_by_names
from openmm_cgflow.compute import BATCH, Parallel, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.coordinates.molecule import bond_key
from openmm_cgflow.coordinates.system_bonds import BondLength, atomic_numbers, bond_lengths
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.openmm_plugin.cg_system import bead_topology
from openmm_cgflow.openmm_plugin.matching import check_beads
from openmm_cgflow.sampling import Drawn
from openmm_cgflow.structures import StructureReader, given_structures
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import PositionsLike

__all__ = ["Backmapped", "backmap"]

_log = logging.getLogger("openmm_cgflow")
_BEYOND = 3.0  # kT by which a frame may be less likely than the least likely of those
_MISFIT = 1e-3  # nm by which a constrained bond between beads may be off
_RELAX_STEPS = 50
_STIFF_BOND = 4e5  # kJ/mol/nm^2, in place of constraints while beads are held


@dataclass(frozen=True)
class Backmapped:
    """`n` all-atom structures around each of some frames of beads.

    Reweighted within each frame they are `p(atoms | beads)`: `weights`, or `resample` for one structure a frame.

    Attributes:
        positions: `(frames, n, atoms, 3)` nm, float32, every bead where it was given.
        log_densities: `(frames, n)`, `log q(atoms | beads)`, per nm^(3 (atoms - beads) - constraints of the atoms).
        reduced_energies: `(frames, n)`, `U / kT`.
        outside: `(frames,)`, whether the beads are outside the region that the flow knows: a guess is made there.
        relaxed: whether the structures were minimised; their log-densities, energies and weights are those before.
        temperature: K.
        topology: OpenMM topology of the molecule.
        reference: `(atoms, 3)` nm, the structure whose isomers are the right ones.
    """

    positions: np.ndarray
    log_densities: np.ndarray
    reduced_energies: np.ndarray
    outside: np.ndarray
    relaxed: bool
    temperature: float
    topology: app.Topology
    reference: np.ndarray

    @property
    def log_weights(self) -> np.ndarray:
        """`(frames, n)`, `-u - log q(atoms | beads)`; minus infinity for another isomer or without a finite energy.

        Their mean over a frame's structures (`exp`, mean, `log`) estimates minus the frame's free energy in kT.
        """
        return np.where(np.isfinite(self.reduced_energies), -self.reduced_energies - self.log_densities, -np.inf)

    @property
    def failed(self) -> np.ndarray:
        """`(frames,)`, whether none of the frame's structures has a finite energy: none of them is to be used."""
        return ~np.isfinite(self.log_weights).any(1)

    @cached_property
    def weights(self) -> np.ndarray:
        """`(frames, n)`, normalised within each frame; NaN in frames that `failed`."""
        log_weights = np.where(self.failed[:, None], np.nan, self.log_weights)
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    @cached_property
    def ess(self) -> np.ndarray:
        """Kish effective sample size over n in each frame, `(frames,)`; NaN in frames that `failed`."""
        return 1 / (self.weights**2).sum(1) / self.weights.shape[1]

    @cached_property
    def checks(self) -> StructureChecks:
        """Chirality, peptide isomers, clashes, pierced rings and bond lengths of all structures, frame by frame."""
        return check_structures(self.topology, self.reference, self.trajectory.xyz)

    @property
    def trajectory(self) -> mdtraj.Trajectory:
        """All structures, unweighted: the n of the first frame, then those of the second, and so on; a copy."""
        x = self.positions.reshape(-1, *self.positions.shape[2:]).copy()
        return mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(self.topology))

    def resample(self, seed: int = 0) -> "Backmapped":
        """One structure for each frame, drawn by its weights: an unweighted ensemble, the better the larger n.

        In frames that `failed` there is none to draw: positions are NaN there, and a warning names these frames.
        """
        _warn_of_failed(self.failed, "resample", "Their structures are NaN.")
        generator = np.random.default_rng(seed)
        cumulative = self.weights.cumsum(1)
        drawn = generator.random((len(cumulative), 1)) * cumulative[:, -1:]
        chosen = (drawn >= cumulative).sum(1, keepdims=True).clip(max=cumulative.shape[1] - 1)
        positions = np.take_along_axis(self.positions, chosen[..., None, None], 1)
        return replace(
            self,
            positions=np.where(self.failed[:, None, None, None], np.float32(np.nan), positions),
            log_densities=np.take_along_axis(self.log_densities, chosen, 1),
            reduced_energies=np.take_along_axis(self.reduced_energies, chosen, 1),
        )

    def save(self, path: str | Path) -> None:
        """Write the structures as what mdtraj writes, and densities, energies and weights as `.npz` beside them."""
        path = Path(path)
        self.trajectory.save(str(path))
        checks = {f"check_{field.name}": getattr(self.checks, field.name) for field in fields(self.checks)}
        np.savez_compressed(
            path.with_suffix(".npz"),
            log_densities=self.log_densities,
            reduced_energies=self.reduced_energies,
            log_weights=self.log_weights,
            weights=self.weights,
            outside=self.outside,
            failed=self.failed,
            temperature=np.array(self.temperature),
            **checks,
        )


def backmap(
    flow: TrainedFlow, cg: PositionsLike, n: int = 1, relax: bool | int = False, seed: int | None = None
) -> Backmapped:
    """The structures of `CGFlow.backmap`, which see."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0:
        raise InvalidInputError(f"backmap: n is {n!r}; give a positive number of structures for each frame.")
    beads = _read_beads(flow, cg)
    mapper = _Backmapper(flow, flow.compute.tensor(beads))
    _warn(mapper)
    generator = seeded(seed)
    with flow.compute.parallel() as parallel, torch.no_grad():
        rows = torch.arange(len(beads)).split(max(1, BATCH // n))
        chunks = [mapper.place(part.repeat_interleave(n), generator, parallel) for part in rows]
    x, log_density, u = (torch.cat(column).cpu().numpy() for column in zip(*chunks, strict=True))
    shape = (len(beads), n)
    x = x.reshape(*shape, *x.shape[1:])
    if relax:
        x = _relaxed(flow, x, _RELAX_STEPS if relax is True else int(relax))
    result = Backmapped(
        positions=x,
        log_densities=log_density.reshape(shape),
        reduced_energies=u.reshape(shape),
        outside=mapper.outside.cpu().numpy(),
        relaxed=bool(relax),
        temperature=flow.temperature.value_in_unit(unit.kelvin),
        topology=flow.topology,
        reference=flow.positions._value,
    )
    _warn_of_failed(result.failed, "backmap", "Draw more (n), or leave these frames out (see `failed`).")
    return result


def _read_beads(flow: TrainedFlow, cg: PositionsLike) -> np.ndarray:
    """Positions of the beads `(frames, beads, 3)` in nm of a trajectory, a file or an array."""
    n = len(flow.coordinates.bead_atoms)
    if isinstance(cg, str | Path):
        cg = _load(flow, Path(cg))
    given = given_structures(cg)
    x = given.x[None] if given.x.ndim == 2 else given.x
    if given.atoms is not None:
        order = _bead_order(flow, given.atoms)
        check_beads(flow, [given.atoms[k] for k in order])
        x = x[:, order]
    if x.ndim != 3 or x.shape[1:] != (n, 3):
        names = ", ".join(atom.name for atom in bead_topology(flow).atoms())
        raise MismatchError(f"backmap: beads have shape {x.shape}; give (frames, {n}, 3), in nm: {names}.")
    if not len(x):
        raise InvalidInputError("backmap: there are no frames; give at least one.")
    wrong = np.flatnonzero(~np.isfinite(x).all((1, 2)))
    if len(wrong):
        raise InvalidInputError(f"backmap: frame {wrong[0]} holds NaN or infinite values; remove it.")
    if n < 4:  # refused elsewhere: there are no internal coordinates of so few
        return x
    reader = _bead_reader(flow)
    x = reader.whole(x, given.box)
    reader.refuse_broken(x, given)
    return x


def _bead_order(flow: TrainedFlow, atoms: Sequence[Any]) -> Sequence[int]:
    """Where each bead of the flow is among those given: by names if these tell, else as they are."""
    ours = list(bead_topology(flow).atoms())
    order = order_by_names(ours, atoms) if len(atoms) == len(ours) else None
    return range(len(atoms)) if order is None else order.tolist()


def _bead_reader(flow: TrainedFlow) -> StructureReader:
    """Reads beads: their bonds as those of the atoms; pseudo-bonds may be as long as the chain between them."""
    topology, system, x = flow.topology, flow.system, flow.positions._value
    graph = networkx.Graph((bond[0].index, bond[1].index) for bond in topology.bonds())
    of_atoms = bond_lengths(graph.edges, system, atomic_numbers(topology, system), x)
    place = {atom: k for k, atom in enumerate(flow.coordinates.bead_atoms)}
    lengths = {}
    for i, j in flow.coordinates.bead_bonds:
        expected = float(np.linalg.norm(x[i] - x[j]))
        if graph.has_edge(i, j):
            lengths[place[i], place[j]] = of_atoms[bond_key(i, j)]
        else:
            path = networkx.shortest_path(graph, i, j)
            chain = sum(of_atoms[bond_key(a, b)].expected for a, b in pairwise(path))
            lengths[place[i], place[j]] = BondLength(expected, max(1.5 * chain - expected, 0.0))
    return StructureReader(list(bead_topology(flow).atoms()), lengths, {}, "beads")


def _load(flow: TrainedFlow, path: Path) -> mdtraj.Trajectory:
    if not path.exists():
        raise InvalidInputError(f"backmap: there is no file {path}.")
    ours = mdtraj.Topology.from_openmm(bead_topology(flow))
    needs_topology = path.suffix.lower() in (".dcd", ".xtc", ".trr", ".nc", ".netcdf", ".mdcrd", ".crd", ".xyz")
    try:
        return mdtraj.load(str(path), top=ours) if needs_topology else mdtraj.load(str(path))
    except Exception as error:  # mdtraj's readers raise whatever they meet
        raise InvalidInputError(
            f"backmap: {path} cannot be read as a trajectory of {ours.n_atoms} beads: {error}"
        ) from error


class _Backmapper:
    """Places atoms around beads, and knows which frames are strange.

    Attributes:
        outside: `(frames,)` bool.
    """

    def __init__(self, flow: TrainedFlow, beads: Tensor) -> None:
        self.flow, self.beads = flow, beads
        self.coordinates = flow.coordinates
        self.bead_coordinates: InternalCoordinates = flow.coordinates.bead_coordinates().to(beads.device)
        q, log_measure = self.bead_coordinates.to_internal(beads)
        self.q, self.log_measure = q.float(), log_measure
        placed = list(flow.coordinates.bead_atoms)
        self.gauge = torch.tensor([placed.index(atom) for atom in flow.coordinates.layout.order[:3]])
        self.atoms = torch.tensor(placed)
        with torch.no_grad():
            self.known = copy.deepcopy(flow.flow.bead_flow).cpu().sample(BATCH, seeded(0)).value.to(self.q)
            least = flow.flow.bead_flow.log_prob(self.known).min() - _BEYOND
            likely = flow.flow.bead_flow.log_prob(self.q) >= least
        refitted, _ = self.bead_coordinates.to_cartesian(q)
        misfit = (
            _pair_misfit(refitted, beads) if self.coordinates.layout.constants else log_measure.new_zeros(len(beads))
        )
        self.outside = ~likely | ~self.bead_coordinates.in_domain(q) | (misfit > _MISFIT)

    def reason(self, frame: int) -> str:
        """The coordinate of a strange frame that is farthest from what the flow knows."""
        n_slow = self.coordinates.sizes[0]
        low, high = self.known[:, n_slow:].amin(0), self.known[:, n_slow:].amax(0)
        values = self.q[frame, n_slow:]
        beyond = torch.maximum(low - values, values - high) / (high - low)
        if not len(beyond) or beyond.max() <= 0:
            return "an unlikely combination of coordinates"
        worst = int(beyond.argmax())
        name = self.bead_coordinates.names[n_slow + worst]
        return f"{name} is {values[worst]:.3f}, between {low[worst]:.3f} and {high[worst]:.3f} where trained (nm, rad)"

    def place(self, rows: Tensor, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, ...]:
        """Structures `(len(rows), atoms, 3)` around the beads of the frames `rows`, log-densities, reduced energies."""
        flow = self.flow.flow
        like = self.q[rows]
        noise = flow.atom_flow.draw_noise(len(rows), generator)

        def part(q: Tensor, log_measure: Tensor, beads: Tensor, noise: Tensor) -> Drawn:
            atoms = flow.atom_flow.decode(noise, flow.bead_flow.features(q, q[:, :0]))
            whole = torch.cat([q, atoms.value], dim=1)
            drawn = self.flow.target.weigh(whole, atoms.log_prob, lambda x: self._onto(x, beads))
            return drawn._replace(log_measure=drawn.log_measure.double() - log_measure)

        self.flow.potential.settle()
        drawn = Drawn(*parallel.map(part, like, self.log_measure[rows], self.beads[rows], noise))
        return drawn.x, drawn.log_density, torch.where(drawn.inside, drawn.u.double(), torch.inf)

    def _onto(self, x: Tensor, beads: Tensor) -> Tensor:
        """Turn and move structures from their gauge onto their beads."""
        origin, first, second = beads[:, self.gauge].unbind(1)
        along = torch.nn.functional.normalize(first - origin, dim=1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(along, second - origin), dim=1)
        frame = torch.stack([along, torch.linalg.cross(normal, along), normal], dim=1)
        x = x @ frame.to(x.dtype) + origin.to(x.dtype).unsqueeze(1)
        x[:, self.atoms] = beads.to(x.dtype)  # what is left are rounding errors
        return x


def _pair_misfit(x: Tensor, y: Tensor) -> Tensor:
    """Largest difference between the distances within `x` and within `y`, `(batch,)`."""
    return (torch.cdist(x, x) - torch.cdist(y, y)).abs().amax((1, 2))


def _warn(mapper: _Backmapper) -> None:
    strange = mapper.outside.nonzero().flatten().tolist()
    if not strange:
        return
    _log.warning(
        "backmap: the beads of %d of %d frames are outside the region that the flow was trained on: %s. "
        "In frame %d, %s. What is made of these frames is a guess (see `outside`).",
        len(strange),
        len(mapper.beads),
        _listed(strange),
        strange[0],
        mapper.reason(strange[0]),
    )


def _warn_of_failed(failed: np.ndarray, what: str, mend: str) -> None:
    if failed.any():
        _log.warning(
            "%s: in %d of %d frames no structure has a finite energy: %s. %s",
            what,
            failed.sum(),
            len(failed),
            _listed(np.flatnonzero(failed).tolist()),
            mend,
        )


def _listed(frames: list[int]) -> str:
    return ", ".join(str(frame) for frame in frames[:10]) + (", ..." if len(frames) > 10 else "")


def _relaxed(flow: TrainedFlow, x: np.ndarray, steps: int) -> np.ndarray:
    """The structures `(frames, n, atoms, 3)` after some steps of minimisation with their beads held."""
    system = flow.system
    beads = flow.coordinates.bead_atoms
    springs = openmm.HarmonicBondForce()
    for k in reversed(range(system.getNumConstraints())):
        i, j, distance = system.getConstraintParameters(k)
        springs.addBond(i, j, distance, _STIFF_BOND)
        system.removeConstraint(k)
    system.addForce(springs)
    for bead in beads:
        system.setParticleMass(bead, 0.0)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001))
    relaxed = x.reshape(-1, *x.shape[2:]).copy()
    for frame in relaxed:
        context.setPositions(frame.astype(np.float64))
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, steps)
        moved = context.getState(positions=True).getPositions(asNumpy=True)._value
        moved[beads] = frame[beads]
        frame[:] = moved
    return relaxed.reshape(x.shape)
