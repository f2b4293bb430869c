"""Text in other encodings than plain UTF-8 is read as what it is, or refused by the encoding's name."""

from pathlib import Path

import molecules
import pytest
from molecules import MODELS
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app
from openmm_cgflow.forcematching import BeadModel
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies
from openmm_cgflow.text_files import check_encoding
from openmm_cgflow.trajectory_files import read_array, read_pieces, read_topology
from openmm_cgflow.units import in_nm

DATA = molecules.DATA
SETS = {
    "amber": ("butane.prmtop", "butane.inpcrd"),
    "gromacs": ("readers/excl.top", "readers/mol.gro"),
    "charmm": ("readers/mol.psf", "readers/mol.crd", "readers/par.prm"),
    "pdb": ("ALA.pdb",),
    "xml": ("readers/baro.xml", "readers/baro.pdb"),
}
PLACES = [(name, k) for name, files in SETS.items() for k in range(len(files))]
MARKED = {("gromacs", 0), ("gromacs", 1), ("pdb", 0), ("xml", 0), ("xml", 1)}
"""Where a mark of UTF-8 does no harm."""


def copies(folder: Path, name: str, k: int, encoding: str) -> list[Path]:
    """The files of a molecule, of which one is in another encoding."""
    made = []
    for number, file in enumerate(SETS[name]):
        path = folder / Path(file).name
        raw = (DATA / file).read_bytes()
        path.write_bytes(raw.decode().encode(encoding) if number == k else raw)
        made.append(path)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "k"), PLACES)
def test_encodings_are_named(tmp_path, name, k):
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        files = copies(tmp_path, name, k, encoding)
        with pytest.raises(cgf.InvalidInputError, match=f"{files[k].name} is in {encoding[:6].upper()}, which"):
            load_system(*files)
    files = copies(tmp_path, name, k, "utf-8-sig")
    if (name, k) not in MARKED:
        with pytest.raises(cgf.InvalidInputError, match=f"{files[k].name} is in UTF-8 with a byte order mark"):
            load_system(*files)
        return
    energies = []
    for given in (files, [DATA / file for file in SETS[name]]):
        _, system, x = load_system(*given)
        energies.append(sum(float(e[0]) for e in term_energies(system, in_nm(x)[None]).values()))
    assert energies[0] == energies[1]


def test_encodings_of_traces_and_trajectories_are_named(tmp_path):
    """Readers of PDB files leave the first line out where a mark stands before it: an atom was lost."""
    flow = cgf.CGFlow.load(MODELS / "alanine_dipeptide.cgflow", device="cpu")
    marked = tmp_path / "marked.pdb"
    atoms = [line for line in (DATA / "ALA5.pdb").read_text().splitlines() if line[12:16] == " CA "]
    marked.write_text("\n".join([*atoms, "END", ""]), encoding="utf-8-sig")
    result = CliRunner().invoke(app, ["backmap-protein", str(marked), "-o", str(tmp_path / "atoms.pdb")])
    assert result.exit_code == 2
    assert "marked.pdb is in UTF-8 with a byte order mark" in result.output
    model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
    for read in (
        lambda: read_topology(marked),
        lambda: next(read_pieces(marked, model.topology)),
        lambda: flow.backmap(marked),
        lambda: flow.logDensity(marked),
        lambda: model.read(marked),
    ):
        with pytest.raises(cgf.InvalidInputError, match="byte order mark"):
            read()


def test_binary_files_are_no_text():
    for path in [*MODELS.glob("*.cgflow"), DATA / "ALA.pdb"]:
        check_encoding(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mdtraj leaves the file open
def test_files_that_are_no_topology_or_array_are_named(tmp_path):
    wrong = tmp_path / "wrong.pdb"
    wrong.write_text("nothing")
    with pytest.raises(cgf.InvalidInputError, match=r"wrong\.pdb cannot be read as a topology"):
        read_topology(wrong)
    with pytest.raises(cgf.InvalidInputError, match=r"wrong\.pdb cannot be read as an array"):
        read_array(wrong)
