"""Rings that flip are found by the System, and become soft torsions."""

import numpy as np
import openmm
import pytest
from molecules import load

from openmm_cgflow.chemistry import perceive
from openmm_cgflow.chemistry.checks import check_inputs
from openmm_cgflow.coordinates import InternalCoordinates


def soft_names(name: str) -> list[str]:
    coordinates = InternalCoordinates.fromTopology(*load(name))
    slow, bead, rotor, _ = coordinates.sizes
    return coordinates.names[:slow] + coordinates.names[slow + bead : slow + bead + rotor]


def test_proline_has_two_puckers():
    assert "torsion PRO2:CG PRO2:CB PRO2:CA PRO2:N" in soft_names("PRO")
    assert "torsion PRO2:CD PRO2:N PRO2:CA PRO2:C" not in soft_names("PRO")  # one soft torsion describes the ring
    assert any(name.startswith("torsion PRO2:CG") for name in soft_names("ALA_PRO"))


def test_pyrrolidine_of_nicotine_flips_and_its_pyridine_does_not():
    names = soft_names("nicotine")
    assert any(name.startswith("torsion LIG1:C3 LIG1:C4 LIG1:C5") for name in names)
    assert not any("LIG1:C10 LIG1:C6" in name and name.startswith("torsion") for name in names)


@pytest.mark.parametrize("name", ["camphor", "TRP", "caffeine", "biphenyl", "PHE", "butane"])
def test_cages_and_flat_rings_do_not_flip(name):
    molecule = load(name)
    assert perceive(*molecule).flips == []


def test_a_form_that_is_too_high_is_left_out():
    """The flipped pucker of proline, held off by a force of its own."""
    molecule = load("PRO")
    names = {atom.name: atom.index for atom in molecule.topology.atoms() if atom.residue.name == "PRO"}
    force = openmm.CustomTorsionForce("60*step(-theta*sign)")
    force.addPerTorsionParameter("sign")
    atoms = [names[name] for name in ("N", "CA", "CB", "CG")]
    graph = check_inputs(*molecule)
    force.addTorsion(*atoms, [float(np.sign(graph.torsion(*atoms)))])
    molecule.system.addForce(force)
    assert perceive(*molecule).flips == []


def test_the_users_system_is_left_as_it_is():
    molecule = load("PRO")
    before = openmm.XmlSerializer.serialize(molecule.system)
    assert len(perceive(*molecule).flips) == 1
    assert openmm.XmlSerializer.serialize(molecule.system) == before
