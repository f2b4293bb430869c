"""Many walkers at once: the same steps as OpenMM's integrator, and the same averages."""

import numpy as np
import openmm
import pytest
import torch
from analytic import KT
from openmm import unit

from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.forcematching import BatchedLangevin

MASSES = [12.0, 16.0, 1.0]


class Chain(torch.nn.Module):
    """Two springs, and a weak pull to the origin."""

    def forward(self, x):
        r = (x[:, 1:] - x[:, :-1]).norm(dim=2)
        return (0.5 * 20_000 * (r - 0.15) ** 2).sum(1) + 25.0 * (x * x).sum((1, 2))


class Quartic(torch.nn.Module):
    def forward(self, x):
        return 3000.0 * (x**4).sum((1, 2))


def openmm_chain(friction: float, x: np.ndarray) -> openmm.Context:
    system, springs = openmm.System(), openmm.HarmonicBondForce()
    for mass in MASSES:
        system.addParticle(mass)
    springs.addBond(0, 1, 0.15, 20_000)
    springs.addBond(1, 2, 0.15, 20_000)
    pull = openmm.CustomExternalForce("25*(x^2+y^2+z^2)")
    for k in range(3):
        pull.addParticle(k, [])
    system.addForce(springs)
    system.addForce(pull)
    integrator = openmm.LangevinMiddleIntegrator(300, friction / unit.picosecond, 0.002)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    return context


def starts(n: int) -> torch.Tensor:
    x = torch.tensor([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0]], dtype=torch.float64)
    return x + 0.005 * torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_steps_are_those_of_openmm_without_friction():
    x = starts(2)
    walkers = BatchedLangevin(Chain(), x, MASSES, KT, friction=0.0, device="cpu", dtype=torch.float64)
    velocities = walkers.velocities.clone()
    walkers.step(200)
    for k in range(2):
        context = openmm_chain(0.0, x[k].numpy())
        context.setVelocities(velocities[k].numpy())
        context.getIntegrator().step(200)
        state = context.getState(positions=True, velocities=True)
        np.testing.assert_allclose(walkers.positions[k], state.getPositions(asNumpy=True)._value, atol=1e-9)
        np.testing.assert_allclose(walkers.velocities[k], state.getVelocities(asNumpy=True)._value, atol=1e-7)


def test_averages_are_those_of_openmm():
    n = 2000
    walkers = BatchedLangevin(Quartic(), torch.zeros(n, 1, 3), [10.0], KT, friction=5.0, device="cpu", seed=1)
    walkers.step(400)
    system, wall = openmm.System(), openmm.CustomExternalForce("3000*(x^4+y^4+z^4)")
    for k in range(n):
        system.addParticle(10.0)
        wall.addParticle(k, [])
    system.addForce(wall)
    integrator = openmm.LangevinMiddleIntegrator(300, 5 / unit.picosecond, 0.002)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.zeros((n, 3)))
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(400)
    ours, theirs = [], []
    for _ in range(6):
        walkers.step(100)
        integrator.step(100)
        ours.append(float(walkers.energy(walkers.positions).mean()))
        theirs.append(context.getState(energy=True).getPotentialEnergy()._value / n)
    # 3 kT / 4 by equipartition; a frame of 6,000 coordinates has a standard error of 1.6 %
    assert np.mean(ours) == pytest.approx(0.75 * KT, rel=0.04)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)
    kinetic = float((0.5 * 10 * walkers.velocities**2).sum((1, 2)).mean())
    assert kinetic == pytest.approx(1.5 * KT, rel=0.06)


