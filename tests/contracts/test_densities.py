"""What every density keeps to, whatever it is of: `encode` and `decode` belong together, on any device and dtype."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openmm_cgflow.flows import AtomFlow, BeadFlow, Factor, FlowSettings, JointFlow, SoftVariables, StiffDensity
from openmm_cgflow.forcematching import BeadMixture, ChainTorsions

CONTEXT = 3
TURN = 2 * math.pi


def soft(periods: list[float], n_context: int = 0) -> SoftVariables:
    centre = torch.linspace(-1, 1, len(periods))
    return SoftVariables(centre, torch.tensor(periods), n_context, components=5, hidden=16, harmonics=2)


def stiff(n: int, n_context: int = 0) -> StiffDensity:
    return StiffDensity(torch.linspace(-1, 1, n), torch.full((n,), 0.1), n_context, couplings=3, hidden=16, rank=4)


def gaussian(n: int) -> StiffDensity:
    density = stiff(n, CONTEXT)
    density.gaussian = True
    return density


def joint() -> JointFlow:
    settings = FlowSettings(
        components=5, rotor_components=3, hidden=16, slow_hidden=16, bead_couplings=2, atom_couplings=3, rank=4
    )
    period = torch.tensor([TURN, TURN, 0, 0, 0, TURN / 3, 0, 0, 0, 0])
    return JointFlow.build((2, 3, 1, 4), torch.linspace(-1, 1, 10), torch.full((10,), 0.1), period, settings)


DENSITIES: dict[str, Callable[[], Factor]] = {
    "torsions": lambda: soft([TURN, TURN]),
    "torsion and line": lambda: soft([TURN, 0.0]),
    "torsions of a chain": lambda: ChainTorsions(torch.linspace(-1, 1, 5), components=5, hidden=16, harmonics=2),
    "rotors given beads": lambda: soft([TURN / 3, TURN / 2], CONTEXT),
    "stiff": lambda: stiff(4),
    "stiff given others": lambda: stiff(4, CONTEXT),
    "one stiff": lambda: stiff(1, CONTEXT),
    "couplings left out": lambda: gaussian(4),
    "no variables": lambda: stiff(0, CONTEXT),
    "no soft variables": lambda: soft([], CONTEXT),
    "beads": lambda: BeadFlow(soft([TURN]), stiff(2, 4)),
    "mixture of beads": lambda: BeadMixture([BeadFlow(soft([TURN]), stiff(2, 4)) for _ in range(3)]),
    "atoms given beads": lambda: AtomFlow(soft([TURN / 3], CONTEXT), stiff(2, CONTEXT + 4)),
    "all": joint,
}
GIVEN = ("rotors given beads", "stiff given others", "one stiff", "couplings left out", "no variables")
GIVEN = (*GIVEN, "no soft variables", "atoms given beads")


@pytest.fixture(params=list(DENSITIES))
def density(request, dtype, device) -> Factor:
    """Each of them, away from its start, where many errors hide."""
    torch.manual_seed(0)
    made = DENSITIES[request.param]()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            width = max(1, parameter.shape[-1] if parameter.dim() else 1)
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator) / math.sqrt(width)
    made.n_context = CONTEXT if request.param in GIVEN else 0
    return made.to(dtype).to(device)


def drawn(density: Factor, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noise and contexts where the density is."""
    generator = torch.Generator().manual_seed(seed)
    noise = density.draw_noise(n, generator)
    assert noise.device.type == "cpu"
    like = next(density.buffers())
    assert noise.dtype == like.dtype
    return noise.to(like.device), torch.randn(n, density.n_context, generator=generator, dtype=noise.dtype).to(like)


def test_density_gives_what_its_sizes_say(density):
    noise, context = drawn(density, 7)
    assert noise.shape == (7, density.n_noise)
    value, log_prob, features = density.decode(noise, context)
    assert value.shape == (7, density.n)
    assert log_prob.shape == (7,)
    assert features.shape == (7, density.n_features)
    assert {t.dtype for t in (value, log_prob, features)} == {noise.dtype}
    assert {t.device for t in (value, log_prob, features)} == {noise.device}


