"""Which torsions are slow: the free energy along each rotatable torsion, by the Laplace start, and its basins."""

from dataclasses import dataclass

import numpy as np
import openmm
import torch
from openmm import app, unit

from openmm_cgflow.chemistry import KeptBack, Perceived, find_kept_back, perceive
from openmm_cgflow.compute import Parallel, plain_torch, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.door import Bonds, admit
from openmm_cgflow.potentials import Potential, make_potential
from openmm_cgflow.sampling import BoltzmannTarget
from openmm_cgflow.training import (
    anneal_soft,
    curvature_factor,
    laplace,
    minimise,
    soft_and_stiff,
)
from openmm_cgflow.units import KB, PositionsLike, in_kelvin

__all__ = ["SlowScan", "TorsionScan", "scanTorsions", "scan_torsions"]

GRID = 36  # values of a torsion
REACH = 10.0  # kT: a basin that is higher is out of reach
RIDGE = 1.0  # kT: basins with a lower ridge between them are one
_WALKERS = 256  # structures over all soft torsions
_SWEEPS = 12
_KEPT = 12  # of them, from which each torsion is turned
_SOFT_WIDTH = 0.2  # rad, for the minimisation of the other soft torsions
_ITERATIONS = 60


@dataclass(frozen=True)
class TorsionScan:
    """The free energy along one torsion, all else at its Laplace approximation.

    Attributes:
        name: such as `ALA2:phi`.
        atoms: its four atoms.
        angles: `(36,)` rad.
        free_energy: `(36,)` kJ/mol, from its lowest value.
        basins: angle (rad) and free energy (kJ/mol) of each basin within reach, lowest first.
        barriers: the ridges between neighbouring basins within reach, kJ/mol above the lowest value.
    """

    name: str
    atoms: tuple[int, int, int, int]
    angles: np.ndarray
    free_energy: np.ndarray
    basins: list[tuple[float, float]]
    barriers: list[float]

    @property
    def slow(self) -> bool:
        """Whether more than one basin is within reach."""
        return len(self.basins) > 1

    def __str__(self) -> str:
        where = ", ".join(f"{np.degrees(angle):.0f} ({energy:.1f})" for angle, energy in self.basins)
        barriers = f"; barriers {', '.join(f'{b:.0f}' for b in self.barriers)}" if self.slow else ""
        return f"{self.name:28s} {'slow' if self.slow else 'fast'}: basins at {where}{barriers}"


@dataclass(frozen=True)
class SlowScan:
    """What `slow="auto"` found.

    Attributes:
        torsions: every soft torsion, symmetric rotors apart.
        kept_back: what was not looked at, and why.
        temperature: K.
    """

    torsions: list[TorsionScan]
    kept_back: list[KeptBack]
    temperature: float

    @property
    def slow(self) -> list[tuple[int, int, int, int]]:
        """The four atoms of each slow torsion, as `CGFlow(slow=...)` takes them."""
        return [torsion.atoms for torsion in self.torsions if torsion.slow]

    @property
    def slow_names(self) -> list[str]:
        """Names of the slow torsions."""
        return [torsion.name for torsion in self.torsions if torsion.slow]

    def __str__(self) -> str:
        reach = REACH * KB * self.temperature
        head = f"basins within {reach:.0f} kJ/mol at {self.temperature:g} K: degrees (kJ/mol); barriers in kJ/mol"
        return "\n".join([head, *map(str, self.torsions), *(f"left out: {kept}" for kept in self.kept_back)])


@plain_torch
def scanTorsions(
    topology: app.Topology,
    system: openmm.System,
    positions: PositionsLike,
    temperature: unit.Quantity | float = 300 * unit.kelvin,
    seed: int = 0,
    bonds: Bonds = "topology",
) -> SlowScan:
    """Find the torsions that have more than one basin within 10 kT, with their barriers.

    Structures over all soft torsions are annealed, with the stiff coordinates minimised. From a dozen of them each
    torsion is turned through the circle; at each value everything else is minimised, and the curvature of the lowest
    minimum gives the free energy. A barrier is that of this free energy: an estimate, not what dynamics would give.

    Arguments:
        topology: as for `CGFlow`.
        system: as for `CGFlow`.
        positions: one structure.
        temperature: Quantity or K.
        seed: of the structures.
        bonds: as for `CGFlow`.

    Raises:
        InvalidInputError: for what `CGFlow` refuses.

    Example:
        scan = scanTorsions(pdb.topology, system, pdb.positions)
        print(scan)  # each torsion with its basins and barriers
        flow = CGFlow(pdb.topology, system, pdb.positions, slow=scan.slow)
    """
    kelvin = in_kelvin(temperature)
    admitted = admit(topology, system, positions, kelvin, bonds)
    potential = make_potential(admitted.system, admitted.x, kelvin, admitted.reference)
    return scan_torsions(perceive(*admitted), admitted.system, potential, kelvin, seed)


