"""Beads without a System: which atoms they are, how frames of them are read, and what their coordinates are."""

from itertools import pairwise

import mdtraj
import numpy as np
import pytest
import torch
from molecules import load
from openmm import app, unit

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching import BeadModel

DIPEPTIDE = [4, 6, 8, 14, 16]


def chain(n: int, seed: int = 0, frames: int = 40, width: float = 0.02) -> np.ndarray:
    """Frames of a bent chain of beads 0.38 nm apart, `(frames, n, 3)`, nm."""
    rng = np.random.default_rng(seed)
    step = np.arange(n)
    line = np.stack([0.23 * np.cos(1.7 * step), 0.23 * np.sin(1.7 * step), 0.15 * step], axis=1)
    return line + rng.normal(0, width, (frames, n, 3))


@pytest.fixture(scope="module")
def aldp():
    return load("aldp_vacuum")


@pytest.fixture(scope="module")
def frames(aldp) -> np.ndarray:
    return aldp.positions + np.random.default_rng(0).normal(0, 0.004, (30, 22, 3))


def trajectory(x: np.ndarray, topology) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(x.astype(np.float32), mdtraj.Topology.from_openmm(topology))


# ---- which beads


@pytest.mark.parametrize("as_mdtraj", [False, True])
@pytest.mark.parametrize(
    ("mapping", "atoms"),
    [
        ("dipeptide", DIPEPTIDE),
        ("(name C and resname ACE) or (resname ALA and name N CA C) or (resname NME and name N)", DIPEPTIDE),
        (DIPEPTIDE, DIPEPTIDE),
        (np.array(DIPEPTIDE), DIPEPTIDE),
        ([14, 8, 6, 16], [14, 8, 6, 16]),
    ],
)
def test_bead_model_takes_the_atoms_that_are_named(aldp, mapping, atoms, as_mdtraj):
    topology = mdtraj.Topology.from_openmm(aldp.topology) if as_mdtraj else aldp.topology
    model = BeadModel.fromTopology(topology, mapping)
    assert model.groups == tuple((atom,) for atom in atoms)
    assert model.names == [atom.name for k in atoms for atom in aldp.topology.atoms() if atom.index == k]
    assert sum(model.masses) == pytest.approx(144.176, abs=0.01)  # C6 H12 N2 O2: no atom is lost or counted twice
    assert model.read(aldp.positions)[0] == pytest.approx(aldp.positions[atoms])


@pytest.mark.parametrize(("mapping", "per_residue"), [("ca", 1), ("backbone", 3)])
def test_bead_model_of_a_peptide_is_a_chain(mapping, per_residue):
    topology = load("ALA5").topology
    model = BeadModel.fromTopology(topology, mapping)
    n = 5 * per_residue
    assert model.n_beads == n
    assert model.bonds == tuple((k, k + 1) for k in range(n - 1))
    assert model.names == (["CA"] if mapping == "ca" else ["N", "CA", "C"]) * 5
    total = sum(atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms())
    assert sum(model.masses) == pytest.approx(total, abs=0.01)


def test_bead_model_of_groups_has_their_centres_of_mass(aldp, frames):
    groups = [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12, 13], [14, 15], [16, 17, 18, 19, 20, 21]]
    model = BeadModel.fromTopology(aldp.topology, groups)
    masses = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in aldp.topology.atoms()])
    for bead, group in enumerate(groups):
        expected = np.average(frames[:, group], axis=1, weights=masses[group])
        assert model.read(frames)[:, bead] == pytest.approx(expected, abs=1e-9)
        assert model.masses[bead] == pytest.approx(masses[group].sum(), abs=0.01)
    assert model.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_bead_model_of_a_sequence_weighs_what_the_peptide_does():
    atoms = BeadModel.fromTopology(load("ALA5").topology, "backbone")
    codes = BeadModel.fromSequence(["ALA"] * 5, "backbone")
    assert codes.names == atoms.names
    assert codes.bonds == atoms.bonds
    assert codes.masses[3:12] == pytest.approx(atoms.masses[3:12], abs=0.02)  # its ends carry the caps of the other
    assert sum(BeadModel.fromSequence("GYDPETGTWG").masses) == pytest.approx(1082.1 - 18.0, abs=0.2)


