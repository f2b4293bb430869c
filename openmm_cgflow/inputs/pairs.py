"""The nonbonded energy of a molecule as a plain sum over pairs: the umpire when readers disagree."""

from collections.abc import Iterable

import networkx
import numpy as np

__all__ = ["pair_energy", "pairs_within"]

COULOMB = 138.935457644  # kJ/mol nm/e^2


def pairs_within(n_atoms: int, bonds: Iterable[tuple[int, int]], separation: int) -> dict[tuple[int, int], int]:
    """Pairs of atoms `i < j` that at most `separation` bonds join, with the number of these bonds."""
    graph = networkx.Graph()
    graph.add_nodes_from(range(n_atoms))
    graph.add_edges_from(bonds)
    near = networkx.all_pairs_shortest_path_length(graph, cutoff=separation)
    return {(i, j): steps for i, lengths in near for j, steps in lengths.items() if i < j}


def pair_energy(positions: np.ndarray, charge_products: np.ndarray, c6: np.ndarray, c12: np.ndarray) -> float:
    """Coulomb and Lennard-Jones energy of all pairs, kJ/mol.

    Arguments:
        positions: `(atoms, 3)`, nm.
        charge_products: `(atoms, atoms)`, e^2; 0 where a pair does not interact. Only `i < j` is read.
        c6: `(atoms, atoms)`, kJ/mol nm^6.
        c12: `(atoms, atoms)`, kJ/mol nm^12.
    """
    i, j = np.triu_indices(len(positions), k=1)
    r = np.linalg.norm(positions[i] - positions[j], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # atoms on one another are refused elsewhere, by name
        return float(np.sum(COULOMB * charge_products[i, j] / r + c12[i, j] / r**12 - c6[i, j] / r**6))
