"""The command line, files in pieces and processes, and a run that goes on where it was ended."""

import itertools
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app
from traces import helix, noisy, strand
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app as command
from openmm_cgflow.proteins import backmap_protein_file, files
from openmm_cgflow.proteins.beads.door import whole_beads
from openmm_cgflow.proteins.builder import ProteinBuilder
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.result import write_pdb

NAMES = ["GLY", "ALA", "CYS", "LYS", "PRO", "SER"]
FRAMES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("proteins")
    topology = app.Topology()
    chain = topology.addChain("A")
    for k, name in enumerate(NAMES):
        topology.addAtom("CA", app.element.carbon, topology.addResidue(name, chain, str(k + 5)))
    x = noisy(helix(len(NAMES)), FRAMES, 0.005)
    write_pdb(folder / "ca.pdb", topology, x[:1])
    mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(topology), time=2.0 * np.arange(FRAMES)).save(
        str(folder / "ca.xtc")
    )
    return folder


def test_the_command_writes_what_openmm_opens(folder, tmp_path):
    output = tmp_path / "atoms.pdb"
    arguments = [
        "--quiet",
        "backmap-protein",
        str(folder / "ca.pdb"),
        "-o",
        str(output),
        "--relax",
        "10",
        "--seed",
        "1",
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "wrong chirality" in result.output
    pdb = app.PDBFile(str(output))
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(pdb.topology)
    assert system.getNumParticles() == pdb.topology.getNumAtoms()
    assert [residue.id for residue in pdb.topology.residues()] == [str(k + 5) for k in range(len(NAMES))]
    with np.load(tmp_path / "atoms.npz") as data:
        assert data["energies"].shape == (1, 1)
        assert data["ess"].shape == (1, 1, len(NAMES))


def test_errors_of_the_command_are_one_line(folder, tmp_path):
    bad = tmp_path / "bad.pdb"
    bad.write_text((folder / "ca.pdb").read_text().replace("LYS", "NLE"))
    result = CliRunner().invoke(command, ["backmap-protein", str(bad), "-o", str(tmp_path / "x.pdb")])
    assert result.exit_code == 2
    assert "NLE 8 of chain A is norleucine" in result.output


def test_pieces_and_processes_give_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 2 * len(NAMES))
    written = []
    for workers in (1, 2):
        output = tmp_path / f"atoms{workers}.xtc"
        found = backmap_protein_file(folder / "ca.pdb", output, folder / "ca.xtc", relax=0, seed=7, workers=workers)
        assert (found.frames, found.structures, len(found.energies)) == (FRAMES, FRAMES, FRAMES)
        written.append(mdtraj.load(str(output), top=str(output.with_suffix(".topology.pdb"))))
    np.testing.assert_array_equal(written[0].xyz, written[1].xyz)
    np.testing.assert_allclose(written[0].time, 2.0 * np.arange(FRAMES))
    beads = mdtraj.load(str(folder / "ca.xtc"), top=str(folder / "ca.pdb")).xyz
    np.testing.assert_allclose(written[0].atom_slice(written[0].topology.select("name CA")).xyz, beads, atol=1.1e-3)


def test_a_run_that_was_ended_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 2 * len(NAMES))
    output, done, do = tmp_path / "atoms.dcd", [], files._do
    arguments = (folder / "ca.pdb", output, folder / "ca.xtc")

    def dies(task, piece, number):
        if number == 1:
            raise KeyboardInterrupt
        done.append(number)
        return do(task, piece, number)

    monkeypatch.setattr(files, "_do", dies)
    with pytest.raises(KeyboardInterrupt):
        backmap_protein_file(*arguments, relax=0, seed=7)
    assert done == [0]
    with pytest.raises(cgf.InvalidInputError, match="pieces of a run with another model, file or options"):
        backmap_protein_file(*arguments, relax=1, seed=7)

    def lives(task, piece, number):
        done.append(number)
        return do(task, piece, number)

    monkeypatch.setattr(files, "_do", lives)
    backmap_protein_file(*arguments, relax=0)  # the seed is that of the run that was begun
    assert done == [0, 1, 2]
    whole = backmap_protein_file(folder / "ca.pdb", tmp_path / "whole.dcd", folder / "ca.xtc", relax=0, seed=7)
    with np.load(output.with_suffix(".npz")) as one, np.load(whole.written[1]) as other:
        np.testing.assert_array_equal(one["energies"], other["energies"])
    assert not output.with_name("atoms.dcd.parts").exists()


@pytest.mark.parametrize("frames", [(-2, None), (3, 3), None, "0:5", (0.0, 2.0)])
def test_frames_that_cannot_be_are_refused(folder, tmp_path, frames):
    with pytest.raises(cgf.InvalidInputError, match="backmap_protein_file: frames is"):
        backmap_protein_file(folder / "ca.pdb", tmp_path / "a.xtc", folder / "ca.xtc", relax=0, frames=frames)


