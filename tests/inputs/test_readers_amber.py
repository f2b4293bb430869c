"""AMBER prmtops: nonbonded energies against a sum by hand over the file's own numbers; another order of atoms."""

import logging
import re

import numpy as np
import parmed
import pytest
from molecules import DATA

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies
from openmm_cgflow.model import CGFlow
from openmm_cgflow.slow_scan import scanTorsions

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # parmed, about its own files


def nonbonded(*files, **options):
    _, system, positions = load_system(*files, **options)
    x = positions.value_in_unit(unit.nanometer)
    return float(term_energies(system, x[None])["nonbonded"][0]), 10 * x


def sections(path):
    """The numbers of a prmtop by flag; widths of 8 (integers) and 16 (reals)."""
    found = {}
    for part in path.read_text().split("%FLAG ")[1:]:
        name, form, *lines = part.splitlines()
        width = 16 if "E16" in form else 8
        if "a" not in form:
            words = [line[k : k + width] for line in lines for k in range(0, len(line.rstrip()), width)]
            found[name.strip()] = np.array([float(word) for word in words if word.strip()])
    return found


def by_hand(path, x):
    """Coulomb, 12-6 and 12-6-4 energies by AMBER's rules, kJ/mol; positions in Angstrom."""
    data = sections(path)
    q, types = data["CHARGE"], data["ATOM_TYPE_INDEX"].astype(int) - 1
    n_types = int(data["POINTERS"][1])
    index = data["NONBONDED_PARM_INDEX"].astype(int).reshape(n_types, n_types) - 1
    a, b = data["LENNARD_JONES_ACOEF"], data["LENNARD_JONES_BCOEF"]
    c = data.get("LENNARD_JONES_CCOEF", np.zeros(len(a)))
    silent, position = set(), 0
    for i, count in enumerate(data["NUMBER_EXCLUDED_ATOMS"].astype(int)):
        for j in data["EXCLUDED_ATOMS_LIST"][position : position + count].astype(int):
            silent.add((i, j - 1))
        position += count
    total = 0.0
    for i in range(len(q)):
        for j in range(i + 1, len(q)):
            if (i, j) not in silent:
                k, r = index[types[i], types[j]], np.linalg.norm(x[i] - x[j])
                total += q[i] * q[j] / r + a[k] / r**12 - b[k] / r**6 - c[k] / r**4
    rows = np.concatenate([data["DIHEDRALS_INC_HYDROGEN"], data["DIHEDRALS_WITHOUT_HYDROGEN"]]).reshape(-1, 5)
    for first, _, third, last, kind in rows.astype(int):
        if third >= 0 and last >= 0:
            i, j, t = first // 3, last // 3, kind - 1
            k, r = index[types[i], types[j]], np.linalg.norm(x[i] - x[j])
            scee = data["SCEE_SCALE_FACTOR"][t] if "SCEE_SCALE_FACTOR" in data else 1.2
            scnb = data["SCNB_SCALE_FACTOR"][t] if "SCNB_SCALE_FACTOR" in data else 2.0
            total += q[i] * q[j] / r / scee + (a[k] / r**12 - b[k] / r**6) / scnb
    return 4.184 * total


def plain(prmtop):
    """As it is."""


def scales(prmtop):
    """1-4 scaling of its own for each type of torsion."""
    for flag, first in (("SCEE_SCALE_FACTOR", 1.0), ("SCNB_SCALE_FACTOR", 1.3)):
        prmtop.parm_data[flag] = [first + 0.1 * k for k in range(len(prmtop.parm_data[flag]))]


def no_scales(prmtop):
    """Without flags for it 1-4 scaling is 1.2 and 2."""
    prmtop.delete_flag("SCEE_SCALE_FACTOR")
    prmtop.delete_flag("SCNB_SCALE_FACTOR")


def edited(prmtop):
    """Off-diagonal Lennard-Jones terms of their own, as NBFIX puts into a prmtop, for 1-4 pairs too."""
    for flag in ("LENNARD_JONES_ACOEF", "LENNARD_JONES_BCOEF"):
        prmtop.parm_data[flag] = [v * (1.2 + 0.05 * k) for k, v in enumerate(prmtop.parm_data[flag])]


