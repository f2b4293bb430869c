"""The student: an energy of the shape alone, with exact gradients, that follows its teacher."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from analytic import KT, Analytic, CartesianEnergy, beads_of, flow_of

from openmm_cgflow.compute import Parallel, seeded
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.forcematching import (
    BeadNetwork,
    DistilSettings,
    StudentSettings,
    distil,
    judge_beads,
    training_points,
)
from openmm_cgflow.forcematching.density.teacher import labels

QUICK = DistilSettings(points=6_000, steps=500, batch=256, student=StudentSettings(hidden=48, layers=2))
TINY = DistilSettings(points=400, steps=5, batch=64, student=StudentSettings(hidden=8, layers=1))


@pytest.fixture(scope="module")
def beads():
    return beads_of("aldp_vacuum")


@pytest.fixture(scope="module")
def teacher(beads):
    return Analytic(beads)


@pytest.fixture(scope="module")
def distilled(teacher, beads):
    return distil(teacher, beads, KT, QUICK)


@pytest.fixture(scope="module")
def x(teacher, beads):
    return beads.to_cartesian(teacher.sample(500, seeded(7))[0])[0].contiguous()


def test_student_of_an_analytic_teacher(distilled, teacher, beads):
    found = judge_beads(distilled.student, flow_of(beads), beads, KT, bins=30, n=60_000)
    # the same points for the teacher, so that their noise falls out
    own = judge_beads(CartesianEnergy(teacher, beads), flow_of(beads), beads, KT, bins=30, n=60_000)
    expected = teacher.probabilities(30).numpy()
    assert found.js(own.probabilities) < 0.001
    assert found.js(expected) < 0.002 + own.js(expected)
    assert found.population() == pytest.approx(own.population(), rel=0.1)
    assert abs(found.log_z - own.log_z) < 0.05  # energies are those of a normalised density
    assert distilled.points == 6_000
    assert distilled.energy_error < 0.3
    assert distilled.force_error < 0.3


def test_energies_and_forces_are_the_teachers_in_sign_and_unit(distilled, teacher, beads, x):
    both = []
    for energy in (distilled.student, CartesianEnergy(teacher, beads)):
        at = x.clone().requires_grad_()
        value = energy(at)
        both.append((value.detach(), torch.autograd.grad(value.sum(), at)[0].flatten()))
    (e, g), (e_teacher, g_teacher) = both
    assert float((e - e_teacher).std()) < 0.3 * KT
    assert float((e - e_teacher).mean().abs()) < 0.2 * KT
    assert float(g @ g_teacher / (g_teacher @ g_teacher)) == pytest.approx(1, abs=0.03)


def test_labels_are_differences_of_the_cartesian_energy(teacher, beads):
    q = teacher.sample(5, seeded(3))[0]
    with Parallel(1) as parallel:
        energy, gradient = labels(teacher, beads, q, parallel)
    cartesian = CartesianEnergy(teacher, beads)

    def reduced(q):
        return cartesian(beads.to_cartesian(q)[0]) / KT

    torch.testing.assert_close(energy, reduced(q), rtol=0, atol=1e-9)
    for k in range(q.shape[1]):
        step = torch.zeros_like(q)
        step[:, k] = 1e-6
        numeric = (reduced(q + step) - reduced(q - step)) / 2e-6
        torch.testing.assert_close(gradient[:, k], numeric, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_forces_are_differences_of_the_energy(distilled, x, noise):
    # also where the walls are: 0.03 nm are ten widths of a bond
    start = x[:3] + noise * torch.randn(3, *x.shape[1:], generator=seeded(1), dtype=x.dtype)
    at = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distilled.student(at).sum(), at)
    for index in np.ndindex(*start.shape[1:]):
        step = torch.zeros_like(start)
        step[(slice(None), *index)] = 1e-6
        numeric = (distilled.student(start + step) - distilled.student(start - step)) / 2e-6
        np.testing.assert_allclose(gradient[(slice(None), *index)], numeric, rtol=1e-5, atol=2e-3)


def test_energy_is_of_the_shape_alone(distilled, x):
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=seeded(2), dtype=x.dtype))
    rotation = rotation * torch.linalg.det(rotation)
    energy = distilled.student(x)
    torch.testing.assert_close(distilled.student(x @ rotation + 1.7), energy, rtol=0, atol=1e-8)
    assert float((distilled.student(-x) - energy).abs().median()) > 1.0  # the mirror image is another shape
    assert float(distilled.student(x[4])) == pytest.approx(float(energy[4]), abs=1e-9)


def test_energy_is_smooth_where_torsions_jump(distilled, teacher, beads):
    q = teacher.sample(20, seeded(4))[0]
    for k in range(2):
        ends = []
        for angle in (np.pi - 1e-7, -np.pi + 1e-7):
            moved = q.clone()
            moved[:, k] = angle
            ends.append(distilled.student(beads.to_cartesian(moved)[0].contiguous()))
        torch.testing.assert_close(*ends, rtol=0, atol=1e-4)


def test_walls_drive_back_what_was_never_seen(distilled, teacher, beads):
    student = distilled.student
    q = teacher.sample(1, seeded(5))[0]
    for k in range(2, q.shape[1]):
        for side in (-1, 1):
            away = q.repeat(12, 1)
            away[:, k] = student.rest[k - 2] + side * torch.arange(3, 15) * student.stiffness[k - 2].rsqrt()
            energy = student(beads.to_cartesian(away)[0].contiguous()) / KT
            assert bool((energy.diff()[3:] > 5).all()), (beads.names[k], side)
            assert bool((energy.diff() < 200).all())


def test_one_seed_gives_one_student(teacher, beads, monkeypatch):
    def fitted(threads, **more):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        return distil(teacher, beads, KT, dataclasses.replace(TINY, **more)).student.state_dict()

    first, again, other = fitted("1"), fitted("2"), fitted("1", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


def test_a_flow_may_teach(beads):
    flow = flow_of(beads).float()  # as models hold them
    student = distil(flow, beads, KT, dataclasses.replace(TINY, steps=100)).student
    assert student.offset.dtype == torch.float64
    assert next(flow.parameters()).dtype == torch.float32  # it was copied
    x = beads.to_cartesian(flow.sample(300, seeded(1)).value.double())[0].contiguous()
    with torch.no_grad():
        off = student(x) - CartesianEnergy(flow_of(beads), beads)(x)
    assert float(off.abs().mean()) < KT


def test_points_cover_the_torsions(teacher, beads):
    points = training_points(teacher, beads, 3_000, 1 / 3, 12.0, seeded(0))
    assert (len(points.own), len(points.flat)) == (2_000, 1_000)
    assert points.q.shape == (3_000, beads.dof)
    # uniform where the floor lets them be: here that is the whole plane, a third of it in each third
    for k in range(2):
        thirds = torch.histc(torch.remainder(points.flat[:, k], 2 * np.pi), 3, 0, 2 * np.pi) / 1000
        assert float((thirds - 1 / 3).abs().max()) < 0.06  # four standard errors
    low = training_points(teacher, beads, 3_000, 1 / 3, 1.0, seeded(0))
    floor = teacher.log_prob(low.own).mean() - 1.0
    assert bool((teacher.log_prob(low.flat) > floor).all())
    assert bool((teacher.log_prob(points.flat) < floor).any())


def test_more_torsions_are_flattened_two_at_a_time():
    beads = beads_of("ALA3")
    teacher = flow_of(beads)
    points = training_points(teacher, beads, 900, 1 / 3, 30.0, seeded(0))
    assert len(points.flat) == 300
    n_slow = beads.sizes[0]
    same = (points.flat[:, None, :n_slow] == points.own[None, :, :n_slow]).sum(2).amax(1)
    assert bool((same == n_slow - 2).all())


def test_stiff_torsions_are_seen_by_sine_and_cosine():
    beads = beads_of("ALA3")
    stiff = [k for k, entry in enumerate(beads.layout.coordinates) if entry.torsion and k >= beads.sizes[0]]
    assert stiff  # peptide bonds
    network = BeadNetwork(beads, KT)
    network.calibrate(flow_of(beads).sample(100, seeded(0)).value)
    assert network.count_features(beads) == network.n_features
    q = beads.reference[None].repeat(2, 1)
    q[1, stiff[0]] += 2 * np.pi  # the same shape
    energies = network.reduced_energy(q, beads.to_cartesian(q)[0]).detach()
    assert float(energies[1]) == pytest.approx(float(energies[0]), abs=1e-9)


def test_bad_input_is_named(beads, teacher):
    with pytest.raises(InvalidInputError, match="steps is 0; give a whole number of at least 1"):
        DistilSettings(steps=0)
    with pytest.raises(InvalidInputError, match=r"flat is 1\.5; give a number from 0 to 0\.95"):
        DistilSettings(flat=1.5)
    with pytest.raises(InvalidInputError, match="held_out is nan"):
        DistilSettings(held_out=float("nan"))
    with pytest.raises(InvalidInputError, match="hidden layers of width 0"):
        BeadNetwork(beads, KT, StudentSettings(hidden=0))
    with pytest.raises(InvalidInputError, match="a student is of beads alone"):
        BeadNetwork(_whole("aldp_vacuum"), KT)
    with pytest.raises(InvalidInputError, match="calibrated by 1 points"):
        BeadNetwork(beads, KT).calibrate(beads.reference[None])

    class Broken(Analytic):
        def log_prob(self, q):
            return torch.where(q[:, 0] > 0, torch.nan, super().log_prob(q))

    with pytest.raises(TrainingError, match="density is not finite"):
        distil(Broken(beads), beads, KT, TINY)

    class Elsewhere(Analytic):
        def sample(self, n, generator=None):
            return (-super().sample(n, generator)[0],)  # negative bonds

    with pytest.raises(TrainingError, match="only 0 of 267 samples of the teacher are the isomer"):
        distil(Elsewhere(beads), beads, KT, TINY)


def _whole(name):
    from molecules import load

    from openmm_cgflow.coordinates import InternalCoordinates

    return InternalCoordinates.fromTopology(*load(name))


def test_students_of_many_coordinates_learn_at_fewer_points(beads, teacher, monkeypatch, caplog):
    n_features = BeadNetwork.count_features(beads)
    module = sys.modules["openmm_cgflow.forcematching.students.lessons"]
    monkeypatch.setattr(module, "_MOST_VALUES", 150 * n_features * beads.dof)
    with caplog.at_level("INFO", "openmm_cgflow"):
        found = distil(teacher, beads, KT, dataclasses.replace(TINY, points=10**7))
    assert found.points <= 200
    assert "instead of 10000000" in caplog.text