def test_bead_model_of_beads_alone_takes_its_bonds_from_the_topology_or_the_order(aldp):
    whole = mdtraj.Topology.from_openmm(aldp.topology)
    model = BeadModel.fromBeads(whole.subset(DIPEPTIDE))
    assert model.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert model.masses == pytest.approx(BeadModel.fromTopology(whole, "dipeptide").masses, abs=0.02)
    assert model.groups is None
    ring = mdtraj.Topology()
    residue = ring.add_residue("MOL", ring.add_chain())
    atoms = [ring.add_atom(f"B{k}", mdtraj.element.carbon, residue) for k in range(5)]
    for k in (1, 2, 3, 4):
        ring.add_bond(atoms[0], atoms[k])
    star = BeadModel.fromBeads(ring, masses=[1, 2, 3, 4, 5])
    assert star.bonds == ((0, 1), (0, 2), (0, 3), (0, 4))
    assert star.masses == (1, 2, 3, 4, 5)


# ---- coordinates


def test_bead_coordinates_are_those_of_the_flow_with_a_system(aldp, frames):
    """The same torsions, bonds and angles, and the same measure, as a CGFlow of the molecule has for its beads."""
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    mine = model.coordinates(model.read(frames))
    theirs = InternalCoordinates.fromTopology(
        aldp.topology, aldp.system, aldp.positions, beads=DIPEPTIDE
    ).bead_coordinates()
    assert mine.names == theirs.names
    assert mine.sizes == theirs.sizes == (2, 7, 0, 0)
    x = torch.as_tensor(model.read(frames))
    for a, b in zip(mine.to_internal(x), theirs.to_internal(x), strict=True):
        torch.testing.assert_close(a, b)


def test_bead_coordinates_have_the_dihedrals_of_mdtraj():
    molecule = load("ALA5")
    topology, positions = molecule.topology, molecule.positions
    model = BeadModel.fromTopology(topology, "backbone")
    x = positions + np.random.default_rng(1).normal(0, 0.005, (5, *positions.shape))
    coordinates = model.coordinates(model.read(x))
    q = coordinates.to_internal(torch.as_tensor(model.read(x)))[0].numpy()
    slow = coordinates.names[: coordinates.sizes[0]]
    assert coordinates.sizes == (12, 27, 0, 0)
    traj = trajectory(x, topology)
    for name, computed in (("psi", mdtraj.compute_psi(traj)), ("phi", mdtraj.compute_phi(traj))):
        indices, values = computed
        for four, column in zip(indices, values.T, strict=True):
            atom = traj.topology.atom(int(four[1 if name == "psi" else 2]))
            label = f"{atom.residue.name}{atom.residue.resSeq}:{name}"
            if label in slow:
                assert np.cos(q[:, slow.index(label)] - column) == pytest.approx(1, abs=1e-5)
    assert sum(label.endswith(("phi", "psi", "omega")) for label in slow) == 12