def test_pairs_of_disulfides_are_taken(folder, tmp_path):
    """They were taken for True."""
    text = (folder / "ca.pdb").read_text()
    (tmp_path / "ca.pdb").write_text(text.replace("GLY", "CYS").replace("SER", "CYS"))
    pairs = [(np.int64(2), np.int64(5))]
    backmap_protein_file(tmp_path / "ca.pdb", tmp_path / "atoms.pdb", relax=0, seed=0, disulfides=pairs)
    residues = app.PDBFile(str(tmp_path / "atoms.pdb")).topology.residues()
    hydrogens = ["HG" in {atom.name for atom in r.atoms()} for r in residues if r.name == "CYS"]
    assert hydrogens == [True, False, False]
    with pytest.raises(cgf.InvalidInputError, match="ALA 6 of chain A to be a cysteine"):
        backmap_protein_file(tmp_path / "ca.pdb", tmp_path / "b.pdb", relax=0, disulfides=[(1, 2)])


def test_a_run_that_did_nothing_leaves_nothing_and_writes_over_no_input(folder, tmp_path):
    structure = tmp_path / "x.topology.pdb"
    structure.write_text((folder / "ca.pdb").read_text())
    with pytest.raises(cgf.InvalidInputError, match="is a file that is read"):
        backmap_protein_file(structure, tmp_path / "x.dcd", relax=0)
    with pytest.raises(cgf.InvalidInputError, match=r"there is no file .*missing"):
        backmap_protein_file(structure, tmp_path / "y.dcd", relax=0, library=tmp_path / "missing")
    with pytest.raises(cgf.CGFlowError):  # a PDB file is no library
        backmap_protein_file(structure, tmp_path / "y.dcd", relax=0, library=folder / "ca.pdb")
    assert list(tmp_path.iterdir()) == [structure]


def test_waters_are_left_out_and_named(folder, tmp_path, caplog):
    text = (folder / "ca.pdb").read_text().splitlines()
    water = "HETATM  900  O   HOH W   1      50.000  50.000  50.000  1.00  0.00           O"
    place = next(k for k, line in enumerate(text) if line.startswith("TER")) + 1
    path = tmp_path / "wet.pdb"
    path.write_text("\n".join([*text[:place], water, *text[place:]]))
    with caplog.at_level("WARNING", "openmm_cgflow"):
        found = backmap_protein_file(path, tmp_path / "dry.pdb", relax=0, seed=0)
    assert "1 HOH" in caplog.text
    assert found.residues == len(NAMES)


def _split(trajectory: mdtraj.Trajectory) -> mdtraj.Trajectory:
    """The same in a small box, with every atom inside it."""
    lengths, right = np.full((len(trajectory), 3), 1.2), np.full((len(trajectory), 3), 90.0)
    x = (trajectory.xyz + np.array([0.4, 0.9, 0.7])) % 1.2
    return mdtraj.Trajectory(x, trajectory.topology, trajectory.time, lengths, right)


def test_traces_that_a_box_splits_are_made_whole(folder, tmp_path):
    whole = mdtraj.load(str(folder / "ca.xtc"), top=str(folder / "ca.pdb"))
    split = _split(whole)
    assert (np.linalg.norm(np.diff(split.xyz, axis=1), axis=2) > 0.6).any()
    split.save(str(tmp_path / "split.trr"))
    split[0].save(str(tmp_path / "split.pdb"))
    backmap_protein_file(tmp_path / "split.pdb", tmp_path / "atoms.trr", tmp_path / "split.trr", relax=0, seed=1)
    atoms = mdtraj.load(str(tmp_path / "atoms.trr"), top=str(tmp_path / "atoms.topology.pdb"))
    pairs = list(itertools.combinations(range(len(NAMES)), 2))
    distances = [
        mdtraj.compute_distances(t, t.topology.select("name CA")[pairs], periodic=False) for t in (whole, atoms)
    ]
    np.testing.assert_allclose(*distances, atol=1e-5)
    in_memory = cgf.ProteinBackmapper("GACKPS").backmap(split, relax=0, seed=1)
    assert in_memory.bead_error.max() < 1e-6


def test_residues_in_another_order_are_found_by_their_names(folder, tmp_path):
    frames = mdtraj.load(str(folder / "ca.xtc"), top=str(folder / "ca.pdb"))
    turned, residues = mdtraj.Topology(), list(frames.topology.residues)
    chain = turned.add_chain()
    for residue in residues[::-1]:
        turned.add_atom("CA", mdtraj.element.carbon, turned.add_residue(residue.name, chain, residue.resSeq))
    mdtraj.Trajectory(frames.xyz[:, ::-1], turned).save(str(tmp_path / "turned.gro"))
    backmap_protein_file(folder / "ca.pdb", tmp_path / "atoms.trr", tmp_path / "turned.gro", relax=0, seed=1)
    atoms = mdtraj.load(str(tmp_path / "atoms.trr"), top=str(tmp_path / "atoms.topology.pdb"))
    np.testing.assert_allclose(atoms.xyz[:, atoms.topology.select("name CA")], frames.xyz, atol=1e-3)


