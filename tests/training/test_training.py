"""The parts of a training, each against something known."""

import math
from contextlib import nullcontext

import pytest
import torch
from molecules import load, small_networks
from torch import Tensor, nn

import openmm_cgflow as cgf
from openmm_cgflow.flows import FlowSettings, Given, JointFlow, draw_with_score
from openmm_cgflow.training import (
    AdaptiveTempering,
    Budget,
    GeometricTempering,
    Parallel,
    Trainer,
    TrainSettings,
    laplace,
)
from openmm_cgflow.training.broad import Broad
from openmm_cgflow.training.laplace import LaplaceMixture, curvature_factor
from openmm_cgflow.training.objectives import clip_action, stiff_divergence
from openmm_cgflow.training.stages import Start
from openmm_cgflow.training.start import anneal_soft


class Quadratic(nn.Module):
    """`action = (f - m(s))^T A (f - m(s)) / 2 + 4 (1 - cos(s - 1))` with `m = sin(s) v`: all of it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]], dtype=torch.float64)
        self.direction = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
        self.period = torch.tensor([2 * math.pi, 0.0, 0.0, 0.0], dtype=torch.float64)
        self.span = torch.tensor([2 * math.pi, 0.0, 0.0, 0.0], dtype=torch.float64)
        self.coordinates = self
        self.evaluations = 0

    def settle(self) -> bool:
        return False

    def action(self, q: Tensor, beta: float = 1.0) -> Tensor:
        deviation = q[:, 1:] - torch.sin(q[:, :1]) * self.direction
        quadratic = 0.5 * torch.einsum("bi,ij,bj->b", deviation, self.matrix, deviation)
        return beta * (quadratic + 4 * (1 - torch.cos(q[:, 0] - 1)))

    def action_and_gradient(self, q: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = q.detach().requires_grad_(True)
            action = self.action(leaf, beta)
            (gradient,) = torch.autograd.grad(action.sum(), leaf)
        return action.detach(), gradient


SOFT, STIFF = torch.tensor([0]), torch.tensor([1, 2, 3])


def start_of(target: Quadratic, points: int) -> tuple[Tensor, Tensor]:
    scale = torch.full((4,), 0.3, dtype=torch.float64)
    structure, factor = curvature_factor(target, torch.zeros(1, 4, dtype=torch.float64), STIFF, scale, Parallel(1))
    q = structure.expand(points, -1).clone()
    q[:, 0] = torch.linspace(-math.pi, math.pi, points + 1, dtype=torch.float64)[:-1]
    return q, factor


def test_laplace_is_exact_for_a_gaussian():
    target = Quadratic()
    points, factor = start_of(target, 12)
    mixture = laplace(target, points, STIFF, factor, Parallel(2))
    torch.testing.assert_close(mixture.minima[:, 1:], torch.sin(points[:, :1]) * target.direction, atol=1e-6, rtol=0)
    covariance = mixture.factors @ mixture.factors.transpose(1, 2)
    torch.testing.assert_close(covariance, torch.linalg.inv(target.matrix).expand(12, -1, -1), atol=1e-6, rtol=0)
    exact = 1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(target.matrix) - 4 * (1 - torch.cos(points[:, 0] - 1))
    torch.testing.assert_close(mixture.log_partition, exact, atol=1e-6, rtol=0)
    chosen = torch.arange(12)
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=points.dtype)
    q = mixture.place(chosen, noise)
    log_weights = -target.action(q) - mixture.log_prob(q, chosen)
    torch.testing.assert_close(log_weights, exact, atol=1e-6, rtol=0)


def test_annealed_walkers_follow_the_flattened_density():
    target = Quadratic()
    points, factor = start_of(target, 4000)
    generator = torch.Generator().manual_seed(0)
    q = anneal_soft(target, points, SOFT, STIFF, factor, Parallel(1), generator, sweeps=30, temperature=2.0)
    # exp(-4 (1 - cos(s - 1)) / 2) is a von Mises density with kappa = 2: <cos(s - 1)> = I1(2) / I0(2) = 0.698.
    # The standard error of 4,000 walkers is 0.006; a few times that for what is left of the hotter start.
    assert torch.cos(q[:, 0] - 1).mean().item() == pytest.approx(0.698, abs=0.03)


@pytest.mark.parametrize("name", ["butane", "cyclohexanol"])
def test_defended_soft_variables_have_the_weights_of_both_densities(name):
    """Of cyclohexanol the rotors, which are torsions of its ring, are defended as well."""
    flow = cgf.CGFlow(*load(name), device="cpu")
    trainer = Trainer(flow.flow, flow.target, TrainSettings(defended=0.25))
    noise = flow.flow.draw_noise(4000, torch.Generator().manual_seed(0))
    assert trainer.refine.defended(noise) is None
    broad = trainer.task.broad = Broad(flow.flow)
    assert (broad.rotors is not None) == (name == "cyclohexanol")
    with torch.no_grad():
        for parameter in [*flow.flow.bead_flow.slow.parameters(), *flow.flow.atom_flow.rotors.parameters()]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    defended = trainer.refine.defended(noise)
    drawn = draw_with_score(flow.flow, noise, defended.given)
    log_ratio = trainer.refine.log_ratio(defended, drawn.q.detach(), drawn.log_prob_soft)
    assert defended.own.float().mean() == 0.75
    share = torch.exp(-log_ratio)  # the flow's density over that of the mixture: its mean over the mixture is 1
    assert share.std() > 0.05
    assert share.mean().item() == pytest.approx(1, abs=4 * share.std().item() / 4000**0.5)
    assert share.max() <= 1 / 0.75 + 1e-4
    slow = defended.given.slow
    with torch.no_grad():
        q, r = (density.log_prob(slow, slow[:, :0]) for density in (flow.flow.bead_flow.slow, broad.slow))
    torch.testing.assert_close(defended.given.log_prob, q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(defended.difference, r - q, rtol=1e-4, atol=1e-4)


def test_a_start_that_is_made_again_has_the_means_of_the_first():
    flow = cgf.CGFlow(*load("butane"), device="cpu")
    start = Start(Trainer(flow.flow, flow.target, None).task)
    generator, n = torch.Generator().manual_seed(0), 60
    minima = flow.coordinates.reference.float().repeat(n, 1)
    slow, width = 2 * math.pi * torch.rand(n, generator=generator), flow.coordinates.scale.float()
    minima[:, 0] = slow
    minima[:, 3:] += 20 * width[3:] * torch.sin(slow)[:, None]
    stiff = start.task.stiff
    mixture = LaplaceMixture(minima, torch.eye(len(stiff)).expand(n, -1, -1), torch.zeros(n), stiff)
    for _ in range(2):
        start._set_means(mixture, torch.ones(n))
        q = flow.flow.sample_from(flow.flow.draw_noise(500, generator))[0].detach()
        off = (q - flow.coordinates.reference.float())[:, -1] / width[-1] - 20 * torch.sin(q[:, 0])
        assert off.abs().mean() < 2


def test_both_chairs_of_a_ring_are_learned():
    """They are half of the ensemble each. One was lost, with stiff torsions twenty widths from those of the other."""
    flow = train(20_000, "cyclohexanol")
    q, _ = flow.coordinates.to_internal(torch.as_tensor(flow.sample(2000, seed=1).positions))
    towards_oxygen = q[:, flow.coordinates.names.index("torsion LIG1:C5 LIG1:C6 LIG1:C1 LIG1:O1")]
    assert 0.05 < (torch.cos(towards_oxygen) < 0).float().mean() < 0.95


def test_parallel_gradients_are_those_of_one_worker():
    weight = nn.Parameter(torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    unused = nn.Parameter(torch.ones(2))
    x = torch.randn(1601, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(rows: Tensor) -> Tensor:
        return (torch.tanh(rows @ weight.T) ** 2).mean()

    results = []
    for workers in (1, 3):
        with Parallel(workers) as parallel:
            results.append(parallel.gradients(loss, [weight, unused], x)[:2])
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(ours, theirs)
    assert not results[0][1][1].any()


def test_parallel_map_keeps_the_order_of_rows():
    x = torch.arange(1000.0).unsqueeze(1)
    with Parallel(3) as parallel:
        (doubled,) = parallel.map(lambda rows: (2 * rows,), x, chunk=7)
    torch.testing.assert_close(doubled, 2 * x)


def test_clipped_action_bounds_the_gradient_and_survives_infinities():
    action = torch.tensor([1.0, 50.0, 1e9, math.inf, math.nan], requires_grad=True)
    clipped = clip_action(action, torch.tensor(10.0))
    assert torch.isfinite(clipped).all()
    (gradient,) = torch.autograd.grad(clipped.sum(), action)
    assert gradient[0] == 1
    assert 0 < gradient[1] < 0.1
    assert gradient[3:].abs().sum() == 0


def test_budget_counts_what_came_before():
    assert Budget(evaluations=100, used=50).fraction == 0.5
    assert Budget(seconds=1000, seconds_before=2000).fraction == 1.0


def train(evaluations: int, name: str = "butane", seed: int = 1, networks=small_networks, **settings) -> cgf.CGFlow:
    quick = cgf.TrainSettings(
        **{"points": 128, "sweeps": 5, "fit_steps": 100, "buffer": 1000, "batch": 256, "soft_buffers": 3, **settings}
    )
    with networks():
        flow = cgf.CGFlow(*load(name), seed=seed)
    return flow.train(evaluations=evaluations, progress=False, settings=quick)


@pytest.mark.parametrize("least_ess", [1.0, 0.3], ids=["reverse", "forward"])
def test_divergence_of_the_stiff_variables_reaches_its_minimum(least_ess):
    """Its smallest value is minus the log-partition function of the stiff variables, which is known here."""
    target = Quadratic()
    period = torch.tensor([2 * math.pi, 0.0, 0.0, 0.0])
    settings = FlowSettings(bead_couplings=2, hidden=32, harmonics=1)
    flow = JointFlow.build((1, 3, 0, 0), torch.zeros(4), torch.ones(4), period, settings).double()
    generator = torch.Generator().manual_seed(0)
    parameters = list(flow.bead_flow.stiff.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(250):
        slow = 2 * math.pi * torch.rand(128, 1, generator=generator, dtype=torch.float64)
        noise = flow.draw_noise(128, generator)
        given = Given(slow, flow.bead_flow.slow.log_prob(slow).detach())
        loss, *_ = stiff_divergence(flow, target, noise, given, least_ess)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        free_energy = 4 * (1 - torch.cos(slow - 1)).mean().item()
        losses.append(loss.item() - free_energy)
    smallest = -(1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(target.matrix).item())
    assert losses[0] > smallest + 0.5
    assert sum(losses[-100:]) / 100 == pytest.approx(smallest, abs=0.03)


@pytest.mark.parametrize(("kind", "joint"), [("adaptive", False), ("geometric", True)], ids=["weights", "joint"])
def test_tempered_reverse_kl_learns_butane_without_the_laplace_start(kind, joint):
    if kind == "adaptive":
        schedule = AdaptiveTempering(beta=0.2, delta=0.5, largest=0.2, steps=10)
    else:
        schedule = GeometricTempering(0.2, levels=6, steps=20)
    rates = (1e-3, 5e-3, 1e-4)
    options = {"batch": 256, "learning_rates": rates, "buffer": 5_000, "tempering_buffer": 1024, "joint": joint}
    flow = train(45_000 if joint else 50_000, seed=2, tempering=schedule, **options)
    betas = [row["beta"] for row in flow.history if row["stage"] == "tempering"]
    assert betas[0] == 0.2
    assert betas == sorted(betas)
    assert betas[-1] == 1.0
    assert "laplace" not in [row["stage"] for row in flow.history]
    assert flow.sample(2000, seed=0).ess_clipped > 0.2  # 0.25 to 0.56 in six trainings with other seeds


def test_a_molecule_without_slow_torsions_can_be_trained():
    flow = train(15_000, name="caffeine", networks=nullcontext)
    assert flow.slow_names == []
    samples = flow.sample(500, seed=0)
    assert samples.slow.shape == (500, 0)
    assert samples.ess > 0.1  # 0.2 % without training, some 30 % with it
