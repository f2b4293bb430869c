"""Free energies as forces: that of the slow torsions of the atoms, and that of the beads."""

import copy
import logging
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import openmm
import torch

from openmm_cgflow.compute import plain_torch, with_plain_torch
from openmm_cgflow.counts import indices
from openmm_cgflow.errors import InvalidInputError, MismatchError, TrainingError, UnsupportedForceError
from openmm_cgflow.openmm_plugin.forces.bead_free_energy import BeadFreeEnergy
from openmm_cgflow.openmm_plugin.forces.slow_free_energy import SlowFreeEnergy
from openmm_cgflow.openmm_plugin.forces.torch_force import make_torch_force, why_no_torch_force
from openmm_cgflow.openmm_plugin.recorded.compiled_forces import (
    EnergyAndForces,
    Particles,
    compile_forces,
    compile_to_machine_code,
)
from openmm_cgflow.potentials.compiled import compiler_available
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import PositionsLike, finite_number, in_nm

__all__ = [
    "Backend",
    "BeadBackend",
    "create_bead_force",
    "create_force",
    "create_force_on_bead_atoms",
    "force_from_energy",
]

Backend = Literal["torch", "python", "compiled", "tabulated"]
BeadBackend = Literal["torch", "python", "compiled"]
_log = logging.getLogger("openmm_cgflow")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_COORDINATE = re.compile(r"[xyz]\d+")
_POINTS = {1: 361, 2: 121, 3: 49}  # of a table in each dimension: the last one repeats the first


_IN_USE: WeakValueDictionary[tuple[object, ...], EnergyAndForces] = WeakValueDictionary()
"""What forces of this process were compiled to: while one of them is in use, its copies are not compiled again."""


