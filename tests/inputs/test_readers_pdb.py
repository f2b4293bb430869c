"""PDB files: what OpenMM would drop, what force fields name otherwise, and ways out that work."""

import logging
import re

import pytest
from molecules import DATA, jiggled, load

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

ALA = (DATA / "ALA.pdb").read_text().splitlines()
BUTANE = (DATA / "readers/baro.pdb").read_text().splitlines()


def write(folder, lines):
    path = folder / "mol.pdb"
    path.write_text("\n".join(lines))
    return path


def total(*files, **options):
    _, system, positions = load_system(*files, **options)
    return sum(float(e[0]) for e in term_energies(system, positions.value_in_unit(unit.nanometer)[None]).values())


def is_atom(line, name=None, residue="ALA"):
    return line.startswith(("ATOM", "HETATM")) and line[17:20] == residue and name in (None, line[12:16].strip())


def deuterated(line):
    if line.startswith(("ATOM", "HETATM")) and line[76:78].strip() == "H":
        return line[:12] + line[12:16].replace("H", "D", 1) + line[16:76] + " D" + line[78:]
    return line


@pytest.mark.parametrize("which", ["all", "one", "exchanged"])
def test_readers_deuterium(tmp_path, caplog, which):
    """Deuterium is read as hydrogen, also where a site has both: the energy is that of the molecule with hydrogens."""
    if which == "all":
        lines = [deuterated(line) for line in ALA]
    else:
        lines = []
        for line in ALA:
            amide = is_atom(line, "H")
            lines += [line] * (not amide or which == "exchanged") + [deuterated(line)] * amide
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        energy = total(write(tmp_path, lines))
    assert energy == pytest.approx(total(DATA / "ALA.pdb"), abs=1e-6)
    assert "deuterium atoms are read as hydrogen" in caplog.text


def test_readers_alternate_locations(tmp_path, caplog):
    """Of alternate locations the first of each atom is taken, and said."""
    lines = []
    for line in ALA:
        if is_atom(line, "HB1"):
            moved = f"{float(line[30:38]) + 0.5:8.3f}"
            lines += [line[:16] + "A" + line[17:], line[:16] + "B" + line[17:30] + moved + line[38:]]
        else:
            lines.append(line)
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        energy = total(write(tmp_path, lines))
    assert energy == pytest.approx(total(DATA / "ALA.pdb"), abs=1e-6)
    assert "the residue ALA A 2 has alternate locations A, B; the first of each atom is taken" in caplog.text


def test_readers_alternate_locations_of_mmcif(tmp_path, caplog):
    path = cif_of_alanine(tmp_path / "mol.cif")
    lines = []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == ["ATOM"] and "HB1" in words:
            k = words.index(".")
            lines += [" ".join([*words[:k], letter, *words[k + 1 :]]) for letter in "AB"]
        else:
            lines.append(line)
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        assert load_system(path)[0].getNumAtoms() == 22
    assert "has alternate locations A, B" in caplog.text


@pytest.mark.parametrize("beside", ["", "butane.prmtop"])
def test_readers_duplicate_names(tmp_path, beside):
    """Two atoms of one name in a residue: OpenMM would drop one of them."""
    lines = [line.replace(" H2  LIG", " H1  LIG") for line in BUTANE]
    files = [DATA / beside] if beside else []
    with pytest.raises(InvalidInputError, match=r"line 7: the residue LIG A 1 has several atoms named H1, of which"):
        load_system(*files, write(tmp_path, lines))


def cif_of_alanine(path):
    pdb = app.PDBFile(str(DATA / "ALA.pdb"))
    with path.open("w") as file:
        app.PDBxFile.writeFile(pdb.topology, pdb.positions, file)
    return path


def test_readers_duplicate_names_of_mmcif(tmp_path):
    path = cif_of_alanine(tmp_path / "mol.cif")
    path.write_text(path.read_text().replace(" H2  ", " H1  "))
    with pytest.raises(InvalidInputError, match=r"the residue ACE A 1 has several atoms named H1, of which"):
        load_system(path)


