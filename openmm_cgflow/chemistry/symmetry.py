"""Symmetric rotors (CH3, NH3+, CF3): three leaf atoms on one centre that the System cannot tell apart."""

import numpy as np

from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.potentials.contexts.reference import Reference

__all__ = ["symmetric_centres"]

_DISTORTIONS = (0.05, 0.1, 0.2, 0.3)  # nm


def symmetric_centres(molecule: Molecule, reference: Reference) -> set[int]:
    """The centres with four neighbours of which exactly three are equivalent leaves.

    Candidates come from the graph (same element, no other neighbours). The System decides: at distorted structures the
    energy must not change (to 0.01 kJ/mol and 1e-7 of its value) when the three are relabelled cyclically. Structures
    that are distorted more are asked of each force with an expression: restraints may have no energy near the input.

    Returns:
        Indices of the central atoms.
    """
    candidates = {}
    for centre, near in enumerate(molecule.neighbours):
        leaves = [i for i in near if len(molecule.neighbours[i]) == 1]
        if len(near) == 4 and len(leaves) == 3 and len({molecule.numbers[i] for i in leaves}) == 1:
            candidates[centre] = leaves
    if not candidates:
        return set()
    noise = np.random.default_rng(0).normal(scale=0.005, size=molecule.positions.shape)
    plain = molecule.positions + noise
    energy = reference.energy(plain)
    found = set()
    for centre, leaves in candidates.items():
        same = _same(energy, reference.energy(_relabelled(plain, leaves)))
        if same and _far_away(molecule, reference, leaves):
            found.add(centre)
    return found


def _far_away(molecule: Molecule, reference: Reference, leaves: list[int]) -> bool:
    """Whether no force with an expression tells the leaves apart at structures that are distorted by up to 0.3 nm."""
    if not reference.custom:
        return True
    rng = np.random.default_rng(0)
    plain = np.stack([molecule.positions + rng.normal(scale=w, size=molecule.positions.shape) for w in _DISTORTIONS])
    before, after = (reference.by_force(x, reference.custom)[0] for x in (plain, _relabelled(plain, leaves)))
    finite = np.isfinite(before) & np.isfinite(after)
    return bool(_same(before[finite], after[finite]).all())


def _relabelled(x: np.ndarray, leaves: list[int]) -> np.ndarray:
    """Structures `(..., atoms, 3)` with the leaves exchanged cyclically."""
    turned = x.copy()
    turned[..., leaves, :] = x[..., [*leaves[1:], leaves[0]], :]
    return turned


def _same(before: np.ndarray | float, after: np.ndarray | float) -> np.ndarray:
    """Whether energies, kJ/mol, are the same but for rounding."""
    return np.abs(np.subtract(after, before)) <= 0.01 + 1e-7 * np.abs(before)
