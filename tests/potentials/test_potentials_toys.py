import math

import pytest
import torch

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials import DoubleWell, GaussianMixture, ManyWell


def test_double_well_energy_and_log_z():
    target = DoubleWell()
    x = torch.tensor([[1.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(target.energy(x), torch.tensor([0.25, 4.0 - 12.0 - 2.0], dtype=torch.float64))
    a = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    grid = torch.cartesian_prod(a[::4], a[::4])
    integral = torch.exp(-target.energy(grid)).sum() * (a[4] - a[0]) ** 2
    assert math.log(integral) == pytest.approx(target.log_z, abs=1e-8)


def test_many_well_log_z_is_the_published_one():
    pair = math.log(11784.50927) + 0.5 * math.log(2 * math.pi)
    assert ManyWell(32).log_z == pytest.approx(16 * pair, abs=1e-6)
    x = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
    assert ManyWell(4).energy(x).item() == pytest.approx((1 - 6 - 0.5 + 2) + (1 - 6 + 0.5 + 0.125))


def test_mixture_density_is_that_of_torch():
    generator = torch.Generator().manual_seed(4)
    means = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    factors = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64).tril() + 3 * torch.eye(5)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    target = GaussianMixture(means, factors, 10 * weights)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, scale_tril=factors)
    )
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(target.energy(x), -reference.log_prob(x))
    assert target.log_z == 0.0


def test_paper_mixture_has_its_structure():
    target = GaussianMixture.paper(seed=1)
    assert target.dim == target.n_atoms == 20
    covariance = target.scale_tril @ target.scale_tril.mT
    torch.testing.assert_close(covariance[0, :10, :10], 0.01 * torch.eye(10))
    b = covariance[0, 10:, :10] / 0.01
    torch.testing.assert_close(target.means[:, 10:], target.means[:, :10] @ b.T, rtol=1e-4, atol=1e-5)
    rest = covariance[0, 10:, 10:] - 0.01 * b @ b.T
    torch.testing.assert_close(rest, 0.01 * torch.eye(10), rtol=1e-4, atol=1e-5)
    assert target.means[:, :10].abs().max() <= 1


@pytest.mark.parametrize("target", [DoubleWell(), ManyWell(4), GaussianMixture.paper()], ids=["dw", "mw", "gm"])
def test_gradient_count_and_shape(target):
    x = torch.randn(6, target.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = target.double()
    before = target.evaluations
    assert torch.autograd.gradcheck(target.energy, x.requires_grad_(True))
    energy, forces = target.energy_and_forces(x)
    assert energy.shape == (6,)
    assert forces.shape == x.shape
    assert target.evaluations > before
    with pytest.raises(InvalidInputError, match="needs"):
        target.energy(torch.zeros(2, target.dim + 1))


def test_bad_toys_are_named():
    with pytest.raises(InvalidInputError, match="is 5"):
        ManyWell(5)
    with pytest.raises(InvalidInputError, match="do not fit"):
        GaussianMixture(torch.zeros(2, 3), torch.eye(3).expand(3, 3, 3))