def scan_torsions(
    perceived: Perceived, system: openmm.System, potential: Potential, kelvin: float, seed: int
) -> SlowScan:
    """The same as `scanTorsions` of a molecule that was perceived already, with its energies; K."""
    coordinates = InternalCoordinates.of(perceived, system)
    target = BoltzmannTarget(potential, coordinates, KB * kelvin)
    kept_back = find_kept_back(perceived)
    held = {axis for kept in kept_back for axis in kept.axes}
    free = [k for k, (_, i, j, _) in enumerate(coordinates.slow_torsions) if (min(i, j), max(i, j)) not in held]
    with Parallel() as parallel:
        scanner = _Scanner(target, coordinates, parallel, seeded(seed))
        return SlowScan([scanner.scan(k) for k in free], kept_back, kelvin)


class _Scanner:
    """Turns single torsions from structures that were annealed over all of them."""

    def __init__(
        self, target: BoltzmannTarget, coordinates: InternalCoordinates, parallel: Parallel, generator: torch.Generator
    ) -> None:
        self.target, self.coordinates, self.parallel = target, coordinates, parallel
        soft, stiff = soft_and_stiff(coordinates.sizes)
        scale = coordinates.scale.float()
        start, factor = curvature_factor(target, coordinates.reference.float()[None], stiff, scale, parallel)
        self.factor = scale.new_zeros(coordinates.dof, coordinates.dof)
        self.factor[soft, soft] = _SOFT_WIDTH
        self.factor[stiff[:, None], stiff] = factor
        points = start.repeat(_WALKERS, 1)
        turned = torch.rand(_WALKERS - 1, len(soft), generator=generator) - 0.5
        points[1:, soft] += turned * coordinates.span[soft].float()
        if len(soft):
            points = anneal_soft(target, points, soft, stiff, factor, parallel, generator, _SWEEPS, 2.0)
        self.structures = torch.cat([start, points[torch.randperm(_WALKERS, generator=generator)[: _KEPT - 1]]])

    def scan(self, k: int) -> TorsionScan:
        """The free energy along slow torsion `k`, and its basins."""
        coordinates = self.coordinates
        others = torch.tensor([i for i in range(coordinates.dof) if i != k])
        factor = self.factor[others[:, None], others]
        turns = torch.arange(GRID) * (2 * torch.pi / GRID) - torch.pi
        points = self.structures.repeat_interleave(GRID, 0)
        points[:, k] = turns.repeat(len(self.structures))
        points, action = minimise(self.target, points, others, factor, self.parallel, _ITERATIONS)
        lowest = action.reshape(-1, GRID).argmin(0) * GRID + torch.arange(GRID)
        mixture = laplace(self.target, points[lowest], others, factor, self.parallel, iterations=20)
        free_energy = (-mixture.log_partition).numpy().astype(float)
        free_energy -= free_energy.min()
        minima, ridges = basins_on_circle(free_energy, REACH, RIDGE)
        atoms, kT = coordinates.slow_torsions[k], self.target.kT
        basins = sorted(((float(turns[i]), kT * float(free_energy[i])) for i in minima), key=lambda basin: basin[1])
        return TorsionScan(
            coordinates.names[k], atoms, turns.numpy(), kT * free_energy, basins, [kT * ridge for ridge in ridges]
        )


def basins_on_circle(values: np.ndarray, reach: float, ridge: float) -> tuple[list[int], list[float]]:
    """Basins of values on a circle, and the ridges between neighbours.

    Arguments:
        values: `(n,)`, their lowest 0; those that are not finite are walls.
        reach: basins whose lowest value is higher do not count.
        ridge: neighbouring basins are one where the wall between them is no higher than this above the higher of them.

    Returns:
        Indices of the basins' lowest values in their order on the circle; the highest value between each and the next,
        none for a single basin.

    Example:
        >>> basins_on_circle(np.array([0.0, 8, 1, 1.5, 1.2, 9]), reach=5, ridge=1)
        ([0, 2], [8.0, 9.0])
    """
    values = np.where(np.isfinite(values), values, np.inf)
    n = len(values)
    minima = [i for i in range(n) if values[i] <= reach and values[i - 1] > values[i] <= values[(i + 1) % n]]
    minima = minima or [int(values.argmin())]  # all the same

    def wall(k: int) -> float:
        start, stop = minima[k], minima[(k + 1) % len(minima)]
        return float(max(values[i % n] for i in range(start, stop + (n if stop <= start else 0) + 1)))

    while len(minima) > 1:
        heights = [wall(k) - max(values[minima[k]], values[minima[(k + 1) % len(minima)]]) for k in range(len(minima))]
        k = int(np.argmin(heights))
        if heights[k] > ridge:
            break
        minima.remove(max(minima[k], minima[(k + 1) % len(minima)], key=lambda i: values[i]))
    return minima, [wall(k) for k in range(len(minima))] if len(minima) > 1 else []
