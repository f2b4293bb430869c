"""The judge of bead energies against answers that are known."""

import math

import numpy as np
import pytest
import torch
from analytic import KT, Analytic, CartesianEnergy, beads_of, flow_of
from openmm import unit

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching import BeadMarginal, judge_beads, reweighted_histogram, torsion_histogram


@pytest.fixture(scope="module", params=["butane", "aldp_vacuum"])
def beads(request):
    return beads_of(request.param)


def test_marginal_of_a_known_density(beads):
    known = Analytic(beads)
    found = judge_beads(CartesianEnergy(known, beads), flow_of(beads), beads, KT, bins=30, n=20_000)
    expected = known.probabilities(30).numpy()
    assert found.probabilities.shape == expected.shape
    assert found.probabilities.sum() == pytest.approx(1)
    # 34,400 points with an ESS of a half: the noise of log Z is 0.008, and of a JS (cells - 1) / 8 / points = 0.006
    assert abs(found.log_z) < 0.04
    assert found.js(expected) < 0.01
    assert found.population() == pytest.approx(expected[15:].sum(), rel=0.06)
    assert 0.2 < found.ess < 1


def test_without_a_flow_one_is_made_of_the_energy(beads):
    known = Analytic(beads)
    found = judge_beads(CartesianEnergy(known, beads), None, beads, KT, bins=30, n=20_000)
    expected = known.probabilities(30).numpy()
    assert abs(found.log_z) < 0.03
    assert found.js(expected) < 0.003  # cells have points by their own probability: 900 / 8 / 20,000 / ESS at worst
    assert found.ess > 0.7  # the width of the points that it begins with is not that of the density
    again = judge_beads(CartesianEnergy(known, beads), None, beads, KT, bins=30, n=20_000)
    np.testing.assert_array_equal(again.probabilities, found.probabilities)


def test_a_constant_changes_log_z_alone(beads):
    energy, flow = CartesianEnergy(Analytic(beads), beads), flow_of(beads)
    found = judge_beads(energy, flow, beads, KT, bins=12, n=500)
    moved = judge_beads(lambda x: energy(x) + 3 * KT, flow, beads, KT, bins=12, n=500)
    assert moved.log_z == pytest.approx(found.log_z - 3, abs=1e-9)
    assert moved.kl == pytest.approx(found.kl, abs=1e-9)
    np.testing.assert_allclose(moved.probabilities, found.probabilities, rtol=1e-9)


def test_a_flow_judged_by_itself(beads):
    flow = flow_of(beads)
    found = judge_beads(CartesianEnergy(flow, beads), flow, beads, KT, bins=60, n=20_000)
    assert abs(found.log_z) < 0.01  # of the jitter within the cells alone
    assert abs(found.kl) < 0.01
    assert found.ess > 0.99
    axis = -math.pi + math.pi / 30 * (torch.arange(60).double() + 0.5)
    grid = torch.cartesian_prod(*[axis] * flow.slow.n).reshape(-1, flow.slow.n)
    expected = torch.softmax(flow.slow.log_prob(grid), 0).detach().reshape(found.probabilities.shape)
    assert found.js(expected.numpy()) < 1e-4


def test_divergence_of_a_shift(beads):
    # KL of two normals of one width, half a standard deviation apart: 1/8 for each coordinate
    flow, moved = flow_of(beads), flow_of(beads)
    moved.stiff.reference += 0.5 * flow.stiff.scale
    found = judge_beads(CartesianEnergy(moved, beads), flow, beads, KT, bins=12, n=40_000)
    assert found.kl == pytest.approx(flow.stiff.n / 8, rel=0.05)


