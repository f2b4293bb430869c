"""Flows of plain vectors, whose slow directions are found or trained, against potentials with known answers."""

import math

import numpy as np
import pytest
import torch

import openmm_cgflow as cgf
from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.potentials import DoubleWell, GaussianMixture, ManyWell
from openmm_cgflow.training import AdaptiveTempering, Parallel, TrainSettings, separating_directions

SMALL = FlowSettings(components=8, slow_hidden=16, hidden=16, atom_couplings=2, rank=2)


@pytest.mark.parametrize("slow", [1, 3, [2, 0], range(4), 0])
def test_linear_coordinates_are_a_bijection_with_exact_jacobian(slow):
    coordinates = LinearCoordinates(4, slow, width=1.7, seed=3)
    q = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, logdet = coordinates.to_cartesian(q)
    back, logdet_back = coordinates.to_internal(x)
    torch.testing.assert_close(back, q, rtol=0, atol=1e-6)
    torch.testing.assert_close(logdet, logdet_back)
    jacobian = torch.autograd.functional.jacobian(lambda r: coordinates.to_cartesian(r[None])[0][0], q[0])
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(logdet[0].item(), abs=1e-5)
    assert sum(coordinates.sizes) == 4
    assert coordinates.in_domain(q).all()


def test_named_entries_come_first():
    coordinates = LinearCoordinates(4, [2, 0], width=2.0)
    q, _ = coordinates.to_internal(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    torch.testing.assert_close(q, torch.tensor([[3.0, 1.0, 2.0, 4.0]]) / 2)
    assert not [p for p in coordinates.parameters() if p.requires_grad]
    assert coordinates.names == ["slow 1", "slow 2", "fast 1", "fast 2"]


def test_coordinates_turn_to_directions_and_can_be_trained_from_there():
    coordinates = LinearCoordinates(5, 2, seed=1)
    wanted = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(0))).Q.T
    coordinates.turn(wanted @ coordinates.rotate.weight.detach())  # directions of q
    overlap = torch.linalg.svdvals(coordinates.slow_directions @ wanted.T)
    torch.testing.assert_close(overlap, torch.ones(2), rtol=0, atol=1e-5)
    (parameter,) = coordinates.parameters()
    before = coordinates.slow_directions.clone()
    optimizer = torch.optim.Adam([parameter], lr=0.01, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        (coordinates.to_cartesian(torch.eye(5))[0][0, 0]).backward()
        optimizer.step()
    assert (coordinates.slow_directions - before).abs().max() > 0.01
    assert coordinates.slow_directions[0, 0] < before[0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 3), "slow is 3"),
        ((2, [0, 0]), r"slow is \[0, 0\]"),
        ((2, [2]), r"slow is \[2\]"),
        ((2, 1, -1.0), "width is -1.0"),
        ((2, 1, math.nan), "width is nan"),
    ],
)
def test_impossible_coordinates_are_named(arguments, message):
    with pytest.raises(cgf.InvalidInputError, match=message):
        LinearCoordinates(*arguments)


def discriminants(target: GaussianMixture) -> np.ndarray:
    means, factor = target.means.numpy().astype(float), target.scale_tril[0].numpy().astype(float)
    return np.linalg.qr(np.linalg.solve(factor @ factor.T, (means[1:] - means[0]).T))[0]