def test_readers_mmcif_without_atoms(tmp_path):
    path = tmp_path / "mol.cif"
    path.write_text("data_nothing\n")
    with pytest.raises(InvalidInputError, match=r"mol.cif has no atoms"):
        load_system(path)


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_readers_several_models_are_said(tmp_path, caplog, suffix):
    """The first is read, and that there are others is said."""
    if suffix == "pdb":
        atoms = [line for line in ALA if line.startswith(("ATOM", "HETATM"))]
        path = write(tmp_path, [line for k in "12" for line in (f"MODEL        {k}", *atoms, "ENDMDL")])
    else:
        path = cif_of_alanine(tmp_path / "mol.cif")
        lines = path.read_text().splitlines()
        first = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
        second = [re.sub(r"\s1\s*$", " 2", line) for line in first]
        last = lines.index(first[-1]) + 1
        path.write_text("\n".join([*lines[:last], *second, *lines[last:]]))
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        assert total(path) == pytest.approx(total(DATA / "ALA.pdb"), abs=1e-3)
    assert "has 2 models; the first is read" in caplog.text


def test_readers_charmm_caps(caplog):
    """charmm36.xml has ACE and NME as patches of the residues beside them: it simply works.

    The same System is in the tests' data, made with residues that were merged by hand.
    """
    with caplog.at_level(logging.INFO, "openmm_cgflow"):
        topology, system, positions = load_system(DATA / "ALA_PRO.pdb", forcefield=["charmm36.xml"])
    assert "caps are read as parts of the residues beside them" in caplog.text
    assert next(iter(topology.residues())).name == "ACE"
    x = jiggled(positions.value_in_unit(unit.nanometer), 3)
    reference = term_energies(load("ALA_PRO").system, x)
    assert term_energies(system, x) == {k: pytest.approx(v, rel=1e-9, abs=1e-6) for k, v in reference.items()}


@pytest.mark.slow
def test_readers_charmm_alanine_dipeptide():
    """Two templates of charmm36.xml fit alanine dipeptide; the protein's is taken."""
    _, system, _ = load_system(DATA / "ALA.pdb", forcefield=["charmm36.xml"])
    assert any(isinstance(f, openmm.CMAPTorsionForce) and f.getNumTorsions() == 1 for f in system.getForces())


CAPS = {
    "ACE": {"CH3": "CAY", "H1": "HY1", "H2": "HY2", "H3": "HY3", "C": "CY", "O": "OY"},
    "NME": {"N": "NT", "H": "HNT", "C": "CAT", "H1": "HT1", "H2": "HT2", "H3": "HT3"},
}


def as_charmm(line):
    for residue, names in CAPS.items():
        if is_atom(line, residue=residue):
            return f"ATOM  {line[6:12]} {names[line[12:16].strip()]:<3s} ALA A   2{line[26:]}"
    return line


def without_bonds(lines):
    return [line for line in lines if not line.startswith("CONECT")]


@pytest.mark.parametrize(
    ("lines", "forcefield", "message"),
    [
        (["nothing"], None, "has no atoms"),
        (map(as_charmm, without_bonds(ALA)), None, r"cap as CHARMM names them \(CAT, CAY, CY, NT\): write caps as res"),
        (without_bonds(BUTANE), None, "joins its 14 atoms by 0 bonds.*CONECT"),
        ([line.replace(" CB ", " CX ") for line in ALA], None, "joins its 10 atoms by 5 bonds.*standard names"),
        (BUTANE, None, "does not describe residue LIG .*give an XML that describes LIG"),
        ([line for line in ALA if "NME" not in line], None, "complete or cap the ends of the chain"),
        ([line for line in ALA if line[76:78] != " H"], None, "missing 3 H atoms.*Modeller or PDBFixer"),
        (ALA, ["charmm_polar_2019.xml"], "polarizable Drude force field"),
        ([line[:30] + "     abc" + line[38:] if is_atom(line, "CB") else line for line in ALA], None, "cannot be used"),
    ],
)
def test_readers_pdb_messages(tmp_path, lines, forcefield, message):
    with pytest.raises(InvalidInputError) as caught:
        load_system(write(tmp_path, list(lines)), forcefield=forcefield)
    assert re.search(message, str(caught.value))
