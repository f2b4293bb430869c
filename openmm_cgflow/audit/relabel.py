"""Equivalent atoms of structures exchanged, so that these lie in the domain of the coordinates where they can."""

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.chemistry.forms import Fingerprint, handedness
from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.coordinates import InternalCoordinates

__all__ = ["Relabel"]


class Relabel:
    """Exchanges of two equivalent groups on a centre of three neighbours: half a turn, or an inversion, does the same.

    Arguments:
        molecule: the graph and a structure with the right handedness.
        coordinates: in whose domain structures are wanted.
    """

    def __init__(self, molecule: Molecule, coordinates: InternalCoordinates) -> None:
        self.coordinates = coordinates
        classes = Fingerprint(molecule).classes
        found: list[np.ndarray] = []
        for centre, near in enumerate(molecule.neighbours):
            pairs = [(i, j) for i in near for j in near if i < j and classes[i] == classes[j]]
            for i, j in pairs if len(near) == 3 else []:
                order = _exchange(molecule, classes, centre, i, j)
                if order is not None and _keeps_hands(molecule, classes, order):
                    found.append(order)
        self.exchanges = found

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`x (n, atoms, 3)` with such exchanges as bring it nearer to the domain."""
        best, outside = x.copy(), self._outside(x)
        for _ in range(len(self.exchanges)):
            improved = False
            for order in self.exchanges:
                trial = best[:, order]
                its = self._outside(trial)
                better = its < outside - 1e-6
                best[better], outside[better] = trial[better], its[better]
                improved = improved or bool(better.any())
            if not improved:
                break
        return best

    def _outside(self, x: np.ndarray) -> np.ndarray:
        q, _ = self.coordinates.to_internal(torch.as_tensor(x).to(self.coordinates.low))
        excess: Tensor = (self.coordinates.low - q).clamp(min=0) + (q - self.coordinates.high).clamp(min=0)
        return excess.sum(1).cpu().numpy()


def _exchange(molecule: Molecule, classes: np.ndarray, centre: int, i: int, j: int) -> np.ndarray | None:
    """An automorphism of the bond graph that exchanges two neighbours of a centre and moves as little as it can."""
    image = {centre: centre, i: j, j: i}
    for atom in molecule.neighbours[centre]:
        image.setdefault(atom, atom)
    queue = [i, j]
    while queue:
        u = queue.pop(0)
        v = image[u]
        if u == v and u != centre:
            rest = [a for a in molecule.neighbours[u] if a not in image]
            image.update({a: a for a in rest})
            continue
        free = [a for a in molecule.neighbours[u] if a not in image]
        taken = set(image.values())
        targets = [a for a in molecule.neighbours[v] if a not in taken]
        for a in free:
            match = next((b for b in targets if classes[b] == classes[a]), None)
            if match is None:
                return None
            targets.remove(match)
            image[a] = match
            queue.append(a)
    order = np.arange(molecule.n_atoms)
    for a, b in image.items():
        order[a] = b
    if sorted(order.tolist()) != list(range(molecule.n_atoms)):
        return None
    kept = all(molecule.bonded(int(order[a]), int(order[b])) for a, b in molecule.bonds())
    return order if kept else None


def _keeps_hands(molecule: Molecule, classes: np.ndarray, order: np.ndarray) -> bool:
    """Whether every centre of four keeps its handedness; two equivalent leaves are exchanged in place where not."""
    x = molecule.positions[None]
    for centre, near in enumerate(molecule.neighbours):
        if len(near) != 4 or _hand(x, centre, near) == _hand(x[:, order], centre, near):
            continue
        leaves = [i for i in near if len(molecule.neighbours[i]) == 1]
        pair = next(((i, j) for i in leaves for j in leaves if i < j and classes[i] == classes[j]), None)
        if pair is None:
            return False
        order[list(pair)] = order[list(pair[::-1])]
    return bool((handedness(molecule, x) == handedness(molecule, x[:, order])).all())


def _hand(x: np.ndarray, centre: int, near: list[int]) -> float:
    a, b, c = (x[0, i] - x[0, centre] for i in near[:3])
    return float(np.sign(np.dot(a, np.cross(b, c))))