@pytest.mark.parametrize("shape", ["chain", "star", "comb"])
def test_bead_coordinates_are_a_bijection(shape):
    bonds = {"chain": None, "star": [(0, k) for k in range(1, 6)], "comb": [(0, 1), (1, 2), (2, 3), (1, 4), (2, 5)]}[
        shape
    ]
    top = mdtraj.Topology()
    residue = top.add_residue("MOL", top.add_chain())
    atoms = [top.add_atom(f"B{k}", mdtraj.element.carbon, residue) for k in range(6)]
    for i, j in bonds or []:
        top.add_bond(atoms[i], atoms[j])
    model = BeadModel.fromBeads(top)
    x = np.random.default_rng(3).normal(0, 0.3, (1, 6, 3)) + np.random.default_rng(4).normal(0, 0.01, (20, 6, 3))
    coordinates = InternalCoordinates.from_state(model.coordinates(x).state())
    assert coordinates.sizes == (3, 9, 0, 0)
    q, log_measure = coordinates.to_internal(torch.as_tensor(x))
    back, again = coordinates.to_cartesian(q)
    torch.testing.assert_close(log_measure, again)
    assert torch.cdist(back, back).numpy() == pytest.approx(
        np.linalg.norm(x[:, :, None] - x[:, None], axis=-1), abs=1e-7
    )
    moves = torch.func.vmap(torch.func.jacrev(lambda row: coordinates.to_cartesian(row[None])[0][0]))(q)
    at_gauge = torch.func.vmap(torch.func.jacrev(lambda row: coordinates.to_internal(row[None])[0][0]))(back)
    identity = torch.einsum("nqax,naxp->nqp", at_gauge, moves)
    torch.testing.assert_close(identity, torch.eye(12, dtype=torch.float64).expand(20, -1, -1), atol=1e-7, rtol=0)


def test_bead_coordinates_take_reference_and_scale_from_weighted_frames():
    model, x = BeadModel.fromSequence("GGGGG"), chain(5)
    weights = np.random.default_rng(1).random(len(x))
    coordinates = model.coordinates(x, weights)
    q = coordinates.to_internal(torch.as_tensor(x))[0].numpy()
    n = coordinates.sizes[0]
    mean = np.average(q[:, n:], axis=0, weights=weights)
    assert coordinates.reference[n:].numpy() == pytest.approx(mean)
    width = np.sqrt(np.average((q[:, n:] - mean) ** 2, axis=0, weights=weights))
    assert coordinates.scale[n:].numpy() == pytest.approx(width)
    assert (coordinates.period[:n] == 2 * np.pi).all()


def test_bead_coordinates_leave_constrained_bonds_out():
    model, x = BeadModel.fromSequence("GGGGG"), chain(5)
    x[:, 0] = x[:, 1] + 0.38 * (x[:, 0] - x[:, 1]) / np.linalg.norm(x[:, 0] - x[:, 1], axis=1)[:, None]
    with pytest.raises(
        InvalidInputError, match=r"bond GLY.:CA GLY.:CA is 0.38 in all of the 40 frames.*fixed=\[\(0, 1\)\]"
    ):
        model.coordinates(x)
    coordinates = model.coordinates(x, fixed=[(1, 0)])
    assert coordinates.dof == 8
    back, _ = coordinates.to_cartesian(coordinates.to_internal(torch.as_tensor(x))[0])
    assert (back[:, 0] - back[:, 1]).norm(dim=1).numpy() == pytest.approx(0.38)
    with pytest.raises(InvalidInputError, match="no bond between beads"):
        model.coordinates(x, fixed=[(0, 2)])


def test_bead_coordinates_refuse_a_torsion_that_stands_still():
    x = chain(4, width=0.0)
    x[:, :, :] *= np.linspace(0.9, 1.1, len(x))[:, None, None]  # lengths change, angles and torsions do not
    with pytest.raises(InvalidInputError, match=r"in all of the 40 frames.*leave one of its beads out"):
        BeadModel.fromSequence("GGGG").coordinates(x)


# ---- frames


@pytest.mark.parametrize("suffix", [".xtc", ".dcd", ".trr", ".pdb"])
def test_frames_of_files_are_read_piece_by_piece(aldp, frames, tmp_path, suffix):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    traj = trajectory(frames, aldp.topology)
    traj.save(str(tmp_path / f"all{suffix}"))
    traj.atom_slice(DIPEPTIDE).save(str(tmp_path / f"beads{suffix}"))
    tolerance = 1e-4 if suffix == ".pdb" else 6e-4 if suffix == ".xtc" else 1e-6
    for name in ("all", "beads"):
        read = model.read(tmp_path / f"{name}{suffix}", chunk=7, stride=2)
        assert read == pytest.approx(frames[::2, DIPEPTIDE], abs=tolerance)
    several = model.read([tmp_path / f"all{suffix}", tmp_path / f"beads{suffix}"])
    assert several == pytest.approx(np.tile(frames[:, DIPEPTIDE], (2, 1, 1)), abs=tolerance)