@pytest.mark.parametrize(
    ("target", "width", "known"),
    [
        (DoubleWell(), 2.0, np.eye(2)[:, :1]),
        (GaussianMixture.paper(seed=1), 1.0, discriminants(GaussianMixture.paper(seed=1))),
        (ManyWell(8), 1.5, np.eye(8)[:, ::2]),
    ],
    ids=["double well", "mixture", "many well"],
)
def test_minima_tell_how_many_directions_are_slow_and_which(target, width, known):
    n_slow = known.shape[1]
    flow = cgf.VectorFlow(target, slow=n_slow, width=width)
    with Parallel(1) as parallel:
        found = separating_directions(flow.target, 256, parallel, torch.Generator().manual_seed(0))
    assert found.shape == (n_slow, target.n_atoms)
    flow.coordinates.turn(found)
    cosines = np.linalg.svd(flow.coordinates.slow_directions.numpy() @ known)[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_double_well_is_learned(tmp_path):
    flow = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, settings=SMALL)
    flow.train(evaluations=200_000, progress=False, settings=TrainSettings(points=128))
    samples = flow.sample(20_000, seed=0)
    assert samples.ess > 0.9
    assert samples.logZ == pytest.approx(flow.potential.log_z, abs=0.01)
    x = np.linspace(-6, 6, 4001)
    density = np.exp(-(x**4 / 4 - 3 * x**2 + x))
    right, error = samples.reweight(samples.positions[:, 0] > 0)
    assert right == pytest.approx(density[x > 0].sum() / density.sum(), abs=4 * error)

    q = flow.slowVariables(samples.positions[:50])
    np.testing.assert_allclose(q, samples.slow[:50], atol=1e-5)
    np.testing.assert_allclose(flow.logDensity(samples.positions[:50]), samples.log_densities[:50], atol=1e-4)
    flow.save(tmp_path / "well.cgflow")
    again = cgf.VectorFlow.load(tmp_path / "well.cgflow", DoubleWell())
    np.testing.assert_array_equal(again.sample(100, seed=3).positions, flow.sample(100, seed=3).positions)
    assert again.provenance["evaluations"] == flow.provenance["evaluations"]
    with pytest.raises(cgf.MismatchError, match="length 2, but the potential is of 4"):
        cgf.VectorFlow.load(tmp_path / "well.cgflow", ManyWell(4))
    with pytest.raises(cgf.MismatchError, match=r"vectors: give \(n, 2\)"):
        flow.logDensity(np.zeros((3, 5)))
    with pytest.raises(cgf.ModelFileError, match="vector model, not a model"):
        cgf.CGFlow.load(tmp_path / "well.cgflow")
    with pytest.raises(cgf.InvalidInputError, match="of no molecule"):
        _ = samples.trajectory


def test_tempering_trains_the_slow_direction_from_a_random_start(tmp_path):
    flow = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, settings=SMALL, seed=2)
    start = abs(flow.coordinates.slow_directions[0, 0].item())
    assert start < 0.8
    schedule = AdaptiveTempering(beta=0.05, delta=0.3, largest=0.1, steps=40)
    settings = TrainSettings(tempering=schedule, batch=512, learning_rates=(2e-3, 5e-3, 2e-3))
    flow.train(evaluations=700_000, progress=False, settings=settings, checkpoint=tmp_path / "state")
    assert abs(flow.coordinates.slow_directions[0, 0].item()) > 0.99
    assert flow.sample(10_000, seed=0).logZ == pytest.approx(flow.potential.log_z, abs=0.05)

    resumed = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, settings=SMALL, seed=2)
    resumed.train(evaluations=1, progress=False, settings=settings, checkpoint=tmp_path / "state")
    torch.testing.assert_close(resumed.coordinates.slow_directions, flow.coordinates.slow_directions)


def test_tempering_by_weights_keeps_modes_far_apart():
    """Three modes a hundred widths apart; by the joint reverse KL one is soon lost."""
    means = torch.tensor([[-5.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    target = GaussianMixture(means, (0.1 * torch.eye(2)).expand(3, -1, -1))
    flow = cgf.VectorFlow(target, slow=[0], width=3.0, settings=SMALL)
    schedule = AdaptiveTempering(beta=1e-3, delta=0.5, largest=0.2, steps=30)
    flow.train(evaluations=600_000, progress=False, settings=TrainSettings(tempering=schedule, batch=512))
    samples = flow.sample(10_000, seed=0)
    shares = np.bincount(target.component_of(torch.as_tensor(samples.positions)), weights=samples.weights, minlength=3)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert samples.logZ == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slow": 1.7}, "slow is 1.7"),
        ({"slow": [0.9]}, "slow contain 0.9"),
        ({"slow": None}, "slow is None"),
        ({"slow": "a"}, "slow contain 'a'"),
        ({"width": "a"}, "width is 'a'"),
        ({"width": None}, "width is None"),
        ({"width": 0}, "width is 0"),
        ({"potential": lambda x: x.sum(1)}, "potential is a function; give a Potential"),
        ({"settings": TrainSettings()}, "settings is a TrainSettings; give a FlowSettings"),
    ],
)
def test_what_no_flow_of_vectors_can_be_made_of_is_named(arguments, message):
    with pytest.raises(cgf.InvalidInputError, match=message):
        cgf.VectorFlow(**({"potential": DoubleWell(), "slow": [0], "width": 2.0} | arguments))
