"""The density that is fitted to frames, against densities that are known."""

import math

import mdtraj
import numpy as np
import pytest
import torch
from analytic import KELVIN, Known
from openmm import unit
from torch import Tensor, nn

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching import BeadModel, FitSettings, FittedBeads, fit_beads
from openmm_cgflow.forcematching.density.likelihood import Rows, minimise_held_out
from openmm_cgflow.forcematching.density.ridge import Penalty, choose_penalty, fit_ridge, near_torsions
from openmm_cgflow.units import KB

QUICK = FitSettings(members=2, components=8, hidden=32, steps=150)
NOTHING = FitSettings(members=1, components=2, hidden=4, steps=0)


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


@pytest.fixture(scope="module")
def q(known) -> Tensor:
    return known.draw(800, 1)


@pytest.fixture(scope="module")
def fitted(known, q) -> FittedBeads:
    return fit_beads(known.frames(q), known.model, settings=QUICK)


# ---- what comes out


def test_fit_recovers_a_density_that_is_known(known, fitted):
    """The 50 parameters of the stiff part cost 50 / (2 x 800) = 0.031 nats when all are fitted freely to 800 frames."""
    slow, stiff = known.divergence(fitted)
    assert 0 < slow < 0.04
    assert 0 < stiff < 0.05
    assert fitted.frames == 800
    assert fitted.effective == pytest.approx(800)
    assert fitted.stiff == ()
    assert all(part.best > 0 and part.loss < part.start for part in fitted.torsions)


def test_fit_has_the_density_of_positions(known, q, fitted):
    x = known.frames(known.draw(200, 5))
    inner, log_measure = fitted.coordinates.to_internal(torch.as_tensor(x))
    truth = (known.log_prob(inner) - log_measure).numpy()
    turned = x @ np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert fitted.logDensity(turned + 3.0) == pytest.approx(fitted.logDensity(x), abs=1e-3)
    assert np.mean(truth - fitted.logDensity(x)) == pytest.approx(sum(known.divergence(fitted)), abs=0.08)


def test_fit_is_the_same_for_one_seed(known, q, fitted):
    x = known.frames(q)
    again, other = (fit_beads(x, known.model, settings=QUICK, seed=seed) for seed in (0, 1))
    same = fitted.density.state_dict()
    assert all(torch.equal(t, same[name]) for name, t in again.density.state_dict().items())
    assert again.torsions == fitted.torsions
    assert not torch.equal(other.density.log_prob(q.float()), fitted.density.log_prob(q.float()))


def test_fit_is_ready_for_a_student(known, fitted):
    noise = fitted.density.draw_noise(500, torch.Generator().manual_seed(0))
    value, log_prob = fitted.density.sample_from(noise)
    torch.testing.assert_close(log_prob, fitted.density.log_prob(value))
    leaf = value.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(fitted.density.log_prob(leaf).sum(), leaf)
    assert torch.isfinite(slope).all()
    assert not any(p.requires_grad for p in fitted.density.parameters())
    likely = fitted.logDensity(known.frames(known.draw(800, 1)))
    assert fitted.logDensity(fitted.positions)[0] == pytest.approx(likely.max(), abs=1e-4)
    assert fitted.coordinates.in_domain(value.double()).float().mean() > 0.99


def test_forces_make_the_stiff_coordinates_better(known):
    """Of 150 frames, with forces twice as noisy as they are strong; torsions are what they were."""
    few = known.draw(150, 3)
    x, settings = known.frames(few), FitSettings(members=1, components=4, hidden=16, steps=100, rate=2e-3)
    without = fit_beads(x, known.model, settings=settings)
    forces = known.forces(few, noise=50.0)
    having = fit_beads(x, known.model, forces, KELVIN, settings=settings)
    assert known.divergence(having)[1] < 0.75 * known.divergence(without)[1]
    assert known.divergence(having)[0] == pytest.approx(known.divergence(without)[0], abs=1e-6)
    assert all(part.loss <= part.start for part in having.stiff)


