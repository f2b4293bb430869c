"""Molecules from files: every route gives the same energies, every mistake its own message."""

import shutil
import warnings

import numpy as np
import parmed
import pytest
from molecules import DATA

from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError
from openmm_cgflow.inputs import load_system

# isort: off
import openmm
from openmm import app, unit
from openmmtools.testsystems import get_data_filename

# isort: on

AMBER = "data/alanine-dipeptide-gbsa/alanine-dipeptide"
pytestmark = pytest.mark.filterwarnings("ignore")  # parmed warns about units and GB radii of this old prmtop


def energy(system, positions):
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(positions)
    return context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Alanine dipeptide (ff96) in every format."""
    where = tmp_path_factory.mktemp("inputs")
    shutil.copy(get_data_filename(f"{AMBER}.prmtop"), where / "a.prmtop")
    shutil.copy(get_data_filename(f"{AMBER}.crd"), where / "a.inpcrd")
    shutil.copy(where / "a.inpcrd", where / "amber.crd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = parmed.load_file(str(where / "a.prmtop"), str(where / "a.inpcrd"))
        structure.save(str(where / "g.top"))
        structure.save(str(where / "g.gro"), precision=8)
        for atom in structure.atoms:  # CHARMM's files do not tell upper from lower case
            atom.type = atom.type.upper()
        structure.save(str(where / "c.psf"))
        parameters = parmed.charmm.CharmmParameterSet.from_structure(structure)
        parameters.write(par=str(where / "c.prm"), top=str(where / "c.rtf"))
        parmed.charmm.CharmmCrdFile.write(structure, str(where / "c.crd"))
    prmtop = app.AmberPrmtopFile(str(where / "a.prmtop"))
    positions = app.AmberInpcrdFile(str(where / "a.inpcrd")).positions
    with (where / "a.pdb").open("w") as file:
        app.PDBFile.writeFile(prmtop.topology, positions, file)
    with (where / "a.cif").open("w") as file:
        app.PDBxFile.writeFile(prmtop.topology, positions, file)
    system = prmtop.createSystem(implicitSolvent=app.OBC2)
    (where / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    return where


ROUTES = [
    ("a.prmtop", "a.inpcrd"),
    ("a.prmtop", "amber.crd"),
    ("a.prmtop", "a.pdb"),
    ("g.top", "g.gro"),
    ("c.psf", "c.crd", "c.prm", "c.rtf"),
    ("c.psf", "a.pdb", "c.prm", "c.rtf"),
    ("a.pdb",),
    ("a.cif",),
]


@pytest.mark.parametrize("solvent", [None, "OBC2"])
@pytest.mark.parametrize("names", ROUTES, ids="+".join)
def test_routes_agree(folder, names, solvent):
    """Every route gives the energy of AMBER's own files at its positions: ff96 is ff96."""
    forcefield = ["amber96.xml"] if len(names) == 1 else None
    files = [folder / name for name in names]
    topology, system, positions = load_system(*files, forcefield=forcefield, implicit_solvent=solvent)
    assert topology.getNumAtoms() == system.getNumParticles() == len(positions) == 22
    assert topology.getNumBonds() == 21
    assert topology.getPeriodicBoxVectors() is None
    assert not system.usesPeriodicBoundaryConditions()
    prmtop = app.AmberPrmtopFile(str(folder / "a.prmtop"))
    reference = prmtop.createSystem(implicitSolvent=app.OBC2 if solvent else None)
    assert energy(system, positions) == pytest.approx(energy(reference, positions), abs=2e-3)


def test_positions_are_those_of_the_file(folder):
    expected = app.AmberInpcrdFile(str(folder / "a.inpcrd")).getPositions(asNumpy=True) / unit.nanometer
    for names, digits in ((("a.prmtop", "a.inpcrd"), 1e-9), (("g.top", "g.gro"), 1e-6), (("a.prmtop", "a.pdb"), 6e-5)):
        _, _, positions = load_system(*(folder / name for name in names))
        assert np.abs(positions / unit.nanometer - expected).max() < digits