def with_r4(prmtop):
    """The 12-6-4 model."""
    count = len(prmtop.parm_data["LENNARD_JONES_ACOEF"])
    prmtop.add_flag("LENNARD_JONES_CCOEF", "5E16.8", data=[10.0 + k for k in range(count)])


@pytest.mark.parametrize("change", [plain, scales, no_scales, edited, with_r4])
def test_readers_amber_nonbonded(tmp_path, change):
    """Whatever the file says of pairs is in the energy."""
    prmtop = parmed.amber.AmberFormat(str(DATA / "butane.prmtop"))
    change(prmtop)
    prmtop.write_parm(str(tmp_path / "mol.prmtop"))
    found, x = nonbonded(tmp_path / "mol.prmtop", DATA / "butane.inpcrd")
    assert found == pytest.approx(by_hand(tmp_path / "mol.prmtop", x), rel=1e-5, abs=1e-3)


def test_readers_chamber(tmp_path):
    """A CHARMM force field in a prmtop: NBFIX of a 1-4 pair and Urey-Bradley terms."""
    psf = parmed.charmm.CharmmPsfFile(str(DATA / "readers/mol.psf"))
    psf.load_parameters(parmed.charmm.CharmmParameterSet(str(DATA / "readers/par.prm")))
    psf.coordinates = np.asarray(parmed.load_file(str(DATA / "readers/mol.crd")).coordinates).reshape(-1, 3)
    chamber = parmed.amber.ChamberParm.from_structure(psf)
    chamber.save(str(tmp_path / "mol.prmtop"))
    chamber.save(str(tmp_path / "mol.rst7"))
    energies = []
    for files in (
        (tmp_path / "mol.prmtop", tmp_path / "mol.rst7"),
        (DATA / "readers/mol.psf", DATA / "readers/mol.crd", DATA / "readers/par.prm"),
    ):
        _, system, positions = load_system(*files)
        energies.append(term_energies(system, positions.value_in_unit(unit.nanometer)[None]))
    for term in ("bonds and Urey-Bradley", "angles", "torsions", "nonbonded"):
        assert energies[0][term] == pytest.approx(energies[1][term], abs=0.01)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p: p.parm_data.update(IPOL=[1]), {}, "of a polarizable force field"),
        (lambda p: p.delete_flag("RADII"), {"implicit_solvent": "OBC2"}, "no Born radii.*changeRadii"),
        (lambda p: p.parm_data["ATOMIC_NUMBER"].__setitem__(3, 0), {}, r"atom 4 \(C4\) is an extra point"),
        (lambda p: p.delete_flag("CHARGE"), {}, "mol.prmtop cannot be used"),
    ],
)
def test_readers_amber_refusals(tmp_path, change, options, message):
    prmtop = parmed.amber.AmberFormat(str(DATA / "butane.prmtop"))
    change(prmtop)
    prmtop.write_parm(str(tmp_path / "mol.prmtop"))
    with pytest.raises(InvalidInputError, match=message):
        load_system(tmp_path / "mol.prmtop", DATA / "butane.inpcrd", **options)


def test_readers_other_order_is_refused():
    """Names and elements in another order than the topology's: the first atoms that differ are named."""
    with pytest.raises(InvalidInputError, match=r"atom 2 is C2 \(C\) in the topology and H1 \(H\) there.*order"):
        load_system(DATA / "butane.prmtop", DATA / "readers/butane_other_order.pdb")


def pdb_of_butane(folder, swap=(), rename=None):
    """Butane's PDB with lines swapped and names changed."""
    head = [line for line in (DATA / "readers/baro.pdb").read_text().splitlines() if line.startswith("HETATM")]
    for i, j in swap:
        head[i], head[j] = head[j], head[i]
    path = folder / "mol.pdb"
    path.write_text("\n".join(map(rename or str, head)))
    return path


