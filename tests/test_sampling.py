"""Weights that say what they are worth."""

import math

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.sampling import Samples, clip_log_weights, effective_sample_size, log_mean_exp, pareto_k


def samples(log_weights) -> Samples:
    n = len(log_weights)
    topology = app.Topology()
    residue = topology.addResidue("AR", topology.addChain())
    topology.addAtom("AR", app.Element.getBySymbol("Ar"), residue)
    zeros = np.zeros(n)
    return Samples(
        np.zeros((n, 1, 3), np.float32),
        np.asarray(log_weights, float),
        zeros,
        zeros,
        zeros[:, None],
        300.0,
        topology,
        ("phi",),
    )


def test_effective_sample_size_by_hand():
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    assert effective_sample_size(torch.log(weights)) == pytest.approx(36 / 14 / 4)
    assert effective_sample_size(torch.full((3,), -math.inf)) == 0.0


def test_clipping_lowers_the_largest_weight_to_the_next():
    clipped = clip_log_weights(torch.tensor([0.0, 5.0, 1.0, -1.0]))
    assert clipped.tolist() == [0.0, 1.0, 1.0, -1.0]


def test_log_mean_exp_and_its_error_against_many_repetitions():
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(400, 1000, generator=generator, dtype=torch.float64)
    estimates = [log_mean_exp(row) for row in log_weights]
    values = np.array([v for v, _ in estimates])
    # exact: log E exp(N(0, 1)) = 1/2; the mean of 400 estimates has a standard error of 0.002.
    assert abs(values.mean() - 0.5) < 0.01
    assert np.mean([e for _, e in estimates]) == pytest.approx(values.std(), rel=0.15)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_pareto_k_of_pareto_weights(k):
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_weights = -k * torch.log(uniform)
    # 1,342 tail weights: standard error (1 + k) / sqrt(1342) <= 0.052; four of them.
    assert pareto_k(log_weights) == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(1342))


def test_reweight_is_the_boltzmann_average_with_its_error():
    generator = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(300):
        x = generator.normal(size=2000)  # proposal N(0, 1), target N(0.5, 1)
        mean, error = samples(0.5 * x).reweight(x)
        means.append(mean)
        errors.append(error)
    assert np.mean(means) == pytest.approx(0.5, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_reweight_refuses_another_number_of_values():
    with pytest.raises(InvalidInputError, match="there are 3 samples"):
        samples([0.0, 0.0, 0.0]).reweight(np.zeros(2))


def test_resampled_indices_follow_the_weights():
    chosen = samples(np.log([1.0, 2.0, 7.0])).resample(20_000, seed=0)
    # standard error of a share: at most 0.0035; five of them fail by chance once in a million times.
    np.testing.assert_allclose(np.bincount(chosen) / 20_000, [0.1, 0.2, 0.7], atol=0.0175)


def test_samples_say_when_weights_are_not_to_be_trusted():
    heavy = -2.0 * np.log(np.random.default_rng(0).random(5000))
    assert not samples(heavy).trustworthy
    assert "not to be trusted" in repr(samples(heavy))
    assert samples(np.zeros(5000) + 0.1 * np.random.default_rng(0).normal(size=5000)).trustworthy


def test_samples_are_written_with_their_weights(tmp_path):
    s = samples([0.0, 1.0])
    s.save(tmp_path / "s.dcd")
    assert mdtraj.load(str(tmp_path / "s.dcd"), top=s.trajectory.topology).n_frames == 2
    stored = np.load(tmp_path / "s.npz", allow_pickle=False)
    assert stored["log_weights"].tolist() == [0.0, 1.0]
