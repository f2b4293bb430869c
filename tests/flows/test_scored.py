"""Scores and gradients by hand, beside autograd of the plain densities, in double precision."""

import math

import pytest
import torch
from test_flows import joint, shake
from torch import Tensor, nn

from openmm_cgflow.flows import Given, JointFlow, MixtureDensity, draw_with_score
from openmm_cgflow.flows.by_hand import asinh, tanh
from openmm_cgflow.sampling import soften_log_weights
from openmm_cgflow.training.objectives import clip_action, stiff_divergence

SIZES = [(2, 3, 2, 6), (1, 0, 0, 4), (1, 0, 1, 1), (3, 5, 0, 2), (0, 3, 0, 3), (0, 1, 0, 0), (2, 1, 1, 2), (0, 0, 0, 5)]
"""Also blocks of one variable or none, and densities without a context."""


class Waves(nn.Module):
    """A rugged action of which some rows are not finite, and some are far above the others."""

    def action(self, q: Tensor, beta: float = 1.0) -> Tensor:
        action = beta * (torch.sin(3 * q).sum(1) + (q**2).sum(1) + (q.roll(1, 1) * q).sum(1))
        action = torch.where(torch.arange(len(q)) % 7 == 3, 100 + 10 * action, action)
        return torch.where(torch.arange(len(q)) % 11 == 5, torch.inf, action)


def divergence_by_autograd(flow, target, noise, slow, least_ess):
    """The same as `stiff_divergence`: the score from the inverse of the flow, all derivatives by autograd."""
    slow_noise, bead_latent, rotor_noise, atom_latent = flow.split_noise(noise)
    slow_density, rotor_density = flow.bead_flow.slow, flow.atom_flow.rotors
    with torch.no_grad():
        slow = slow_density.draw(slow_noise, noise[:, :0]) if slow is None else slow
        features = slow_density.features(slow)
        whitened = flow.bead_flow.stiff.decode(bead_latent, features).features
        rotors = rotor_density.draw(rotor_noise, torch.cat([features, whitened], 1))
    beads = flow.bead_flow.stiff.decode(bead_latent, features)
    context = torch.cat([features, beads.features, rotor_density.features(rotors)], 1)
    atoms = flow.atom_flow.stiff.decode(atom_latent, context)
    q = torch.cat([slow, beads.value, rotors, atoms.value], 1)
    leaf = q.detach().requires_grad_(True)
    log_prob, action = flow.log_prob_stiff(leaf), target.action(leaf)
    with torch.no_grad():
        log_prob_soft = flow.log_prob_soft(leaf)
        log_weights = -action - log_prob - log_prob_soft
        log_weights = torch.where(torch.isfinite(log_weights), log_weights, -torch.inf)
        weights = torch.softmax(soften_log_weights(log_weights, least_ess, 5 / len(q))[0], 0)
    divergence = log_prob + action
    finite = torch.isfinite(divergence)
    ceiling = torch.median(divergence[finite]).detach() + 30
    divergence = clip_action(torch.where(finite, divergence, torch.inf), ceiling)
    (force,) = torch.autograd.grad((weights * divergence).sum(), leaf)
    path = (torch.where(torch.isfinite(force), force, 0.0) * q).sum()
    return divergence.mean().detach() + path - path.detach(), leaf.detach(), log_weights, log_prob_soft


def gradients(loss: Tensor, flow: JointFlow) -> dict[str, Tensor]:
    names, parameters = zip(*flow.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_divergence_by_hand_is_that_by_autograd(sizes, given):
    flow = joint(sizes)
    noise = flow.draw_noise(64, torch.Generator().manual_seed(1))
    slow = 0.3 * torch.ones(64, sizes[0], dtype=torch.float64) if given else None
    own = None if slow is None else Given(slow, flow.bead_flow.slow.log_prob(slow).detach())
    ours = stiff_divergence(flow, Waves(), noise, own, 0.3)
    theirs = divergence_by_autograd(flow, Waves(), noise, slow, 0.3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    expected = gradients(theirs[0], flow)
    assert any(g.any() for g in expected.values())
    for name, gradient in gradients(ours[0], flow).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_samples_with_a_score_are_those_without(sizes):
    flow = joint(sizes)
    noise = flow.draw_noise(16, torch.Generator().manual_seed(2))
    drawn = draw_with_score(flow, noise)
    with torch.no_grad():
        q, log_prob = flow.sample_from(noise)
    torch.testing.assert_close(drawn.q, q, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(drawn.log_prob_soft + drawn.log_prob_stiff, log_prob, rtol=1e-10, atol=1e-10)
    leaf = q.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(flow.log_prob_stiff(leaf).sum(), leaf)
    soft = torch.tensor([block in (0, 2) for block, size in enumerate(sizes) for _ in range(size)])
    assert not drawn.score[:, soft].any()
    torch.testing.assert_close(drawn.score[:, ~soft], score[:, ~soft], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n_context", [0, 3])
@pytest.mark.parametrize(("n_circular", "n_linear"), [(3, 0), (0, 2), (2, 3), (1, 0), (0, 1), (0, 0)])
def test_learned_log_densities_are_the_plain_ones(n_circular, n_linear, n_context):
    density = shake(MixtureDensity(n_circular, n_linear, n_context, components=5, hidden=8), size=1.5)
    generator = torch.Generator().manual_seed(3)
    y = 3 * torch.rand(200, n_circular + n_linear, dtype=torch.float64, generator=generator) - 1.5
    y[:, :n_circular] *= 2 * math.pi / 3
    context = torch.randn(200, n_context, dtype=torch.float64, generator=generator)
    upstream = torch.randn(200, dtype=torch.float64, generator=generator)
    if density.n:  # logits and scales beyond their bounds too
        density.conditioners[0].head.bias.data[-1] = -13.0
        density.conditioners[-1].head.bias.data[-4:-1] += 5.0
    found = []
    for log_prob in (density.log_prob, density.learned_log_prob):
        value = log_prob(y, context)
        parameters = list(density.parameters())
        gradients = torch.autograd.grad((value * upstream).sum(), parameters) if density.n else ()
        found.append((value.detach(), *gradients))
    for plain, learned in zip(*found, strict=True):
        torch.testing.assert_close(learned, plain, rtol=1e-9, atol=1e-11)
    with torch.no_grad():  # all factors at once
        torch.testing.assert_close(density.log_prob(y, context), found[0][0], rtol=1e-9, atol=1e-11)


def test_fast_functions_are_accurate_in_single_precision():
    x = torch.cat([torch.logspace(-30, 15, 5000), torch.zeros(1)])
    x = torch.cat([x, -x])
    ours = asinh(x, x * x, torch.sqrt(x * x + 1)).double()
    torch.testing.assert_close(ours, torch.asinh(x.double()), rtol=5e-7, atol=0)
    torch.testing.assert_close(tanh(x).double(), torch.tanh(x.double()), rtol=0, atol=2e-7)
