"""Masses that were moved to hydrogens change no element, no radius of a solvent and no constraint."""

import re

import molecules
import pytest

from openmm_cgflow.chemistry.elements import correct_elements, original_masses
from openmm_cgflow.door import admit
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import SOLVENT, term_energies

from openmm import app, unit  # isort: skip

DATA = molecules.DATA / "readers"
ELEMENTS = "HOCHHCHHOH"
HEAVY_NEIGHBOURS = {"12.0110": 2, "12.011": 2, "15.9994": 1}
"""Hydrogens of each carbon and oxygen of glycol."""


def moved(text, to):
    """Glycol with hydrogens of `to` Da; the difference comes from the heavy atoms."""

    def changed(found):
        mass = found[0]
        return f"{to if mass.startswith('1.008') else float(mass) - HEAVY_NEIGHBOURS[mass] * (to - 1.008):.4f}"

    masses = rf"1\.0080?(?!\S)|{'|'.join(map(re.escape, HEAVY_NEIGHBOURS))}"
    lines = text.splitlines()
    return "\n".join(re.sub(masses, changed, line) if "EGL" in line else line for line in lines) + "\n"


def charmm(folder, to):
    psf = folder / "mol.psf"
    psf.write_text(moved((DATA / "mol.psf").read_text(), to))
    return psf, DATA / "mol.crd", DATA / "par.prm"


def gromacs(folder, to):
    top = folder / "mol.top"
    text = (DATA / "excl.top").read_text()
    # as acpype writes them: no atomic numbers, and masses with the atoms alone
    text = re.sub(r"(?m)^(opls_\w+) +\w+ \d+ [\d.]+ +0\.0 A", r"\1 \1 0.0 0.0 A", text)
    top.write_text(moved(text, to))
    return top, DATA / "mol.gro"


@pytest.mark.parametrize("to", [3.024, 4.032])
@pytest.mark.parametrize("write", [charmm, gromacs])
def test_repartitioned_masses_change_no_element(tmp_path, write, to):
    found = []
    for mass in (1.008, to):
        topology, system, x = load_system(*write(tmp_path, mass), implicit_solvent="OBC2", constraints="HBonds")
        assert "".join(atom.element.symbol for atom in topology.atoms()) == ELEMENTS
        energy = term_energies(system, x.value_in_unit(unit.nanometer)[None])[SOLVENT][0]
        found.append((energy, system.getNumConstraints(), system.getParticleMass(0).value_in_unit(unit.dalton)))
    assert found[1] == (pytest.approx(found[0][0], abs=1e-6), found[0][1], pytest.approx(to))
    assert found[1][1] == 6


def test_repartitioned_masses_of_a_script_change_no_element(tmp_path):
    psf, crd, parameters = map(str, charmm(tmp_path, 3.024))
    structure = app.CharmmPsfFile(psf)
    topology = structure.topology
    system = structure.createSystem(app.CharmmParameterSet(parameters))
    assert "".join(atom.element.symbol for atom in topology.atoms()) != ELEMENTS  # else there is nothing to see here
    admitted = admit(topology, system, app.CharmmCrdFile(crd).positions, 300.0)
    assert "".join(atom.element.symbol for atom in admitted.topology.atoms()) == ELEMENTS


@pytest.mark.parametrize("deuterons", [1, 2, 3])
def test_repartitioned_is_not_what_deuterium_is(deuterons):
    masses = [12.011, *[2.014] * deuterons, *[1.008] * (3 - deuterons), 15.9994, 1.008]
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5)]
    assert original_masses(masses, bonds) == masses


def test_repartitioned_masses_leave_right_elements_alone():
    topology = molecules.load("ALA", solvent=None).topology
    before = [atom.element for atom in topology.atoms()]
    heavy = app.ForceField("amber14-all.xml").createSystem(topology, hydrogenMass=3.5)
    correct_elements(topology, [heavy.getParticleMass(k)._value for k in range(heavy.getNumParticles())])
    assert [atom.element for atom in topology.atoms()] == before


@pytest.mark.parametrize("heavy", [1.5, 3.0, 4.0])
def test_repartitioned_rounded_masses_are_put_back(heavy):
    """Water's oxygen of 16.0 Da with hydrogens of 3.0 is as near to nitrogen's 14.007 as to its own."""
    masses = [16.0 - 2 * (heavy - 1.0), heavy, heavy, 16.0 - (heavy - 1.0), heavy]
    found = original_masses(masses, [(0, 1), (0, 2), (3, 4)])
    assert [app.Element.getByMass(mass).symbol for mass in found] == ["O", "H", "H", "O", "H"]
