"""Elements of atoms whose masses were repartitioned: readers that go by mass take a heavy hydrogen for helium."""

import logging
from collections.abc import Iterable, Sequence

from openmm import app, unit

__all__ = ["correct_elements", "original_masses"]

_log = logging.getLogger("openmm_cgflow")
_HYDROGEN = 1.008  # Da
_HEAVY_HYDROGEN = (1.5, 4.6)  # Da: of an atom with one bond; helium has none
_DEUTERIUM = 2.014  # Da
_ROUNDED = 0.01  # Da; two deuterons beside a carbon make nitrogen but for 0.016
_CLOSE = 0.1  # Da: force fields round masses


def original_masses(masses: Sequence[float], bonds: Iterable[tuple[int, int]]) -> list[float]:
    """Masses in Da before some of the heavy atoms' was moved to their hydrogens; those of other molecules as they are.

    An atom with one bond and 1.5 to 4.6 Da is a hydrogen. What it has too much goes back to its neighbour if that is
    then as near to an element, or nearer, which it is not where the hydrogens are deuterium.

    Arguments:
        masses: of the atoms.
        bonds: pairs of atoms.
    """
    near: list[list[int]] = [[] for _ in masses]
    for i, j in bonds:
        near[i].append(j)
        near[j].append(i)
    low, high = _HEAVY_HYDROGEN
    hydrogens = {i for i, mass in enumerate(masses) if low <= mass < high and len(set(near[i])) == 1}
    found = [float(mass) for mass in masses]
    for i in {near[k][0] for k in hydrogens} - hydrogens:
        own = set(near[i]) & hydrogens
        whole = masses[i] + sum(masses[k] - _HYDROGEN for k in own)
        lighter = _off(whole) < min(_CLOSE, _off(masses[i]) + _ROUNDED)
        if lighter:
            found[i] = whole
        for k in own:
            if lighter or abs(masses[k] - _DEUTERIUM) > _ROUNDED:
                found[k] = _HYDROGEN
    return found


def correct_elements(topology: app.Topology, masses: Sequence[float]) -> None:
    """Give the atoms of a Topology, which is changed, the elements that they have by their original masses.

    Atoms whose mass was not changed keep what they have, and so do those without an element.

    Arguments:
        topology: with bonds, from a reader that may have gone by mass.
        masses: of its atoms, Da.
    """
    original = original_masses(masses, ((first.index, second.index) for first, second in topology.bonds()))
    wrong = []
    for atom, now, before in zip(topology.atoms(), masses, original, strict=True):
        if atom.element is not None and before != now:
            element = app.Element.getByMass(before)
            if element is not atom.element:
                wrong.append(f"{atom.name} {atom.element.symbol}, now {element.symbol}")
            atom.element = element
    if wrong:
        _log.info(
            "the masses of hydrogens and their neighbours were repartitioned, and elements had been told by mass: "
            "%s%s", "; ".join(wrong[:3]), "; ..." if len(wrong) > 3 else "",
        )  # fmt: skip


def _off(mass: float) -> float:
    """How far a mass is from that of the nearest element, Da."""
    return abs(app.Element.getByMass(mass).mass.value_in_unit(unit.dalton) - mass)
