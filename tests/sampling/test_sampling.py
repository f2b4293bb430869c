"""Weights that say what they are worth."""

import logging
import math
from dataclasses import replace

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from molecules import MODELS
from openmm import app

from openmm_cgflow import CGFlow, VectorFlow, analysis
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.sampling import (
    Samples,
    clip_log_weights,
    effective_sample_size,
    khat_limit,
    log_mean_exp,
    pareto_k,
    trust,
    trustworthy,
)
from openmm_cgflow.units import KB

MODEL = MODELS / "aldp_vacuum.cgflow"


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


@pytest.mark.parametrize("log_weights", [[0.0], [0.0, -np.inf]])
def test_one_sample_has_an_infinite_error(log_weights):
    n = len(log_weights)
    assert samples(log_weights).reweight(np.full(n, 3.0)) == (3.0, np.inf)
    mean, error = samples(log_weights).reweight(np.ones((n, 2)))
    assert mean.tolist() == [1.0, 1.0]
    assert error.tolist() == [np.inf, np.inf]


def test_what_is_kept_of_the_weights_cannot_be_written_to():
    drawn = samples([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        drawn.weights *= 2


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


def test_reweight_of_what_has_no_weight_may_be_infinite():
    mean, error = samples([0.0, -math.inf, 0.0]).reweight(np.array([1.0, math.inf, 3.0]))
    assert (mean, error) == (2.0, pytest.approx(math.sqrt(0.5)))
    mean, _ = samples([0.0, -math.inf]).reweight(np.array([[1.0, 2.0], [math.nan, -math.inf]]))
    assert mean.tolist() == [1.0, 2.0]
    assert math.isnan(samples([0.0, 0.0]).reweight(np.array([1.0, math.nan]))[0])  # what counts is not hidden


def test_samples_without_any_weight_say_so():
    nothing = samples([-math.inf] * 3)
    assert nothing.weights.tolist() == [0.0, 0.0, 0.0]
    assert nothing.ess == 0.0
    for use in (lambda: nothing.reweight(np.zeros(3)), lambda: nothing.resample(2)):
        with pytest.raises(InvalidInputError, match="none of the 3 samples has a finite energy"):
            use()


@pytest.mark.parametrize("n", [30, 100, 300, 5000])
def test_there_is_one_rule_for_whether_weights_can_be_trusted(n):
    limit = khat_limit(n)
    assert limit == pytest.approx(min(1 - 1 / math.log10(n), 0.7))
    for khat in (-1.0, 0.2, limit - 1e-6, limit, 0.69, 0.71, 3.0, math.nan):
        made = samples(np.zeros(n))
        made.__dict__["khat"] = khat
        trusted = not trust(khat, n).startswith(("the weights are not", "too few"))
        assert made.trustworthy is trusted
        assert trustworthy(khat, n) is trusted
        assert ("not to be trusted" in repr(made)) is not trusted
    assert trust is analysis.trust


def springs(n=40):
    """Samples of one atom with their true energies in a System, and one too high by 1 kJ/mol that weighs little."""
    system = openmm.System()
    system.addParticle(1.0)
    force = openmm.CustomExternalForce("100*(x^2+y^2+z^2)")
    force.addParticle(0)
    system.addForce(force)
    x = np.random.default_rng(0).normal(0.0, 0.1, (n, 1, 3)).astype(np.float32)
    u = 100 * (x.astype(float) ** 2).sum((1, 2)) / (KB * 300.0)
    rare = int(u.argmax())
    u[rare] += 1 / (KB * 300.0)
    return replace(samples(-u), positions=x, reduced_energies=u, system=system), rare


def test_check_finds_the_largest_difference_and_says_it(caplog):
    made, rare = springs()
    with caplog.at_level(logging.INFO):
        assert made.check() == pytest.approx(1 / (KB * 300.0), rel=1e-4)
    assert f"the largest difference is 0.401 kT, of sample {rare}" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
    assert made.check(n=1) < 1e-4  # the one of the largest weight
    seen = {made.check(n=8, seed=seed) > 0.1 for seed in range(60)}
    assert seen == {True, False}  # 4 of 36 are drawn: all or none of 60 times fails once in a thousand
    left_out = replace(made, log_weights=np.where(np.arange(40) == rare, -np.inf, made.log_weights))
    assert left_out.check() < 1e-4


def test_check_refuses_what_has_no_system():
    with pytest.raises(InvalidInputError, match="vectors"):
        samples([0.0]).check()
    with pytest.raises(InvalidInputError, match="n is 0"):
        springs()[0].check(0)


def test_log_z_says_that_it_counts_one_labelling():
    made = replace(samples(np.zeros(100)), log_labellings=2 * math.log(3))
    assert "one labelling: 2.197 more for all" in repr(made)
    assert "labelling" not in repr(samples(np.zeros(100)))


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
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        assert stored["log_weights"].tolist() == [0.0, 1.0]


def test_samples_of_a_loaded_model_are_checked_by_openmm(caplog):
    flow = CGFlow.load(MODEL)
    made, again = flow.sample(300, seed=1), flow.sample(300, seed=1)
    np.testing.assert_array_equal(made.log_weights, again.log_weights)
    assert made.reduced_energies.dtype == np.float64
    assert openmm.XmlSerializer.serialize(made.system) == openmm.XmlSerializer.serialize(flow.system)
    assert made.log_labellings == pytest.approx(3 * math.log(3))  # CH3 of Ace, of Ala and of Nme
    assert made.check(60) < 0.01
    force = openmm.CustomExternalForce("x")  # another System: 1 kJ/mol/nm on one atom
    force.addParticle(0)
    other = openmm.XmlSerializer.clone(flow.system)
    other.addForce(force)
    shifted = replace(made, system=other).check(300)
    assert shifted == pytest.approx(np.abs(made.positions[:, 0, 0]).max() / (KB * 300.0), abs=0.01)


def test_check_refuses_samples_of_vectors():
    with pytest.raises(InvalidInputError, match="vectors"):
        VectorFlow(DoubleWell(), slow=1).sample(30, seed=0).check()
