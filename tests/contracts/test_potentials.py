"""What every potential keeps to: batched energies in kJ/mol, their gradient, a count, and a refusal of other shapes."""

from collections.abc import Callable

import pytest
import torch
from molecules import jiggled, load
from torch import Tensor

import openmm_cgflow as cgf
from openmm_cgflow.potentials import ContextPotential, DoubleWell, GaussianMixture, ManyWell, Potential, TorchPotential


def of(kind, **options) -> Callable[[], tuple[Potential, Tensor]]:
    def make() -> tuple[Potential, Tensor]:
        molecule = load("butane")
        potential = kind(molecule.system) if kind is ContextPotential else kind.fromSystem(molecule.system, **options)
        return potential, torch.as_tensor(jiggled(molecule.positions, 6))

    return make


def toy(kind, *arguments) -> Callable[[], tuple[Potential, Tensor]]:
    def make() -> tuple[Potential, Tensor]:
        potential = kind(*arguments)
        x = torch.randn(6, potential.n_atoms, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return potential, x

    return make


POTENTIALS: dict[str, Callable[[], tuple[Potential, Tensor]]] = {
    "a System in torch": of(TorchPotential, compile=False),
    "a System in torch, float64": of(TorchPotential, compile=False, dtype=torch.float64),
    "Contexts": of(ContextPotential),
    "DoubleWell": toy(DoubleWell),
    "ManyWell": toy(ManyWell),
    "GaussianMixture": toy(GaussianMixture.paper, 0, 4),
}


@pytest.fixture(params=list(POTENTIALS))
def made(request, dtype, device) -> tuple[Potential, Tensor]:
    potential, x = POTENTIALS[request.param]()
    return potential.to(device), x.to(dtype).to(device)


def test_potential_gives_one_energy_a_row(made):
    potential, x = made
    energy = potential.energy(x)
    assert energy.shape == (len(x),)
    assert energy.device == x.device
    assert torch.isfinite(energy).all()
    torch.testing.assert_close(potential(x), energy)
    for k in range(len(x)):
        torch.testing.assert_close(potential.energy(x[k : k + 1])[0], energy[k], rtol=1e-5, atol=1e-4)


def test_potential_counts_its_evaluations_and_settles(made):
    potential, x = made
    before = potential.evaluations
    potential.energy(x)
    potential.settle()
    potential.energy_and_forces(x[:2])
    assert potential.evaluations == before + len(x) + 2
    potential.evaluations = 5
    assert potential.evaluations == 5
    assert potential.piece is None or potential.piece > 0


def test_potential_has_the_gradient_of_its_energy(made):
    potential, x = made
    x = x.double()
    leaf = x.clone().requires_grad_(True)
    energy = potential.energy(leaf)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    again, forces = potential.energy_and_forces(x)
    torch.testing.assert_close(again, energy.detach(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(forces, -gradient, rtol=1e-4, atol=1e-2)
    direction = torch.ones_like(x) / x[0].numel() ** 0.5
    direction = torch.where(torch.arange(x[0].numel(), device="cpu").reshape(x[0].shape).to(x) % 2 == 0, direction, 0)
    step = 1e-3 if potential.energy(x).dtype == torch.float64 else 3e-3
    up, down = (potential.energy(x + s * step * direction) for s in (1, -1))
    slope = (gradient * direction).flatten(1).sum(1)
    scale = gradient.flatten(1).norm(dim=1) + 1
    assert (((up - down) / (2 * step) - slope).abs() / scale).max() < 2e-2


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3, 2), (1, 2, 3, 4)])
def test_potential_refuses_other_shapes(made, shape):
    potential, x = made
    with pytest.raises(cgf.InvalidInputError, match="shape"):
        potential.energy(torch.zeros(shape, dtype=x.dtype, device=x.device))
