"""When two structures of one molecule are the same form: isomers, and equality up to equivalent atoms and mirrors."""

from functools import cached_property
from itertools import combinations

import networkx
import numpy as np

from openmm_cgflow.chemistry.molecule import Molecule

__all__ = ["Fingerprint", "fours_of", "handedness", "same_isomer", "smallest_rings"]

_SAME_ENERGY, _SAME_DISTANCES = 0.5, 0.02  # kJ/mol and nm, within which two minima are one form
_STRETCHED = 0.1  # of a bond's length, by which two forms may differ


class Fingerprint:
    """Distances of a structure, sorted among pairs of equivalent atoms.

    Two structures that are rotations, mirror images or relabellings (equivalent hydrogens, flipped phenyl rings) of
    one another have the same fingerprint. Atoms are equivalent if the Weisfeiler-Lehman refinement of the elements on
    the bond graph cannot tell them apart.

    Arguments:
        molecule: with elements and bonds.

    Attributes:
        classes: `(atoms,)`, a number for each kind of equivalent atoms.

    Example:
        far = Fingerprint(molecule).distance(x, y[None])[0]  # nm
    """

    def __init__(self, molecule: Molecule) -> None:
        self.classes = classes = np.array(_classes(molecule))
        i, j = np.triu_indices(molecule.n_atoms, 1)
        both = np.sort(np.stack([classes[i], classes[j]]), axis=0)
        kind = both[0] * (classes.max() + 1) + both[1]
        order = np.argsort(kind, kind="stable")
        self._i, self._j, self._kind = i[order], j[order], kind[order]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self._kind, prepend=-1))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Fingerprints `(n, pairs)` of `x (n, atoms, 3)`, nm."""
        distances = np.linalg.norm(x[:, self._i] - x[:, self._j], axis=2)
        kinds = np.broadcast_to(self._kind, distances.shape)
        return np.take_along_axis(distances, np.lexsort((distances, kinds), axis=1), axis=1)

    def distance(self, x: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The largest difference `(n,)` between the distances in `x (atoms, 3)` and in each of `others`, nm."""
        return np.abs(self(others) - self(x[None])).max(1)

    @staticmethod
    def among(one: np.ndarray, energy: float, prints: np.ndarray, energies: np.ndarray) -> bool:
        """Whether a minimum is one of several: nearly the same energy, and nearly the same distances.

        Arguments:
            one: its fingerprint `(pairs,)`.
            energy: of it, kJ/mol.
            prints: theirs, `(n, pairs)`.
            energies: of these, `(n,)`.
        """
        close = np.abs(energies - energy) < _SAME_ENERGY
        return bool(close.any() and (np.abs(prints[close] - one).max(1) < _SAME_DISTANCES).any())


def _classes(molecule: Molecule) -> list[int]:
    labels = list(molecule.numbers)
    while True:
        signatures = [(labels[i], tuple(sorted(labels[j] for j in near))) for i, near in enumerate(molecule.neighbours)]
        names = {signature: k for k, signature in enumerate(sorted(set(signatures)))}
        refined = [names[signature] for signature in signatures]
        if len(set(refined)) == len(set(labels)):
            return refined
        labels = refined


def smallest_rings(molecule: Molecule) -> list[list[int]]:
    """The smallest rings, each in the order of its bonds."""
    return [list(ring) for ring in networkx.minimum_cycle_basis(networkx.Graph(sorted(molecule.ring_bonds)))]


def fours_of(ring: list[int]) -> list[tuple[int, ...]]:
    """The four atoms of the torsion about each bond of a ring."""
    return [tuple(ring[(k + shift) % len(ring)] for shift in (-1, 0, 1, 2)) for k in range(len(ring))]


def handedness(molecule: Molecule, x: np.ndarray) -> np.ndarray:
    """Signs `(n, k)` of the volumes that the threes of neighbours of each centre of four span in `x (n, atoms, 3)`."""
    fours = [(c, *three) for c, near in enumerate(molecule.neighbours) if len(near) == 4
             for three in combinations(near, 3)]  # fmt: skip
    index = np.array(fours, dtype=int).reshape(-1, 4)
    a, b, c = (x[:, index[:, k]] - x[:, index[:, 0]] for k in (1, 2, 3))
    return np.sign(np.einsum("npk,npk->np", a, np.cross(b, c)))


def same_isomer(molecule: Molecule, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether every centre of four neighbours has the same handedness, and every bond about its length."""
    bonds = np.array(molecule.bonds())
    before, after = (np.linalg.norm(z[bonds[:, 0]] - z[bonds[:, 1]], axis=1) for z in (x, y))
    if (np.abs(after / before - 1) > _STRETCHED).any():
        return False
    signs = handedness(molecule, np.stack([x, y]))
    return bool((signs[0] == signs[1]).all())