def test_one_seed_gives_one_trajectory_in_any_cut(device):
    x = starts(5)
    first = BatchedLangevin(Chain(), x, MASSES, KT, seed=3, device="cpu")
    there = BatchedLangevin(Chain(), x, MASSES, KT, seed=3, device=device)
    other = BatchedLangevin(Chain(), x, MASSES, KT, seed=4, device="cpu")
    a, b, c = (walkers.run(20, every=10) for walkers in (first, there, other))
    assert a.shape == (2, 5, 3, 3)
    assert b.device.type == "cpu"
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert not torch.allclose(a, c, atol=1e-3)
    torch.testing.assert_close(a.mean(2), torch.zeros(2, 5, 3), rtol=0, atol=1e-6)


class Bond(torch.nn.Module):
    """A spring between two beads, wherever they are, which knows lengths up to 0.16 nm."""

    def forward(self, x):
        return 0.5 * 20_000 * ((x[:, 1] - x[:, 0]).norm(dim=1) - 0.15) ** 2

    def outside(self, x):
        return (x[:, 1] - x[:, 0]).norm(dim=1) > 0.16


def test_walkers_far_away_keep_their_digits():
    far = torch.tensor([[[1e5, 0, 0], [1e5 + 0.15, 0, 0]]], dtype=torch.float64).repeat(400, 1, 1)
    near = far - far.mean(1, keepdim=True)
    lengths = []
    for centred, start in ((False, near), (True, near), (False, far)):
        walkers = BatchedLangevin(Bond(), start, [12.0, 12.0], KT, device="cpu", seed=2, centred=centred)
        x = walkers.run(400, every=50)[2:]
        lengths.append((x[:, :, 1] - x[:, :, 0]).norm(dim=2))
        if centred:
            assert walkers.positions.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(lengths[1], lengths[0], rtol=0, atol=1e-3)  # the same walkers, but for rounding
    # single precision at 1e5 nm: steps of 0.008 nm, where the spring allows 0.011
    assert (lengths[2] - lengths[0]).abs().mean() > 0.002


def test_frames_outside_what_the_energy_knows_are_counted(caplog):
    start = torch.tensor([[[0.0, 0, 0], [0.15, 0, 0]]]).repeat(50, 1, 1)
    walkers = BatchedLangevin(Bond(), start, [12.0, 12.0], KT, device="cpu", seed=2)
    x = walkers.run(200, every=50)
    strange = int(((x[:, :, 1] - x[:, :, 0]).norm(dim=2) > 0.16).sum())
    assert 0 < strange < 200
    assert f"run: {strange} of 200 frames are outside what the energy was fitted to" in caplog.text


def test_bad_input_is_named():
    x = starts(2)
    with pytest.raises(InvalidInputError, match=r"shape \(3, 3\) and there are 3 masses; give \(walkers, beads, 3\)"):
        BatchedLangevin(Chain(), x[0], MASSES, KT)
    with pytest.raises(InvalidInputError, match=r"a mass is 0\.0"):
        BatchedLangevin(Chain(), x, [12.0, 0.0, 1.0], KT)
    with pytest.raises(InvalidInputError, match="timestep is nan"):
        BatchedLangevin(Chain(), x, MASSES, KT, timestep=float("nan"))
    walkers = BatchedLangevin(Chain(), x, MASSES, KT, timestep=0.5, device="cpu")
    with pytest.raises(InvalidInputError, match="steps is 5 and every 10"):
        walkers.run(5, every=10)
    with pytest.raises(TrainingError, match=r"2 of 2 walkers have blown up, the first is 0: shorten the time step"):
        walkers.step(300)


def test_units_of_what_is_given_are_known():
    x = starts(2)
    bare = BatchedLangevin(Chain(), x, MASSES, KT, friction=2.0, timestep=0.001, seed=1, device="cpu")
    with_units = BatchedLangevin(
        Chain(), 10 * x.numpy() * unit.angstrom, MASSES * unit.dalton, KT / 4.184 * unit.kilocalorie_per_mole,
        friction=2000 / unit.nanosecond, timestep=1 * unit.femtosecond, seed=1, device="cpu",
    )  # fmt: skip
    torch.testing.assert_close(with_units.run(20, every=10), bare.run(20, every=10))
