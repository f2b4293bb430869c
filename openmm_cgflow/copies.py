"""Copies of what belongs to the user, so that nobody changes what a flow is of, and nobody's objects are changed."""

import copy
from collections.abc import Iterable
from typing import Any

import openmm
from openmm import app

from openmm_cgflow.chemistry.checks import without_ensemble
from openmm_cgflow.errors import InvalidInputError

__all__ = ["copied_system", "copied_topology"]


def copied_topology(topology: Any, bonds: Iterable[tuple[int, int]] | None = None) -> app.Topology:  # noqa: ANN401
    """An OpenMM Topology of one's own; `deepcopy` would leave the bonds between the atoms of the original.

    Arguments:
        topology: an OpenMM or mdtraj Topology.
        bonds: pairs of atoms, instead of those of the Topology.

    Raises:
        InvalidInputError: it is neither.
    """
    if hasattr(topology, "to_openmm"):
        topology = topology.to_openmm()
    if not isinstance(topology, app.Topology):
        raise InvalidInputError(
            f"topology is a {type(topology).__name__}; give an openmm.app.Topology, such as pdb.topology"
        )
    ours = app.Topology()
    made: dict[int, app.topology.Atom] = {}
    for chain in topology.chains():
        new_chain = ours.addChain(chain.id)
        for residue in chain.residues():
            new = ours.addResidue(residue.name, new_chain, residue.id, residue.insertionCode)
            for atom in residue.atoms():
                made[atom.index] = ours.addAtom(atom.name, atom.element, new, atom.id, *_charge(atom))
    if bonds is not None:
        for i, j in bonds:
            ours.addBond(made[i], made[j])
    else:
        for bond in topology.bonds():
            ours.addBond(made[bond[0].index], made[bond[1].index], bond.type, bond.order)
    ours.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    return ours


def _charge(atom: app.topology.Atom) -> tuple[int | None, ...]:
    return (atom.formalCharge,) if hasattr(atom, "formalCharge") else ()


def copied_system(system: openmm.System) -> openmm.System:
    """A System of one's own, without barostats and thermostats.

    Raises:
        InvalidInputError: a PythonForce in it cannot be copied.
    """
    try:
        ours = copy.deepcopy(system)
    except openmm.OpenMMException as error:
        raise InvalidInputError(
            f"the System cannot be copied ({error}); the function of a PythonForce must be one that pickle can store: "
            "define it, or its class, at the top level of a module"
        ) from error
    return without_ensemble(ours)