def test_frames_are_put_in_order_by_the_names_of_atoms(aldp, frames):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    order = np.random.default_rng(2).permutation(22)
    traj = trajectory(frames, aldp.topology)
    moved = mdtraj.Trajectory(traj.xyz[:, order], traj.topology.subset(range(22)))
    for atom, source in zip(moved.topology.atoms, order, strict=True):
        origin = traj.topology.atom(int(source))
        atom.name, atom.element = origin.name, origin.element
        atom.residue = next(r for r in moved.topology.residues if r.name == origin.residue.name)
    assert model.read(moved) == pytest.approx(frames[:, DIPEPTIDE], abs=1e-6)


@pytest.mark.parametrize("beads_alone", [False, True])
def test_frames_that_a_box_splits_are_made_whole(aldp, frames, beads_alone):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    traj = trajectory(frames, aldp.topology)
    traj = traj.atom_slice(DIPEPTIDE) if beads_alone else traj
    box = 1.6 if not beads_alone else 1.0
    traj.unitcell_vectors = np.tile(box * np.eye(3, dtype=np.float32), (len(frames), 1, 1))
    traj.xyz = np.mod(traj.xyz + np.linspace(0, box, len(frames))[:, None, None].astype(np.float32), box)
    whole = model.read(traj)
    expected = frames[:, DIPEPTIDE]
    between = np.linalg.norm(whole[:, :, None] - whole[:, None], axis=-1)
    assert between == pytest.approx(np.linalg.norm(expected[:, :, None] - expected[:, None], axis=-1), abs=1e-5)
    traj.unitcell_vectors = None
    with pytest.raises(InvalidInputError, match=r"nm long in frame \d+.*split by a periodic box.*make_molecules_whole"):
        model.read(traj)


@pytest.mark.parametrize("beads_alone", [False, True])
def test_a_box_that_is_none_leaves_frames_as_they_are(aldp, frames, beads_alone):
    """A stand-in of 1 Angstrom folded bonds."""
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    traj = trajectory(frames, aldp.topology)
    traj = traj.atom_slice(DIPEPTIDE) if beads_alone else traj
    traj.unitcell_vectors = np.tile(0.1 * np.eye(3, dtype=np.float32), (len(frames), 1, 1))
    assert model.read(traj) == pytest.approx(frames[:, DIPEPTIDE], abs=1e-6)


def two_chains() -> app.Topology:
    topology = app.Topology()
    for _ in range(2):
        chain_ = topology.addChain()
        last = None
        for _ in range(4):
            atom = topology.addAtom("CA", app.element.carbon, topology.addResidue("GLY", chain_))
            if last is not None:
                topology.addBond(last, atom)
            last = atom
    return topology


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda top: BeadModel.fromTopology(top, "name XX"), "Topology has no atoms that it selects"),
        (lambda top: BeadModel.fromTopology(top, "name of the (rose"), "no preset .* and no selection"),
        (lambda top: BeadModel.fromTopology(top, "ca"), "1 beads; internal coordinates need at least 4"),
        (lambda top: BeadModel.fromTopology(top, [0, 1, 2, 22]), "atom 22; give indices of atoms from 0 to 21"),
        (lambda top: BeadModel.fromTopology(top, [4.5, 6, 8, 14]), "mapping contain 4.5; give a list of indices"),
        (lambda top: BeadModel.fromTopology(top, ["CA", "CB"]), "mapping contain 'CA'"),
        (lambda top: BeadModel.fromTopology(top, None), "mapping is None; give indices"),
        (lambda top: BeadModel.fromTopology(top, [4, 6, 8, 4]), "ACE1:C .atom 4. twice"),
        (lambda top: BeadModel.fromTopology(top, [[0, 1], [], [4], [6]]), "a group without atoms"),
        (lambda top: BeadModel.fromTopology(two_chains(), "ca"), "several molecules or chains.*chainid 0"),
        (lambda top: BeadModel.fromTopology(two_chains(), "dipeptide"), "between ACE and NME"),
        (lambda top: BeadModel.fromTopology("ala.pdb"), "topology is a str"),
        (lambda top: BeadModel.fromTopology(app.Topology(), [0, 1, 2, 3]), "atom 0"),
        (lambda top: BeadModel.fromSequence("GGG"), "3 beads"),
        (lambda top: BeadModel.fromSequence("GGXG"), "the sequence has 'X'"),
        (lambda top: BeadModel.fromSequence("GGGG", "name CA"), "of a sequence there are no atoms"),
        (lambda top: BeadModel.fromBeads(load("ALA3").topology, [1.0]), "masses"),
    ],
)
def test_bead_model_refuses(aldp, make, message):
    with pytest.raises(InvalidInputError, match=message):
        make(aldp.topology)


