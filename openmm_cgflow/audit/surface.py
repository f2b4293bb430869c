"""The energies that an audit walks on, with their count, and descents to minima of many structures at once."""

from collections.abc import Callable

import openmm
import torch
from torch import Tensor

from openmm_cgflow.compute import Parallel
from openmm_cgflow.potentials import Potential

__all__ = ["Surface", "langevin", "quench"]

_SPRING = 3e5  # kJ/mol/nm^2, in place of constraints: about a C-H bond
_MASS = 12.0  # Da, of every atom: populations do not depend on it, and no hydrogen limits the time step
_STEP = 0.003  # ps
_FRICTION = 2.0  # 1/ps
_FASTEST = 2e5  # kJ/mol/nm: larger forces on an atom are cut
_HISTORY = 8  # of the descent's curvature
_LONGEST = 0.015  # nm that an atom moves in a step of a descent
_FLAT = 5.0  # kJ/mol/nm: the largest force on an atom at which a descent ends


class Surface:
    """Energies and forces of a System; constrained bonds are springs.

    Arguments:
        potential: energies in kJ/mol.
        system: its constraints.
        parallel: over which evaluations are spread.
        limit: evaluations that may be spent.
        over: whether to end before that: the time is up, or somebody interrupts.
    """

    def __init__(
        self,
        potential: Potential,
        system: openmm.System,
        parallel: Parallel,
        limit: int,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.potential, self._parallel, self._over = potential, parallel, over
        self._end = potential.evaluations + limit
        bonds = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
        where = parallel.device
        self._pairs = torch.tensor([[i, j] for i, j, _ in bonds], dtype=torch.int64, device=where).reshape(-1, 2)
        self._lengths = torch.tensor([length._value for _, _, length in bonds], dtype=torch.float32, device=where)

    def affords(self, evaluations: int) -> bool:
        """Whether so many more may be spent."""
        return not self._over() and self.potential.evaluations + evaluations <= self._end

    @property
    def left(self) -> int:
        """Evaluations that may still be spent."""
        return max(0, self._end - self.potential.evaluations)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `(n,)`, kJ/mol, and forces, as `x (n, atoms, 3)` nm; infinity and no force where not finite."""
        energy, forces = self._parallel.map(self._evaluate, x)
        fine = torch.isfinite(energy) & torch.isfinite(forces).flatten(1).all(1)
        return torch.where(fine, energy, torch.inf), torch.where(fine[:, None, None], forces, 0.0)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = self.potential.energy_and_forces(x)
        if not len(self._pairs):
            return energy, forces
        i, j = self._pairs.unbind(1)
        apart = x[:, i] - x[:, j]
        length = apart.norm(dim=2)
        stretch = length - self._lengths.to(x)
        pull = (-_SPRING * stretch / length)[:, :, None] * apart
        return energy + 0.5 * _SPRING * (stretch**2).sum(1), forces.index_add(1, i, pull).index_add(1, j, -pull)


def langevin(surface: Surface, x: Tensor, kT: Tensor, steps: int, cold: float, generator: torch.Generator) -> Tensor:
    """Langevin dynamics of each row: hot for the first 60 % of the steps, then cooled.

    Arguments:
        surface: energies; the walk ends early where they may cost no more.
        x: `(n, atoms, 3)` nm.
        kT: `(n,)` thermal energy of each row while it is hot, kJ/mol.
        steps: of 3 fs, with 12 Da for every atom.
        cold: the last thermal energy, kJ/mol.
        generator: of the noise.

    Returns:
        the last structures, `(n, atoms, 3)`; rows that were no longer finite are as they began.
    """
    first = x
    hot = kT.to(x)[:, None, None]
    velocity = (hot / _MASS).sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    decay = torch.exp(torch.tensor(-_FRICTION * _STEP)).item()
    forces = _cut(surface(x)[1])
    for step in range(steps):
        if not surface.affords(len(x)):
            break
        cooled = min(1.0, max(0.0, (step / steps - 0.6) / 0.4))
        velocity = velocity + 0.5 * _STEP / _MASS * forces
        x = x + 0.5 * _STEP * velocity
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
        now = hot + (cold - hot) * cooled
        velocity = decay * velocity + (now / _MASS * (1 - decay**2)).sqrt() * noise
        x = x + 0.5 * _STEP * velocity
        forces = _cut(surface(x)[1])
        velocity = velocity + 0.5 * _STEP / _MASS * forces
    fine = torch.isfinite(x).flatten(1).all(1)
    return torch.where(fine[:, None, None], x, first)


def _cut(forces: Tensor) -> Tensor:
    size = forces.norm(dim=2, keepdim=True)
    return forces * (_FASTEST / size.clamp(min=_FASTEST))


def quench(surface: Surface, x: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The minimum next to each row, by L-BFGS of all rows at once; no row goes up.

    Rows leave when they have arrived, so that they cost no more.

    Arguments:
        surface: energies; the descent ends early where they may cost no more.
        x: `(n, atoms, 3)` nm.
        iterations: at most.

    Returns:
        `(n, atoms, 3)` nm and energies `(n,)`, kJ/mol.
    """
    shape = x.shape
    energy, forces = surface(x)
    done_x, done_energy = x.clone(), energy.clone()
    rows = torch.arange(len(x), device=x.device)
    descent = _Descent(x.flatten(1), energy, -forces.flatten(1))
    for _ in range(iterations):
        steep = descent.gradient.reshape(len(rows), -1, 3).norm(dim=2).amax(1) if len(rows) else descent.energy
        going = steep > _FLAT
        if not going.all():
            done_x[rows] = descent.x.reshape(-1, *shape[1:])
            done_energy[rows] = descent.energy
            rows = rows[going]
            descent.keep(going)
        if not len(rows) or not surface.affords(len(rows)):
            break
        trial = descent.trial()
        energy, forces = surface(trial.reshape(-1, *shape[1:]))
        descent.take(trial, energy, -forces.flatten(1))
    done_x[rows] = descent.x.reshape(-1, *shape[1:])
    done_energy[rows] = descent.energy
    return done_x, done_energy


class _Descent:
    """The state of L-BFGS for rows `x (n, 3 atoms)`, each with its own history and step."""

    def __init__(self, x: Tensor, energy: Tensor, gradient: Tensor) -> None:
        self.x, self.energy, self.gradient = x, energy, gradient
        self.moves: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.inverse: list[Tensor] = []  # 1 / (move . change), 0 where the pair is not used
        self.shrink = x.new_ones(len(x))

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.x, self.energy, self.gradient = self.x[rows], self.energy[rows], self.gradient[rows]
        self.shrink = self.shrink[rows]
        for name in ("moves", "changes", "inverse"):
            setattr(self, name, [t[rows] for t in getattr(self, name)])

    def trial(self) -> Tensor:
        """Where to look next."""
        direction = -self._curved(self.gradient)
        uphill = (direction * self.gradient).sum(1) >= 0
        direction = torch.where(uphill[:, None], -self.gradient / _SPRING, direction)
        longest = direction.reshape(len(direction), -1, 3).norm(dim=2).amax(1)
        scale = self.shrink * (_LONGEST / longest.clamp(min=1e-12)).clamp(max=1.0)
        return self.x + scale[:, None] * direction

    def _curved(self, gradient: Tensor) -> Tensor:
        """The gradient times the inverse curvature of the last moves."""
        q, alphas = gradient, []
        pairs = list(zip(self.moves, self.changes, self.inverse, strict=True))
        for move, change, inverse in reversed(pairs):
            alphas.append(inverse * (move * q).sum(1))
            q = q - alphas[-1][:, None] * change
        stiffness = self.x.new_full((len(self.x),), 1 / _SPRING)
        for _, change, inverse in pairs:  # of the last pair in use
            latest = 1 / (inverse * (change * change).sum(1)).clamp(min=1e-12)
            stiffness = torch.where(inverse > 0, latest, stiffness)
        q = stiffness[:, None] * q
        for (move, change, inverse), alpha in zip(pairs, reversed(alphas), strict=True):
            q = q + (alpha - inverse * (change * q).sum(1))[:, None] * move
        return q

    def take(self, trial: Tensor, energy: Tensor, gradient: Tensor) -> None:
        """Go there where the energy is no higher; elsewhere forget the history and take shorter steps."""
        better = energy <= self.energy + 1e-7 * self.energy.abs()  # single precision
        move, change = trial - self.x, gradient - self.gradient
        product = (move * change).sum(1)
        use = better & (product > 1e-10 * (change * change).sum(1).clamp(min=1e-12))
        inverse = torch.where(use, 1 / product.clamp(min=1e-12), 0.0)
        self.moves.append(move)
        self.changes.append(change)
        self.inverse = [torch.where(better, old, 0.0) for old in self.inverse] + [inverse]
        if len(self.moves) > _HISTORY:
            del self.moves[0], self.changes[0], self.inverse[0]
        self.shrink = torch.where(better, (2 * self.shrink).clamp(max=1.0), 0.25 * self.shrink)
        self.x = torch.where(better[:, None], trial, self.x)
        self.energy = torch.where(better, energy, self.energy)
        self.gradient = torch.where(better[:, None], gradient, self.gradient)
