"""Beads other than alpha carbons: what they stand for, that they are kept, and what they tell."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app, unit
from traces import SEQUENCE, helix, strand
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app as command
from openmm_cgflow.proteins.beads.kinds import TOLERANCE, BeadMapping, bead_names, kind_of_names
from openmm_cgflow.proteins.beads.terms import TiedBeads
from openmm_cgflow.proteins.placing.contacts import COARSE
from openmm_cgflow.proteins.placing.plane_chain import grid
from openmm_cgflow.proteins.placing.planes import Backbone
from openmm_cgflow.proteins.placing.side_chains import frames_of
from openmm_cgflow.proteins.result import write_pdb

MEANS = ["martini3", "martini2", "com"]


@pytest.fixture(scope="module")
def known():
    """A structure of all amino acids around a helix, relaxed, and its mapper."""
    mapper = cgf.ProteinBackmapper(SEQUENCE)
    return mapper, mapper.backmap(helix(20), relax=40, seed=5)


def beads_of(known, kind: str) -> np.ndarray:
    mapper, result = known
    return BeadMapping.of(mapper._parts.layout, kind).beads_of(torch.as_tensor(result.positions[0, 0])).numpy()


def bead_topology(kind: str, names: list[str] | None = None) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain("A")
    for residue in cgf.ProteinBackmapper(SEQUENCE).topology.residues():
        added = topology.addResidue(residue.name, chain, residue.id)
        for name in names or bead_names(kind, residue.name):
            topology.addAtom(name, app.element.carbon, added)
    return topology


def test_beads_are_centres_of_mass_of_their_atoms(known):
    _, result = known
    x = result.positions[0, 0].astype(float)
    residues = list(result.topology.residues())

    def centre(k: int, names: str) -> np.ndarray:
        atoms = [atom for atom in residues[k].atoms() if not names or atom.name in names.split()]
        mass = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in atoms])
        return mass @ x[[atom.index for atom in atoms]] / mass.sum()

    wanted = {
        "com": [(0, 0, ""), (9, 9, "")],
        "martini2": [(1, 1, "N H CA C O CB"), (2, 2, "N H CA C O"), (3, 2, "CB CG1 CG2")],
        "martini3": [(0, 0, "N H H2 H3 CA C O"), (2, 1, "CB"), (-2, 19, "N H CA C O OXT")],
    }
    for kind, rows in wanted.items():
        for bead, residue, names in rows:
            np.testing.assert_allclose(beads_of(known, kind)[bead], centre(residue, names), atol=1e-6)
    assert {kind: len(beads_of(known, kind)) for kind in MEANS} == {"martini3": 52, "martini2": 49, "com": 20}


def test_shared_atoms_count_by_halves_and_thirds(known):
    mapper, _ = known
    mapping = BeadMapping.of(mapper._parts.layout, "martini3")
    atoms = mapper._parts.layout.index[SEQUENCE.index("F")]
    weight = {}
    for bead, atom, share in zip(mapping.bead.tolist(), mapping.atom.tolist(), mapping.weight.tolist(), strict=True):
        weight.setdefault(atom, {})[mapping.names[bead]] = share
    assert set(weight[atoms["CZ"]]) == {"SC2", "SC3"}
    ring = weight[atoms["CD1"]]
    assert set(ring) == {"SC1", "SC2"}
    # the same shares of the mass, over the masses of two beads
    mass = {
        "SC1": 12.011 * (2 + 2 / 3) + 1.008 * (2 + 2 / 3),
        "SC2": 12.011 * (1 + 2 / 3 + 1 / 2) + 1.008 * (1 + 2 / 3 + 1 / 2),
    }
    assert ring["SC2"] * mass["SC2"] == pytest.approx(2 * ring["SC1"] * mass["SC1"], rel=1e-3)


@pytest.mark.parametrize("kind", ["n-ca-c", "backbone"])
def test_beads_that_are_atoms_are_kept_bit_by_bit(known, kind):
    _, result = known
    beads = beads_of(known, kind)
    mapper = cgf.ProteinBackmapper(bead_topology(kind))
    assert mapper.beads == kind
    for relax in (0, 10):
        made = mapper.backmap(beads, relax=relax, seed=1)
        found = BeadMapping.of(mapper._parts.layout, kind)
        np.testing.assert_array_equal(made.positions[0, 0, found.atom.numpy()], beads)
        assert made.bead_error.max() == 0
        assert not made.checks.wrong_peptides.any()
    oxygen = [a.index for a in result.topology.atoms() if a.name in ("O", "OXT")]
    off = np.linalg.norm(made.positions[0, 0, oxygen] - result.positions[0, 0, oxygen], axis=1)
    assert off[:-2].max() < (1e-6 if kind == "backbone" else 0.04)


@pytest.mark.parametrize("kind", MEANS)
def test_means_of_atoms_are_kept_and_tell_more_than_alpha_carbons(known, kind):
    """Side chains are nearer to those that beads were made of than without the beads (0.20 nm)."""
    _, result = known
    x = result.positions[0, 0]
    beads = beads_of(known, kind)
    made = cgf.ProteinBackmapper(SEQUENCE, beads=kind).backmap(beads, n=2, relax=40, seed=1)
    assert made.bead_error.max() < TOLERANCE
    mapping = BeadMapping.of(cgf.ProteinBackmapper(SEQUENCE)._parts.layout, kind)
    again = mapping.beads_of(torch.as_tensor(made.positions[0])).numpy()
    found = cgf.ProteinBackmapper(SEQUENCE, beads=kind, disulfides=[]).beadsOf(made.positions[0])
    np.testing.assert_allclose(found, again, atol=1e-6)
    np.testing.assert_allclose(again, np.broadcast_to(beads, again.shape), atol=TOLERANCE)
    assert not made.checks.wrong_chirality.any()
    assert not made.checks.wrong_peptides.any()
    atoms = list(result.topology.atoms())
    ca = [a.index for a in atoms if a.name == "CA"]
    side = [a.index for a in atoms if a.element.symbol != "H" and a.name not in ("N", "CA", "C", "O", "OXT")]
    off = np.linalg.norm(made.positions[0] - x, axis=2)
    assert np.sqrt((off[:, ca] ** 2).mean()) < {"com": 0.06}.get(kind, 0.03)
    assert np.sqrt((off[:, side] ** 2).mean()) < {"com": 0.16}.get(kind, 0.10)


def test_factors_of_beads_are_those_of_assembled_structures(known):
    """The factor at a pair of turns is the likelihood of the beads of the backbones that are assembled there."""
    mapper, _ = known
    parts = mapper._parts
    terms = parts.terms_of("martini3")
    targets = torch.as_tensor(beads_of(known, "martini3"))[None]
    backbone = Backbone.of(parts.planes, torch.as_tensor(strand(20), dtype=torch.float32)[None])
    spread = 0.04
    factors = terms.log_factors(backbone, targets, spread)
    gamma = grid(targets, COARSE)
    for pair in ((3, 17), (20, 8)):
        turns = torch.zeros(1, len(parts.planes), dtype=torch.long)
        turns[:, parts.planes.before[1::2]] = pair[0]
        turns[:, parts.planes.after[1::2]] = pair[1]
        x = parts.assembly.backbone(backbone, gamma[turns])
        for k in range(1, 19, 2):
            variant = parts.layout.sequence.residues[k].variant
            off = terms.off(variant, torch.tensor([k]), x, targets)[0, 0]
            energy = terms.kinds[variant].energy
            log_c = -energy - 0.5 * off.square().sum((1, 2)) / spread**2
            exact = torch.logsumexp(log_c, 0) - torch.logsumexp(-energy, 0)
            assert float(factors[0, k, pair[0], pair[1]]) == pytest.approx(float(exact), abs=0.05, rel=2e-3)


def test_what_beads_cost_is_what_they_are_off(known):
    mapper, result = known
    terms = mapper._parts.terms_of("com")
    tied = TiedBeads(terms, torch.as_tensor(beads_of(known, "com"))[None])
    x = torch.as_tensor(result.positions[0]) + torch.tensor([0.01, 0.0, 0.0])
    assert float(tied.energy(x, 0.02)) == pytest.approx(20 * 0.5 * terms.kT * 0.25, rel=1e-3)


@pytest.mark.parametrize("kind", ["martini2", "com"])
def test_what_candidates_cost_is_what_structures_with_them_cost(kind):
    """Also at a terminus, whose other atoms weigh more, and where a side chain is there that is to be replaced."""
    mapper = cgf.ProteinBackmapper("GARAR")
    made = mapper.backmap(helix(5), relax=0, seed=1).positions[0]
    builder = mapper._parts
    layout, x = builder.layout, torch.as_tensor(made) - torch.as_tensor(made).mean(1, keepdim=True)
    mapping = BeadMapping.of(layout, kind)
    terms = builder.terms_of(kind)
    for variant, rows in builder.self_energies.members.items():
        off = terms.off(variant, rows, x, torch.zeros(1, len(mapping), 3))
        frames = frames_of(layout, x)
        for i, k in enumerate(rows.tolist()):
            placed = x.clone()
            side = layout.side_atoms[layout.side_start[k] : layout.side_start[k + 1]]
            ca = x[:, layout.index[k]["CA"]]
            placed[:, side] = builder.proposer.local[variant][3 % len(off[0, 0])] @ frames[:, k] + ca[:, None]
            wanted = mapping.beads_of(placed)[0, mapping.residue == k]
            found = off[0, i, 3 % len(off[0, 0]), : len(wanted)]
            torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-5)


def test_positions_are_as_the_topology_has_them():
    """Of one with heavy atoms, and of one with an oxygen more at the end of its first chain."""
    mapper = cgf.ProteinBackmapper("GASLG/GAVSG")
    x = mapper.backmap(np.concatenate([helix(5), helix(5) + 1.5]), relax=0, seed=1).positions[0, 0]
    whole = mdtraj.Topology.from_openmm(mapper.topology)
    for chosen, kind in (("element != H", "n-ca-c"), ("name N CA C O OXT", "backbone")):
        atoms = whole.select(chosen)
        part = cgf.ProteinBackmapper(whole.subset(atoms), beads=kind)
        made = part.backmap(x[atoms], relax=0, seed=1)
        backbone = [a.index for a in made.topology.atoms() if a.name in ("N", "CA", "C")]
        np.testing.assert_array_equal(made.positions[0, 0, backbone], x[backbone])


def test_evidence_is_of_alpha_carbons_alone(known):
    assert known[1].log_evidence is not None
    assert cgf.ProteinBackmapper(SEQUENCE, beads="com").backmap(beads_of(known, "com"), relax=0).log_evidence is None


def test_kinds_are_told_by_names_where_they_differ():
    assert kind_of_names([("GLY", ["BB"]), ("ALA", ["BB", "SC1"])]) == "martini3"
    assert kind_of_names([("GLY", ["BB"]), ("ALA", ["BB"])]) == "martini2"
    assert kind_of_names([("TRP", ["BB", "SC1", "SC2", "SC3", "SC4"])]) == "martini2"
    assert kind_of_names([("GLY", ["N", "CA", "C"]), ("ALA", ["N", "CA", "C", "OXT"])]) == "n-ca-c"
    assert kind_of_names([("GLY", ["N", "CA", "C", "O"])]) == "backbone"
    assert kind_of_names([("GLY", ["N", "CA", "C", "O"]), ("ALA", ["N", "CA", "C", "O", "CB"])]) == "ca"
    assert kind_of_names([("GLY", ["COM"])]) == "com"
    with pytest.raises(cgf.InvalidInputError, match="same beads in Martini 2 and 3"):
        kind_of_names([("GLY", ["BB"]), ("SER", ["BB", "SC1"])])
    with pytest.raises(cgf.InvalidInputError, match="SCN, SCP are of a polarisable"):
        kind_of_names([("SER", ["BB", "SC1", "SCP", "SCN"])])


def test_wrong_beads_are_refused_by_name(known):
    beads = beads_of(known, "martini3")
    mapper = cgf.ProteinBackmapper(SEQUENCE, beads="martini3")
    nan = np.where(np.arange(len(beads))[:, None] == 2, np.nan, beads)
    far = beads.copy()
    far[2] += 2.0
    for wrong, message in (
        (nan, "SC1 of ALA 2 of chain A in frame 0 is NaN"),
        (10 * beads, "looks like Angstrom"),
        (beads[::-1], "first beads of|more than 1.0 nm from its BB"),
        (far, "SC1 of ALA 2 of chain A is more than 1.0 nm from its BB"),
        (beads[:, :2], "have the shape"),
    ):
        with pytest.raises(cgf.InvalidInputError, match=message):
            mapper.backmap(wrong, relax=0)
    with pytest.raises(cgf.MismatchError, match="there are 49 beads, and 52 of kind 'martini3'"):
        mapper.backmap(beads_of(known, "martini2"), relax=0)
    with pytest.raises(cgf.InvalidInputError, match="density of structures around beads of kind 'martini3'"):
        mapper.backmap(beads, relax=0, assemble="chain")
    with pytest.raises(cgf.InvalidInputError, match="beads are 'martini'; give 'ca', 'n-ca-c'"):
        cgf.ProteinBackmapper(SEQUENCE, beads="martini")
    with pytest.raises(
        cgf.InvalidInputError, match="ALA 2 of chain A has the bead SC1, which no beads of kind 'martini2'"
    ):
        cgf.ProteinBackmapper(bead_topology("martini3"), beads="martini2")
    with pytest.raises(cgf.InvalidInputError, match="ALA 2 of chain A lacks the bead SC1"):
        cgf.ProteinBackmapper(bead_topology("martini2"), beads="martini3")
    with pytest.raises(cgf.InvalidInputError, match="the bond C-O of GLY 1"):
        cgf.ProteinBackmapper(SEQUENCE, beads="backbone").backmap(
            beads_of(known, "backbone").reshape(20, 4, 3)[:, [0, 1, 2, 0]]
        )


def test_files_of_martini_are_read_whatever_the_order_and_what_is_beside(known, tmp_path, caplog):
    topology = bead_topology("martini3")
    beads = beads_of(known, "martini3")
    order = np.arange(len(beads))
    phe = [atom.index for atom in topology.atoms() if atom.residue.name == "PHE"]
    order[phe] = phe[::-1]  # SC3, SC2, SC1, BB
    names = [atom.name for atom in topology.atoms()]
    other = app.Topology()
    chain = other.addChain("A")
    for residue in topology.residues():
        added = other.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            other.addAtom(names[order[atom.index]], app.element.carbon, added)
    water = other.addResidue("W", other.addChain("W"), "1")
    other.addAtom("W", app.element.carbon, water)
    x = np.concatenate([beads[order], [[3.0, 3.0, 3.0]]])
    write_pdb(tmp_path / "cg.pdb", other, [x])
    mdtraj.Trajectory(np.stack([x, x]), mdtraj.Topology.from_openmm(other)).save(str(tmp_path / "whole.xtc"))
    frames = np.stack([x, x])[:, :-1]
    alone = mdtraj.Topology.from_openmm(other).subset(range(len(beads)))
    mdtraj.Trajectory(frames, alone).save(str(tmp_path / "alone.xtc"))
    mapping = BeadMapping.of(known[0]._parts.layout, "martini3")
    for trajectory in ("whole.xtc", "alone.xtc"):
        output = tmp_path / f"atoms_{trajectory}"
        options = ["-o", str(output), "--relax", "5", "--seed", "1", "--frames", "0:1"]
        with caplog.at_level("WARNING", "openmm_cgflow"):
            result = CliRunner().invoke(
                command, ["backmap-protein", str(tmp_path / "cg.pdb"), str(tmp_path / trajectory), *options]
            )
        assert result.exit_code == 0, result.output
        assert "beads off, at most" in result.output
        assert "1 W" in caplog.text
        made = mdtraj.load(str(output), top=str(output.with_suffix(".topology.pdb"))).xyz[0]
        again = mapping.beads_of(torch.as_tensor(made)).numpy()
        np.testing.assert_allclose(again, beads, atol=TOLERANCE + 2e-3)  # of the decimals of .xtc, twice
        with np.load(output.with_suffix(".npz")) as data:
            assert data["bead_error"].max() < TOLERANCE
    bad = Path(tmp_path / "bad.pdb")
    bad.write_text((tmp_path / "cg.pdb").read_text().replace("SC5 TRP", "SC6 TRP"))
    result = CliRunner().invoke(
        command, ["backmap-protein", str(bad), "-o", str(tmp_path / "x.pdb"), "--beads", "martini3"]
    )
    assert result.exit_code == 2
    assert "lacks the bead SC5" in result.output


def named(rows: list[tuple[str, int, list[str]]], x: np.ndarray) -> mdtraj.Trajectory:
    """Positions with the names of residues, their numbers, and names of beads."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for residue, number, beads in rows:
        added = topology.add_residue(residue, chain, number)
        for bead in beads:
            topology.add_atom(bead, mdtraj.element.virtual, added)
    return mdtraj.Trajectory(x, topology)