def test_log_z_of_springs():
    # in Cartesian coordinates, where the Jacobian must come in by itself: integrals over r^2 and sin(angle)
    beads = beads_of("butane")
    r0, a0 = 0.153, 1.95
    k_bond, k_angle = KT / 0.003**2, KT / 0.06**2

    def energy(x):
        b = x[:, 1:] - x[:, :-1]
        r = b.norm(dim=2)
        cosine = -(b[:, 1:] * b[:, :-1]).sum(2) / (r[:, 1:] * r[:, :-1])
        q = beads.to_internal(x)[0]
        return (
            0.5 * k_bond * ((r - r0) ** 2).sum(1)
            + 0.5 * k_angle * ((torch.arccos(cosine) - a0) ** 2).sum(1)
            + 1.5 * KT * torch.cos(3 * q[:, 0])
        )

    def integral(f, low, high):
        t = np.linspace(low, high, 4001)
        return np.trapezoid(f(t), t)

    z = integral(lambda r: r**2 * np.exp(-0.5 * ((r - r0) / 0.003) ** 2), 0.12, 0.18) ** 3
    z *= integral(lambda a: np.sin(a) * np.exp(-0.5 * ((a - a0) / 0.06) ** 2), 1.5, 2.4) ** 2
    z *= integral(lambda t: np.exp(-1.5 * np.cos(3 * t)), -np.pi, np.pi)
    found = judge_beads(energy, flow_of(beads), beads, KT, bins=36, n=60_000)
    assert found.log_z == pytest.approx(math.log(z), abs=0.05)  # 5 standard errors
    assert found.population() == pytest.approx(0.5, abs=0.02)


def test_more_torsions_than_a_grid_has():
    beads = beads_of("ALA3")
    flow = flow_of(beads)
    assert flow.slow.n > 2
    energy = CartesianEnergy(flow, beads)
    found = judge_beads(energy, flow, beads, KT, bins=6, n=4_000, axes=(2,))
    assert abs(found.log_z) < 0.01
    assert found.ess == pytest.approx(1, abs=0.01)
    drawn = flow.slow.sample(20_000, torch.Generator().manual_seed(5)).value[:, 2].numpy()
    assert found.js(torsion_histogram(drawn, bins=6)) < 0.002  # of noise: 0.0002
    both = judge_beads(energy, flow, beads, KT, bins=6, n=500, axes=(0, 2))
    assert both.probabilities.shape == (6, 6)


def test_axes_are_chosen():
    beads = beads_of("aldp_vacuum")
    energy, flow = CartesianEnergy(Analytic(beads), beads), flow_of(beads)
    whole = judge_beads(energy, flow, beads, KT, bins=12, n=500)
    for axes, expected in (((0,), whole.probabilities.sum(1)), ((1,), whole.probabilities.sum(0))):
        found = judge_beads(energy, flow, beads, KT, bins=12, n=500, axes=axes)
        np.testing.assert_allclose(found.probabilities, expected)
    turned = judge_beads(energy, flow, beads, KT, bins=12, n=500, axes=(1, 0))
    np.testing.assert_allclose(turned.probabilities, whole.probabilities.T)
    assert turned.population(1) == pytest.approx(whole.population(0))


def test_divergences_of_two_histograms():
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    found = BeadMarginal(q, 0.0, 0.0, 1.0, KT)
    assert found.js(p) == pytest.approx(0.75 * math.log(4 / 3))
    assert found.js(7 * q) == 0
    assert found.kl_from(p) == math.inf
    assert BeadMarginal(p, 0.0, 0.0, 1.0, KT).kl_from(q) == pytest.approx(math.log(2))
    other = BeadMarginal(np.array([0.5, 0.25, 0.25, 0.0]), 0.0, 0.0, 1.0, KT)
    expected = ((np.log([1, 2]) * KT / 4.184) ** 2).mean()
    assert other.free_energy_mse(np.array([0.5, 0.5, 1e-6, 0.0])) == pytest.approx(expected, rel=1e-4)


def test_infinite_energies_are_where_nothing_is():
    beads = beads_of("butane")
    energy, flow = CartesianEnergy(flow_of(beads), beads), flow_of(beads)

    def half(x):
        return torch.where(beads.to_internal(x)[0][:, 0] > 0, energy(x), torch.inf)

    found = judge_beads(half, flow, beads, KT, bins=12, n=500)
    assert found.population() == pytest.approx(1, abs=1e-12)
    assert math.isinf(found.kl)