def test_frames_of_another_protein_are_refused_by_name(folder, tmp_path):
    frames = mdtraj.load(str(folder / "ca.xtc"), top=str(folder / "ca.pdb"))[:1]
    for residue, name in zip(frames.topology.residues, ("GLY", "TRP", "CYS", "LYS", "PRO", "SER"), strict=True):
        residue.name = name
    frames.save(str(tmp_path / "other.gro"))
    with pytest.raises(cgf.MismatchError, match=r"other.gro has TRP6:CA where ALA6:CA is expected"):
        backmap_protein_file(folder / "ca.pdb", tmp_path / "a.pdb", tmp_path / "other.gro", relax=0)


def test_elements_that_readers_guess_do_not_matter(folder, tmp_path):
    """OpenMM takes a lone CA without an element for calcium, mdtraj for carbon; NA for sodium, mdtraj for nitrogen."""
    lines = (folder / "ca.pdb").read_text().splitlines()
    atoms = [line[:76].rstrip() for line in lines if line.startswith("ATOM")]
    (tmp_path / "bare.pdb").write_text("\n".join([*atoms, "END"]) + "\n")
    bare = backmap_protein_file(tmp_path / "bare.pdb", tmp_path / "bare_atoms.pdb", relax=0, seed=1)
    assert bare.frames == 1
    sodium = "HETATM    9 NA    NA B  11       9.000   9.000   9.000  1.00  0.00          NA"
    (tmp_path / "ion.pdb").write_text("\n".join([*atoms, "TER", sodium, "END"]) + "\n")
    whole = mdtraj.load(tmp_path / "ion.pdb")
    whole.save(str(tmp_path / "ion.gro"))
    found = backmap_protein_file(tmp_path / "ion.pdb", tmp_path / "ion.trr", tmp_path / "ion.gro", relax=0, seed=1)
    assert found.frames == 1


def test_chains_in_other_images_are_brought_together():
    """Two chains with a disulfide between them were built as if they were apart."""
    trace = np.concatenate([strand(6), strand(6)[::-1], strand(6)]) + np.repeat([0.0, 0.55, 1.2], 6)[:, None] * [
        0,
        1,
        0,
    ]
    sequence = ProteinSequence.of("GACAAG/GAACAG/GAAAAG")
    box = np.array([[5.0, 0.0, 0.0], [1.0, 5.0, 0.0], [-2.0, 2.0, 5.0]])
    wrapped = np.stack([trace, trace])
    wrapped[1, 6:12] += box[1] - box[2]
    wrapped[1, 12:] -= 2 * box[0]
    np.testing.assert_allclose(whole_beads(wrapped, box, sequence, "ca"), [trace, trace], atol=1e-12)
    split = wrapped.copy()
    split[1, 3:6] += box[0]
    split[1, 8:] -= box[2]
    np.testing.assert_allclose(whole_beads(split, box, sequence, "ca"), [trace, trace], atol=1e-12)
    np.testing.assert_array_equal(whole_beads(wrapped, box / 50, sequence, "ca"), wrapped)  # as of PDB files of models
    between = trace.reshape(3, 6, 3)[[0, 2, 1]].reshape(1, 18, 3)  # the third one is beside both
    moved = between + np.repeat([[0, 0, 0], [0, 5, 0], [0, 5, 5]], 6, axis=0)
    np.testing.assert_allclose(whole_beads(moved, 5 * np.eye(3), sequence, "ca"), between, atol=1e-12)
    row = trace.reshape(3, 6, 3)[[0, 2, 1]].reshape(
        1, 18, 3
    )  # the second one is by the third, and by an image of the first
    np.testing.assert_array_equal(whole_beads(row, np.diag([5.0, 1.95, 5.0]), sequence, "ca"), row)
    apart = trace + np.repeat([0.0, 2.0, 4.0], 6)[:, None] * [0, 1, 0]
    for other in (4 * box, 2 * np.eye(3)):  # the latter is of States of Systems without a box
        np.testing.assert_array_equal(whole_beads(apart[None], other, sequence, "ca"), apart[None])


