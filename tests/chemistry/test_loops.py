"""Forms of large rings."""

import numpy as np
import openmm
import pytest
from molecules import load

from openmm_cgflow.chemistry import perceive
from openmm_cgflow.chemistry.forms import Fingerprint, same_isomer
from openmm_cgflow.chemistry.loops import loop_forms


def test_loops_of_a_lactone_of_ten_are_minima_of_other_forms():
    """Minima 16 kJ/mol and less below the input's, of which 18 were found when this was written."""
    topology, system, positions = load("macrolactone")
    molecule = perceive(topology, system, positions).molecule
    forms = loop_forms(molecule, system)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))

    def minimised(x: np.ndarray) -> tuple[float, float]:
        context.setPositions(x)
        before = context.getState(energy=True).getPotentialEnergy()._value
        openmm.LocalEnergyMinimizer.minimize(context, 0.1)
        return before, context.getState(energy=True).getPotentialEnergy()._value

    energies = np.array([minimised(x) for x in forms])
    assert np.abs(energies[:, 0] - energies[:, 1]).max() < 0.3
    assert energies[0, 1] < minimised(molecule.positions)[1] - 12
    assert (np.diff(energies[:, 0]) >= 0).all()
    assert all(same_isomer(molecule, molecule.positions, x) for x in forms)
    prints = Fingerprint(molecule)(np.array(forms))
    apart = np.abs(prints[:, None] - prints[None]).max(2)
    same_energy = np.abs(energies[:, None, 0] - energies[None, :, 0]) < 0.5
    assert not (same_energy & (apart < 0.02) & ~np.eye(len(forms), dtype=bool)).any()


def test_loops_end_when_they_are_told_to():
    topology, system, positions = load("macrolactone")
    molecule = perceive(topology, system, positions).molecule
    calls = []
    forms = loop_forms(molecule, system, lambda: calls.append(1) or len(calls) > 3)
    assert len(calls) == 4
    assert 1 <= len(forms) <= 4


@pytest.mark.parametrize("name", ["camphor", "nicotine", "butane", "caffeine"])
def test_loops_are_rings_of_seven_and_more(name):
    topology, system, positions = load(name)
    assert loop_forms(perceive(topology, system, positions).molecule, system) == []