def test_beads_of_a_trajectory_are_found_by_their_names():
    mapper = cgf.ProteinBackmapper("GKG", beads="martini3", disulfides=[])
    beads = mapper.beadsOf(cgf.ProteinBackmapper("GKG").backmap(helix(3), relax=0, refine=0, seed=0).positions[0])
    turned = named(
        [("GLY", 5, ["BB"]), ("LYS", 6, ["SC2", "SC1", "BB"]), ("GLY", 7, ["BB"])], beads[:, [0, 3, 2, 1, 4]]
    )
    np.testing.assert_array_equal(mapper._in_order(turned.xyz, list(turned.topology.atoms)), beads.astype(np.float32))
    three = [(name, k + 1, ["CA"]) for k, name in enumerate(("GLY", "ALA", "GLY", "SER"))]
    moved = [three[k] for k in (2, 3, 0, 1)]
    x = helix(4)[None]
    of_topology = cgf.ProteinBackmapper(named(three, x).topology)
    atoms = list(named(moved, x).topology.atoms)
    np.testing.assert_array_equal(of_topology._in_order(x, atoms), x[:, [2, 3, 0, 1]])
    of_sequence = cgf.ProteinBackmapper("GAGS")
    with pytest.raises(cgf.MismatchError, match="the trace has SER4:CA where ALA2:CA is expected"):
        of_sequence.backmap(named(moved, x), relax=0)
    for number in (5, -1):  # numbers of a sequence are none of the trajectory's, nor are unknown names
        renamed = named([("ALA" if k == 1 else "BEA", number + k, ["B"]) for k in range(4)], x)
        np.testing.assert_array_equal(of_sequence._in_order(x, list(renamed.topology.atoms)), x)