@pytest.mark.parametrize("one", [False, True], ids=["frames", "one structure"])
def test_a_box_that_is_no_box_moves_nothing(folder, one):
    """PDB files of models have a box of one Angstrom, into which whole traces were folded."""
    trace = mdtraj.load(folder / "ca.pdb")
    mapper = cgf.ProteinBackmapper("GACKPS", disulfides=[])
    plain = mapper.backmap(trace.xyz, relax=0, refine=0, seed=1).positions
    trace.unitcell_lengths, trace.unitcell_angles = np.full((1, 3), 0.1), np.full((1, 3), 90.0)
    source = trace
    if one:
        trace.save(str(folder / "dummy.pdb"))
        source = app.PDBFile(str(folder / "dummy.pdb"))
    np.testing.assert_allclose(mapper.backmap(source, relax=0, refine=0, seed=1).positions, plain, atol=2e-3)


def test_protonation_that_a_file_names_is_built(folder, tmp_path, caplog):
    """OpenMM's reader makes HIS, ASP, GLU and CYS of them."""
    text = (folder / "ca.pdb").read_text()
    for name, other in (("GLY", "HID"), ("ALA", "HIP"), ("CYS", "CYX"), ("LYS", "ASH"), ("PRO", "GLH"), ("SER", "HSP")):
        text = text.replace(name, other)
    (tmp_path / "ca.pdb").write_text(text)
    with caplog.at_level("WARNING", "openmm_cgflow"):
        backmap_protein_file(tmp_path / "ca.pdb", tmp_path / "atoms.pdb", relax=0, seed=0)
    assert "CYX 7 of chain A is in no disulfide" in caplog.text
    residues = list(app.PDBFile(str(tmp_path / "atoms.pdb")).topology.residues())
    told = {"HD1", "HE2", "HD2", "HG"}
    hydrogens = [{atom.name for atom in residue.atoms()} & told for residue in residues]
    assert [residue.name for residue in residues] == ["HIS", "HIS", "CYS", "ASP", "GLU", "HIS"]
    his = {"HD1", "HD2"}
    assert hydrogens == [his, his | {"HE2"}, {"HG"}, {"HD2"}, {"HE2"}, his | {"HE2"}]


def test_insertion_codes_are_kept(folder, tmp_path):
    """Residues 100, 100A and 100B of an antibody were one in what was written."""
    lines = (folder / "ca.pdb").read_text().splitlines(keepends=True)
    codes = dict(zip(NAMES, (" 99 ", "100 ", "100A", "100B", "101 ", "102 "), strict=True))
    kept = [f"{line[:23]}{codes[line[17:20]]}{line[27:]}" if line.startswith("ATOM") else line for line in lines]
    (tmp_path / "ca.pdb").write_text("".join(kept))
    backmap_protein_file(tmp_path / "ca.pdb", tmp_path / "atoms.pdb", relax=0, seed=0)
    topology = app.PDBFile(str(tmp_path / "atoms.pdb")).topology
    assert [r.id + r.insertionCode.strip() for r in topology.residues()] == [code.strip() for code in codes.values()]
    given = app.PDBFile(str(tmp_path / "ca.pdb")).topology
    built = cgf.ProteinBackmapper(given, disulfides=[]).topology
    assert [r.insertionCode.strip() for r in built.residues()] == ["", "", "A", "B", "", ""]
    dropped = mdtraj.load(str(tmp_path / "ca.pdb")).topology
    assert cgf.ProteinBackmapper(dropped, disulfides=[]).given.residues[3].label == "LYS 100B of chain A"


def test_every_run_reads_its_library_and_is_told_of_a_mirrored_trace(folder, tmp_path, monkeypatch, caplog):
    """The mapper of one file was that of the next one of the process."""
    monkeypatch.setattr(ProteinBuilder, "log_evidence", lambda *_: torch.tensor([-30.0, -5.0, -29.0]))
    library, energies = cgf.FragmentLibrary.load(), []
    for shift in (0, 36):
        moved = {name: table.roll((shift, shift), (0, 1)) for name, table in library.free_energy.items()}
        replace(library, free_energy=moved).save(tmp_path / "library.safetensors")
        found = backmap_protein_file(
            folder / "ca.pdb", tmp_path / "a.pdb", relax=0, seed=1, library=tmp_path / "library.safetensors"
        )
        energies.append(found.energies[0])
    assert abs(energies[0] - energies[1]) > 1.0  # kJ/mol
    assert caplog.text.count("likelier as its mirror image") == 2


def test_insertion_codes_before_the_plain_number_stay_as_they_are():
    """1B, 1A, 1, 2: as of thrombin's light chain."""
    topology = app.Topology()
    chain = topology.addChain("A")
    for number, code in ((1, "B"), (1, "A"), (1, ""), (2, "")):
        topology.addAtom("CA", app.element.carbon, topology.addResidue("ALA", chain, str(number), code))
    sequence = ProteinSequence.of(topology)
    assert [residue.number + residue.insertion for residue in sequence.residues] == ["1B", "1A", "1", "2"]
