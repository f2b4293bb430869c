"""The student of chains: convolutions by an independent formula, an energy of the shape, one network for sequences."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from analytic import KT, Analytic, CartesianEnergy, beads_of, flow_of

from openmm_cgflow.compute import Parallel, seeded
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, TrainingError, UnsupportedForceError
from openmm_cgflow.forcematching import (
    BeadModel,
    Chain,
    ChainNetwork,
    DistilSettings,
    NNPOpsEnergy,
    Points,
    SchNetSettings,
    bead_types,
    distil,
    distil_many,
    judge_beads,
    shared_network,
    why_no_nnpops,
)
from openmm_cgflow.forcematching.density.slots import beads_of_coordinates
from openmm_cgflow.forcematching.density.teacher import cartesian_gradients, labels
from openmm_cgflow.forcematching.students.convolution import FilterConvolution, Pairs

DIPEPTIDE = ["ACE:C", "ALA:N", "ALA:CA", "ALA:C", "NME:N"]
SMALL = SchNetSettings(width=16, gaussians=10, layers=1, cutoff=0.9)
QUICK = DistilSettings(points=2_000, steps=250, batch=128, student=SMALL)
SEQUENCES = ("GYDPE", "PETGY")


class Folded(Analytic):
    """Two torsions whose minima are where the sequence wants them."""

    def __init__(self, beads: InternalCoordinates, phase: float) -> None:
        self.phase = phase
        super().__init__(beads)

    def torsional(self, slow: torch.Tensor) -> torch.Tensor:
        return -1.5 * torch.cos(slow - self.phase).sum(1)


def chain_of(sequence: str, phase: float) -> Chain:
    """A teacher of five alpha carbons."""
    model = BeadModel.fromSequence(sequence)
    x = torch.tensor([[0.0, 0, 0], [0.38, 0, 0], [0.45, 0.37, 0], [0.15, 0.5, 0.2], [0.1, 0.6, 0.55]]).double()
    frames = x + 0.01 * torch.randn(50, 5, 3, generator=seeded(0), dtype=torch.float64)
    coordinates = model.coordinates(frames.numpy())
    return Chain(Folded(coordinates, phase), coordinates, bead_types(model.topology))


@pytest.fixture(scope="module")
def beads():
    return beads_of("aldp_vacuum")


@pytest.fixture(scope="module")
def teacher(beads):
    return Analytic(beads)


@pytest.fixture(scope="module")
def distilled(teacher, beads):
    return distil(teacher, beads, KT, QUICK, DIPEPTIDE)


@pytest.fixture(scope="module")
def x(teacher, beads):
    return beads.to_cartesian(teacher.sample(300, seeded(7))[0])[0].contiguous()


@pytest.fixture(scope="module")
def chains():
    return [chain_of(sequence, phase) for sequence, phase in zip(SEQUENCES, (1.0, -1.5), strict=True)]


@pytest.fixture(scope="module")
def students(chains):
    return [found.student for found in distil_many(chains, KT, dataclasses.replace(QUICK, points=4_000, steps=400))]


def random_student(n: int = 6, seed: int = 0) -> ChainNetwork:
    """A chain of alpha carbons whose network has learned nothing, but is not calibrated to nothing either."""
    model = BeadModel.fromSequence("GAYDPETGTWY"[:n])
    x = np.cumsum(np.tile([[0.3, 0.0, 0.2], [0.1, 0.3, 0.1], [0.0, -0.1, 0.35]], (n, 1))[:n], 0)
    frames = x + 0.01 * np.random.default_rng(seed).normal(size=(40, n, 3))
    coordinates, types = model.coordinates(frames), bead_types(model.topology)
    student = ChainNetwork(coordinates, KT, types, shared_network([(coordinates, types)], SMALL, seed))
    return student.requires_grad_(False)


def gradient_of(energy, x):
    at = x.clone().requires_grad_()
    return torch.autograd.grad(energy(at).sum(), at)[0]


def numeric_gradient(energy, x, step=1e-6):
    found = torch.zeros_like(x)
    for index in np.ndindex(*x.shape[1:]):
        moved = torch.zeros_like(x)
        moved[(slice(None), *index)] = step
        found[(slice(None), *index)] = ((energy(x + moved) - energy(x - moved)) / (2 * step)).detach()
    return found


def test_convolution_is_the_formula_of_schnet():
    """Number by number, as NNPOps documents `CFConv`: Gaussians, two layers, softplus, cosine."""
    convolution = FilterConvolution(width=3, gaussians=5, cutoff=1.0)
    rng = np.random.default_rng(0)
    x, features = rng.uniform(0, 1.2, (4, 3)), rng.normal(size=(4, 3))
    w1, b1, w2, b2 = (p.detach().numpy() for p in convolution.parameters())
    expected = np.zeros((4, 3))
    for i in range(4):
        for j in range(4):
            r = math.dist(x[i], x[j])
            if i == j or r >= 1.0:
                continue
            basis = np.array([math.exp(-0.5 * ((r - 0.25 * k) / 0.25) ** 2) for k in range(5)])
            hidden = [math.log(0.5 * math.exp(basis @ w1[f] + b1[f]) + 0.5) for f in range(3)]
            for f in range(3):
                expected[i, f] += (w2[f] @ hidden + b2[f]) * 0.5 * (math.cos(math.pi * r) + 1) * features[j, f]
    first, second = torch.triu_indices(4, 4, 1)
    distances = torch.as_tensor(np.linalg.norm(x[first] - x[second], axis=1))[None]
    assert bool((distances > 1.0).any())
    found = convolution(torch.tensor(features)[None], Pairs(first, second, distances))[0]
    np.testing.assert_allclose(found.detach(), expected, atol=1e-12)


def test_energy_and_force_are_smooth_at_the_cutoff():
    student = random_student()
    x = student.coordinates.to_cartesian(student.coordinates.reference[None])[0].contiguous()
    far = student.distances(x)[0].argmax()
    q = student.coordinates.to_internal(x)[0]
    energies, slopes = [], []
    for distance in (SMALL.cutoff - 1e-5, SMALL.cutoff + 1e-5):
        d = student.distances(x).detach().clone()
        d[0, far] = distance
        d.requires_grad_()
        energy = student._learned(student.shape(q)[0], d)
        energies.append(float(energy.detach()))
        slopes.append(float(torch.autograd.grad(energy.sum(), d)[0][0, far]))
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    assert slopes[0] == pytest.approx(0, abs=1e-3)
    assert slopes[1] == 0


def test_forces_are_differences_of_the_energy(distilled, x):
    for start in (x[:2], x[:2] + 0.03 * torch.randn(2, 5, 3, generator=seeded(1), dtype=x.dtype)):  # walls as well
        found = gradient_of(distilled.student, start)
        np.testing.assert_allclose(found, numeric_gradient(distilled.student, start), rtol=1e-5, atol=2e-3)


def test_forces_where_beads_are_on_one_another():
    student = random_student()
    x = student.coordinates.to_cartesian(student.coordinates.reference[None])[0].contiguous()
    near = x.clone()
    near[0, 5] = near[0, 0] + torch.tensor([0.2, 0.0, 0.1])
    q = student.coordinates.to_internal(near)[0]
    assert float(student.repulsion(student.distances(near))) > 10
    assert float(student.repulsion(student.distances(x))) == 0
    assert bool(torch.isfinite(student.reduced_energy(q, near)).all())
    np.testing.assert_allclose(gradient_of(student, near), numeric_gradient(student, near), rtol=1e-4, atol=1e-2)


def test_repulsion_is_as_published():
    student = random_student(5)  # GAYDP
    distances = torch.full((1, 10), 1.0).double()
    pair = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(student.first, student.second, strict=True))}
    for (i, j), least in {(0, 3): 0.36, (1, 4): 0.42}.items():
        at = distances.clone()
        at[0, pair[i, j]] = 0.3
        assert float(student.repulsion(at)) == pytest.approx(1600 * (least - 0.3) ** 2)
    at = distances.clone()
    at[0, [pair[0, 1], pair[0, 2]]] = 0.2  # joined by a bond or an angle
    assert float(student.repulsion(at)) == 0


def test_energy_is_of_the_shape_alone_and_knows_its_mirror_image(distilled, x):
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=seeded(2), dtype=x.dtype))
    rotation = rotation * torch.linalg.det(rotation)
    energy = distilled.student(x)
    torch.testing.assert_close(distilled.student(x @ rotation + 1.7), energy, rtol=0, atol=1e-8)
    assert float((distilled.student(-x) - energy).abs().median()) > 1.0
    assert float(distilled.student(x[4])) == pytest.approx(float(energy[4]), abs=1e-9)


def test_student_of_an_analytic_teacher(distilled, teacher, beads):
    found = judge_beads(distilled.student, flow_of(beads), beads, KT, bins=30, n=40_000)
    own = judge_beads(CartesianEnergy(teacher, beads), flow_of(beads), beads, KT, bins=30, n=40_000)
    assert found.js(own.probabilities) < 0.01
    assert abs(found.log_z - own.log_z) < 0.2  # the constant of the energy is learned too


def test_gradients_on_positions_are_differences_of_the_energy(teacher, beads):
    q = teacher.sample(4, seeded(3))[0]
    with Parallel(1) as parallel:
        x, found = cartesian_gradients(beads, q, labels(teacher, beads, q, parallel)[1], parallel)
    numeric = numeric_gradient(lambda at: CartesianEnergy(teacher, beads)(at) / KT, x)
    torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-2)
    assert float(found.abs().max()) > 100


def test_beads_of_coordinates_are_those_that_they_depend_on(beads):
    q = beads.reference[None]
    x = beads.to_cartesian(q)[0].contiguous().requires_grad_()
    measured = beads.to_internal(x)[0]
    for k, own in enumerate(beads_of_coordinates(beads)):
        (slope,) = torch.autograd.grad(measured[0, k], x, retain_graph=True)
        assert own[0] < own[-1]
        assert sorted(own) == torch.nonzero(slope[0].norm(dim=1) > 1e-9).flatten().tolist(), beads.names[k]


def test_one_network_follows_the_teachers_of_two_sequences(chains, students):
    assert students[0].network is students[1].network
    nothing = dataclasses.replace(QUICK, points=500, steps=1, rate=0.0)
    untrained = [found.student for found in distil_many(chains, KT, nothing)]
    for chain, student, blank in zip(chains, students, untrained, strict=True):
        drawn = student.thinned(Points(chain.teacher.sample(600, seeded(9))[0], torch.empty(0, 9)), seeded(1)).own
        x = chain.coordinates.to_cartesian(drawn)[0].contiguous()
        exact = CartesianEnergy(chain.teacher, chain.coordinates)

        def target(at, exact=exact, student=student):
            return exact(at) + KT * student.repulsion(student.distances(at))

        off = [float((one(x) - target(x)).detach().std()) / KT for one in (student, blank)]
        exact_gradient = gradient_of(target, x)
        wrong = [float((gradient_of(one, x) - exact_gradient).norm()) for one in (student, blank)]
        assert off[0] < 0.5 < 1.0 < off[1]
        assert wrong[0] < 0.5 * wrong[1]
        assert float((student(x) - target(x)).detach().mean().abs()) < 0.3 * KT


def test_network_is_for_chains_that_it_was_not_trained_on(students):
    model = BeadModel.fromSequence("TGDYPEG")
    coordinates = random_student(7).coordinates
    other = students[0].on(coordinates, bead_types(model.topology))
    x = coordinates.to_cartesian(coordinates.reference[None])[0].contiguous()
    assert bool(torch.isfinite(other(x)).all())
    assert float(gradient_of(other, x).abs().max()) > 0
    with pytest.raises(InvalidInputError, match="was not trained on beads of TRP:CA, only on ASP:CA, GLU:CA"):
        students[0].on(coordinates, bead_types(BeadModel.fromSequence("TGDYPEW").topology))
    network = shared_network([(coordinates, ["GLY:CA"] * 7)], SMALL)
    network.types = ("GLY:CA", "GLY:N")
    with pytest.raises(InvalidInputError, match="bonds or angles of CA-CA-N, CA-N, only on CA-CA, CA-CA-CA"):
        ChainNetwork(coordinates, KT, ["GLY:CA"] * 6 + ["GLY:N"], network)


def test_one_seed_gives_one_student(teacher, beads, monkeypatch):
    def fitted(threads, seed=0):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        quick = dataclasses.replace(QUICK, points=300, steps=4, seed=seed)
        return distil(teacher, beads, KT, quick, DIPEPTIDE).student.state_dict()

    first, again, other = fitted("1"), fitted("2"), fitted("1", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.hidden.weight"], other["network.hidden.weight"])


def test_points_count_by_the_repulsion(chains):
    chain = chains[0]
    student = ChainNetwork(chain.coordinates, KT, chain.types, shared_network([chain[1:]], SMALL))
    own = chain.teacher.sample(4_000, seeded(0))[0]
    own[:2_000, :2] = 0.0  # cis and cis
    own[:2_000, 2:] -= 0.4 * torch.tensor([name.startswith("angle") for name in chain.coordinates.names[2:]])
    repulsion = student.repulsion(student.distances(chain.coordinates.to_cartesian(own)[0]))
    expected = float(torch.exp(-repulsion).sum())
    kept = student.thinned(Points(own, own[:0]), seeded(1))
    assert 500 < expected < 3_500  # of the first half, whose ends meet, hardly any
    assert len(kept.own) == pytest.approx(expected, abs=130)  # four standard errors at most
    with pytest.raises(TrainingError, match="have no beads on one another"):
        student.thinned(Points(own[:50], own[:0]), seeded(1))


def test_bad_input_is_named(beads, teacher, chains):
    for wrong, message in (
        ({"width": 0}, "width is 0; give a whole number of at least 1"),
        ({"gaussians": 1}, "gaussians is 1; give a whole number of at least 2"),
        ({"layers": True}, "layers is True"),
        ({"cutoff": math.nan}, "cutoff is nan; give a number from 0.1 to 100"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            SchNetSettings(**wrong)
    with pytest.raises(InvalidInputError, match="needs the types of the beads"):
        distil(teacher, beads, KT, QUICK)
    with pytest.raises(InvalidInputError, match="there is no chain"):
        distil_many([], KT, QUICK)
    with pytest.raises(InvalidInputError, match="of one molecule, but there are 2 chains"):
        distil_many(chains, KT)
    with pytest.raises(InvalidInputError, match="4 types of 5 beads"):
        ChainNetwork(beads, KT, DIPEPTIDE[:4], shared_network([(beads, DIPEPTIDE)]))


@pytest.mark.skipif(why_no_nnpops() is not None, reason=str(why_no_nnpops()))
def test_nnpops_gives_the_same_energy_and_forces():
    student = random_student(10)
    x = student.coordinates.to_cartesian(student.coordinates.reference[None])[0][0].contiguous()
    near = x.clone()
    near[9] = near[0] + torch.tensor([0.2, 0.0, 0.1])
    energy, scale = NNPOpsEnergy(student), torch.tensor(2.0, dtype=torch.float64)
    for at in (x, near):
        assert float(energy(at, scale)) == pytest.approx(2 * float(student(at)), rel=1e-5)
        ours, theirs = gradient_of(student, at), gradient_of(lambda one: energy(one, scale), at)
        np.testing.assert_allclose(theirs, 2 * ours, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.skipif(why_no_nnpops() is None, reason="NNPOps is installed")
def test_without_nnpops_it_is_said():
    with pytest.raises(UnsupportedForceError, match=r"NNPOps cannot be imported .* conda install nnpops"):
        NNPOpsEnergy(random_student(5))
