"""An audit: hot dynamics from a flow's samples, quenched, and what was found compared with what the flow gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from openmm import unit

from openmm_cgflow.audit.difference import Difference, Differences
from openmm_cgflow.audit.relabel import Relabel
from openmm_cgflow.audit.surface import Surface, langevin, quench
from openmm_cgflow.audit.weigh import cost, log_partition
from openmm_cgflow.chemistry.axes import Axis
from openmm_cgflow.chemistry.barriers import TURNING_BARRIER
from openmm_cgflow.chemistry.driven import Driven
from openmm_cgflow.chemistry.forms import Fingerprint, handedness, same_isomer
from openmm_cgflow.chemistry.loops import loop_forms
from openmm_cgflow.chemistry.perception import Perceived, perceive
from openmm_cgflow.chemistry.puckers import flipped_forms
from openmm_cgflow.compute import Parallel, seeded
from openmm_cgflow.coverage import Coverage, Form, heaviest_first, rounded
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import KB

__all__ = ["LEAST", "audit"]

LEAST = 6000
"""Evaluations below which an audit says nothing."""

_HOTTEST, _COOLEST = 5.0, 2.0  # times the flow's temperature, of the hot walkers
_COLD = 1.3  # times it, at the end of each walk
_STEPS = 300  # of a walk between two descents
_DESCENT, _LONG_DESCENT = 120, 500  # iterations
_MOST_WALKERS = 128
_LEAST_SAMPLES = 10  # of finite weight
_ABOVE = 6.0  # kT: forms that are so much higher than the lowest weigh too little
_LIGHTEST = 0.01  # of the ensemble, that a form must weigh
_MOST_FORMS = 12  # that are weighed
_MISSED, _SPREADS = 4.0, 2.5  # what a missing minimum's log-weight exceeds the others' by: in all, and in spreads
_CERTAIN = 15.0  # the same, where the flow is too poor for a finer comparison
_UNTRAINED = 10.0  # log-weight at the flow's own minima above which it has not learned them
_TOUCHING = 0.11  # nm: atoms that are not bonded nor share a neighbour and are nearer have fallen into one another
_CONFIGURATION = 100.0  # kJ/mol: forms behind a higher barrier are other compounds


@dataclass
class _Minima:
    """Minima of the energy: `x (n, atoms, 3)` nm, float64, and `energy (n,)` kJ/mol."""

    x: np.ndarray
    energy: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "_Minima":
        return _Minima(self.x[rows], self.energy[rows])

    def __len__(self) -> int:
        return len(self.energy)

    def with_(self, other: "_Minima") -> "_Minima":
        return _Minima(np.concatenate([self.x, other.x]), np.concatenate([self.energy, other.energy]))


def audit(flow: TrainedFlow, evaluations: int, over: Callable[[], bool] = lambda: False) -> Coverage:
    """Look for forms of the molecule that a flow does not reach.

    Walkers start from samples of the flow, each at its own temperature between two and five times the flow's, are
    cooled and quenched, again and again. To these minima come the forms that stiff torsions have beside the input's,
    those of rings that flip, and those of large rings, which OpenMM minimises: these energies are not counted.
    So are minima that seem to be missing, each of which is named once.
    A minimum is missing where the density of the flow is far below what its energy asks for, unless it is the mirror
    image or a relabelling of one where it is not.
    Left aside: mirror images, equivalent atoms that changed places, inverted stereocentres, forms below 1 % by weight.

    Arguments:
        flow: a trained `CGFlow`.
        evaluations: that it may cost.
        over: whether to end before that.
    """
    before = flow.potential.evaluations
    if evaluations < LEAST:
        return Coverage(why_not=f"{evaluations:,} evaluations are too few for it, at least {LEAST:,} are needed")
    with flow.compute.parallel() as parallel:
        surface = Surface(flow.potential, flow.system, parallel, evaluations, over)
        auditor = _Auditor(flow, surface, parallel, evaluations, over)
        auditor.explore()
        return auditor.coverage(before)


class _Auditor:
    def __init__(
        self, flow: TrainedFlow, surface: Surface, parallel: Parallel, evaluations: int, over: Callable[[], bool]
    ) -> None:
        self.flow, self.surface, self.parallel, self.over = flow, surface, parallel, over
        self.kT = flow.target.kT
        self.generator = seeded(flow.seed)
        x = np.asarray(flow.positions.value_in_unit(unit.nanometer))
        self.perceived: Perceived = perceive(flow.topology, flow.system, x)
        self.molecule = self.perceived.molecule
        self.fingerprint = Fingerprint(self.molecule)
        self.relabel = Relabel(self.molecule, flow.coordinates)
        self.walkers = int(np.clip(evaluations // 800, 8, _MOST_WALKERS))
        self.samples = flow.sample(max(500, 4 * self.walkers), seed=flow.seed)
        self.reference = _Minima(x[None], np.full(1, np.inf))
        self.rounds = 0
        self.steps = 0
        self.found = _Minima(np.empty((0, *x.shape)), np.empty(0))

    def explore(self) -> None:
        """Quench samples of the flow and the forms of stiff torsions; then walk while that can be paid."""
        x = self.flow.compute.tensor(self.samples.positions[self._chosen()])
        start = self.flow.compute.tensor(self.reference.x.astype(np.float32))
        minimum, energy = quench(self.surface, start, _LONG_DESCENT)
        self.reference = _Minima(minimum.double().cpu().numpy(), energy.double().cpu().numpy())
        self.known = self._descend(x)  # one for each sample
        forms = [form.positions for axis in self.perceived.axes for form in axis.others]
        forms += flipped_forms(self.molecule, self.flow.system)
        forms += loop_forms(self.molecule, self.flow.system, self.over)
        if forms:
            self.found = self._distinct(self._descend(self.flow.compute.tensor(np.stack(forms).astype(np.float32))))
        hot = self.kT * torch.linspace(_COOLEST, _HOTTEST, self.walkers)
        round_ = len(x) * (_STEPS + _DESCENT)
        reserved = (2 * _LONG_DESCENT + cost(self.flow.coordinates)) * 2
        while self.surface.affords(min(round_, 2 * LEAST // 3) + reserved) or (
            not self.rounds and self.surface.affords(LEAST // 2)
        ):
            before = self.surface.left
            steps = min(_STEPS, max(50, (self.surface.left - reserved) // len(x) - _DESCENT))
            x = langevin(self.surface, x, hot, steps, _COLD * self.kT, self.generator)
            self.found = self.found.with_(self._distinct(self._descend(x)))
            self.rounds += 1
            self.steps += steps * len(x)
            if self.surface.left == before:
                break

    def _chosen(self) -> np.ndarray:
        """Half of the walkers start from samples by weight, each once; the others from the first samples."""
        noise = np.random.default_rng(self.flow.seed).gumbel(size=self.samples.n)
        by_weight = np.argsort(-(self.samples.log_weights + noise))[: self.walkers // 2]
        fine = np.flatnonzero(np.isfinite(self.samples.log_weights))
        return np.concatenate([by_weight, fine[: self.walkers - len(by_weight)]])

    def _descend(self, x: torch.Tensor) -> _Minima:
        """Minima next to `x` that are still this molecule."""
        minima, energy = quench(self.surface, x, _DESCENT)
        return self._sound(_Minima(minima.double().cpu().numpy(), energy.double().cpu().numpy()))

    def _sound(self, minima: _Minima) -> _Minima:
        """Those with the input's stereocentres, whole bonds, and no atoms that fell into one another."""
        near = np.ones((self.molecule.n_atoms,) * 2, dtype=bool)
        for i in range(self.molecule.n_atoms):
            near[i, [j for j, far in enumerate(self.molecule.distances_from(i)) if far <= 2]] = False
        first, second = np.nonzero(np.triu(near, 1))
        reference = self.reference.x[0]
        fine = np.isfinite(minima.energy) & (
            np.linalg.norm(minima.x[:, first] - minima.x[:, second], axis=2) > _TOUCHING
        ).all(1)
        fine &= (handedness(self.molecule, minima.x) == handedness(self.molecule, reference[None])).all(1)
        fine &= np.array([same_isomer(self.molecule, reference, x) for x in minima.x], dtype=bool)
        return minima[np.flatnonzero(fine)]

    def _distinct(self, minima: _Minima) -> _Minima:
        """One of each form, the lowest first."""
        prints, chosen = self.fingerprint(minima.x), list[int]()
        for row in np.argsort(minima.energy).tolist():
            if not self.fingerprint.among(prints[row], minima.energy[row], prints[chosen], minima.energy[chosen]):
                chosen.append(row)
        return minima[np.array(chosen, dtype=int)]

    def coverage(self, before: int) -> Coverage:
        """What is missing, with all that the audit cost since `before`.

        Where the flow is too poor to tell, what it gives by far the least is named all the same.
        """
        known, weights = self._log_weights(self.known)
        why_not = self._too_poor(weights)
        least, limit = self._limits(weights, _CERTAIN if why_not else _MISSED)
        forms, kept, minima = self._compared(known, weights, limit)
        doubtful = self._compared(known, weights, least)[0] if limit > least and not forms and not why_not else []
        if doubtful:
            why_not = (
                f"the flow's weights spread so far (ESS {100 * self.samples.ess:.1f} %) that these cannot be told "
                f"from missing ones: {'; '.join(map(str, doubtful))}: train longer"
            )
        return Coverage(
            forms=forms,
            kept=kept,
            why_not=why_not,
            evaluations=self.flow.potential.evaluations - before,
            walkers=self.walkers,
            picoseconds=0.003 * self.steps,
            temperatures=(_COOLEST * self.kT / KB, _HOTTEST * self.kT / KB),
            minima=minima,
        )

    def _too_poor(self, weights: np.ndarray) -> str:
        """Why what is missing cannot be told, of the log-weights at the flow's own minima; empty where it can."""
        if not self.rounds:
            return "it was ended, or its budget was, before it had seen anything"
        fine = np.isfinite(weights)
        if not fine.any() or np.isfinite(self.samples.log_weights).sum() < _LEAST_SAMPLES:
            return "no sample leads to a minimum of the flow's own form: train longer"
        short = float(np.median(weights[fine]))
        if short > _UNTRAINED:
            return (
                f"the flow gives the minima next to its own samples e^{short:.0f} times too little, so what is missing "
                "cannot be told: train longer"
            )
        effective = self.samples.ess * self.samples.n
        if effective < _LEAST_SAMPLES:
            return (
                f"{self.samples.n:,} samples of the flow are worth {effective:.1f} (ESS "
                f"{100 * self.samples.ess:.1f} %), so what is missing cannot be told: train longer"
            )
        return ""

    def _compared(
        self, known_x: np.ndarray, known_weights: np.ndarray, limit: float
    ) -> tuple[list[Form], list[Form], int]:
        """What is missing if log-weights from `limit` on say so, what is kept out, and how many minima are given."""
        own = _Minima(known_x, self.known.energy)
        known = self._distinct(own[known_weights < limit])
        found = self._distinct(self.found.with_(own[known_weights >= limit]))
        if not len(known):
            known = self.reference
        known, missing = self._parted(found, known, limit)
        if len(missing):  # an unfinished descent leaves one minimum at several energies
            lowest = known[np.array([known.energy.argmin()])]
            known, missing = self._parted(self._distinct(self._relaxed(missing.with_(lowest))), known, limit)
        forms, kept = self._weighed(missing, known)
        return forms, kept, len(known)

    def _parted(self, found: _Minima, known: _Minima, limit: float) -> tuple[_Minima, _Minima]:
        """The minima that the flow gives, those included that are new among them, and the others."""
        found = found[found.energy < known.energy.min() + _ABOVE * self.kT]
        x, weights = self._log_weights(found)
        reached = weights < limit
        known = self._distinct(known.with_(_Minima(x[reached], found.energy[reached])))
        prints = self.fingerprint(known.x)
        missing = [
            k
            for k in np.flatnonzero(~reached)
            if not self.fingerprint.among(self.fingerprint(x[[k]])[0], found.energy[k], prints, known.energy)
        ][: _MOST_FORMS if self.rounds else 1]
        return known, _Minima(x, found.energy)[np.array(missing, dtype=int)]

    def _relaxed(self, minima: _Minima) -> _Minima:
        """The same, minimised to the end by OpenMM."""
        driven = Driven(self.flow.system, ())
        x, energies = zip(*(driven.minimised(structure) for structure in minima.x), strict=True)
        return self._sound(_Minima(np.stack(x), np.array(energies)))

    def _limits(self, weights: np.ndarray, least: float) -> tuple[float, float]:
        """The log-weights at a minimum from which the flow may give too little there, and from which it does.

        Where the density is far too low even a sample that led there does not count: it came from a tail. The spread is
        that of the larger weights: samples of bad structures, whose weights are tiny, say nothing of what is missing.

        Arguments:
            weights: log-weights at the flow's own minima; where none is finite, that at the input's counts.
            least: by which a missing one exceeds them.
        """
        if not np.isfinite(weights).any():
            weights = self._log_weights(self.reference)[1]
        fine, logs = (values[np.isfinite(values)] for values in (weights, self.samples.log_weights))
        middle, high = np.quantile(logs, [0.5, 0.84]) if len(logs) else (0.0, 0.0)
        own = float(np.median(fine)) if len(fine) else np.inf
        return own + least, own + max(least, _SPREADS * (high - middle))

    def _log_weights(self, minima: _Minima) -> tuple[np.ndarray, np.ndarray]:
        """The minima with their atoms relabelled into the domain, and `-u - log q - log Z` there."""
        x, log_z = self.relabel(minima.x), self.samples.logZ if np.isfinite(self.samples.logZ) else 0.0
        if not len(x):
            return x, np.empty(0)
        q, _ = self.flow.coordinates.to_internal(self.flow.compute.tensor(x))
        x_exact = self.flow.coordinates.to_cartesian(q)[0].cpu().numpy()  # constrained bonds as long as they are
        return x, -minima.energy / self.kT - self.flow.log_density_at(x_exact) - log_z

    def _weighed(self, minima: _Minima, known: _Minima) -> tuple[list[Form], list[Form]]:
        """Forms that are missing, and those that are kept out because the input's isomer is kept."""
        if not len(minima):
            return [], []
        coordinates, potential = self.flow.coordinates, self.flow.potential
        logs = np.array([log_partition(potential, coordinates, x, self.kT, self.parallel) for x in minima.x])
        own = log_partition(potential, coordinates, known.x[known.energy.argmin()], self.kT, self.parallel)
        own = np.fmax(own, self.samples.logZ)  # which is NaN without a finite sample
        everything = np.logaddexp.reduce([own, *logs])
        turning = coordinates.turning(self.perceived.axes)
        differences = Differences(self.perceived, turning, list(self.flow.slow_names), known.x)
        barriers = {axis.name: _barrier(axis) for axis in self.perceived.axes}
        forms, kept = [], []
        for x, energy, log in zip(minima.x, minima.energy, logs, strict=True):
            difference = differences(x)
            weight, share = float(np.exp(log - everything)), float(np.exp(log - np.logaddexp(own, log)))
            names = [name for name in difference.axes if name in barriers]
            wall = max((barriers[name] for name in names), default=None)
            form = self._form(difference, float(energy - known.energy.min()), weight, x, wall)
            if wall is not None and (wall > _CONFIGURATION or (wall > TURNING_BARRIER and share < 0.5)):
                kept.append(form)
            elif weight >= _LIGHTEST:
                forms.append(form)
        return heaviest_first(forms), heaviest_first(_one_each(kept))

    def _form(self, difference: Difference, energy: float, weight: float, x: np.ndarray, wall: float | None) -> Form:
        barrier = wall if wall is not None and np.isfinite(wall) else None
        return Form(difference.what, energy, weight, difference.include, rounded(x), barrier)


def _barrier(axis: Axis) -> float:
    """Of the form that is the easiest to reach; infinity where none was found."""
    return min((form.barrier for form in axis.others), default=np.inf)


def _one_each(forms: list[Form]) -> list[Form]:
    """The lowest form of each kind."""
    lowest: dict[str, Form] = {}
    for form in forms:
        if form.what not in lowest or form.energy < lowest[form.what].energy:
            lowest[form.what] = form
    return list(lowest.values())