def test_constrained_bonds_are_constraints(known):
    rows = known.draw(100, 7)
    rows[:, 1] = 0.38
    pair = known.coordinates.bead_bonds[0]
    teacher = fit_beads(known.frames(rows), known.model, fixed=[pair[::-1]], settings=NOTHING)
    assert teacher.constraints == {tuple(sorted(pair)): pytest.approx(0.38)}
    assert teacher.density.n == 5
    for wrong, message in (
        ((0, 2), r"whose distance is 0\.\d+ to"),
        ((0, 0), "pairs of beads, from 0"),
        ((0.5, 1), "0.5"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fit_beads(known.frames(rows), known.model, fixed=[pair, wrong], settings=NOTHING)
    with pytest.raises(InvalidInputError, match=r"is 0.38 in all of the 100 frames.*fixed="):
        fit_beads(known.frames(rows), known.model, settings=NOTHING)


def test_weights_take_the_bias_of_frames_out(known):
    """The mode of 20 % is drawn in half of the frames; weights give it back what it has."""
    pool = known.draw(6000, 4)
    second = pool[:, 0] > 0
    rows = torch.cat([torch.nonzero(second).flatten()[:400], torch.nonzero(~second).flatten()[:400]])
    biased = pool[rows[torch.randperm(800, generator=torch.Generator().manual_seed(0))]]
    weights = torch.where(biased[:, 0] > 0, 0.2, 0.8).numpy()
    line = torch.linspace(-math.pi, math.pi, 2001)[:, None]
    for given, expected in ((weights, 0.2), (None, 0.5)):
        teacher = fit_beads(
            known.frames(biased),
            known.model,
            weights=given,
            settings=FitSettings(members=1, components=8, hidden=32, steps=400),
        )
        density = teacher.density.log_prob_slow(line).exp()
        assert float(density[1000:].sum() / density.sum()) == pytest.approx(expected, abs=0.03)
        assert teacher.effective == pytest.approx(800 if given is None else 400**2 / (400 * (0.2**2 + 0.8**2)))


def test_couplings_learn_what_is_not_normal(known):
    """Bonds are lognormal: a layer that bends them is likelier on frames that were held out."""
    rows = known.draw(1500, 6)
    bent = rows.clone()
    bent[:, 1] = 0.38 + 0.01 * (torch.exp((rows[:, 1] - known.mean(rows[:, 0])[:, 0]) / 0.01) - 1)
    settings = FitSettings(members=1, components=4, hidden=16, steps=120, couplings=2, rate=3e-3)
    teacher = fit_beads(known.frames(bent), known.model, settings=settings)
    (stiff,) = teacher.stiff
    assert stiff.loss < stiff.start - 0.1


def test_a_trajectory_of_beads_needs_no_model(known, q):
    topology = mdtraj.Topology.from_openmm(known.model.topology)
    traj = mdtraj.Trajectory(known.frames(q).astype(np.float32), topology)
    teacher = fit_beads(traj, settings=NOTHING)
    assert teacher.model.names == ["CA"] * 4
    with pytest.raises(InvalidInputError, match="there is no model"):
        fit_beads(known.frames(q), settings=NOTHING)


# ---- parts of it


def test_ridge_finds_the_line_that_was_there():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    slopes = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.5, 3.0]], dtype=torch.float64)
    factor = torch.tensor([[0.5, 0.0], [0.4, 0.3]], dtype=torch.float64)
    values = 7 + features @ slopes.T + torch.randn(4000, 2, generator=generator, dtype=torch.float64) @ factor.T
    weights = torch.ones(4000, dtype=torch.float64)
    ridge = fit_ridge(values, features, weights, Penalty(2.0))
    assert ridge.slopes.numpy() == pytest.approx(slopes.numpy(), abs=0.05)
    assert ridge.intercept.numpy() == pytest.approx(7, abs=0.05)
    assert (ridge.factor @ ridge.factor.T).numpy() == pytest.approx((factor @ factor.T).numpy(), abs=0.02)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), scale_tril=ridge.factor)
    left = values - ridge.intercept - features @ ridge.slopes.T
    constant = math.log(2 * math.pi)
    assert (ridge.log_prob(values, features) - constant).numpy() == pytest.approx(exact.log_prob(left).numpy())


@pytest.mark.parametrize(("strength", "largest"), [(3.0, 10.0), (0.0, None)])
def test_ridge_has_more_penalty_where_there_is_less_to_learn(strength, largest):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    values = torch.randn(200, 3, generator=generator, dtype=torch.float64) + strength * features[:, :3]
    penalty = choose_penalty(values, features, torch.ones(200, dtype=torch.float64), torch.arange(200) % 5).slopes
    assert penalty <= largest if largest else penalty == 1000.0