def test_bad_input_is_named():
    beads = beads_of("butane")
    flow = flow_of(beads)
    with pytest.raises(InvalidInputError, match=r"axes is \(1,\), but there are 1 slow"):
        judge_beads(lambda x: x.sum((1, 2)), flow, beads, KT, axes=(1,))
    with pytest.raises(InvalidInputError, match="the energy is NaN at"):
        judge_beads(lambda x: torch.nan * x.sum((1, 2)), flow, beads, KT, bins=12, n=100)
    with pytest.raises(InvalidInputError, match="bins is 0"):
        judge_beads(lambda x: x.sum((1, 2)), flow, beads, KT, bins=0)
    found = BeadMarginal(np.full(5, 0.2), 0.0, 0.0, 1.0, KT)
    with pytest.raises(InvalidInputError, match="an even number of bins"):
        found.population()
    with pytest.raises(MismatchError, match=r"reference has shape \(4,\)"):
        found.js(np.full(4, 0.25))
    with pytest.raises(InvalidInputError, match="negative, infinite or no"):
        found.js(np.zeros(5))
    with pytest.raises(InvalidInputError, match=r"shape \(2, 3\)"):
        torsion_histogram(np.zeros((2, 3)))
    with pytest.raises(InvalidInputError, match="no positive sum"):
        torsion_histogram(np.zeros(3), np.zeros(3))


def test_reweighted_histogram_has_the_noise_of_the_weights_alone(beads):
    flow = flow_of(beads)
    slow = flow.slow.sample(4_000, torch.Generator().manual_seed(2)).value
    tilt = 0.1 * torch.cos(slow).sum(1)  # an ESS of 99 %
    found = reweighted_histogram(flow, slow.numpy(), torch.exp(tilt).numpy(), bins=12)
    axis = -math.pi + math.pi / 60 * (torch.arange(120).double() + 0.5)
    grid = torch.cartesian_prod(*[axis] * flow.slow.n).reshape(-1, flow.slow.n)
    p = torch.softmax(flow.slow.log_prob(grid) + 0.1 * torch.cos(grid).sum(1), 0).detach()
    expected = p.reshape([s for _ in range(flow.slow.n) for s in (12, 10)]).sum(tuple(range(1, 2 * flow.slow.n, 2)))
    plain = torsion_histogram(slow.numpy(), torch.exp(tilt).numpy(), bins=12)
    judged = [BeadMarginal(h, 0.0, 0.0, 1.0, KT).js(expected.numpy()) for h in (found, plain)]
    assert judged[0] < 0.1 * judged[1]
    assert judged[1] == pytest.approx((found.size - 1) / 8 / 4_000, rel=0.6)
    with pytest.raises(InvalidInputError, match="torsions, but the flow has"):
        reweighted_histogram(flow, np.zeros((9, 3 - flow.slow.n)), np.ones(9))


@pytest.mark.parametrize("shape", ["a number", "a column"])
def test_an_energy_of_another_shape_is_refused(beads, shape):
    """One number for all rows was taken for that of each."""
    energy = CartesianEnergy(Analytic(beads), beads)

    def wrong(x):
        return energy(x).sum() if shape == "a number" else energy(x)[:, None]

    for flow in (flow_of(beads), None):
        with pytest.raises(InvalidInputError, match="one number for each"):
            judge_beads(wrong, flow, beads, KT, bins=12, n=200)


def test_judge_knows_units(beads):
    energy = CartesianEnergy(Analytic(beads), beads)
    found, same = (
        judge_beads(energy, flow_of(beads), beads, kT, bins=12, n=200)
        for kT in (KT, KT / 4.184 * unit.kilocalorie_per_mole)
    )
    assert same.log_z == pytest.approx(found.log_z)
    degrees = np.array([[30.0], [-100.0]])
    for given in (degrees * unit.degree, [row * unit.degree for row in degrees]):
        np.testing.assert_array_equal(torsion_histogram(given), torsion_histogram(np.radians(degrees)))