def test_density_of_what_was_made_is_the_one_that_was_said(density, dtype):
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    noise, context = drawn(density, 50)
    value, log_prob, features = density.decode(noise, context)
    encoded = density.encode(value, context)
    torch.testing.assert_close(encoded.log_prob, log_prob, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(encoded.features, features, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(density.features(value, context), encoded.features, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(density.log_prob(value, context), encoded.log_prob, rtol=tolerance, atol=tolerance)


def test_density_of_a_row_does_not_depend_on_the_others(density, dtype):
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    noise, context = drawn(density, 5)
    whole = density.decode(noise, context)
    for k in range(5):
        one = density.decode(noise[k : k + 1], context[k : k + 1])
        for mine, all_ in zip(one, whole, strict=True):
            torch.testing.assert_close(mine[0], all_[k], rtol=tolerance, atol=tolerance)


def test_density_gives_every_parameter_a_gradient(density):
    if not density.n:
        pytest.skip("nothing to learn")
    unused = {"strictly_lower"} if density.n == 1 else set()  # a triangle of one row has nothing below its diagonal
    if isinstance(density, StiffDensity) and density.gaussian:
        unused |= {f"couplings.{name}" for name, _ in density.couplings.named_parameters()}
    noise, context = drawn(density, 64)
    value = density.decode(noise, context).value
    for total in (density.encode(value.detach(), context).log_prob.sum(), value.square().sum()):
        density.zero_grad()
        total.backward()
        found = {name for name, p in density.named_parameters() if p.grad is not None and p.grad.any()}
        missing = {name for name, p in density.named_parameters() if p.numel()} - found - unused
        assert {name for name in missing if "conditioners" not in name} == set()  # a component may never be drawn


def test_density_is_that_of_its_samples(density, dtype, device):
    """By importance: another density of these variables has the mean ratio 1 over samples of this one."""
    if dtype != torch.float64 or device != "cpu":
        pytest.skip("a matter of numbers, which are those of the CPU")
    generator, other = torch.Generator().manual_seed(3), copy.deepcopy(density)
    with torch.no_grad():
        for parameter in other.parameters():
            width = max(1, parameter.shape[-1] if parameter.dim() else 1)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=dtype) / math.sqrt(width)
        noise, context = drawn(density, 40_000)
        context = context[:1].expand(len(noise), -1)
        value, log_prob, _ = density.decode(noise, context)
        ratio = torch.exp(other.log_prob(value, context) - log_prob)
    error = ratio.std().item() / len(ratio) ** 0.5
    assert 0 < error < 0.01 or not density.n
    # farther off than 4.5 standard errors is chance once in 150,000 times
    assert ratio.mean().item() == pytest.approx(1, abs=max(4.5 * error, 1e-12))


def test_density_of_a_bijection_is_that_of_its_jacobian(density, dtype, device):
    if not isinstance(density, StiffDensity) or not density.n:
        pytest.skip("noise of as many numbers as there are variables")
    if dtype != torch.float64 or device != "cpu":
        pytest.skip("a matter of numbers, which are those of the CPU")
    noise, context = drawn(density, 4)
    _, log_prob, _ = density.decode(noise, context)
    for k in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, c=context[k : k + 1]: density.decode(z[None], c).value[0], noise[k]
        )
        normal = -0.5 * noise[k].square().sum() - 0.5 * density.n * math.log(TURN)
        torch.testing.assert_close(log_prob[k], normal - torch.linalg.slogdet(jacobian).logabsdet)


def test_density_without_a_context_can_be_sampled(density):
    if density.n_context:
        pytest.skip("given others")
    noise, nothing = drawn(density, 5, seed=1)
    value = density.sample(5, torch.Generator().manual_seed(1)).value
    assert value.device == noise.device
    torch.testing.assert_close(value, density.decode(noise, nothing).value)


def test_density_is_stored_and_filled(density):
    torch.manual_seed(5)
    other = copy.deepcopy(density)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(density.state_dict())
    noise, context = drawn(density, 3)
    for mine, its in zip(density.decode(noise, context), other.decode(noise, context), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