def test_ridge_shrinks_more_correlations_of_more_variables():
    generator = torch.Generator().manual_seed(2)
    factor = torch.eye(30, dtype=torch.float64)
    values, ones = torch.randn(90, 30, generator=generator, dtype=torch.float64), torch.ones(90, dtype=torch.float64)
    none = torch.randn(90, 2, generator=generator, dtype=torch.float64)
    chosen = choose_penalty(values, none, ones, torch.arange(90) % 5)
    assert chosen.shrinkage == 2500
    assert fit_ridge(values, none, ones, chosen).factor.numpy() == pytest.approx(factor.numpy(), abs=0.3)
    pairs = torch.cat([values[:, :2], values[:, :2] + 0.3 * values[:, 2:4]], dim=1)
    assert choose_penalty(pairs, none, ones, torch.arange(90) % 5).shrinkage == 20


def test_ridge_leaves_far_torsions_out():
    """In a chain of eight beads an angle depends on the torsions that it shares a bead with; slopes of others are 0."""
    step = np.arange(8)
    line = np.stack([0.23 * np.cos(1.7 * step), 0.23 * np.sin(1.7 * step), 0.15 * step], axis=1)
    x = line + np.random.default_rng(0).normal(0, 0.02, (40, 8, 3))
    coordinates = BeadModel.fromSequence("G" * 8).coordinates(x)
    near = near_torsions(coordinates)
    torsions = [set(four) for four in coordinates.slow_torsions]
    assert near.shape == (13, 5)
    bead = {f"GLY{k + 1}:CA": k for k in range(8)}
    for row, name in zip(near, coordinates.names[5:], strict=True):
        own = {bead[label] for label in name.split()[1:]}
        assert row.tolist() == [bool(own & four) for four in torsions]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 13, generator=generator, dtype=torch.float64)
    features = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    slopes = fit_ridge(values, features, torch.ones(40, dtype=torch.float64), Penalty(2.0), near).slopes
    assert ((slopes != 0) == near).all()
    assert not near.all()


def test_a_fit_that_only_gets_worse_leaves_its_start():
    module = nn.Linear(1, 1)
    start = {name: t.clone() for name, t in module.state_dict().items()}
    target = module(torch.ones(20, 1)).detach()
    rows = Rows((torch.ones(20, 1), target), torch.full((20,), 0.05))
    opposite = Rows((torch.ones(20, 1), target + 5), torch.full((20,), 0.05))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return ((module(x) - y) ** 2).sum(1)

    fit = minimise_held_out(module, loss, opposite, rows, 0.01, 200, 50, torch.Generator().manual_seed(0))
    assert (fit.best, fit.steps) == (0, 50)
    assert fit.loss == fit.start == 0
    assert all(torch.equal(t, start[name]) for name, t in module.state_dict().items())
    fit = minimise_held_out(module, loss, opposite, opposite, 0.05, 200, 50, torch.Generator().manual_seed(0))
    assert fit.loss < 0.01 * fit.start


def test_splits_hold_whole_pieces_out_each_frame_once():
    from openmm_cgflow.forcematching.density.splits import MemberFits

    known = Known()
    q = known.draw(1000, 2)
    coordinates = known.model.coordinates(known.frames(q))
    share = torch.full((1000,), 1e-3, dtype=torch.float64)
    fit = MemberFits(coordinates, NOTHING, q[:, :1], q[:, 1:], share, 1000.0, 0)
    out = torch.stack([fit._held_out(k) for k in range(5)])
    assert (out.sum(0) == 1).all()
    assert (out.sum(1) == 200).all()
    assert (out.reshape(5, 50, 20).sum(2) % 20 == 0).all()  # pieces of 20 frames are together
    assert not torch.equal(fit._held_out(5), fit._held_out(0))


# ---- what cannot be


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1 / 4.184, "in kcal/mol/nm"),
        (1 / 41.84, "in kcal/mol/Angstrom"),
        (0.1, "in kJ/mol/Angstrom"),
        (1 / (KB * KELVIN), "in kT/nm"),
        (-1.0, "gradients of the energy"),
        (3.0, "another unit, of another map"),
    ],
)
def test_forces_of_another_unit_are_refused(known, q, factor, message):
    with pytest.raises(MismatchError, match=message):
        fit_beads(known.frames(q), known.model, factor * known.forces(q, 30.0), KELVIN, settings=NOTHING)


