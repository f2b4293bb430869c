"""What is no protein, or no trace of it, is refused by the residue's name, with the way out."""

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from traces import SEQUENCE, helix

import openmm_cgflow as cgf
from openmm_cgflow.proteins.chain.sequence import ProteinSequence


@pytest.fixture(scope="module")
def mapper() -> cgf.ProteinBackmapper:
    return cgf.ProteinBackmapper("GASLK")


def alpha_carbons(names: list[str], numbers: list[str] | None = None) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain("B")
    for k, name in enumerate(names):
        residue = topology.addResidue(name, chain, numbers[k] if numbers else str(k + 1))
        topology.addAtom("CA", app.element.carbon, residue)
    return topology


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("GAXL", "'X' at place 3"),
        ("GaL", "lower case is for D-amino acids"),
        ("", "no residues"),
        ("G", "GLY 1 of chain A is alone in its chain"),
        ("GAL/K", "LYS 1 of chain B is alone"),
        (["ALA", "NLE"], "NLE 2 of chain A is norleucine.*rename it LEU"),
        (["ALA", "DAL"], "DAL 2 of chain A is a D-amino acid"),
        (["ALA", "XYZ"], "XYZ 2 of chain A is no standard amino acid"),
        (["ACE", "ALA"], "ACE 1 of chain A is a cap"),
        (7, "given as int"),
    ],
)
def test_sequences_are_refused_by_residue(source, message):
    with pytest.raises(cgf.InvalidInputError, match=message):
        ProteinSequence.of(source)


def test_a_sequence_on_several_lines_is_one_chain():
    sequence = ProteinSequence.of(" GAS LKE\nGAS\n/ AG\n")
    assert sequence.lengths == [9, 2]
    assert sequence == ProteinSequence.of("GASLKEGAS/AG")


def test_topologies_are_refused_by_residue():
    with pytest.raises(cgf.InvalidInputError, match="between ALA 2 and GLY 5 of chain B residues are missing"):
        ProteinSequence.of(alpha_carbons(["GLY", "ALA", "GLY"], ["1", "2", "5"]))
    with_water = alpha_carbons(["GLY", "ALA"])
    water = with_water.addResidue("HOH", with_water.addChain("W"), "9")
    with_water.addAtom("O", app.element.oxygen, water)
    with pytest.raises(cgf.InvalidInputError, match=r"no part of a protein \(HOH 9\)"):
        ProteinSequence.of(with_water)
    beadless = alpha_carbons(["GLY", "ALA"])
    residue = beadless.addResidue("SER", next(beadless.chains()), "3")
    beadless.addAtom("N", app.element.nitrogen, residue)
    beadless.addAtom("C", app.element.carbon, residue)
    with pytest.raises(cgf.InvalidInputError, match="SER 3 of chain B has no atom CA"):
        ProteinSequence.of(beadless)


def test_selenomethionine_is_built_as_methionine_and_that_is_told(caplog):
    with caplog.at_level("WARNING", "openmm_cgflow"):
        sequence = ProteinSequence.of(["GLY", "MSE"])
    assert [residue.variant for residue in sequence.residues] == ["GLY", "MET"]
    assert "MSE 2 of chain A is built as MET" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: 10 * x, cgf.InvalidInputError, "looks like Angstrom taken for nm"),
        (lambda x: x[:4], cgf.MismatchError, "has 4 beads, the sequence 5 residues"),
        (lambda x: x[[0, 3, 1, 4, 2]], cgf.InvalidInputError, "beads are in another order"),
        (
            lambda x: np.where(np.arange(5)[:, None] > 2, x + np.array([0, 0, 1.0]), x),
            cgf.InvalidInputError,
            "SER 3 .* LEU 4 .*",
        ),
        (
            lambda x: np.where(np.arange(5)[:, None] == 1, np.nan, x),
            cgf.InvalidInputError,
            "ALA 2 of chain A in frame 0",
        ),
        (lambda x: x[:, :2], cgf.InvalidInputError, "has the shape"),
        (lambda x: x[[0, 1, 2, 1, 0]] + 1e-3, cgf.InvalidInputError, "nearer than 0.2 nm"),
        (lambda x: x[None][:0], cgf.InvalidInputError, "has the shape"),
        (lambda x: x.ravel(), cgf.InvalidInputError, "has the shape"),
        (lambda _: [], cgf.InvalidInputError, "has the shape"),
        (lambda _: 3.0, cgf.InvalidInputError, "has the shape"),
        (lambda x: x * unit.kelvin, cgf.InvalidInputError, "given in"),
    ],
)
def test_traces_are_refused_by_residue(mapper, change, error, message):
    with pytest.raises(error, match=message):
        mapper.backmap(change(helix(5)), relax=0)