class PythonFreeEnergy:
    """What a `PythonForce` calls; at the top level of a module, so that it can be pickled into XML."""

    _name: str | None = None  # of those that were pickled without one

    def __init__(
        self,
        module: torch.nn.Module,
        positions: torch.Tensor,
        particles: Particles,
        parameter: str,
        machine_code: bool = False,
    ) -> None:
        self.module, self.positions, self.particles, self.parameter = module, positions, particles, parameter
        self.machine_code = machine_code
        self._chosen = np.array(particles.chosen)
        self._compiled: EnergyAndForces | None = None
        self._factor: tuple[float, torch.Tensor] | None = None
        self._name = secrets.token_hex(16)  # of this force and its copies, those that XML makes too

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_factor": None}

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces `(particles, 3)` in kJ/mol/nm at the positions of a State."""
        x = np.asarray(state.getPositions(asNumpy=True)._value, dtype=np.float64)
        wrong = self.particles.misfit(len(x))
        if wrong is not None:
            raise MismatchError(wrong)
        factor = state.getParameters()[self.parameter]
        known = self._factor  # of its own: other threads may change it meanwhile
        if known is None or known[0] != factor:  # a new tensor costs more than a look
            known = self._factor = factor, torch.tensor(factor, dtype=torch.float64, device="cpu")
        if self._compiled is None:
            self._compiled = self._compile()
        with torch.no_grad():
            energy, pulled = self._compiled(torch.from_numpy(x[self._chosen]), known[1])
        value = energy.item()
        if not math.isfinite(value):
            raise TrainingError("the free energy is not finite: the simulation has blown up; shorten its time step.")
        forces = np.zeros_like(x)
        forces[self._chosen] = pulled.numpy()
        return value, forces

    def _compile(self) -> EnergyAndForces:
        # a class that has been defined anew since is another one
        name = self._name, *map(type, self.module.modules())
        compiled = _IN_USE.get(name) if self._name else None
        if compiled is None:
            compiler = compile_to_machine_code if self.machine_code else compile_forces
            with with_plain_torch():
                compiled = compiler(self.module, self.positions)
            if self._name:
                _IN_USE[name] = compiled
        return compiled


def create_force(
    flow: TrainedFlow,
    backend: Backend | None = None,
    scale: float = 1.0,
    parameter: str = "cgflow_scale",
    atoms: Sequence[int] | None = None,
) -> openmm.Force:
    """The force of `CGFlow.createForce`, which see."""
    n = flow.coordinates.sizes[0]
    if n == 0:
        raise InvalidInputError("createForce: this molecule has no slow torsions, so there is no free energy of them.")
    if backend not in (None, "torch", "python", "compiled", "tabulated"):
        raise InvalidInputError(
            f'createForce: backend is {backend!r}; give None, "torch", "python", "compiled" or "tabulated".'
        )
    scale, parameter = _factor(scale, parameter)
    places, total = _places(flow, atoms, "createForce")
    if backend == "tabulated":
        if _COORDINATE.fullmatch(parameter):
            raise InvalidInputError(
                f"parameter is {parameter!r}, a coordinate in the force's expression: give another."
            )
        return _tabulated(flow, scale, parameter, places)
    used = sorted({atom for torsion in flow.slow_torsions for atom in torsion})
    torsions = [(used.index(i), used.index(j), used.index(k), used.index(m)) for i, j, k, m in flow.slow_torsions]
    module = SlowFreeEnergy(flow.flow.bead_flow.slow, torsions, flow.target.kT)
    particles = Particles(tuple(places[atom] for atom in used), total)
    return _force(module, torch.as_tensor(flow.positions._value[used]), particles, backend, scale, parameter)


def create_bead_force(
    flow: TrainedFlow,
    backend: BeadBackend | None = None,
    scale: float = 1.0,
    parameter: str = "cgflow_scale",
    particles: Particles | None = None,
) -> openmm.Force:
    """The free energy of the beads as a force on a System of beads, or on some particles of a larger one.

    Arguments:
        flow: the flow.
        backend: `"torch"`, `"python"` or `"compiled"`; by default a TorchForce where it works.
        scale: default value of the factor.
        parameter: the name of the factor, a global parameter.
        particles: that are the beads, in the order of `flow.coordinates.bead_atoms`; by default there are no others.

    Raises:
        InvalidInputError: with fewer than four beads, or for another backend.
        UnsupportedForceError: if a TorchForce is asked for and cannot be had.
    """
    if backend not in (None, "torch", "python", "compiled"):
        raise InvalidInputError(f'the backend for beads is {backend!r}; give None, "torch", "python" or "compiled".')
    module = BeadFreeEnergy(flow)
    start = torch.as_tensor(flow.positions._value[flow.coordinates.bead_atoms])
    particles = particles or Particles(tuple(range(len(start))), len(start))
    return _force(module, start, particles, backend, scale, parameter)


def create_force_on_bead_atoms(
    flow: TrainedFlow,
    backend: BeadBackend | None = None,
    scale: float = 1.0,
    parameter: str = "cgflow_scale",
    atoms: Sequence[int] | None = None,
) -> openmm.Force:
    """The force of `CGFlow.createBeadForce`, which see."""
    places, total = _places(flow, atoms, "createBeadForce")
    particles = Particles(tuple(places[atom] for atom in flow.coordinates.bead_atoms), total)
    return create_bead_force(flow, backend, scale, parameter, particles)


def _factor(scale: float, parameter: str) -> tuple[float, str]:
    """The scale as a number, and the name of the global parameter that it is.

    Raises:
        InvalidInputError: the scale is no finite number, or OpenMM could not read the name in an expression.
    """
    if not isinstance(parameter, str) or not _NAME.fullmatch(parameter):
        raise InvalidInputError(
            f"parameter is {parameter!r}; give a name of letters, digits and _ that does not begin with a digit."
        )
    return finite_number(scale, "scale"), parameter


def _places(flow: TrainedFlow, atoms: Sequence[int] | None, what: str) -> tuple[list[int], int | None]:
    """Which particle each atom of the flow is, and how many the System must have, if that is known.

    Raises:
        InvalidInputError: for another number of atoms, the same one twice, or what is no number of a particle.
    """
    n = flow.coordinates.n_atoms
    if atoms is None:
        return list(range(n)), n
    places = indices(atoms, f"{what}: atoms")
    if len(places) != n or len(set(places)) != n or min(places) < 0:
        raise InvalidInputError(
            f"{what}: atoms has {len(places)} numbers, {len(set(places))} of them different; give the {n} different "
            "particles that are the flow's atoms, in its order: flow.findAtoms(topology) finds them."
        )
    return places, None


class _Scaled(torch.nn.Module):
    """An energy as a function of positions and of the scale."""

    def __init__(self, energy: torch.nn.Module) -> None:
        super().__init__()
        self.energy = copy.deepcopy(energy).cpu().double().eval().requires_grad_(False)

    def forward(self, positions: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.energy(positions).to(torch.float64).sum() * scale.to(torch.float64)


@plain_torch
def force_from_energy(
    module: torch.nn.Module,
    start: PositionsLike,
    backend: BeadBackend | None = None,
    atoms: Sequence[int] | None = None,
    scale: float = 1.0,
    parameter: str = "cgflow_scale",
) -> openmm.Force:
    """Any torch energy of particles as an OpenMM force: a TorchForce, a PythonForce, or machine code.

    The module is copied. Its operations and those of the gradient are recorded once, in double precision, and replayed
    from then on: it must do the same whatever the positions are (`torch.where`, no `if`). That is done here for a
    TorchForce, and at the first evaluation for the others: a module should read no global variables, nor call functions
    that may be others by then.

    Arguments:
        module: the energy, kJ/mol, one number, of positions `(particles, 3)` in nm.
        start: positions of all particles of the System, Quantity or nm; how many there are is what counts.
        backend: `"torch"`, a `TorchForce`; `"python"`, a `PythonForce`, whose XML holds a pickle of the module;
            `"compiled"`, the same as machine code. By default a TorchForce where it works, else a PythonForce.
        atoms: the particles that the energy is of, in the order that it takes them; all by default.
        scale: default value of the factor of the energy.
        parameter: its name, a global parameter.

    Raises:
        InvalidInputError: for positions of another shape, particles that are not there, another backend, or an energy
            that is not one finite number at `start`.
        UnsupportedForceError: if a TorchForce is asked for and cannot be had; for `"compiled"` without a compiler.

    Example:
        >>> class Spring(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 50.0 * (x * x).sum()
        >>> force = force_from_energy(Spring(), [[0.1, 0.0, 0.0]], backend="python")
        >>> type(force).__name__
        'PythonForce'
    """
    if backend not in (None, "torch", "python", "compiled"):
        raise InvalidInputError(
            f'force_from_energy: backend is {backend!r}; give None, "torch", "python" or "compiled".'
        )
    x = torch.as_tensor(in_nm(start))
    if x.dim() != 2 or x.shape[1] != 3:
        raise InvalidInputError(f"force_from_energy: start has shape {tuple(x.shape)}; give (particles, 3), in nm.")
    chosen = tuple(range(len(x))) if atoms is None else tuple(indices(atoms, "force_from_energy: atoms"))
    missing = [k for k in chosen if not 0 <= k < len(x)]
    if missing:
        raise InvalidInputError(
            f"force_from_energy: atoms has {missing[0]}, but there are {len(x)} particles in start."
        )
    if len(set(chosen)) < len(chosen):
        raise InvalidInputError(f"force_from_energy: atoms is {list(chosen)}, with a particle twice; give each once.")
    scaled, own = _Scaled(module), x[list(chosen)].to(torch.float64)
    with torch.no_grad():
        energy = scaled.energy(own)
    if energy.numel() != 1 or not bool(torch.isfinite(energy).all()):
        raise InvalidInputError(
            f"force_from_energy: at start the energy is {energy.tolist()}; it must be one finite number, kJ/mol."
        )
    return _force(scaled, own, Particles(chosen, len(x)), backend, scale, parameter)


def _force(
    module: torch.nn.Module,
    positions: torch.Tensor,
    particles: Particles,
    backend: str | None,
    scale: float,
    parameter: str,
) -> openmm.Force:
    """A TorchForce or PythonForce of a module of the particles' positions and the scale."""
    scale, parameter = _factor(scale, parameter)
    if backend is None:
        reason = why_no_torch_force()
        backend = "torch" if reason is None else "python"
        _log.info("the force is %s", "a TorchForce" if reason is None else f"a PythonForce, for {reason}")
    if backend == "compiled" and not compiler_available(positions.device):
        raise UnsupportedForceError(
            'the backend "compiled" needs a C++ compiler, and there is none: install g++ or clang++, or use "python".'
        )
    if backend in ("python", "compiled"):
        # not PythonForce.setParticles of OpenMM 8.6.1, which reads beyond the end of a System that lacks a particle
        energy = PythonFreeEnergy(module, positions, particles, parameter, backend == "compiled")
        return openmm.PythonForce(energy, {parameter: scale})
    force: Any = make_torch_force(compile_forces(module, positions, particles))
    force.setOutputsForces(True)
    force.addGlobalParameter(parameter, scale)
    return force


def _tabulated(flow: TrainedFlow, scale: float, parameter: str, places: list[int]) -> openmm.CustomCompoundBondForce:
    """Periodic natural splines through the free energy on a grid."""
    n = flow.coordinates.sizes[0]
    if n not in _POINTS:
        raise InvalidInputError(
            f"createForce: a table has one to three dimensions, but there are {n} slow torsions "
            f'({", ".join(flow.slow_names)}); name fewer with slow= when training, or use backend="torch".'
        )
    points = _POINTS[n]
    axis = np.linspace(-np.pi, np.pi, points)
    grid = np.stack(np.meshgrid(*[axis] * n, indexing="ij"), axis=-1).reshape(-1, n)
    values = flow.freeEnergy(grid)._value.reshape([points] * n)
    values = np.pad(values[(slice(-1),) * n], (0, 1), mode="wrap")  # both ends are one point
    atoms = list(dict.fromkeys(atom for torsion in flow.slow_torsions for atom in torsion))
    place = {atom: f"p{k + 1}" for k, atom in enumerate(atoms)}
    torsions = [f"dihedral({', '.join(place[atom] for atom in torsion)})" for torsion in flow.slow_torsions]
    force = openmm.CustomCompoundBondForce(len(atoms), f"{parameter}*free_energy({', '.join(torsions)})")
    force.addGlobalParameter(parameter, scale)
    limits = [bound for _ in range(n) for bound in (-np.pi, np.pi)]
    flat = values.flatten(order="F").tolist()
    if n == 1:
        table = openmm.Continuous1DFunction(flat, *limits, True)
    elif n == 2:
        table = openmm.Continuous2DFunction(points, points, flat, *limits, True)
    else:
        table = openmm.Continuous3DFunction(points, points, points, flat, *limits, True)
    force.addTabulatedFunction("free_energy", table)
    force.addBond([places[atom] for atom in atoms])
    return force
