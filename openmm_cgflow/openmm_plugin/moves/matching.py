"""Whether a flow and a simulation belong together."""

import logging
from collections.abc import Mapping

import networkx
import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.atom_matching import order_by_names, same_elements, symbol_of
from openmm_cgflow.chemistry.system_bonds import constraints_of
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.openmm_plugin.moves.dynamics import (
    boosts_forces,
    current_integrator,
    thermostat_temperatures,
)
from openmm_cgflow.trained import TrainedFlow

__all__ = [
    "check_dynamics",
    "check_masses",
    "check_system",
    "check_temperature",
    "check_topology",
    "find_molecule",
    "same_temperature",
]

_log = logging.getLogger("openmm_cgflow")
_SAME_LENGTH = 1e-5  # nm
_SAME_TEMPERATURE = 1e-4  # relative
_SAME_MASS = 1e-3  # relative
_OTHERS = {
    openmm.RPMDIntegrator: "moves many copies of the molecule",
    openmm.QTBIntegrator: "gives the molecule a quantum bath",
}


def find_molecule(flow: TrainedFlow, topology: app.Topology) -> list[int]:
    """Which atoms of a larger Topology are the flow's, in its order; the job of `CGFlow.findAtoms`.

    A molecule of as many atoms is taken where names put its atoms into the flow's order, or where its elements are
    those of the flow one by one; its bonds must be the flow's.

    Raises:
        MismatchError: the molecule is not there, or more than once.
        InvalidInputError: for what is and has no Topology.
    """
    topology = getattr(topology, "topology", topology)  # a PDBFile, a Modeller or a Trajectory
    if hasattr(topology, "to_openmm"):
        topology = topology.to_openmm()
    if not isinstance(topology, app.Topology):
        raise InvalidInputError(
            f"findAtoms: topology is a {type(topology).__name__}; give an openmm.app.Topology, such as "
            "modeller.topology."
        )
    ours, everything, bonds = list(flow.topology.atoms()), list(topology.atoms()), _bonds(flow.topology)
    graph = networkx.Graph((bond[0].index, bond[1].index) for bond in topology.bonds())
    found = []
    for component in networkx.connected_components(graph):
        theirs = [everything[k] for k in sorted(component)]
        if len(theirs) != len(ours):
            continue
        named = order_by_names(ours, theirs)
        places = [atom.index for atom in (theirs if named is None else [theirs[k] for k in named])]
        same = named is not None or same_elements(ours, theirs)
        if same and {frozenset((places[i], places[j])) for i, j in bonds} == {
            frozenset(pair) for pair in graph.subgraph(component).edges
        }:
            found.append(places)
    if len(found) != 1:
        what = f"{len(found)} molecules" if found else "no molecule"
        raise MismatchError(
            f"the Topology ({len(everything)} atoms, {graph.number_of_edges()} bonds) has {what} with the {len(ours)} "
            "atoms and the bonds of the flow's: give the numbers of its particles yourself, in the order of "
            "flow.topology."
        )
    return found[0]


def check_topology(flow: TrainedFlow, topology: app.Topology) -> None:
    """Refuse a Topology with other elements or bonds, or in another order, than the flow was trained on.

    Raises:
        MismatchError: naming the first difference.
    """
    own = flow.topology
    ours, theirs = list(own.atoms()), list(topology.atoms())
    if len(ours) != len(theirs):
        raise MismatchError(
            f"the Topology has {len(theirs)} atoms, but the flow is of a molecule with {len(ours)}: "
            "use the model of this molecule, or train one."
        )
    for a, b in zip(ours, theirs, strict=True):
        if a.element is not b.element:
            raise MismatchError(
                f"atom {b.index} ({b.name}) of the Topology is {symbol_of(b)}, that of the flow ({a.name}) is "
                f"{symbol_of(a)}: this is another molecule, or its atoms are in another order."
            )
    if not _bonds(topology):  # as of a System that is known from its files alone
        return
    missing, extra = _bonds(own) - _bonds(topology), _bonds(topology) - _bonds(own)
    if missing or extra:
        i, j = sorted(min(missing or extra))
        raise MismatchError(
            f"atoms {i} and {j} are {'not ' if missing else ''}bonded in the Topology, unlike in the flow's: "
            "this is another molecule, or its atoms are in another order."
        )