def test_bead_model_refuses_a_topology_without_bonds(aldp):
    bare = mdtraj.Topology.from_openmm(aldp.topology)
    bare._bonds = []
    with pytest.raises(InvalidInputError, match=r"has no bonds.*createStandardBonds"):
        BeadModel.fromTopology(bare, "dipeptide")
    broken = mdtraj.Topology.from_openmm(two_chains())
    broken._bonds = []
    with pytest.raises(InvalidInputError, match="in 2 chains that no bond joins"):
        BeadModel.fromBeads(broken)


def test_frames_of_other_beads_are_refused(aldp, frames):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    with pytest.raises(MismatchError, match=r"has 21 atoms, but the model is of 5 beads or 22 atoms.*ACE1:C"):
        model.read(trajectory(frames, aldp.topology).atom_slice(range(21)))
    with pytest.raises(MismatchError, match=r"atom 0 of the trajectory is ACE1:H1 .H., that of the model ACE1:C .C."):
        model.read(trajectory(frames, aldp.topology).atom_slice([0, 4, 5, 8, 14]))
    with pytest.raises(MismatchError, match="shape"):
        model.check(frames)


def test_frames_that_cannot_be_used_are_refused_by_their_number(aldp, frames, tmp_path):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    bad = frames.copy()
    bad[[3, 17], 8] = np.nan
    with pytest.raises(InvalidInputError, match=r"frames 3, 17 \(2 of 30\) hold NaN"):
        model.read(bad)
    with pytest.raises(InvalidInputError, match="looks like Angstrom taken for nm"):
        model.read(10 * frames)
    bad = frames.copy()
    bad[5, 8] = bad[5, 6]
    with pytest.raises(InvalidInputError, match=r"ALA2:N-ALA2:CA lie on one another in frames 5"):
        model.read(bad)
    with pytest.raises(InvalidInputError, match="no frames"):
        model.read(frames[:0])
    with pytest.raises(InvalidInputError, match="no file"):
        model.read(tmp_path / "nothing.xtc")
    (tmp_path / "other.xtc").write_bytes(b"something else")
    with pytest.raises(InvalidInputError, match=r"cannot be read as a trajectory of 5 beads or 22 atoms"):
        model.read(tmp_path / "other.xtc")
    assert model.read(10 * frames * unit.angstrom) == pytest.approx(frames[:, DIPEPTIDE])


def test_beads_whose_atoms_are_gone_need_no_bonds():
    bare = mdtraj.Topology()
    chain = bare.add_chain()
    for number, name in enumerate(("GLY", "ALA", "SER", "GLY", "VAL")):
        bare.add_atom("CA", mdtraj.element.carbon, bare.add_residue(name, chain, resSeq=number + 1))
    model, direct = BeadModel.fromTopology(bare, "ca"), BeadModel.fromBeads(bare)
    assert model.bonds == direct.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert model.masses == direct.masses
    bare.add_atom("CB", mdtraj.element.carbon, bare.residue(1))
    with pytest.raises(InvalidInputError, match="no bonds"):
        BeadModel.fromTopology(bare, "ca")


