"""What is known of a molecule before its coordinates are chosen: the graph, its axes, and which of these turn."""

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm

from openmm_cgflow.chemistry.axes import Axis, find_axes
from openmm_cgflow.chemistry.barriers import torsion_profiles
from openmm_cgflow.chemistry.checks import check_inputs
from openmm_cgflow.chemistry.driven import Driven
from openmm_cgflow.chemistry.forms import handedness
from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.chemistry.symmetry import symmetric_centres
from openmm_cgflow.chemistry.turning import OtherForm, other_forms
from openmm_cgflow.units import PositionsLike

__all__ = ["Perceived", "perceive"]

_log = logging.getLogger("openmm_cgflow")

_KEPT = 4  # molecules whose turned torsions are remembered


@dataclass(frozen=True)
class Perceived:
    """A molecule and its axes.

    Attributes:
        molecule: the graph and the input positions.
        profiles: torsion energies about each bond, from `torsion_profiles`.
        centres: of symmetric rotors.
        axes: every acyclic axis; those whose torsion terms look stiff were turned and minimised.
        relaxed: `(atoms, 3)` nm, the minimum next to the input; the input itself if the System cannot be copied.
    """

    molecule: Molecule
    profiles: dict[tuple[int, int], np.ndarray]
    centres: set[int]
    axes: list[Axis]
    relaxed: np.ndarray


_remembered: OrderedDict[str, tuple[np.ndarray, dict[tuple[int, ...], list[OtherForm]]]] = OrderedDict()


def perceive(topology: Any, system: openmm.System, positions: PositionsLike) -> Perceived:  # noqa: ANN401
    """The graph, the symmetric centres and the axes of a molecule, each axis judged by energies.

    An axis whose torsion terms have a low barrier turns. Any other is led round the circle, everything else minimised:
    it turns too if another form within 25 kJ/mol lies behind a barrier of at most 40 kJ/mol, and what was found is kept
    with it otherwise. The last few molecules are remembered. Where angles are linear at the minimum and not in the
    input, or the other way round, the molecule is taken as it is at the minimum.

    Raises:
        InvalidInputError: see `check_inputs`.
    """
    molecule = check_inputs(topology, system, positions)
    found = _perceived(molecule, system)
    relaxed = replace(molecule, positions=found.relaxed)
    return found if relaxed.linear_centres() == molecule.linear_centres() else _perceived(relaxed, system)


def _perceived(molecule: Molecule, system: openmm.System) -> Perceived:
    profiles = torsion_profiles(molecule, system)
    centres = symmetric_centres(molecule, system)
    axes = find_axes(molecule, profiles, centres)
    doubtful = [axis for axis in axes if not axis.soft and not axis.symmetric]
    relaxed, turned = _turned(molecule, system, [axis.atoms for axis in doubtful])
    for axis in doubtful:
        axis.others = turned.get(axis.atoms, [])
    return Perceived(molecule, profiles, centres, axes, relaxed)


def _turned(
    molecule: Molecule, system: openmm.System, torsions: list[tuple[int, int, int, int]]
) -> tuple[np.ndarray, dict[tuple[int, ...], list[OtherForm]]]:
    """The minimum next to the input, and the forms that each torsion has."""
    try:
        text = openmm.XmlSerializer.serialize(system)
    except Exception as error:  # a PythonForce whose function cannot be pickled
        _log.info("torsions are judged by their terms alone: the System cannot be copied (%s)", error)
        return molecule.positions, {}
    parts = [
        text.encode(),
        molecule.positions.tobytes(),
        repr((molecule.neighbours, molecule.numbers, torsions)).encode(),
    ]
    key = hashlib.sha256(b"|".join(parts)).hexdigest()
    turned: dict[tuple[int, ...], list[OtherForm]]
    if key not in _remembered:
        driven = Driven(system, torsions)
        start, energy = driven.minimised(molecule.positions)
        turned = {atoms: other_forms(molecule, driven, start, energy, atoms) for atoms in torsions}
        # bond lengths do not matter: hydrogens of crystal structures are drawn a tenth too near
        hands = handedness(molecule, np.stack([molecule.positions, start]))
        whole = np.isfinite(start).all() and bool((hands[0] == hands[1]).all())
        _remembered[key] = start if whole else molecule.positions, turned
        while len(_remembered) > _KEPT:
            _remembered.popitem(last=False)
    return _remembered[key]
