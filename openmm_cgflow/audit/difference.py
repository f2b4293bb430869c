"""In what a form differs from those that a flow gives, and how to have it sampled."""

from dataclasses import dataclass

import numpy as np

from openmm_cgflow.chemistry.axes import Axis
from openmm_cgflow.chemistry.driven import torsion_angles
from openmm_cgflow.chemistry.forms import smallest_rings
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.chemistry.perception import Perceived

__all__ = ["Difference", "Differences"]

_TURNED = np.deg2rad(60.0)  # of a stiff torsion outside a ring
_PUCKERED = np.deg2rad(35.0)  # of a torsion in a ring
_PYRAMID = 0.3  # of the product of three unit vectors, above which a centre of three neighbours is a pyramid


@dataclass(frozen=True)
class Difference:
    """What tells a form apart.

    Attributes:
        what: for people.
        axes: names of stiff torsions that are turned.
        include: how to have it sampled.
    """

    what: str
    axes: tuple[str, ...]
    include: str


class Differences:
    """Compares forms with those that a flow gives.

    Arguments:
        perceived: the molecule and its axes.
        soft: bonds (`bond_key`) about which the flow turns.
        slow_names: the flow's slow torsions.
        known: `(n, atoms, 3)` nm, minima that the flow gives.
    """

    def __init__(
        self, perceived: Perceived, soft: set[tuple[int, int]], slow_names: list[str], known: np.ndarray
    ) -> None:
        molecule = perceived.molecule
        self.known, self.slow_names = known, slow_names
        self.axes = [axis for axis in perceived.axes if not soft & _ends(axis)]
        self.turning = [axis for axis in perceived.axes if soft & _ends(axis)]
        self.rings = [
            (ring, [[ring[(k + shift) % len(ring)] for shift in (-1, 0, 1, 2)] for k in range(len(ring))])
            for ring in smallest_rings(molecule)
        ]
        self.label = molecule.label
        self.pyramids = np.array(
            [(c, *near) for c, near in enumerate(molecule.neighbours) if len(near) == 3], dtype=int
        ).reshape(-1, 4)

    def __call__(self, x: np.ndarray) -> Difference:
        """What is different in `x (atoms, 3)`, nm."""
        axes = [axis for axis in self.axes if self._far(x, [list(axis.atoms)], mirror=False) > _TURNED]
        rings = [ring for ring, fours in self.rings if self._far(x, fours, mirror=True) > _PUCKERED]
        inverted = self._inverted(x)
        start = "start from it as well, CGFlow(topology, system, form.positions), and join the two by their log Z"
        if rings:
            size = ", ".join(f"{len(ring)}" for ring in rings)
            what = f"ring{'s' if len(rings) > 1 else ''} of {size} atoms"
            return Difference(what, tuple(axis.name for axis in axes), start)
        if axes:
            names = [axis.name for axis in axes]
            named = ", ".join(repr(name) for name in [*self.slow_names, *names])
            return Difference(" and ".join(names), tuple(names), f"slow=[{named}]")
        if inverted:
            return Difference(f"inversion of {', '.join(self.label(i) for i in inverted)}", (), start)
        flipped = [ring for ring, fours in self.rings if self._far(x, fours, mirror=False) > _PUCKERED]
        if flipped:
            size = ", ".join(f"{len(ring)}" for ring in flipped)
            what = f"flip of the ring{'s' if len(flipped) > 1 else ''} of {size} atoms"
            return Difference(what, (), f"train longer, or {start}")
        angles = np.degrees(torsion_angles(x, [axis.atoms for axis in self.turning if not axis.symmetric]))
        names = [axis.name for axis in self.turning if not axis.symmetric]
        where = ", ".join(f"{name} {angle:.0f}°" for name, angle in zip(names, angles, strict=True))
        return Difference(f"torsions at {where}" if where else "another minimum", (), "train longer, or start from it")

    def _far(self, x: np.ndarray, fours: list[list[int]], mirror: bool) -> float:
        """How far some torsions are from those of the nearest known form, or of its mirror image, rad."""
        here, there = torsion_angles(x, fours), torsion_angles(self.known, fours)
        away = [np.abs(_wrapped(there - here)).max(1)] + ([np.abs(_wrapped(there + here)).max(1)] if mirror else [])
        return float(np.min(away))

    def _inverted(self, x: np.ndarray) -> list[int]:
        """Pyramids of three neighbours that are the other way round than in every known form."""
        here, there = self._volumes(x[None])[0], self._volumes(self.known)
        other = (np.abs(here) > _PYRAMID) & (np.sign(there) != np.sign(here)).all(0)
        return [int(i) for i in self.pyramids[other, 0]]

    def _volumes(self, x: np.ndarray) -> np.ndarray:
        arms = [x[:, self.pyramids[:, k]] - x[:, self.pyramids[:, 0]] for k in (1, 2, 3)]
        a, b, c = (arm / np.linalg.norm(arm, axis=2, keepdims=True) for arm in arms)
        return np.einsum("npk,npk->np", a, np.cross(b, c))


def _ends(axis: Axis) -> set[tuple[int, int]]:
    return {bond_key(*end) for end in axis.ends}


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