def alpha_carbons(*residues: tuple[str, int]) -> mdtraj.Topology:
    """Of residues by name and number, without bonds."""
    bare = mdtraj.Topology()
    chain = bare.add_chain()
    for name, number in residues:
        bare.add_atom("CA", mdtraj.element.carbon, bare.add_residue(name, chain, resSeq=number))
    return bare


def test_masses_of_residues_by_any_of_their_names():
    bare = alpha_carbons(("GLY", 1), ("HIE", 2), ("CYX", 3), ("HSP", 4), ("ALA", 5))
    assert BeadModel.fromBeads(bare).masses == (57.05, 137.14, 103.14, 137.14, 71.08)


def test_atoms_without_elements_have_no_mass():
    topology = app.Topology()
    chain = topology.addChain()
    atoms = [topology.addAtom(f"B{k}", None, topology.addResidue("X", chain)) for k in range(5)]
    for i, j in pairwise(atoms):
        topology.addBond(i, j)
    with pytest.raises(InvalidInputError, match=r"mass of the bead .* is not known"):
        BeadModel.fromTopology(topology, [0, 1, 2, 3, 4])


def test_alpha_carbons_far_apart_are_no_other_unit():
    model = BeadModel.fromBeads(alpha_carbons(*(("ALA", number) for number in range(1, 16, 3))))
    x = np.cumsum([[0.9, 0.4 * (-1) ** k, 0.1 * k] for k in range(5)], axis=0)
    assert model.read(np.repeat(x[None], 3, 0)).shape == (3, 5, 3)


@pytest.mark.parametrize("suffix", [".xtc", ".dcd", ".pdb", ".gro"])
def test_frames_of_a_stride_are_every_nth_of_the_file(tmp_path, monkeypatch, suffix):
    """mdtraj begins anew in each chunk of an HDF5 file: frames went with the forces of others."""
    read = mdtraj.iterload

    def as_of_hdf5(*arguments, stride=1, **options):
        for piece in read(*arguments, **options):
            yield piece[::stride]

    model = BeadModel.fromSequence("GGGGGG")
    x = chain(6, frames=23)
    trajectory(x, model.topology).save(str(tmp_path / f"a{suffix}"))
    monkeypatch.setattr(mdtraj, "iterload", as_of_hdf5)
    for stride, chunk in ((3, 4), (5, 4), (4, 100), (30, 7)):
        read_here = model.read(tmp_path / f"a{suffix}", stride=stride, chunk=chunk)
        np.testing.assert_allclose(read_here, x[::stride], atol=2e-3)
        several = model.read([tmp_path / f"a{suffix}"] * 2, stride=stride, chunk=chunk)
        np.testing.assert_allclose(several, np.concatenate([x, x])[::stride], atol=2e-3)


@pytest.mark.parametrize("suffix", [".cif", ".rst7"])
def test_files_that_mdtraj_reads_as_a_whole_are_read(tmp_path, suffix):
    model = BeadModel.fromSequence("GGGGGG")
    x = chain(6, frames=1)
    trajectory(x, model.topology).save(str(tmp_path / f"a{suffix}"))
    np.testing.assert_allclose(model.read(tmp_path / f"a{suffix}"), x, atol=2e-3)


@pytest.mark.parametrize("change", [{"stride": 0}, {"stride": 1.5}, {"chunk": 0}])
def test_strides_that_cannot_be_are_named(change):
    with pytest.raises(InvalidInputError, match=f"read: {next(iter(change))} is"):
        BeadModel.fromSequence("GGGGGG").read(chain(6), **change)


def test_masses_have_units():
    plain = BeadModel.fromSequence("GGGG")
    model = BeadModel.fromBeads(plain.topology, masses=[0.01] * 4 * unit.kilogram / unit.mole)
    assert model.masses == pytest.approx((10.0,) * 4)