def check_system(flow: TrainedFlow, system: openmm.System) -> None:
    """Refuse a System with other atoms or constraints than the flow was trained on; its forces may differ.

    Raises:
        MismatchError: naming the difference.
    """
    if system.getNumParticles() != flow.coordinates.n_atoms:
        raise MismatchError(
            f"the System has {system.getNumParticles()} particles, but the flow was trained on "
            f"{flow.coordinates.n_atoms}: use the model of this molecule, or train one."
        )
    if system.usesPeriodicBoundaryConditions():
        raise MismatchError("the System has a periodic box; flows are of one molecule without one: use NoCutoff.")
    ours, theirs = (_by_pair(constraints) for constraints in (flow.constraints, constraints_of(system)))
    for pair in sorted(ours.keys() | theirs.keys(), key=sorted):
        if pair not in theirs or pair not in ours or abs(ours[pair] - theirs[pair]) > _SAME_LENGTH:
            i, j = sorted(pair)
            raise MismatchError(
                f"the distance between atoms {i} and {j} is constrained to {theirs.get(pair, 'nothing')} nm in the "
                f"System, and to {ours.get(pair, 'nothing')} nm in the one that the flow was trained on: build both "
                "with the same constraints= (and rigidWater=)."
            )


def check_masses(flow: TrainedFlow, system: openmm.System) -> None:
    """Refuse fixed particles; say where masses are others, which may mean that the atoms are in another order.

    Masses count in the measure of constrained dynamics alone, where those of the System at hand are taken. That a heavy
    atom gives mass to its hydrogens is common, and nothing is said of it.

    Raises:
        MismatchError: for a particle of mass zero.
    """
    ours, theirs = _masses(flow.system), _masses(system)
    for index, (before, after) in enumerate(zip(ours, theirs, strict=True)):
        if after == 0 and before != 0:
            raise MismatchError(
                f"particle {index} has mass zero in the System, so that dynamics holds it where it is, but a proposal "
                "moves all atoms: give it a mass, or hold it by a force."
            )
    owner = _heavy_neighbours(flow.topology)
    for heavy, (before, after) in enumerate(zip(np.bincount(owner, ours), np.bincount(owner, theirs), strict=True)):
        if abs(before - after) > _SAME_MASS * before:
            _log.warning(
                "atom %d and its hydrogens weigh %.4g Da in the System, and %.4g Da in the one that the flow was "
                "trained on: make sure that the atoms are in the same order.",
                heavy,
                after,
                before,
            )
            return


def same_temperature(flow: TrainedFlow, temperature: unit.Quantity) -> bool:
    """Whether this is the temperature of the flow."""
    ours, theirs = (t.value_in_unit(unit.kelvin) for t in (flow.temperature, temperature))
    return abs(ours - theirs) <= _SAME_TEMPERATURE * ours


def check_temperature(flow: TrainedFlow, temperature: unit.Quantity, fix: str) -> None:
    """Refuse another temperature than that of the flow.

    Raises:
        MismatchError: with `fix`.
    """
    if not same_temperature(flow, temperature):
        ours, theirs = (t.value_in_unit(unit.kelvin) for t in (flow.temperature, temperature))
        raise MismatchError(f"the temperature is {theirs:g} K, but the flow was trained at {ours:g} K: {fix}")


def check_dynamics(flow: TrainedFlow, context: openmm.Context, fix: str) -> None:
    """Refuse a Context whose dynamics samples something else than its energy at the temperature of the flow.

    Raises:
        MismatchError: for a thermostat at another temperature, with `fix`; for many copies of the molecule, a quantum
            bath, or forces that an integrator changes.
    """
    integrator = current_integrator(context)
    other = _OTHERS.get(type(integrator))
    if other is None and boosts_forces(integrator):
        other = "changes forces where the energy is low, and its frames need weights"
    if other is not None:
        raise MismatchError(
            f"{type(integrator).__name__} {other}, but a proposal is accepted for one structure by the System's own "
            "energy: use another integrator, such as LangevinMiddleIntegrator."
        )
    for temperature in thermostat_temperatures(context):
        check_temperature(flow, temperature, fix)


def _masses(system: openmm.System) -> list[float]:
    return [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]


def _heavy_neighbours(topology: app.Topology) -> list[int]:
    """For each atom the heavy one that it is bonded to, if it is a hydrogen; else itself."""
    owner = list(range(topology.getNumAtoms()))
    for bond in topology.bonds():
        for a, b in ((bond[0], bond[1]), (bond[1], bond[0])):
            if symbol_of(a) == "H" and symbol_of(b) != "H":
                owner[a.index] = b.index
    return owner


def _bonds(topology: app.Topology) -> set[frozenset[int]]:
    return {frozenset((bond[0].index, bond[1].index)) for bond in topology.bonds()}


def _by_pair(constraints: Mapping[tuple[int, int], float]) -> dict[frozenset[int], float]:
    """Constrained pairs and their distances in nm, rounded."""
    return {frozenset(pair): round(distance, 7) for pair, distance in constraints.items()}
