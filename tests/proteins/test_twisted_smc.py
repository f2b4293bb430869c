"""The evidence of sequential Monte Carlo is unbiased, and its particles are drawn from the right distribution."""

import numpy as np
import pytest
import torch

from openmm_cgflow.proteins.placing.contacts import COARSE, PlanePairs
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain
from openmm_cgflow.proteins.placing.twisted_smc import draw_planes

KT = 2.5


@pytest.fixture(scope="module")
def model():
    """Four planes of 24 bins, strong energies between those that are not neighbours; log-weights of all states."""
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(3, COARSE, COARSE, generator=generator, dtype=torch.float64)
    unary = torch.randn(4, COARSE, generator=generator, dtype=torch.float64)
    smooth = torch.cos(torch.arange(COARSE) * (2 * np.pi / COARSE)).double()
    energies = {}
    for first, second in ((0, 2), (0, 3), (1, 3)):
        table = 6 * torch.outer(smooth.roll(first), smooth.roll(3 * second))
        energies[first, second] = table + torch.randn(COARSE, COARSE, generator=generator, dtype=torch.float64)
    a, b, c, d = np.ix_(*[np.arange(COARSE)] * 4)
    states = sum(unary[p].numpy()[index] for p, index in enumerate((a, b, c, d)))
    states = states + factors[0].numpy()[a, b] + factors[1].numpy()[b, c] + factors[2].numpy()[c, d]
    for (first, second), table in energies.items():
        states = states - table.numpy()[(a, b, c, d)[first], (a, b, c, d)[second]] / KT
    return factors, unary, energies, states


@pytest.mark.parametrize("particles", [1, 8])
def test_smc_evidence_is_unbiased_and_draws_are_right(model, particles):
    factors, unary, energies, states = model
    n = 3000
    chain = PlaneChain(factors.expand(n, -1, -1, -1), [0, 1, 2], unary.expand(n, -1, -1))
    rows = [(frame, *pair) for pair in energies for frame in range(n)]
    frame, first, second = (torch.tensor(column) for column in zip(*rows, strict=True))
    tables = torch.cat([table.expand(n, -1, -1) for table in energies.values()])
    drawn = draw_planes(
        chain, PlanePairs(frame, first, second, tables), KT, particles, torch.Generator().manual_seed(2)
    )
    top = states.max()
    exact = np.log(np.exp(states - top).sum()) + top
    ratio = np.exp(drawn.log_evidence.numpy() - exact)
    error = ratio.std() / np.sqrt(n)
    assert error < 0.05
    assert ratio.mean() == pytest.approx(1.0, abs=4 * error)  # beyond it once in 16,000 by chance
    # weighted by the evidence, draws are those of the model: mean of a function of three planes
    share = np.exp(states - exact)
    values = np.cos(np.arange(COARSE) * 2 * np.pi / COARSE)
    a, _, c, d = np.ix_(*[np.arange(COARSE)] * 4)
    wanted = (share * values[a] * values[c] * (1 + values[d])).sum()
    bins = drawn.bins.numpy()
    found = values[bins[:, 0]] * values[bins[:, 2]] * (1 + values[bins[:, 3]])
    mean = (ratio * found).mean()
    assert mean == pytest.approx(
        wanted, abs=4 * (ratio * (found - wanted)).std() / np.sqrt(n) + 1e-12 + 4 * error * abs(wanted)
    )
    assert drawn.ess.shape == (n, 4)


def test_smc_without_pairs_is_the_chain(model):
    factors, unary, _, _ = model
    chain = PlaneChain(factors.expand(5, -1, -1, -1), [0, 1, 2], unary.expand(5, -1, -1))
    none = torch.zeros(0, dtype=torch.long)
    pairs = PlanePairs(none, none, none, torch.zeros(0, COARSE, COARSE, dtype=torch.float64))
    drawn = draw_planes(chain, pairs, KT, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.log_evidence, chain.log_z)
    assert drawn.ess.min() > 0.999