def test_serialized_system(folder):
    topology, system, _ = load_system(folder / "system.xml", folder / "a.pdb")
    assert topology.getNumAtoms() == 22
    assert openmm.XmlSerializer.serialize(system) == (folder / "system.xml").read_text()


def test_amber_top_is_told_from_gromacs_top(folder, tmp_path):
    shutil.copy(folder / "a.prmtop", tmp_path / "a.top")
    _, system, _ = load_system(tmp_path / "a.top", folder / "a.inpcrd")
    assert system.getNumParticles() == 22


@pytest.mark.parametrize("solvent", ["HCT", "OBC1", "OBC2", "GBn", "GBn2"])
def test_every_solvent(folder, solvent):
    """Names in any case; the solvation energy of a capped amino acid is about -50 kJ/mol."""
    _, vacuum, _ = load_system(folder / "a.prmtop", folder / "a.inpcrd", implicit_solvent="none")
    for names in (("a.prmtop", "a.inpcrd"), ("g.top", "g.gro"), ("a.pdb",)):
        forcefield = ["amber96.xml"] if len(names) == 1 else None
        files = [folder / name for name in names]
        _, system, positions = load_system(*files, forcefield=forcefield, implicit_solvent=solvent.lower())
        assert -60 < energy(system, positions) - energy(vacuum, positions) < -40


@pytest.mark.parametrize("names", [("a.prmtop", "a.inpcrd"), ("g.top", "g.gro"), ("a.pdb",)])
def test_constraints(folder, names):
    _, system, _ = load_system(*(folder / name for name in names), constraints="HBonds")
    assert system.getNumConstraints() == 12
    assert load_system(*(folder / name for name in names))[1].getNumConstraints() == 0