def test_forces_of_other_frames_or_beads_are_refused(known, q):
    x, forces = known.frames(q), known.forces(q, 30.0)
    settings = FitSettings(members=1, components=2, hidden=4, steps=0)
    in_kcal = forces / 4.184 * unit.kilocalorie_per_mole / unit.nanometer
    assert fit_beads(x, known.model, in_kcal, KELVIN * unit.kelvin, settings=settings).stiff[0].best == 0
    with pytest.raises(MismatchError, match="their frames are in another order"):
        fit_beads(x, known.model, forces[::-1], KELVIN, settings=settings)
    with pytest.raises(MismatchError, match="of another map"):
        fit_beads(x, known.model, forces[:, ::-1], KELVIN, settings=settings)
    with pytest.raises(MismatchError, match=r"forces have shape \(800, 22, 3\).*aggregated_map first"):
        fit_beads(x, known.model, np.zeros((800, 22, 3)), KELVIN, settings=settings)
    with pytest.raises(InvalidInputError, match="no temperature"):
        fit_beads(x, known.model, forces, settings=settings)
    forces[11, 2] = np.nan
    with pytest.raises(InvalidInputError, match="force of frames 11 "):
        fit_beads(x, known.model, forces, KELVIN, settings=settings)


def test_too_few_frames_are_refused_with_the_number_that_is_needed(known, q):
    x = known.frames(q)
    with pytest.raises(InvalidInputError, match=r"59 frames are too few to fit the 6 .* at least 60 independent"):
        fit_beads(x[:59], known.model, settings=NOTHING)
    assert fit_beads(x[:60], known.model, settings=NOTHING).frames == 60
    weights = np.full(800, 1e-6)
    weights[:20] = 1.0
    with pytest.raises(InvalidInputError, match="800 frames, of which 20 count by their weights, are too few"):
        fit_beads(x, known.model, weights=weights, settings=NOTHING)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(799), MismatchError, "one for each of the 800 frames"),
        (np.zeros(800), InvalidInputError, "not all 0"),
        (np.linspace(-5, 1, 800), InvalidInputError, "weights reach from -5 to 1"),
        (np.where(np.arange(800) == 7, np.nan, 1.0), InvalidInputError, "weight of frames 7 "),
    ],
)
def test_weights_that_cannot_be_are_refused(known, q, weights, error, message):
    with pytest.raises(error, match=message):
        fit_beads(known.frames(q), known.model, weights=weights, settings=NOTHING)


def test_frames_that_are_copies_are_said_to_be(known, q):
    x = known.frames(q)
    with pytest.warns(UserWarning, match="100 of 800 frames are exact copies.*weights"):
        fit_beads(np.concatenate([x[:700], x[:100]]), known.model, settings=NOTHING)


@pytest.mark.parametrize(
    ("name", "value"),
    [("members", 0), ("steps", -1), ("rate", 0.0), ("rate", math.nan), ("hidden", 2.5), ("force_weight", -1.0)],
)
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"FitSettings: {name} is {value!r}"):
        FitSettings(**{name: value})


def test_frames_without_weight_are_no_frames(known):
    """As of an equilibration that is cut off: no part of the fit is judged by them, and each member is trained."""
    q = known.draw(700, 9)
    weights = np.zeros(700)
    weights[500:] = 1
    settings = FitSettings(members=4, components=8, hidden=32, steps=200)
    teacher = fit_beads(known.frames(q), known.model, weights=weights, settings=settings)
    alone = fit_beads(known.frames(q[500:]), known.model, settings=settings)
    assert teacher.frames == 200
    assert all(math.isfinite(part.loss) and part.best > 0 for part in teacher.torsions)
    for name, value in alone.density.state_dict().items():
        assert torch.equal(value, teacher.density.state_dict()[name])


def test_blocks_that_are_held_out_have_the_same_weight(known):
    q = known.draw(800, 10)
    weights = np.where(np.arange(800) < 600, 0.02, 1.0)
    settings = FitSettings(components=4, hidden=16, steps=60)
    teacher = fit_beads(known.frames(q), known.model, weights=weights, settings=settings)
    assert all(part.best > 0 for part in teacher.torsions)