def test_readers_order_of_equal_elements(tmp_path):
    """Two carbons exchanged are found by their names; so are hydrogens of two carbons."""
    load_system(DATA / "butane.prmtop", pdb_of_butane(tmp_path))
    for pair, message in (((0, 1), "atom 1 is C1 in the topology; C1 is atom 2"), ((4, 8), "atom 5 is H1")):
        with pytest.raises(InvalidInputError, match=message):
            load_system(DATA / "butane.prmtop", pdb_of_butane(tmp_path, [pair]))


def test_readers_other_names_are_no_other_order(tmp_path):
    """Hydrogens of one carbon in another order, or another convention of names, are no reason to refuse."""
    load_system(DATA / "butane.prmtop", pdb_of_butane(tmp_path, [(4, 5)]))

    def other(line):
        return re.sub(r" (C|H)(\d+) +LIG", lambda m: f" {m[1]}{chr(64 + int(m[2]))}  LIG", line)

    assert "CA" in other(" C1  LIG")
    load_system(DATA / "butane.prmtop", pdb_of_butane(tmp_path, rename=other))


def test_readers_number_of_atoms(tmp_path):
    path = pdb_of_butane(tmp_path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(MismatchError, match=r"the topology 14, .*mol.pdb 13"):
        load_system(DATA / "butane.prmtop", path)


def test_readers_barostat_is_left_out(caplog):
    """A System with a barostat and no box: left out, said, and everything else is as it was."""
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        _, system, positions = load_system(DATA / "readers/baro.xml", DATA / "readers/baro.pdb")
    assert "MonteCarloBarostat: left out" in caplog.text
    assert not any("Barostat" in type(force).__name__ for force in system.getForces())
    _, reference, _ = load_system(DATA / "butane.prmtop", DATA / "butane.inpcrd")
    x = positions.value_in_unit(unit.nanometer)[None]
    found, wanted = (sum(e[0] for e in term_energies(s, x).values()) for s in (system, reference))
    assert found == pytest.approx(wanted, abs=1e-3)


def test_readers_barostat_in_a_script(caplog):
    """The same for a System that a script gives."""
    pdb = app.PDBFile(str(DATA / "readers/baro.pdb"))
    system = openmm.XmlSerializer.deserialize((DATA / "readers/baro.xml").read_text())
    forces = system.getNumForces()
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        flow = CGFlow(pdb.topology, system, pdb.positions)
    assert "MonteCarloBarostat: left out" in caplog.text
    assert system.getNumForces() == forces == flow.system.getNumForces() + 1


@pytest.mark.slow
def test_readers_barostat_in_a_scan():
    """The same for `scanTorsions`."""
    pdb = app.PDBFile(str(DATA / "readers/baro.pdb"))
    system = openmm.XmlSerializer.deserialize((DATA / "readers/baro.xml").read_text())
    assert scanTorsions(pdb.topology, system, pdb.positions).slow


def test_readers_masses_in_another_order():
    """A System whose masses are the Topology's in another order has its atoms in another order."""
    prmtop = app.AmberPrmtopFile(str(DATA / "butane.prmtop"))
    positions = app.AmberInpcrdFile(str(DATA / "butane.inpcrd")).positions
    system = prmtop.createSystem()
    for i, mass in ((3, 1.008), (4, 12.01)):
        system.setParticleMass(i, mass)
    with pytest.raises(InvalidInputError, match=r"another order.*atom 3 \(\w+:C4\) has the mass 1.008 Da"):
        CGFlow(prmtop.topology, system, positions)
    repartitioned = prmtop.createSystem(hydrogenMass=3 * unit.dalton)
    CGFlow(prmtop.topology, repartitioned, positions)


def test_readers_drude_in_a_system():
    """A DrudeForce is named."""
    prmtop = app.AmberPrmtopFile(str(DATA / "butane.prmtop"))
    system = prmtop.createSystem()
    force = openmm.DrudeForce()
    force.addParticle(4, 0, -1, -1, -1, -1.0, 0.001, 1.0, 1.0)
    system.addForce(force)
    with pytest.raises(InvalidInputError, match="DrudeForce with 1 Drude particles"):
        CGFlow(prmtop.topology, system, app.AmberInpcrdFile(str(DATA / "butane.inpcrd")).positions)
