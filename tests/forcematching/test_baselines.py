"""Force matching and relative entropy minimisation, on frames of a density that is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from analytic import KELVIN, KT, Known
from openmm import unit
from torch import nn

import openmm_cgflow as cgf
from openmm_cgflow.errors import InvalidInputError, MismatchError, TrainingError
from openmm_cgflow.force_field import Fitted
from openmm_cgflow.forcematching import (
    BeadModel,
    DistilSettings,
    EntropySettings,
    FitSettings,
    MatchSettings,
    StudentSettings,
    distil_many,
    fit_forces,
    fit_relative_entropy,
)
from openmm_cgflow.forcematching.baselines.members import _mean_of
from openmm_cgflow.forcematching.students.bead_network import make_network
from openmm_cgflow.forcematching.students.descent import descend

SMALL = StudentSettings(hidden=32, layers=2)
FORCES = MatchSettings(members=2, steps=200, batch=128, rate=1e-2, student=SMALL)
ENTROPY = EntropySettings(members=2, steps=300, batch=128, rate=1e-2, points=2_000, student=SMALL)
TINY = StudentSettings(hidden=4, layers=1)
NOISE = 60.0  # kT/nm, of each component of the forces: half of what their mean has, as force maps leave


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


@pytest.fixture(scope="module")
def q(known) -> torch.Tensor:
    return known.draw(1000, 1)


@pytest.fixture(scope="module")
def matched(known, q):
    return fit_forces(known.frames(q), known.model, known.forces(q, NOISE), KELVIN, FORCES)


@pytest.fixture(scope="module")
def likeliest(known, q):
    return fit_relative_entropy(known.frames(q), known.model, KELVIN, settings=ENTROPY)


def equilibrium(known, student, n=4000) -> tuple[float, float]:
    """KL(known || student), nats, and the student's share of the second mode, by frames of the known density."""
    q = known.draw(n, 99)
    x, log_measure = known.coordinates.to_cartesian(q)
    with torch.no_grad():
        log_weight = log_measure - student(x) / KT - known.log_prob(q)
    kl = torch.logsumexp(log_weight, 0) - math.log(n) - log_weight.mean()
    return float(kl), float(torch.softmax(log_weight, 0)[q[:, 0] > 0].sum())


