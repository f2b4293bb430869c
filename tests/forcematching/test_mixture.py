"""The mean of several densities of beads is a density."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from openmm_cgflow.flows import BeadFlow, SoftVariables, StiffDensity
from openmm_cgflow.forcematching import BeadMixture

TURN = 2 * math.pi


def member(seed: int, n_slow: int = 2, n_stiff: int = 2) -> BeadFlow:
    """A density away from its start."""
    torch.manual_seed(seed)
    slow = SoftVariables(torch.zeros(n_slow), torch.full((n_slow,), TURN), 0, 5, 16, 2)
    stiff = StiffDensity(torch.ones(n_stiff), torch.full((n_stiff,), 0.1), slow.n_features, 2, 16, 3)
    flow = BeadFlow(slow, stiff)
    with torch.no_grad():
        for parameter in flow.parameters():
            width = max(1, parameter.shape[-1] if parameter.dim() else 1)
            parameter += 0.5 * torch.randn(parameter.shape) / math.sqrt(width)
    return flow.double().requires_grad_(False)


@pytest.fixture(scope="module")
def mixture() -> BeadMixture:
    return BeadMixture([member(seed) for seed in range(3)])


def grid(points: int) -> Tensor:
    line = (torch.arange(points, dtype=torch.float64) + 0.5) / points * TURN - math.pi
    return torch.cartesian_prod(line, line)


def test_mixture_is_the_mean_of_its_members(mixture, generator):
    value = mixture.sample(50, generator).value
    mean = torch.stack([part.log_prob(value).exp() for part in mixture.members]).mean(0)
    torch.testing.assert_close(mixture.log_prob(value), mean.log())
    members = [part.log_prob(value) for part in mixture.members]
    assert min((a - b).abs().max() for a, b in pairwise(members)) > 0.5  # they do differ


def test_mixture_is_normalised_in_torsions_and_in_stiff_coordinates(mixture):
    points = grid(90)
    slow = mixture.log_prob_slow(points)
    assert float(slow.exp().mean()) * TURN**2 == pytest.approx(1, abs=1e-6)
    # integral over the stiff ones at given torsions is the density of these
    torsions = torch.tensor([[0.3, -1.0], [2.0, 2.5]], dtype=torch.float64)
    line = torch.linspace(-1, 3, 160, dtype=torch.float64)
    stiff = torch.cartesian_prod(line, line)
    for row in torsions:
        value = torch.cat([row.expand(len(stiff), 2), stiff], dim=1)
        whole = float(mixture.log_prob(value).exp().sum()) * float(line[1] - line[0]) ** 2
        assert whole == pytest.approx(float(mixture.log_prob_slow(row[None]).exp()), rel=2e-3)


def test_mixture_draws_its_members_alike_and_what_it_says(mixture, generator):
    noise = mixture.draw_noise(6000, generator)
    assert noise.shape == (6000, mixture.n_noise)
    assert mixture.n_noise == mixture.members[0].n_noise + 1
    value, log_prob = mixture.sample_from(noise)
    torch.testing.assert_close(log_prob, mixture.log_prob(value))
    chosen = (noise[:, 0] * 3).long()
    for k, part in enumerate(mixture.members):
        mine = chosen == k
        assert 1850 < int(mine.sum()) < 2150  # 4.1 standard deviations: chance 1 in 25,000 each, were it not seeded
        torch.testing.assert_close(value[mine], part.decode(noise[mine, 1:], noise[mine, :0]).value)


def test_mixture_of_one_is_that_one(generator):
    part = member(4)
    value = part.sample(20, generator).value
    torch.testing.assert_close(BeadMixture([part]).log_prob(value), part.log_prob(value))


@pytest.mark.parametrize("members", [[], [(2, 2), (2, 3)], [(2, 2), (1, 3)]])
def test_mixture_of_nothing_or_of_unlike_densities_is_refused(members):
    with pytest.raises(ValueError, match="one or more densities of the same sizes"):
        BeadMixture([member(0, *sizes) for sizes in members])
