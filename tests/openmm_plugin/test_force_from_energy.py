"""Any torch energy as a force, beside the same energy as OpenMM has it."""

import copy

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.forces import force
from openmm_cgflow.openmm_plugin.forces.torch_force import why_no_torch_force

ATOMS = [3, 0, 2]
X = np.random.default_rng(0).normal(0.0, 0.2, (5, 3))


class Chain(torch.nn.Module):
    """A network's kind of energy: two stretched bonds, with a parameter in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor([800.0, 300.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (0.5 * self.k * ((x[1:] - x[:-1]).norm(dim=1) - 0.25) ** 2).sum()


def reference() -> tuple[float, np.ndarray]:
    bonds = openmm.HarmonicBondForce()
    for (i, j), k in zip(((3, 0), (0, 2)), (800.0, 300.0), strict=True):
        bonds.addBond(i, j, 0.25, k)
    return evaluated(bonds)


def system_of(force: openmm.Force, n: int = len(X)) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(1.0)
    system.addForce(force)
    return system


def evaluated(force: openmm.Force, scale: float | None = None, n: int = len(X)) -> tuple[float, np.ndarray]:
    system = system_of(copy.deepcopy(force), n)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(X[:n])
    if scale is not None:
        context.setParameter("cgflow_scale", scale)
    state = context.getState(energy=True, forces=True)
    return (
        state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
        state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer),
    )


@pytest.mark.parametrize("backend", ["python", "torch"])  # "compiled" takes long: see test_plugin_force.py
def test_force_from_energy_is_that_of_openmm(backend):
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    module = Chain()
    force = cgf.force_from_energy(module, X * unit.nanometer, backend, atoms=np.array(ATOMS))
    module.k.data.zero_()  # of no consequence: the module was copied
    energy, forces = reference()
    for scale in (None, -0.5):
        got, its_forces = evaluated(force, scale)
        assert got == pytest.approx((scale or 1.0) * energy, rel=1e-6)
        assert np.allclose(its_forces, (scale or 1.0) * forces, rtol=1e-6, atol=1e-4)


def test_force_from_energy_takes_all_particles_by_default():
    energy, forces = evaluated(cgf.force_from_energy(Squares(), X, "python"))
    assert energy == pytest.approx(float((X**2).sum()))
    assert np.allclose(forces, -2 * X)


class Squares(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": X[0]}, r"start has shape \(3,\)"),
        ({"atoms": [0, 5]}, "atoms has 5, but there are 5"),
        ({"atoms": [-1]}, "atoms has -1"),
        ({"atoms": [0, 0]}, "a particle twice"),
        ({"backend": "tabulated"}, "backend is 'tabulated'"),
        ({"module": torch.nn.Identity()}, "one finite number"),
        ({"start": np.full((5, 3), np.inf)}, "one finite number"),
    ],
)
def test_force_from_energy_names_what_it_cannot_take(change, message):
    arguments = {"module": Squares(), "start": X, "backend": "python"} | change
    with pytest.raises(cgf.InvalidInputError, match=message):
        cgf.force_from_energy(**arguments)


@pytest.mark.parametrize("backend", ["python", "compiled"])
def test_copies_of_a_force_are_not_compiled_again(backend, monkeypatch):
    """Systems are copied often (replica exchange, XML), and machine code takes most of a minute."""
    compiled = []

    def compiler(module, positions):
        compiled.append(module)
        return lambda x, scale: (module(x, scale), torch.zeros_like(x))

    for name in ("compile_forces", "compile_to_machine_code"):
        monkeypatch.setattr(force, name, compiler)
    first, other = (cgf.force_from_energy(Squares(), x, backend) for x in (X, X[:3]))
    xml = openmm.XmlSerializer.serialize(first)
    system = system_of(first)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001))
    context.setPositions(X)
    context.getState(energy=True)
    for each in (copy.deepcopy(first), openmm.XmlSerializer.deserialize(xml), system.getForce(0)):
        assert evaluated(each)[0] == pytest.approx(float((X**2).sum()))
    assert len(compiled) == 1
    evaluated(cgf.force_from_energy(Squares(), X, backend))
    assert len(compiled) == 2
    monkeypatch.setitem(globals(), "Squares", type("Squares", (Squares,), {"__module__": __name__}))
    evaluated(openmm.XmlSerializer.deserialize(xml))  # its class is another one now
    assert len(compiled) == 3
    evaluated(other, n=3)
    assert len(compiled) == 4


class MakesTensors(torch.nn.Module):
    """What it makes on the way has no type of its own."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        i, j = torch.triu_indices(len(x), len(x), 1)
        moved = x[torch.arange(len(x))] - torch.zeros(3)
        if self.in_place:
            made = torch.zeros(5, 3).to(x)
            made[0] = x[1] * x[2]
            moved = moved + made
        pairs = (moved[i] - moved[j]).norm(dim=1)
        return (pairs * torch.full((10,), 2.0)).sum() + (x @ torch.eye(3).to(x)).square().sum()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("backend", ["python", "torch"])
def test_tensors_that_an_energy_makes_are_made(backend, in_place):
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    force = cgf.force_from_energy(MakesTensors(in_place), X, backend)
    context = openmm.Context(
        system_of(force), openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for positions in (X, -1.1 * X[::-1], X):
        context.setPositions(positions)
        state = context.getState(energy=True, forces=True)
        x = torch.tensor(positions.copy(), requires_grad=True)
        energy = MakesTensors(in_place)(x)
        (gradient,) = torch.autograd.grad(energy, x)
        assert state.getPotentialEnergy()._value == pytest.approx(energy.item(), rel=1e-6)
        np.testing.assert_allclose(state.getForces(asNumpy=True)._value, -gradient.numpy(), atol=1e-5)