def test_forces_are_the_mean_of_noisy_ones(known, matched):
    """The noise of 1,000 frames is spread over what the network can tell apart: some tens of numbers."""
    q = known.draw(500, 5)
    x = torch.as_tensor(known.frames(q)).clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(matched.student(x).sum(), x)
    wanted = torch.as_tensor(known.forces(q))
    assert float((-slope - wanted).square().mean()) < 0.1 * (KT * NOISE) ** 2
    assert float((-slope * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=0.03)
    # what is left on frames that were held out is the noise
    assert matched.held_out == pytest.approx(NOISE**2, rel=0.1)
    assert matched.held_out < 0.8 * matched.members[0].start


def test_forces_hardly_know_how_deep_basins_are(known, matched, likeliest):
    """No frame is on the barrier: force matching cannot know, and relative entropy does."""
    by_forces, by_entropy = (equilibrium(known, found.student)[1] for found in (matched, likeliest))
    assert abs(by_forces - known.share[1]) > 2 * abs(by_entropy - known.share[1])


def test_relative_entropy_gives_the_distribution(known, q, likeliest):
    """Of 1,000 frames 0.2 are in the second mode, within 0.013; the springs alone are 1.7 nats away."""
    kl, second = equilibrium(known, likeliest.student)
    assert 0 < kl < 0.13
    assert second == pytest.approx(known.share[1], abs=0.05)
    # the loss is absolute: minus the mean log-density of positions, whose spread over 600 frames is 2 nats
    log_density = known.log_prob(q) - known.coordinates.log_measure(q)
    assert likeliest.held_out == pytest.approx(-float(log_density.mean()) + kl, abs=0.2)


def test_a_proposal_may_be_given(known, q):
    class Own:
        log_prob = staticmethod(known.log_prob)

        @staticmethod
        def sample(n, generator=None):
            return (known.draw(n, int(torch.randint(1000, (1,), generator=generator))),)

    kl, second = equilibrium(known, fit_relative_entropy(known.frames(q), known.model, KELVIN, Own(), ENTROPY).student)
    assert kl < 0.13
    assert second == pytest.approx(known.share[1], abs=0.05)

    class Elsewhere(Own):
        @staticmethod
        def sample(n, generator=None):
            return (known.draw(n, 0) + torch.tensor([0, 0.1, 0, 0, 0, 0]),)

    with pytest.raises(TrainingError, match="of 2,000 points of the proposal fewer than 30 count by their weights"):
        fit_relative_entropy(known.frames(q), known.model, KELVIN, Elsewhere(), ENTROPY)


def test_both_make_force_fields(known, q, matched, likeliest, tmp_path):
    x = known.frames(q)[0]
    for found in (matched, likeliest):
        assert found.frames == 1000
        assert len(found.members) == 2
        said = Fitted(0.0, 0.0, found.frames, 400, 0, found.seconds)
        beads = cgf.BeadParticles(known.model.topology, x, known.model.masses)
        force_field = cgf.CGForceField(found.student, beads, KELVIN, said)
        force_field.save(tmp_path / "f.cgff")
        again = cgf.CGForceField.load(tmp_path / "f.cgff")
        assert float(again.student(torch.as_tensor(x))) == pytest.approx(float(found.student(torch.as_tensor(x))))
        assert again.createCGSystem("python").system.getNumParticles() == 4


def test_one_seed_gives_one_student(known, q):
    x, forces = known.frames(q[:100]), known.forces(q[:100], NOISE)
    tiny = MatchSettings(members=2, steps=3, student=TINY)
    of_entropy = EntropySettings(members=2, steps=3, points=2_000, student=TINY)
    for fit in (
        lambda seed: fit_forces(x, known.model, forces, KELVIN, tiny, seed),
        lambda seed: fit_relative_entropy(x, known.model, KELVIN, None, of_entropy, seed),
    ):
        first, again, other = (fit(seed).student.state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(t, again[name]) for name, t in first.items())
        assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_mean_of_networks_is_a_network(layers, generator):
    networks = [make_network(5, StudentSettings(hidden=6, layers=layers), seed) for seed in range(3)]
    z = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    joined = _mean_of(networks)
    torch.testing.assert_close(joined(z), torch.stack([network(z) for network in networks]).mean(0))
    same = make_network(5, StudentSettings(hidden=18, layers=layers), 0)
    assert [t.shape for t in joined.parameters()] == [t.shape for t in same.parameters()]


def test_descent_leaves_what_only_gets_worse_as_it_was():
    network = nn.Linear(1, 1)
    start = {name: t.clone() for name, t in network.state_dict().items()}

    def loss() -> torch.Tensor:
        return network(torch.ones(1, 1)).sum()

    ended = descend(network, loss, 0.01, 0.0, 50, lambda: -float(network.bias.detach()))
    assert (ended.best, ended.steps, ended.loss) == (0, 50, ended.start)
    assert all(torch.equal(t, start[name]) for name, t in network.state_dict().items())
    descend(network, loss, 0.01, 0.0, 50)
    assert float(network.bias.detach()) < float(start["bias"])
    with pytest.raises(TrainingError, match="loss of the held-out frames is NaN at the start"):
        descend(network, loss, 0.01, 0.0, 50, lambda: math.nan)


def test_frames_and_forces_that_cannot_be_are_refused(known, q):
    x, forces = known.frames(q[:400]), known.forces(q[:400], NOISE)
    tiny = MatchSettings(members=1, steps=1, student=TINY)
    with pytest.raises(InvalidInputError, match="fit_forces: there are no forces"):
        fit_forces(x, known.model, None, KELVIN, tiny)
    with pytest.raises(MismatchError, match="in kcal/mol/nm"):
        fit_forces(x, known.model, forces / 4.184, KELVIN, tiny)
    with pytest.raises(MismatchError, match=r"forces have shape \(399, 4, 3\)"):
        fit_forces(x, known.model, forces[:399], KELVIN, tiny)
    with pytest.raises(InvalidInputError, match="forces are given in"):
        fit_forces(x, known.model, forces * unit.nanometer, KELVIN, tiny)
    wrong = forces.copy()
    wrong[3] = np.nan
    with pytest.raises(InvalidInputError, match=r"force of frames 3 \(1 of 400\)"):
        fit_forces(x, known.model, wrong, KELVIN, tiny)
    for fit in (
        lambda x: fit_forces(x, known.model, forces[: len(x)], KELVIN, tiny),
        lambda x: fit_relative_entropy(x, known.model, KELVIN),
    ):
        with pytest.raises(InvalidInputError, match="20 frames are too few"):
            fit(x[:20])
        with pytest.raises(InvalidInputError, match="NaN"):
            fit(np.where(np.arange(400)[:, None, None] == 7, np.nan, x))


@pytest.mark.parametrize(("name", "value"), [("members", 0), ("steps", 1.5), ("batch", True), ("rate", -1e-3)])
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"EntropySettings: {name} is {value}"):
        dataclasses.replace(EntropySettings(), **{name: value})


def test_settings_of_another_kind_are_named():
    model, x = BeadModel.fromSequence("GGGG"), np.zeros((10, 4, 3))
    with pytest.raises(InvalidInputError, match="fit_forces: settings is a FitSettings; give MatchSettings"):
        fit_forces(x, model, x, 300, settings=FitSettings())
    with pytest.raises(InvalidInputError, match="settings is a MatchSettings; give EntropySettings"):
        fit_relative_entropy(x, model, 300, settings=MatchSettings())
    with pytest.raises(InvalidInputError, match="settings is a FitSettings; give DistilSettings"):
        distil_many([], 2.5, FitSettings())
    with pytest.raises(InvalidInputError, match="student is 'schnet'; give StudentSettings"):
        DistilSettings(student="schnet")
    with pytest.raises(InvalidInputError, match="energies is 'x'"):
        DistilSettings(energies="x")
