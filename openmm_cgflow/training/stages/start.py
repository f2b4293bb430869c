"""The Laplace start: Gaussians around minima, found with a few thousand energies, and a flow that is fitted to them."""

import math
from typing import Any

import torch
from torch import Tensor

from openmm_cgflow.compute import choose
from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.training.broad import Broad
from openmm_cgflow.training.laplace import LaplaceMixture, curvature_factor, laplace
from openmm_cgflow.training.loop import Loop
from openmm_cgflow.training.objectives import negative_log_likelihood
from openmm_cgflow.training.plan import Plan, least_plan, make_plan
from openmm_cgflow.training.start import anneal_soft, separating_directions
from openmm_cgflow.training.task import Task

__all__ = ["Start"]

_SHARE, _LARGEST_SHARE = 0.3, 0.6  # of the budget: first without giving up much, then in any case
_ANOTHER = 0.35  # radians by which a soft variable of another form differs
_FAR = 30.0  # kT: points that are higher than the lowest by more say nothing of the means
_HELD = 1e-2  # of the variance of a feature
_FEW = 24  # points below which the larger share is taken


class Start:
    """Makes the start as large as the budget allows, and fits the flow to it; there is no state but the flow's.

    Arguments:
        task: what is trained.
    """

    following = "soft"

    def __init__(self, task: Task) -> None:
        self.task = task

    def groups(self) -> list[dict[str, Any]]:
        """All of the flow."""
        task = self.task
        return [{"params": [*task.stiff_parameters(), *task.soft_parameters()], "factor": 1.0}]

    def run(self, loop: Loop) -> None:
        """The start, and the fit."""
        plan = self._plan(loop)
        self.task.begin_anew()
        mixture, weights = self._laplace(loop, plan)
        loop.report("laplace", self.task.replay.dropped)
        self._fit(loop, mixture, weights)
        self.task.broad = Broad(self.task.flow)

    def _searching(self) -> bool:
        coordinates = self.task.target.coordinates
        return isinstance(coordinates, LinearCoordinates) and coordinates.learned

    def _plan(self, loop: Loop) -> Plan:
        """What the budget can pay for.

        Raises:
            InvalidInputError: if that is nothing.
        """
        task, settings, budget = self.task, self.task.settings, loop.budget
        stiff, directions = task.stiff.numel(), task.target.coordinates.dof if self._searching() else 0
        left = budget.total * (1 - budget.fraction)
        for share, few in ((_SHARE, _FEW), (_LARGEST_SHARE, 1)):
            wanted = (stiff, directions, task.soft.numel(), settings.points, settings.sweeps, few)
            if plan := make_plan(share * left, *wanted):
                return plan
        budget.check()
        raise InvalidInputError(self._too_little(loop, least_plan(stiff, directions, task.soft.numel()).cost))

    def _too_little(self, loop: Loop, cost: int) -> str:
        least, budget = math.ceil(cost / _LARGEST_SHARE), loop.budget
        if budget.evaluations is not None and budget.evaluations < least + budget.used:
            return (
                f"train: evaluations is {budget.evaluations:,}; give at least {least + budget.used:,}, which a start "
                "of this flow needs. Nothing was changed."
            )
        assert budget.seconds is not None
        assert budget.rate is not None
        seconds = least / budget.rate + budget.elapsed
        return (
            f"train: time is {budget.seconds:g} s; a start needs at least {least:,} energies, and one takes "
            f"{1000 / budget.rate:.2g} ms here: give at least {math.ceil(2 * seconds)} s. Nothing was changed."
        )

    def _laplace(self, loop: Loop, plan: Plan) -> tuple[LaplaceMixture, Tensor]:
        """The mixture, and weights `(points,)` by which it is the target's density with its barriers flattened."""
        task, settings, parallel = self.task, self.task.settings, loop.parallel
        target, coordinates = task.target, task.target.coordinates
        if plan.directions:
            loop.tell("start: searching for slow directions")
            found = separating_directions(target, plan.points, parallel, task.generator, plan.descent, plan.descents)
            assert isinstance(coordinates, LinearCoordinates)
            coordinates.turn(found)
            parallel.forget()  # of the coordinates as they were
        loop.tell("start: minimising, and the curvature of the energy")
        reference, scale = coordinates.reference.float().unsqueeze(0), coordinates.scale.float()
        structure, factor = curvature_factor(target, reference, task.stiff, scale, parallel, plan.descents)
        points = self._spread(structure, plan.points)
        if plan.sweeps:
            loop.tell(f"start: annealing {len(points):,} walkers over {task.soft.numel()} torsions")
            points = anneal_soft(
                target,
                points,
                task.soft,
                task.stiff,
                factor,
                parallel,
                task.generator,
                plan.sweeps,
                settings.flattening,
            )
        loop.tell(f"start: Gaussians of the stiff coordinates around {len(points):,} minima")
        mixture = laplace(target, points, task.stiff, factor, parallel, plan.iterations, plan.measured)
        fine = torch.isfinite(mixture.log_partition)
        if not bool(fine.any()):
            raise TrainingError("every energy of the Laplace start is infinite or NaN; check the System.")
        if plan.sweeps:
            return mixture, fine.float()
        flat = torch.where(fine, mixture.log_partition / settings.flattening, -math.inf)
        return mixture, torch.softmax(flat, 0)

    def _spread(self, structure: Tensor, n: int) -> Tensor:
        """`n` copies of a structure with its soft variables on a low-discrepancy set; the first as it was.

        Where other forms of the structure are known, most copies are of one of them all, and keep its values of the
        soft variables in which the forms differ: no chance finds the few places where a ring is closed.
        """
        points, soft = structure.expand(n, -1).clone(), self.task.soft
        if soft.numel() and n > 1:
            sobol = torch.quasirandom.SobolEngine(soft.numel(), scramble=True, seed=self.task.seed())
            span = self.task.target.coordinates.span[soft].float()
            points[1:, soft] += (sobol.draw(n - 1).to(points) - 0.5) * span
            if self.task.forms is not None:
                self._place_forms(points[1:], torch.cat([structure, self.task.forms.to(structure)]))
        return points

    def _place_forms(self, points: Tensor, forms: Tensor) -> None:
        """Put points `(n, dof)` into forms `(k, dof)`, one after the other, but for a fifth of the points."""
        soft, period = self.task.soft, self.task.target.coordinates.period[self.task.soft].to(forms)
        apart = (forms - forms[0])[:, soft]
        apart = (apart - period * torch.round(apart / period.clamp(min=1e-9))).abs()
        free = soft[~(apart > _ANOTHER).any(0)]
        kept = torch.arange(len(points), device=points.device)
        kept = kept[kept % 5 > 0]
        placed = forms[torch.arange(len(kept), device=points.device) % len(forms)]
        placed[:, free] = points[kept][:, free]
        points[kept] = placed

    def _fit(self, loop: Loop, mixture: LaplaceMixture, weights: Tensor) -> None:
        """Maximum likelihood on samples of the mixture; no energies needed."""
        task, settings = self.task, self.task.settings
        self._set_factors(mixture)
        self._set_means(mixture, weights)
        weights = weights.cpu()
        progress = loop.progress(settings.shares[0])
        for i in range(settings.fit_steps):
            done = progress(i / settings.fit_steps)
            if done >= 1:
                break
            n = loop.free_rows(settings.batch)
            chosen = choose(weights, n, task.generator)
            noise = torch.randn(n, task.stiff.numel(), generator=task.generator)
            (q,) = loop.parallel.map(lambda *rows: (mixture.place(*rows),), chosen, noise)
            blurred = task.replay.blurred(q, settings.start_blur)
            with task.flow.gaussian():
                loss, _ = task.step(loop, task.rate(0, done), self.loss, q, blurred)
            if (i + 1) % 50 == 0:
                loop.report("fit", task.replay.dropped, loss=loss)

    def loss(self, q: Tensor, blurred: Tensor) -> Tensor:
        """What is minimised, `()`, of the mixture's samples `(n, dof)`, and of these with other soft variables."""
        return negative_log_likelihood(self.task.flow, q, blurred)

    @torch.no_grad()
    def _set_factors(self, mixture: LaplaceMixture) -> None:
        """Start the Gaussian factors from the mean covariance of the start's points."""
        flow = self.task.flow
        n_bead = flow.sizes[1]
        scale = self.task.target.coordinates.scale[self.task.stiff].float()
        covariance = mixture.factors @ mixture.factors.transpose(1, 2) / (scale[:, None] * scale)
        factor = torch.linalg.cholesky(covariance[torch.isfinite(mixture.log_partition)].mean(0))
        beads, atoms = flow.stiff_densities()
        beads.set_factor(factor[:n_bead, :n_bead])
        atoms.set_factor(factor[n_bead:, n_bead:])
        n_features = flow.bead_flow.slow.n_features
        atoms.linear.weight[:, n_features : n_features + n_bead] = factor[n_bead:, :n_bead]

    @torch.no_grad()
    def _set_means(self, mixture: LaplaceMixture, weights: Tensor) -> None:
        """Start the Gaussians' means as the linear functions of the features that come nearest to the start's points.

        Rings that flip have stiff torsions that are some twenty widths apart in both forms, which is more than the
        steps of the fit could learn.
        """
        flow = self.task.flow
        weights = torch.where(mixture.log_partition > mixture.log_partition.max() - _FAR, weights, 0.0)
        slow, bead, rotor, atom = flow.split(mixture.minima)
        beads, atoms = flow.stiff_densities()
        features = flow.bead_flow.slow.features(slow)
        n, known = features.shape[1], torch.cat([features, torch.zeros_like(bead)], dim=1)
        slopes, constant = _regression((bead - beads.reference) / beads.scale - beads.bend(features), features, weights)
        beads.linear.weight.copy_(slopes)
        beads.reference += beads.scale * constant
        rotors = flow.atom_flow.rotors.features(rotor)
        bent = atoms.bend(torch.cat([known, rotors], dim=1))
        features = torch.cat([features, rotors], dim=1)
        slopes, constant = _regression((atom - atoms.reference) / atoms.scale - bent, features, weights)
        atoms.linear.weight[:, :n] = slopes[:, :n]
        atoms.linear.weight[:, known.shape[1] :] = slopes[:, n:]
        atoms.reference += atoms.scale * constant

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to set."""


def _regression(values: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes `(n, n_features)` and constants `(n,)` of the linear function nearest to values `(points, n)`."""
    share = (weights / weights.sum()).double().unsqueeze(1)
    v, c = values.double(), features.double()
    v_mean, c_mean = (share * v).sum(0), (share * c).sum(0)
    v, c = v - v_mean, c - c_mean
    weighted = share * c
    held = weighted.T @ c + _HELD * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    slopes = torch.linalg.solve(held, weighted.T @ v).T
    return slopes.to(values), (v_mean - slopes @ c_mean).to(values)
