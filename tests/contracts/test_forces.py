"""What every force keeps to that this package makes: of slow torsions, of beads, and of any energy in torch."""

from collections.abc import Callable

import numpy as np
import openmm
import pytest
import torch
from molecules import MODELS
from torch import Tensor

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import DistilSettings, StudentSettings
from openmm_cgflow.openmm_plugin.forces.torch_force import why_no_torch_force

QUICK = DistilSettings(points=500, steps=20, batch=128, student=StudentSettings(hidden=16, layers=1))


class Springs(torch.nn.Module):
    """Between every pair of particles; kJ/mol."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * ((x[:, None] - x[None]) ** 2).sum() + 0.3 * torch.cos(20 * (x[0] - x[1]).norm())


def of_slow_torsions(flow: cgf.CGFlow, backend: str) -> tuple[openmm.Force, np.ndarray]:
    return flow.createForce(backend), np.asarray(flow.positions._value)


def of_beads(flow: cgf.CGFlow, backend: str) -> tuple[openmm.Force, np.ndarray]:
    cg = flow.createCGSystem(backend)
    return openmm.XmlSerializer.clone(cg.system.getForce(0)), np.asarray(cg.positions._value)


def of_a_student(flow: cgf.CGFlow, backend: str) -> tuple[openmm.Force, np.ndarray]:
    cg = cgf.CGForceField.fromFlow(flow, QUICK).createCGSystem(backend)
    return openmm.XmlSerializer.clone(cg.system.getForce(0)), np.asarray(cg.positions._value)


def of_any_energy(flow: cgf.CGFlow, backend: str) -> tuple[openmm.Force, np.ndarray]:
    x = np.random.default_rng(0).normal(scale=0.2, size=(5, 3))
    return cgf.force_from_energy(Springs(), x, backend), x


KINDS: dict[str, tuple[Callable[[cgf.CGFlow, str], tuple[openmm.Force, np.ndarray]], tuple[str, ...]]] = {
    "slow torsions": (of_slow_torsions, ("tabulated", "python", "torch")),
    "beads": (of_beads, ("python", "torch")),
    "student": (of_a_student, ("python", "torch")),
    "any energy": (of_any_energy, ("python", "torch")),
}


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "alanine_dipeptide.cgflow", device="cpu")


@pytest.fixture(
    scope="module", params=[(kind, backend) for kind, (_, backends) in KINDS.items() for backend in backends]
)
def made(request, flow) -> tuple[openmm.Force, np.ndarray]:
    kind, backend = request.param
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    return KINDS[kind][0](flow, backend)


def context_of(force: openmm.Force, n: int) -> openmm.Context:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(12.0)
    system.addForce(openmm.XmlSerializer.clone(force))
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


@pytest.fixture(scope="module")
def held(made) -> tuple[openmm.Context, np.ndarray]:
    """A Context of the force, and where the particles may be."""
    force, x = made
    return context_of(force, len(x)), x


def energy_and_forces(context: openmm.Context, x: np.ndarray) -> tuple[float, np.ndarray]:
    context.setPositions(x)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def test_force_is_minus_the_gradient_of_its_energy(held):
    (context, x), rng, step = held, np.random.default_rng(1), 2e-5
    _, forces = energy_and_forces(context, x)
    assert np.abs(forces).max() > 0.1
    for _ in range(4):
        direction = rng.normal(size=x.shape)
        ahead, behind = (energy_and_forces(context, x + sign * step * direction)[0] for sign in (1, -1))
        slope = -(forces * direction).sum()
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, abs=1e-3 * np.abs(forces).max() + 1e-3)


def test_force_is_of_the_shape_alone(held):
    context, x = held
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    energy, forces = energy_and_forces(context, x)
    moved, turned = energy_and_forces(context, x @ turn.T + [0.3, -1.0, 0.5])
    assert moved == pytest.approx(energy, abs=1e-4)
    np.testing.assert_allclose(turned, forces @ turn.T, atol=1e-3 * np.abs(forces).max())
    assert np.abs(forces.sum(0)).max() < 1e-3 * np.abs(forces).max()


def test_force_is_scaled_by_its_parameter(held):
    context, x = held
    energy, forces = energy_and_forces(context, x)
    context.setParameter("cgflow_scale", -0.5)
    scaled, of_half = energy_and_forces(context, x)
    assert scaled == pytest.approx(-0.5 * energy, abs=1e-5)
    np.testing.assert_allclose(of_half, -0.5 * forces, atol=1e-5 * np.abs(forces).max())
    context.setParameter("cgflow_scale", 0.0)
    assert energy_and_forces(context, x)[0] == 0
    context.setParameter("cgflow_scale", 1.0)


def test_force_survives_xml(made, held):
    (force, _), (context, x) = made, held
    energy, forces = energy_and_forces(context, x)
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force))
    energy_again, forces_again = energy_and_forces(context_of(again, len(x)), x)
    assert energy_again == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(forces_again, forces, atol=1e-6 * np.abs(forces).max())
