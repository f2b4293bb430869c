"""Two readers of one file must mean the same energies: term by term, at the input structure and beside it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

from openmm_cgflow.errors import InvalidInputError

__all__ = ["NONBONDED", "SOLVENT", "Difference", "differences", "disagreement", "term_energies"]

NONBONDED, SOLVENT = "nonbonded", "implicit solvent"
TERMS = {
    "bonds and Urey-Bradley": ("HarmonicBondForce", "CustomBondForce"),
    "angles": ("HarmonicAngleForce", "CustomAngleForce"),
    "torsions": ("PeriodicTorsionForce", "RBTorsionForce", "CustomTorsionForce"),
    "CMAP": ("CMAPTorsionForce",),
    NONBONDED: ("NonbondedForce", "CustomNonbondedForce"),
    SOLVENT: ("GBSAOBCForce", "CustomGBForce"),
}
TERM_OF = {kind: term for term, kinds in TERMS.items() for kind in kinds}
PAIRS = "LennardJonesExceptions"
"""OpenMM's name for the bonds that hold the 1-4 pairs of GROMACS files."""
SIGMA = 0.005  # nm: off the minimum, where a term that one reader lost would have no energy
ABSOLUTE, RELATIVE = 0.01, 1e-4  # kJ/mol: far below kT, far above the rounding of unit conversions


@dataclass(frozen=True)
class Difference:
    """A term to which two readers give different energies.

    Attributes:
        term: its name.
        energies: kJ/mol, of the first reader and the second.
    """

    term: str
    energies: tuple[float, float]

    def __str__(self) -> str:
        first, second = self.energies
        return f"{self.term} {first:.3f} and {second:.3f} kJ/mol"


def term_energies(system: openmm.System, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Energies of the kinds of terms in a System, which is not changed.

    Arguments:
        system: any System without a box.
        positions: `(structures, atoms, 3)`, nm.

    Returns:
        Energies in kJ/mol by the term's name, `(structures,)` each; terms that the System lacks are left out.
    """
    copy = openmm.XmlSerializer.clone(system)
    terms: dict[str, int] = {}
    for force in copy.getForces():
        kind = type(force).__name__
        term = NONBONDED if force.getName() == PAIRS else TERM_OF.get(kind, kind)
        force.setForceGroup(terms.setdefault(term, len(terms)))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(copy, openmm.VerletIntegrator(0.001), platform)
    energies: dict[str, list[float]] = {term: [] for term in terms}
    for x in positions:
        context.setPositions(x)
        for term, group in terms.items():
            state = context.getState(getEnergy=True, groups={group})
            energies[term].append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    return {term: np.array(values) for term, values in energies.items()}


def differences(first: openmm.System, second: openmm.System, positions: np.ndarray) -> list[Difference]:
    """The terms to which two Systems give different energies, at one structure or at small displacements of it.

    Arguments:
        first: a System without a box.
        second: the same molecule by another reader.
        positions: `(atoms, 3)`, nm.
    """
    noise = np.random.default_rng(0).normal(scale=SIGMA, size=positions.shape)
    structures = np.stack([positions, positions + noise])
    energies = [term_energies(system, structures) for system in (first, second)]
    found = []
    for term in {**energies[0], **energies[1]}:
        a, b = (e.get(term, np.zeros(len(structures))) for e in energies)
        same = np.isclose(a, b, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
        if not same.all():
            k = int(np.argmin(same))
            found.append(Difference(term, (float(a[k]), float(b[k]))))
    return found


def disagreement(path: Path, readers: str, found: list[Difference]) -> InvalidInputError:
    """The error for readers that disagree.

    Arguments:
        path: the file.
        readers: who they are, such as `OpenMM's reader and parmed`.
        found: what they differ in; not empty.
    """
    return InvalidInputError(
        f"{path}: {readers} read different energies from it: {'; '.join(map(str, found))}. Which of them is right is "
        "not known, so neither is used. Build the System in your own script, check its energy against the program "
        "that the file is from, and give it as SYSTEM.xml (openmm.XmlSerializer.serialize) with a PDB file"
    )