def test_the_demo_is_the_published_target(folder):
    """ff96 with the OBC1 XML is openmmtools' AlanineDipeptideImplicit (its prmtop with OBC1)."""
    _, system, positions = load_system(folder / "a.pdb", forcefield=["amber96.xml"], implicit_solvent="OBC1")
    reference = app.AmberPrmtopFile(str(folder / "a.prmtop")).createSystem(implicitSolvent=app.OBC1)
    assert energy(system, positions) == pytest.approx(energy(reference, positions), abs=1e-3)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("gone.pdb",), {}, "gone.pdb: there is no such file"),
        ((), {}, "exactly one file with positions"),
        (("a.prmtop",), {}, r"a.prmtop needs exactly one file with positions \(got none\)"),
        (("a.prmtop", "a.inpcrd", "a.pdb"), {}, "exactly one file"),
        (("a.prmtop", "g.top", "g.gro"), {}, "each describe a whole molecule"),
        (("a.pdb", "g.gro"), {}, "g.gro cannot be used like this"),
        (("a.prmtop", "g.gro"), {}, "g.gro cannot be used like this"),
        (("notes.txt",), {}, "the suffix .txt is not known"),
        (("a.pdb",), {"implicit_solvent": "water"}, "implicit solvent 'water' is not known: use HCT, OBC1"),
        (("a.pdb",), {"constraints": "AllBonds"}, "constraints 'AllBonds' is not known"),
        (("a.pdb",), {"forcefield": ["nope.xml"]}, "the force field nope.xml cannot be read"),
        (
            ("a.pdb",),
            {"forcefield": ["tip3p.xml"]},
            r"tip3p.xml does not describe residue ACE \(number 1 in the file\)",
        ),
        (
            ("a.pdb",),
            {"forcefield": ["amber96.xml", "amber96_obc.xml"], "implicit_solvent": "OBC2"},
            "together hold 2 implicit solvents",
        ),
        (("a.prmtop", "a.inpcrd"), {"forcefield": ["amber96.xml"]}, "has its own parameters"),
        (("c.psf", "c.crd"), {}, "needs CHARMM parameter files"),
        (("system.xml", "a.pdb"), {"implicit_solvent": "OBC2"}, "OBC2 cannot be added to .*system.xml"),
        (("broken.prmtop", "a.inpcrd"), {}, "broken.prmtop cannot be used"),
        (("broken.xml", "a.pdb"), {}, "broken.xml cannot be used"),
        (("field.xml", "a.pdb"), {}, "is a force field, not a System"),
        (("integrator.xml", "a.pdb"), {}, "holds a VerletIntegrator, not a System"),
        (("nohydrogens.pdb",), {}, r"does not describe residue ACE .*missing 3 H.*Modeller or PDBFixer"),
        (("water.pdb",), {}, r"explicit water \(1 x HOH\): take the water out"),
        (("periodic.xml", "a.pdb"), {}, r"the System is periodic \(NonbondedForce .*nonbondedMethod=NoCutoff"),
        (("python.xml", "a.pdb"), {}, "holds a PythonForce"),
        (("nan.xml", "nan.pdb"), {}, "atom 3 has the position"),
    ],
)
def test_bad_input(folder, broken, names, options, message):
    with pytest.raises(CGFlowError, match=message) as caught:
        load_system(*((folder if (folder / n).exists() else broken) / n for n in names), **options)
    assert not isinstance(caught.value, MismatchError)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, folder):
    """Files with one mistake each."""
    where = tmp_path_factory.mktemp("broken")
    text = (folder / "a.pdb").read_text()
    lines = text.splitlines(keepends=True)
    (where / "notes.txt").write_text("hello")
    (where / "broken.prmtop").write_text((folder / "a.prmtop").read_text()[:3000])
    (where / "broken.xml").write_text((folder / "system.xml").read_text()[:500])
    (where / "field.xml").write_text("<ForceField></ForceField>")
    (where / "integrator.xml").write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    (where / "nohydrogens.pdb").write_text("".join(line for line in lines if line[76:78].strip() != "H"))
    water = "HETATM   23  O   HOH B   4      10.000  10.000  10.000  1.00  0.00           O\n"
    (where / "water.pdb").write_text("".join(line for line in lines if line.startswith("ATOM")) + water)
    periodic = app.AmberPrmtopFile(str(folder / "a.prmtop")).createSystem()
    next(f for f in periodic.getForces() if isinstance(f, openmm.NonbondedForce)).setNonbondedMethod(
        openmm.NonbondedForce.PME
    )
    (where / "periodic.xml").write_text(openmm.XmlSerializer.serialize(periodic))
    (where / "python.xml").write_text('<System><Forces><Force type="PythonForce"/></Forces></System>')
    (where / "nan.xml").write_text((folder / "system.xml").read_text())
    third = [k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM"))][3]
    lines[third] = lines[third][:30] + "     nan" + lines[third][38:]
    (where / "nan.pdb").write_text("".join(lines))
    return where


def test_files_of_two_molecules(folder, tmp_path):
    system = openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    (tmp_path / "five.xml").write_text(openmm.XmlSerializer.serialize(system))
    with pytest.raises(MismatchError, match="the topology 22, the System 5, the positions 22"):
        load_system(tmp_path / "five.xml", folder / "a.pdb")


def test_options_may_be_the_objects_of_openmm():
    files = [DATA / "butane.prmtop", DATA / "butane.inpcrd"]
    by_name = load_system(*files, implicit_solvent="OBC2", constraints="HBonds")[1]
    system = load_system(*files, implicit_solvent=app.OBC2, constraints=app.HBonds)[1]
    assert openmm.XmlSerializer.serialize(system) == openmm.XmlSerializer.serialize(by_name)
    with pytest.raises(InvalidInputError, match="constraints 'AllBonds' is not known"):
        load_system(*files, constraints=app.AllBonds)


def test_one_force_field_need_not_be_a_list():
    assert load_system(DATA / "ALA.pdb", forcefield="amber14-all.xml")[1].getNumParticles() == 22
