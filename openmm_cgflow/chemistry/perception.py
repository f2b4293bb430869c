"""What is known of a molecule before its coordinates are chosen: the graph, its axes, and which of these turn."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm

from openmm_cgflow.chemistry.axes import Axis, find_axes
from openmm_cgflow.chemistry.barriers import torsion_profiles
from openmm_cgflow.chemistry.checks import check_inputs
from openmm_cgflow.chemistry.driven import Driven
from openmm_cgflow.chemistry.forms import fours_of, handedness
from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.chemistry.puckers import puckered_rings, ring_flip
from openmm_cgflow.chemistry.symmetry import symmetric_centres
from openmm_cgflow.chemistry.turning import OtherForm, other_forms
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.units import PositionsLike

__all__ = ["Perceived", "perceive"]

_KEPT = 32  # molecules whose turned torsions are remembered


@dataclass(frozen=True)
class Perceived:
    """A molecule and its axes.

    Attributes:
        molecule: the graph and the input positions.
        profiles: torsion energies about each bond, from `torsion_profiles`.
        centres: of symmetric rotors.
        axes: every acyclic axis; those whose torsion terms look stiff were turned and minimised.
        flips: the bonds of each ring that flips, from `ring_flip`.
        relaxed: `(atoms, 3)` nm, the minimum next to the input.
    """

    molecule: Molecule
    profiles: dict[tuple[int, int], np.ndarray]
    centres: set[int]
    axes: list[Axis]
    flips: list[set[tuple[int, int]]]
    relaxed: np.ndarray


@dataclass(frozen=True)
class _Driven:
    """What pulling the torsions of a molecule gave: its minimum, the forms of each torsion, the rings that flip."""

    relaxed: np.ndarray
    forms: dict[tuple[int, int, int, int], list[OtherForm]]
    flips: list[set[tuple[int, int]]]


_remembered: OrderedDict[str, _Driven] = OrderedDict()


def perceive(
    topology: Any,  # noqa: ANN401
    system: openmm.System,
    positions: PositionsLike,
    reference: Reference | None = None,
) -> Perceived:
    """The graph, the symmetric centres and the axes of a molecule, each axis judged by energies.

    An axis whose torsion terms have a low barrier turns. Any other is led round the circle, everything else minimised:
    it turns too if another form within 25 kJ/mol lies behind a barrier of at most 40 kJ/mol, and what was found is kept
    with it otherwise. Rings flip likewise. The last few molecules are remembered. Where angles are linear at the
    minimum and not in the input, or the other way round, the molecule is taken as it is at the minimum.

    Arguments:
        topology: OpenMM or mdtraj Topology.
        system: its System.
        positions: one structure.
        reference: energies of the System, if they are there already.

    Raises:
        InvalidInputError: see `check_inputs`.
    """
    molecule = check_inputs(topology, system, positions)
    reference = reference or Reference(system)
    found = _perceived(molecule, system, reference)
    relaxed = replace(molecule, positions=found.relaxed)
    return found if relaxed.linear_centres() == molecule.linear_centres() else _perceived(relaxed, system, reference)


def _perceived(molecule: Molecule, system: openmm.System, reference: Reference) -> Perceived:
    profiles = torsion_profiles(molecule, system)
    centres = symmetric_centres(molecule, reference)
    axes = find_axes(molecule, profiles, centres)
    doubtful = [axis for axis in axes if not axis.soft and not axis.symmetric]
    driven = _driven(molecule, system, [axis.atoms for axis in doubtful])
    for axis in doubtful:
        axis.others = driven.forms[axis.atoms]
    return Perceived(molecule, profiles, centres, axes, driven.flips, driven.relaxed)


def _driven(molecule: Molecule, system: openmm.System, torsions: list[tuple[int, int, int, int]]) -> _Driven:
    parts = [
        openmm.XmlSerializer.serialize(system).encode(),
        molecule.positions.tobytes(),
        repr((molecule.neighbours, molecule.numbers, torsions)).encode(),
    ]
    key = hashlib.sha256(b"|".join(parts)).hexdigest()
    if key not in _remembered:
        rings = puckered_rings(molecule)
        driven = Driven(system, [*torsions, *(atoms for ring in rings for atoms in fours_of(ring))])
        start, energy = driven.minimised(molecule.positions)
        forms = {atoms: other_forms(molecule, driven, start, energy, atoms) for atoms in torsions}
        flips = [ring_flip(molecule, driven, start, energy, ring) for ring in rings]
        # bond lengths do not matter: hydrogens of crystal structures are drawn a tenth too near
        hands = handedness(molecule, np.stack([molecule.positions, start]))
        whole = np.isfinite(start).all() and bool((hands[0] == hands[1]).all())
        _remembered[key] = _Driven(start if whole else molecule.positions, forms, [flip for flip in flips if flip])
        while len(_remembered) > _KEPT:
            _remembered.popitem(last=False)
    return _remembered[key]
