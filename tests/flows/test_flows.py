"""Every density: log-prob shape, gradients, inverse, Jacobian against autograd, normalisation."""

import math

import pytest
import torch

from openmm_cgflow.flows import (
    FlowSettings,
    JointFlow,
    MixtureDensity,
    SinhArcsinhCoupling,
    StiffDensity,
    draw_with_score,
)
from openmm_cgflow.flows.coupling import log_slope_of_inverses


def shake(module: torch.nn.Module, size: float = 0.3) -> torch.nn.Module:
    """Move every parameter away from its start, where many errors hide."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += (
                size
                * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                / math.sqrt(max(1, parameter.shape[-1]))
            )
    return module.double()


def joint(sizes: tuple[int, int, int, int] = (2, 3, 2, 6)) -> JointFlow:
    n = sum(sizes)
    period = torch.zeros(n)
    period[: sizes[0]] = 2 * math.pi
    period[sizes[0] + sizes[1] : sizes[0] + sizes[1] + sizes[2]] = 2 * math.pi / 3
    reference = torch.linspace(-1, 1, n)
    settings = FlowSettings(
        components=5, rotor_components=3, hidden=16, slow_hidden=16, bead_couplings=2, atom_couplings=3
    )
    return shake(JointFlow.build(sizes, reference, torch.full((n,), 0.1), period, settings))


def slogdet(function, x: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [
            torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda r: function(r[None])[0], row)).logabsdet
            for row in x
        ]
    )


@pytest.mark.parametrize("sizes", [(2, 3, 2, 6), (1, 0, 0, 4), (1, 0, 1, 1), (3, 5, 0, 2), (0, 3, 0, 3)])
def test_joint_flow_has_the_density_of_its_map(sizes):
    """The stiff blocks as maps of their latents, by Jacobians; the soft ones by their distribution functions."""
    flow = joint(sizes)
    noise = flow.draw_noise(8, torch.Generator().manual_seed(1))
    q, log_prob = flow.sample_from(noise)
    assert q.shape == (8, sum(sizes))
    torch.testing.assert_close(flow.log_prob(q), log_prob, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow.log_prob_stiff(q) + flow.log_prob_soft(q), log_prob, rtol=1e-9, atol=1e-9)
    latent = torch.cat(flow.split_noise(noise)[1::2], dim=1)

    def stiff(latent: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        slow, bead, rotor, atom = flow.split_noise(row)
        bead, atom = latent.split([bead.shape[1], atom.shape[1]], dim=1)
        return torch.cat(flow.split(flow.sample_from(torch.cat([slow, bead, rotor, atom], dim=1))[0])[1::2], dim=1)

    rows = zip(latent, noise[:, None], strict=True)
    if sizes[2] == 0:  # rotors depend on the beads: their samples would move with these latents
        logdet = torch.cat([slogdet(lambda z, r=row: stiff(z, r), z[None]) for z, row in rows])
        normal = -0.5 * latent.square().sum(1) - 0.5 * latent.shape[1] * math.log(2 * math.pi)
        torch.testing.assert_close(flow.log_prob_stiff(q), normal - logdet, rtol=1e-7, atol=1e-7)


def test_chain_takes_variables_of_other_kinds_as_they_come():
    """With `learned`: the same values, and gradients for one kind of densities alone, those of the path by hand."""
    flow = joint()
    noise = flow.draw_noise(8, torch.Generator().manual_seed(4))
    q, log_prob, _ = flow.decode(noise, noise[:, :0], StiffDensity)
    with torch.no_grad():
        torch.testing.assert_close((q, log_prob), flow.sample_from(noise))
    slow, bead, rotor, atom = flow.split(q)
    for soft in (slow, rotor):
        found = torch.autograd.grad(soft.sum(), [*flow.parameters()], allow_unused=True, retain_graph=True)
        assert not any(g is not None and g.any() for g in found)
    total = bead.sum() + atom.square().sum() + log_prob.sum()
    ours = torch.autograd.grad(total, [*flow.parameters()], allow_unused=True, retain_graph=True)
    for density in (flow.bead_flow.slow, flow.atom_flow.rotors):
        soft = {id(p) for p in density.parameters()}
        assert all(g is None for p, g in zip(flow.parameters(), ours, strict=True) if id(p) in soft)
    drawn = draw_with_score(flow, noise)  # by hand, at the same soft variables
    stiff = [p for density in flow.stiff_densities() for p in density.parameters()]
    first = torch.autograd.grad(q.square().sum(), stiff, allow_unused=True, retain_graph=True)
    again = torch.autograd.grad(drawn.q.square().sum(), stiff, allow_unused=True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b)


def test_couplings_are_left_out_only_within_the_block():
    flow = joint()
    q = flow.sample(4, torch.Generator().manual_seed(0)).value
    whole = flow.log_prob(q)
    with flow.gaussian():
        assert (flow.log_prob(q) - whole).abs().min() > 1e-6
        with flow.gaussian():
            pass
        assert (flow.log_prob(q) - whole).abs().min() > 1e-6
    torch.testing.assert_close(flow.log_prob(q), whole)


def test_mixture_samples_move_as_their_distribution_function_says():
    """At a fixed value of the distribution function: its derivative by the parameters, along the sample, is zero."""
    density = shake(MixtureDensity(n_circular=1, n_linear=1, components=4, hidden=8))
    noise = density.draw_noise(16, torch.Generator().manual_seed(2), torch.zeros(1, dtype=torch.float64))
    y = density.sample(noise, noise[:, :0])
    latent, parameters = density.to_latent(y, noise[:, :0]), list(density.parameters())
    alone = torch.autograd.grad(density.to_latent(y.detach(), noise[:, :0]).sum(), parameters)
    along = torch.autograd.grad(latent.sum(), parameters)
    assert max(g.abs().max().item() for g in alone) > 0.1
    assert max(g.abs().max().item() for g in along) < 1e-9


def test_circular_mixture_is_normalised_and_smooth_across_the_seam():
    density = shake(MixtureDensity(n_circular=1, components=6), size=1.0)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * 2 * math.pi - math.pi
    log_prob = density.log_prob(grid[:, None], grid[:, None][:, :0])
    assert abs(torch.exp(log_prob).mean().item() * 2 * math.pi - 1) < 1e-10
    seam = torch.tensor([[-math.pi + 1e-9], [math.pi - 1e-9]], dtype=torch.float64, requires_grad=True)
    values = density.log_prob(seam, seam[:, :0])
    (slopes,) = torch.autograd.grad(values.sum(), seam)
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-6)


def test_linear_mixture_is_normalised():
    density = shake(MixtureDensity(n_circular=0, n_linear=1, components=6), size=0.3)
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)[:, None]
    total = torch.trapezoid(torch.exp(density.log_prob(grid, grid[:, :0])), grid[:, 0])
    assert abs(total.item() - 1) < 1e-8


def test_mixture_samples_follow_its_own_distribution_function():
    density = shake(MixtureDensity(n_circular=2, components=5))
    n = 20_000
    noise = density.draw_noise(n, torch.Generator().manual_seed(3), torch.zeros(1, dtype=torch.float64))
    y = density.sample(noise, noise[:, :0])
    latent = density.to_latent(y, y[:, :0])
    ranks = torch.sort(latent, dim=0).values
    steps = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    # Kolmogorov-Smirnov: sqrt(n) D above 1.95 happens by chance once in 1,000 times for each column.
    assert ((ranks - steps).abs().max(0).values * math.sqrt(n) < 1.95).all()


def test_coupling_round_trip_and_jacobian():
    mask = torch.tensor([True, False, True, True, False])
    coupling = shake(SinhArcsinhCoupling(mask, n_context=2, hidden=8))
    x = 2 * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context = torch.ones(4, 2, dtype=torch.float64)
    y, logdet = coupling(x, context)
    back = coupling.inverse(y, context)
    torch.testing.assert_close(back.x, x)
    torch.testing.assert_close(log_slope_of_inverses([back, back]), -2 * logdet)
    torch.testing.assert_close(logdet, slogdet(lambda r: coupling(r, context[:1])[0], x))


def test_stiff_density_of_a_set_factor_is_the_gaussian():
    covariance = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.5]], dtype=torch.float64)
    density = StiffDensity(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3]), 0, couplings=2, hidden=4
    ).double()
    density.set_factor(torch.linalg.cholesky(covariance))
    scale = density.scale
    exact = torch.distributions.MultivariateNormal(density.reference, scale[:, None] * covariance * scale)
    f = density.reference + scale * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(density.log_prob(f), exact.log_prob(f))
