"""How much of a Laplace start a budget can pay for."""

from dataclasses import dataclass, replace

from openmm_cgflow.training.start import DESCENT, FIRST, MOVED

__all__ = ["Plan", "least_plan", "make_plan"]

_LAPLACE = 25  # iterations at each point
_FEW = 64  # points below which sweeps and curvatures are given up first


@dataclass(frozen=True)
class Plan:
    """A Laplace start, as large as it can be.

    Attributes:
        stiff: number of stiff coordinates.
        directions: number of coordinates among which slow directions are looked for, 0 if these are known.
        points: at which the start is made.
        sweeps: moves by which these are annealed.
        measured: at how many of them the curvature is measured.
        descents: iterations for the curvature of the first structure.
        iterations: at each point.
        descent: iterations in search of slow directions.
    """

    stiff: int
    directions: int
    points: int
    sweeps: int
    measured: int
    descents: tuple[int, ...] = (80, 40, 40)
    iterations: int = _LAPLACE
    descent: int = DESCENT

    @property
    def cost(self) -> int:
        """Energies that it takes."""
        annealing = FIRST + 1 + self.sweeps * (MOVED + 1) if self.sweeps else 0
        each = annealing + self.iterations + 1 + (2 * (self.descent + 1) if self.directions else 0)
        return self.points * each + 2 * self.stiff * self.measured + sum(map(self._structure, self._searched()))

    def _searched(self) -> tuple[int, ...]:
        return (self.stiff, self.directions) if self.directions else (self.stiff,)

    def _structure(self, n: int) -> int:
        """Energies for the curvature of one structure in `n` coordinates."""
        return sum(self.descents) + len(self.descents) + 2 * n * (len(self.descents) - 1)


def _plans(stiff: int, directions: int, soft: int, points: int, sweeps: int) -> list[Plan]:
    """From the whole one to the least; with one point each where there is nothing that tells points apart."""
    sweeps = sweeps if soft else 0
    whole = Plan(stiff, directions, points if soft else 1, sweeps, points if soft else 1)
    if not soft:
        return [whole, Plan(stiff, directions, 1, 0, 0, (20, 10), 10)]
    halves = Plan(stiff, directions, points, -(-sweeps // 2), -(-points // 4))
    quarters = Plan(stiff, directions, points, -(-sweeps // 4), -(-points // 16))
    none = Plan(stiff, directions, points, 0, 0, (40, 20), 20, DESCENT // 2)
    return [whole, halves, quarters, none, Plan(stiff, directions, points, 0, 0, (20, 10), 10, DESCENT // 4)]


def _with_points(plan: Plan, points: int) -> Plan:
    return replace(plan, points=points, measured=-(-plan.measured * points // plan.points))


def make_plan(
    affordable: float, stiff: int, directions: int, soft: int, points: int, sweeps: int, few: int = 1
) -> Plan | None:
    """The largest plan for so many energies, None if there is none.

    Arguments:
        affordable: energies, may be infinite.
        stiff: number of stiff coordinates.
        directions: number of coordinates among which slow directions are looked for, 0 if these are known.
        soft: number of soft variables.
        points: wanted.
        sweeps: wanted.
        few: points below which even the smallest is of no use.
    """
    plans = _plans(stiff, directions, soft, points, sweeps)
    for plan in plans:
        least = min(few if plan is plans[-1] else _FEW, plan.points)
        for n in range(plan.points, least - 1, -1):
            smaller = _with_points(plan, n)
            if smaller.cost <= affordable:
                return smaller
    return None


def least_plan(stiff: int, directions: int, soft: int) -> Plan:
    """The smallest plan that gives anything."""
    return _with_points(_plans(stiff, directions, soft, 1, 0)[-1], 1)
