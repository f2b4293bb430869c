"""A Context that fails while energies are asked for, and energies of which none is finite."""

import numpy as np
import openmm
import pytest
import torch

import openmm_cgflow as cgf
from openmm_cgflow.compute import choose, seeded
from openmm_cgflow.potentials import ContextPotential

FAILS = {"now": False}


def energy(state):
    """Of a program that goes away."""
    if FAILS["now"]:
        raise RuntimeError("the server has gone")
    return 1.0, np.zeros((2, 3))


def test_a_force_that_fails_is_an_error_of_this_package(monkeypatch):
    system = openmm.System()
    for _ in range(2):
        system.addParticle(1.0)
    system.addForce(openmm.PythonForce(energy, {}))
    potential, x = ContextPotential(system, platform="Reference", workers=0), torch.zeros(3, 2, 3)
    assert potential.energy(x).tolist() == [1.0] * 3
    monkeypatch.setitem(FAILS, "now", True)
    with pytest.raises(cgf.CGFlowError, match=r"cannot evaluate an energy any more.*the server has gone"):
        potential.energy(x)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_nothing_is_drawn_where_no_energy_is_finite(weights):
    with pytest.raises(cgf.TrainingError, match="every energy of 2 structures"):
        choose(torch.tensor(weights), 5, seeded(0))
    assert choose(torch.tensor([0.0, 1.0]), 3, seeded(0)).tolist() == [1, 1, 1]
