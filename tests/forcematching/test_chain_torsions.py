"""One network for the torsions of a chain: a normalised density, and one that learns a chain from few frames."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from openmm_cgflow.flows import SoftVariables
from openmm_cgflow.forcematching import BeadModel, ChainTorsions, FitSettings
from openmm_cgflow.forcematching.density.likelihood import Rows, minimise_held_out
from openmm_cgflow.forcematching.density.splits import build_density

TURN = 2 * math.pi


def away_from_start(n: int) -> ChainTorsions:
    torch.manual_seed(0)
    density = ChainTorsions(torch.linspace(-1, 1, n), components=4, hidden=16, harmonics=2)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter += 0.4 * torch.randn(parameter.shape) / max(1, parameter.shape[-1]) ** 0.5
    return density.double()


def test_chain_torsions_are_normalised():
    density = away_from_start(2)
    line = (torch.arange(120, dtype=torch.float64) + 0.5) / 120 * TURN
    with torch.no_grad():
        total = density.log_prob(torch.cartesian_prod(line, line)).exp().mean()
    assert float(total) * TURN**2 == pytest.approx(1, abs=1e-6)


def test_chain_torsions_are_what_their_samples_are_drawn_from(generator):
    """The factors by which samples are drawn, one by one, are those of the density, which makes all at once."""
    density = away_from_start(7)
    with torch.no_grad():
        y = density.scaled(density.sample(40, generator).value)
        inner, none = density.density, y[:, :0]
        one_by_one = sum(
            inner._log_prob_of(k, y[:, k], inner._parameters_of(k, y[:, :k], none)) for k in range(density.n)
        )
        torch.testing.assert_close(inner.log_prob(y, none), one_by_one)
    assert density.n_features == density.features(y).shape[1] == 28


def test_chain_torsions_have_the_gradient_of_their_density(generator):
    density = away_from_start(5)
    y = density.sample(30, generator).value
    parameters = list(density.parameters())
    plain = torch.autograd.grad(density.log_prob(y).sum(), parameters)
    by_hand = torch.autograd.grad(density.learned_log_prob(y).sum(), parameters)
    torch.testing.assert_close(density.learned_log_prob(y), density.log_prob(y))
    for a, b in zip(by_hand, plain, strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_torsions_depend_on_those_before_and_on_no_others(generator):
    density = away_from_start(6)
    y = density.sample(3, generator).value
    mixture, none = density.density, y[:, :0]
    with torch.no_grad():
        raw = mixture._raw(y, none)
        for k in range(6):
            moved = y.clone()
            moved[:, k] += 0.5
            changed = (mixture._raw(moved, none) != raw).any(2).any(0).tolist()
            assert changed == [False] * (k + 1) + [True] * (5 - k)  # beyond the window too, by the mean


def chain(n: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Torsions that each have two states, in which they stay with that of the one before, and their log-density."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.linspace(-0.8, 0.8, n)
    y, total = torch.zeros(rows, 0), torch.zeros(rows)
    for k in range(n):
        lean = bias[k] + (2 * torch.cos(y[:, k - 1] - 1.0) if k else torch.zeros(rows))
        chance = torch.sigmoid(lean)
        first = torch.rand(rows, generator=generator) < chance
        value = torch.where(first, 1.0, -2.0) + 0.3 * torch.randn(rows, generator=generator)
        value = torch.remainder(value + math.pi, TURN) - math.pi
        terms = [
            torch.log(share) - 0.5 * ((torch.remainder(value - middle + math.pi, TURN) - math.pi) / 0.3) ** 2
            for share, middle in ((chance, 1.0), (1 - chance, -2.0))
        ]
        total = total + torch.logsumexp(torch.stack(terms), 0) - math.log(0.3) - 0.5 * math.log(TURN)
        y = torch.cat([y, value.unsqueeze(1)], dim=1)
    return y, total


def test_one_network_learns_a_chain_better_than_one_for_each():
    n, rows = 8, 400
    learned = Rows((chain(n, rows, 1)[0],), torch.full((rows,), 1 / rows))
    held_out, test, truth = Rows((chain(n, 200, 2)[0],), torch.full((200,), 1 / 200)), *chain(n, 4000, 3)
    divergence = []
    for shared in (True, False):
        torch.manual_seed(0)
        zeros = torch.zeros(n)
        density = ChainTorsions(zeros, 6, 32, 2) if shared else SoftVariables(zeros, zeros + TURN, 0, 6, 32, 2)
        generator = torch.Generator().manual_seed(0)
        minimise_held_out(
            density, lambda y, d=density: -d.learned_log_prob(y), learned, held_out, 3e-3, 200, 60, generator
        )
        with torch.no_grad():
            divergence.append(float((truth - density.log_prob(test)).mean()))
    assert 0 < divergence[0] < 0.6 * divergence[1]
    assert divergence[0] < 0.03 * n


@pytest.mark.parametrize(("beads", "kind"), [(8, SoftVariables), (9, ChainTorsions)])
def test_more_than_a_few_torsions_share_a_network(beads, kind):
    step = np.arange(beads)
    line = np.stack([0.23 * np.cos(1.7 * step), 0.23 * np.sin(1.7 * step), 0.15 * step], axis=1)
    x = line + np.random.default_rng(0).normal(0, 0.02, (40, beads, 3))
    coordinates = BeadModel.fromSequence("G" * beads).coordinates(x)
    flow = build_density(coordinates, FitSettings(hidden=8, components=2, own_networks=5), 0, 0)
    assert type(flow.slow) is kind
    assert flow.sizes == (beads - 3, 2 * beads - 3)
