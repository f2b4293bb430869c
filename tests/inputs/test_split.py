"""Molecules that a periodic box splits are made whole where the file has the box."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import openmm
import parmed
import pytest
from molecules import DATA
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies
from openmm_cgflow.inputs.structure import whole
from openmm_cgflow.units import in_nm

pytestmark = pytest.mark.filterwarnings("ignore")  # parmed, of its own
SIDE = 2.5  # nm
ROUTES = {
    "amber": ("butane.prmtop", "split.rst7"),
    "amber and pdb": ("butane.prmtop", "split.pdb"),
    "amber and cif": ("butane.prmtop", "split.cif"),
    "box of the prmtop": ("boxed.prmtop", "split.inpcrd"),
    "gromacs": ("split.top", "split.gro"),
    "xml": ("system.xml", "split.pdb"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Butane across the corner of a triclinic box, in every format that has one."""
    folder = tmp_path_factory.mktemp("split")
    shutil.copy(DATA / "butane.prmtop", folder)
    structure = parmed.load_file(str(DATA / "butane.prmtop"), str(DATA / "butane.inpcrd"))
    structure.box = [10 * SIDE, 10 * SIDE, 10 * SIDE, 95, 95, 95]  # a prmtop has one angle
    box = np.array(structure.box_vectors.value_in_unit(unit.nanometer))
    x = 0.1 * structure.coordinates
    inside = np.mod((x - x.mean(0)) @ np.linalg.inv(box), 1) @ box
    assert np.abs(inside - inside[0]).max() > 1
    structure.coordinates = 10 * inside
    structure.save(str(folder / "boxed.prmtop"))
    structure.save(str(folder / "split.rst7"))
    structure.save(str(folder / "split.top"))
    structure.save(str(folder / "split.gro"), precision=8)
    topology = app.AmberPrmtopFile(str(folder / "butane.prmtop")).topology
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    for writer, name in ((app.PDBFile, "split.pdb"), (app.PDBxFile, "split.cif")):
        with (folder / name).open("w") as file:
            writer.writeFile(topology, inside * unit.nanometer, file)
    structure.box = None
    structure.save(str(folder / "split.inpcrd"), format="rst7")
    system = app.AmberPrmtopFile(str(folder / "butane.prmtop")).createSystem()
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    return folder


def energy(*files) -> float:
    topology, system, x = load_system(*files)
    assert topology.getPeriodicBoxVectors() is None
    return sum(float(e[0]) for e in term_energies(system, in_nm(x)[None]).values())


@pytest.mark.parametrize("names", ROUTES.values(), ids=ROUTES)
def test_split_molecules_are_made_whole(folder, names):
    expected = energy(DATA / "butane.prmtop", DATA / "butane.inpcrd")
    assert energy(*(folder / name for name in names)) == pytest.approx(expected, abs=0.01)  # PDB has 1e-4 nm


def test_split_by_an_unknown_box_is_refused_with_what_a_shell_can_do(folder):
    with pytest.raises(cgf.InvalidInputError, match=r"a CRYST1 line of a PDB file, a \.gro or \.rst7.*gmx trjconv"):
        cgf.CGFlow(*load_system(folder / "butane.prmtop", folder / "split.inpcrd"))


def test_whole_molecules_are_left_as_they_are(folder, tmp_path):
    """Also where the box is a dummy that is smaller than a bond, as in many PDB files."""
    text = (DATA / "ALA.pdb").read_text()
    dummy = tmp_path / "dummy.pdb"
    dummy.write_text("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n" + text)
    assert np.array_equal(in_nm(load_system(dummy)[2]), in_nm(load_system(DATA / "ALA.pdb")[2]))


def test_a_dummy_box_does_not_fold_a_broken_molecule_into_itself():
    topology, x = app.Topology(), np.zeros((6, 3))
    residue = topology.addResidue("UNK", topology.addChain())
    atoms = [topology.addAtom(f"C{k}", app.element.carbon, residue) for k in range(6)]
    for first, second in pairwise(atoms):
        topology.addBond(first, second)
    x[:, 0] = 0.15 * np.arange(6)
    x[3:, 1] += 0.7  # a gap
    box = 0.1 * np.eye(3)
    assert np.array_equal(whole(Path("x.pdb"), topology, x, box), x)
    assert not np.array_equal(whole(Path("x.pdb"), topology, x, np.diag([2.0, 0.7, 2.0])), x)
