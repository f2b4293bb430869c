"""Tempering rules against a case that can be solved by hand."""

import dataclasses
import math

import pytest
import torch

import openmm_cgflow as cgf
from openmm_cgflow.training import AdaptiveTempering, GeometricTempering, Level


def test_geometric_schedule_reaches_one_in_its_number_of_levels():
    schedule = GeometricTempering(beta=0.1, levels=3)
    level, betas = Level(schedule.beta), []
    for _ in range(4):
        level = schedule.advance(level, torch.zeros(1), torch.zeros(1))
        betas.append(level.beta)
    assert betas == pytest.approx([0.1 ** (2 / 3), 0.1 ** (1 / 3), 1.0, 1.0])


def test_adaptive_step_of_a_gaussian_is_the_analytic_one():
    """u = x^2 / 2, q = N(0, s^2): KL and its change are known in closed form."""
    n, s, beta = 400_000, 1.6, 0.3
    x = s * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_q = -0.5 * (x / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
    rule = AdaptiveTempering(beta=beta, delta=0.2, largest=0.7, floor=0.0)
    new = rule.advance(Level(beta), 0.5 * x * x, log_q)

    def log_z(b):
        return 0.5 * math.log(2 * math.pi / b)

    def divergence(b):
        return log_z(b) + b * s * s / 2 - math.log(s) - 0.5 * math.log(2 * math.pi) - 0.5

    step = 0.7
    while (divergence(beta + step) - divergence(beta)) / divergence(beta) > 0.2:
        step *= 0.6
    assert new.beta == pytest.approx(beta + step)
    # standard error of the estimated log Z is below 0.002
    assert new.log_z == pytest.approx(log_z(new.beta), abs=0.01)


def test_adaptive_tempering_never_passes_one():
    rule = AdaptiveTempering(beta=0.99, largest=0.5)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert rule.advance(Level(0.99), 0.5 * x * x, -0.5 * x * x - 0.5 * math.log(2 * math.pi)).beta == 1.0


def test_schedules_hold_no_state():
    for schedule in (AdaptiveTempering(), GeometricTempering()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            schedule.beta = 0.5


@pytest.mark.parametrize("schedule", [{"beta": 0.0}, {"beta": 1.5}, {"steps": 0}])
def test_impossible_schedules_are_named(schedule):
    for kind in (AdaptiveTempering, GeometricTempering):
        ((name, value),) = schedule.items()
        with pytest.raises(cgf.InvalidInputError, match=f"{kind.__name__}: {name} is {value}"):
            kind(**schedule)