@pytest.mark.parametrize("kind", ["n-ca-c", "backbone"])
def test_a_trace_in_place_of_a_backbone_is_refused(kind):
    """After all had been built, numpy said that shapes differ."""
    mapper = cgf.ProteinBackmapper("GAS", beads=kind)
    for trace in (helix(3), helix(3)[None], helix(3).ravel()):
        with pytest.raises(cgf.MismatchError, match=f"those of kind '{kind}' are N, CA, C"):
            mapper.backmap(trace, relax=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 10**10}, "n is 10,000,000,000, which takes"),
        ({"relax": -1}, "relax is -1"),
        ({"assemble": "all"}, "assemble is 'all'"),
        ({"particles": True}, "particles is True"),
    ],
)
def test_numbers_that_cannot_be_are_refused(mapper, options, message):
    with pytest.raises(cgf.InvalidInputError, match=message):
        mapper.backmap(helix(5), **options)


@pytest.mark.parametrize("pairs", [False, None, [0, 5], [("CYS 1", "CYS 6")], [(0, 5, 3)]])
def test_disulfides_that_are_no_pairs_are_refused(pairs):
    with pytest.raises(cgf.InvalidInputError, match="disulfides are"):
        cgf.ProteinBackmapper("CGAGAC", disulfides=pairs)


def test_systems_and_topologies_of_other_molecules_are_refused(mapper):
    system = openmm.System()
    system.addParticle(1.0)
    with pytest.raises(cgf.InvalidInputError, match="library is a str; give a FragmentLibrary"):
        cgf.ProteinBackmapper("GA", library="fragments.safetensors")
    with pytest.raises(cgf.InvalidInputError, match=r"system is a Topology; give an openmm.System"):
        cgf.ProteinBackmapper("GA", system=app.Topology())
    with pytest.raises(cgf.MismatchError, match="the System has 1 particles"):
        cgf.ProteinBackmapper("GA", system=system)
    odd = app.Modeller(mapper.topology, np.zeros((mapper.topology.getNumAtoms(), 3)) * unit.nanometer)
    odd.delete([next(atom for atom in odd.topology.atoms() if atom.name == "HB2" and atom.residue.name == "SER")])
    with pytest.raises(cgf.MismatchError, match="SER 3 of chain A lacks the atom HB2"):
        cgf.ProteinBackmapper(odd.topology)
    with pytest.raises(cgf.InvalidInputError, match="ALA 2 of chain A to be a cysteine"):
        cgf.ProteinBackmapper("GACC", disulfides=[(1, 2)])


def test_near_neighbours_without_a_proline_are_told(caplog):
    trace = helix(4)
    trace[2:] += 0.2 * (trace[1] - trace[2])
    with caplog.at_level("WARNING", "openmm_cgflow"):
        cgf.ProteinBackmapper("AAPA").backmap(trace, relax=0, seed=0)
        assert "cis" not in caplog.text
        cgf.ProteinBackmapper("AAAA").backmap(trace, relax=0, seed=0)
    assert "ALA 2 of chain A and ALA 3 of chain A in frame 0" in caplog.text


def test_topologies_without_bonds_are_refused(mapper):
    bare = app.Topology()
    chain = bare.addChain("A")
    for residue in mapper.topology.residues():
        added = bare.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            bare.addAtom(atom.name, atom.element, added)
    with pytest.raises(cgf.InvalidInputError, match="has 0 bonds for"):
        cgf.ProteinBackmapper(bare)


def test_other_holders_of_positions_are_read(mapper):
    x = helix(5)
    topology = mdtraj.Topology.from_openmm(alpha_carbons(["GLY", "ALA", "SER", "LEU", "LYS"]))
    first = mapper.backmap(mdtraj.Trajectory(x, topology), relax=0, seed=1)
    second = mapper.backmap(10 * x * unit.angstrom, relax=0, seed=1)
    np.testing.assert_allclose(first.positions, second.positions, atol=2e-3)


def test_a_mirrored_trace_is_doubted_once(caplog):
    """Nothing said so: only the energies of what was built."""
    mapper = cgf.ProteinBackmapper(SEQUENCE)
    mapper.backmap(helix(20), seed=0, relax=0, refine=0, particles=4)
    assert "likelier" not in caplog.text
    mapper = cgf.ProteinBackmapper(SEQUENCE)
    for _ in range(2):
        mapper.backmap(helix(20) * [1, 1, -1], seed=0, relax=0, refine=0, particles=4)
    assert caplog.text.count("likelier as its mirror image, by exp(71)") == 1


def test_a_reversed_trace_is_doubted_chain_by_chain(caplog, monkeypatch):
    mapper = cgf.ProteinBackmapper("GAS/LK")
    asked = []

    def log_evidence(traces: np.ndarray) -> torch.Tensor:
        asked.append(traces)
        return torch.tensor([-30.0, -29.0, -5.0])

    monkeypatch.setattr(mapper._parts, "log_evidence", log_evidence)
    two = np.concatenate([helix(3), helix(2) + 3.0])
    mapper.backmap(two, seed=0, relax=0, refine=0, particles=4)
    np.testing.assert_allclose(np.diff(asked[0][2][:3], axis=0), np.diff(two[2::-1], axis=0))
    np.testing.assert_allclose(asked[0][2][3] - asked[0][2][4], two[4] - two[3])
    assert "with its residues in reverse order, by exp(25)" in caplog.text
