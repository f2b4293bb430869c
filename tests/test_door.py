"""The door: structures and trajectories whose names, units, box, bonds or constraints are not the flow's."""

import mdtraj
import networkx
import numpy as np
import pytest
import torch
from molecules import DATA, MODELS, load, thermal

import openmm_cgflow as cgf
from openmm_cgflow import cli, door
from openmm_cgflow.atom_matching import match_atoms
from openmm_cgflow.potentials import ContextPotential

# isort: off
import openmm
from openmm import app, unit

# isort: on

MODEL = MODELS / "alanine_dipeptide.cgflow"
BOX = 2.5  # nm


@pytest.fixture(scope="module")
def aldp() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL)


@pytest.fixture(scope="module")
def frames(aldp) -> mdtraj.Trajectory:
    return aldp.sample(6, seed=0).trajectory


@pytest.fixture(scope="module")
def butane() -> cgf.CGFlow:
    return cgf.CGFlow(*load("butane"))


def in_a_box(frames: mdtraj.Trajectory, vectors: np.ndarray) -> mdtraj.Trajectory:
    """The frames somewhere across the faces of a box, every atom wrapped into it."""
    x = frames.xyz.astype(float) + vectors.sum(0) - 0.05
    fractions = x @ np.linalg.inv(vectors)
    wrapped = mdtraj.Trajectory(((fractions % 1) @ vectors).astype(np.float32), frames.topology)
    wrapped.unitcell_vectors = np.repeat(vectors[None], len(x), 0)
    return wrapped


CUBE = np.eye(3) * BOX
DODECAHEDRON = BOX * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, np.sqrt(0.5)]])


@pytest.mark.parametrize("vectors", [CUBE, DODECAHEDRON], ids=["cube", "dodecahedron"])
def test_molecules_split_by_their_box_are_made_whole(aldp, frames, vectors):
    split = in_a_box(frames, vectors)
    assert np.abs(split.xyz - split.xyz[:, :1]).max() > 1.0
    np.testing.assert_allclose(aldp.logDensity(split), aldp.logDensity(frames), atol=5e-2)  # float32 far from 0
    np.testing.assert_allclose(np.cos(aldp.slowVariables(split) - aldp.slowVariables(frames)), 1, atol=1e-6)
    beads = split.atom_slice(aldp.coordinates.bead_atoms)
    assert not aldp.backmap(beads, seed=0).outside.any()


def test_molecules_split_by_an_unknown_box_are_refused(aldp, frames):
    split = in_a_box(frames, CUBE).xyz
    for use in (aldp.logDensity, aldp.slowVariables, lambda x: aldp.train(time=1, frames=x)):
        with pytest.raises(cgf.InvalidInputError, match=r"6 of 6 frames: 0, 1.*split by a periodic box.*with its box"):
            use(split)
    with pytest.raises(cgf.InvalidInputError, match=r"bond .* is .* nm long.*periodic box"):
        aldp.backmap(split[:, aldp.coordinates.bead_atoms])


def test_a_flow_is_built_from_a_structure_split_by_its_box():
    topology, system, x = load("butane")
    frame = mdtraj.Trajectory(x[None], mdtraj.Topology.from_openmm(topology))
    split = in_a_box(frame, CUBE)
    flow = cgf.CGFlow(topology, system, split)
    assert flow.logDensity(x) == pytest.approx(cgf.CGFlow(topology, system, x).logDensity(x), abs=0.1)
    topology.setPeriodicBoxVectors(CUBE * unit.nanometer)  # as of a CRYST1 record
    assert np.isfinite(cgf.CGFlow(topology, system, split.xyz[0]).logDensity(x))


def test_atoms_in_another_order_are_put_in_order_by_their_names(aldp, frames, caplog):
    order = np.random.default_rng(0).permutation(22)
    mixed = mdtraj.Topology()
    residues = [mixed.add_residue(r.name, mixed.add_chain(), resSeq=r.resSeq) for r in frames.topology.residues]
    x = []
    for residue in frames.topology.residues:
        for k in (k for k in order if frames.topology.atom(k).residue is residue):
            atom = frames.topology.atom(k)
            mixed.add_atom(atom.name, atom.element, residues[residue.index])
            x.append(frames.xyz[:, k])
    shuffled = mdtraj.Trajectory(np.stack(x, 1), mixed)
    with caplog.at_level("INFO", logger="openmm_cgflow"):
        np.testing.assert_array_equal(aldp.logDensity(shuffled), aldp.logDensity(frames))
    assert "put into the flow's by their names" in caplog.text
    with pytest.raises(cgf.InvalidInputError, match="another order"):
        aldp.logDensity(shuffled.xyz)  # without the names


def test_other_elements_are_refused_where_names_do_not_tell(aldp, frames):
    backwards = mdtraj.Topology()
    residue = backwards.add_residue("MOL", backwards.add_chain())
    for k in reversed(range(22)):
        backwards.add_atom(f"X{k}", frames.topology.atom(k).element, residue)
    with pytest.raises(cgf.MismatchError, match=r"atom \d+ of the trajectory is .*\(H\), that of the flow .*\(C\)"):
        aldp.logDensity(mdtraj.Trajectory(frames.xyz[:, ::-1], backwards))


def test_other_names_in_the_same_order_are_said(aldp, frames, caplog):
    renamed = frames.topology.copy()
    renamed.atom(0).name = "HH31"
    found = aldp.logDensity(mdtraj.Trajectory(frames.xyz, renamed))
    np.testing.assert_array_equal(found, aldp.logDensity(frames))
    assert "names 1 atoms differently (ACE1:HH31 for ACE1:" in caplog.text


def test_residues_in_another_order_are_not_taken_one_for_the_other():
    def peptide(names: str) -> list[app.topology.Atom]:
        topology = app.Topology()
        chain = topology.addChain()
        for name in names.split():
            residue = topology.addResidue(name, chain)
            for atom, symbol in (("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O")):
                topology.addAtom(atom, app.Element.getBySymbol(symbol), residue)
        return list(topology.atoms())

    order = match_atoms(peptide("GLY ALA"), peptide("ALA GLY"))
    np.testing.assert_array_equal(order, [4, 5, 6, 7, 0, 1, 2, 3])
    assert match_atoms(peptide("GLY ALA"), peptide("GLY ALA")) is None


def test_a_solvated_trajectory_is_refused_with_the_way_out(aldp, frames):
    more = frames.topology.copy()
    water = more.add_residue("HOH", more.add_chain())
    more.add_atom("O", mdtraj.element.oxygen, water)
    x = np.concatenate([frames.xyz, frames.xyz[:, :1] + 1], 1)
    with pytest.raises(cgf.MismatchError, match=r"the trajectory has 23 atoms.*22 atoms.*atom_slice"):
        aldp.logDensity(mdtraj.Trajectory(x, more))


@pytest.mark.parametrize(("factor", "what"), [(10, "Angstrom taken for nm"), (18.9, "another unit"), (0.1, "another")])
def test_other_units_are_recognised(aldp, frames, factor, what):
    with pytest.raises(cgf.InvalidInputError, match=f"every bond is about .* times .*{what}"):
        aldp.logDensity(factor * frames.xyz)
    with pytest.raises(cgf.InvalidInputError, match=r"every bond|nm long"):
        aldp.backmap(factor * frames.xyz[:, aldp.coordinates.bead_atoms])
    topology, system, x = load("butane")
    with pytest.raises(cgf.InvalidInputError, match=what):
        cgf.CGFlow(topology, system, factor * x)


def test_whatever_holds_positions_in_known_units(butane):
    _, system, x = load("butane")
    expected = butane.logDensity(x)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    state = context.getState(positions=True)
    quantity = 10 * x * unit.angstrom
    for given in (state, quantity, [quantity] * 1, quantity.in_units_of(unit.nanometer).tolist(), torch.tensor(x)):
        np.testing.assert_allclose(butane.logDensity(given), expected, atol=1e-3)
    with pytest.raises(cgf.InvalidInputError, match=r"getState\(positions=True\)"):
        butane.logDensity(context.getState(energy=True))


def test_broken_frames_are_named(aldp, frames):
    x = frames.xyz.copy()
    x[4, 3] = np.nan
    with pytest.raises(cgf.InvalidInputError, match=r"frames 4 \(1 of 6\) hold NaN"):
        aldp.logDensity(x)
    x = frames.xyz.copy()
    x[[2, 5], 7] += 0.4
    with pytest.raises(cgf.InvalidInputError, match=r"bond .* nm long in frame 2.*2 of 6 frames: 2, 5"):
        aldp.slowVariables(x)


def test_samples_of_a_poor_flow_and_hot_frames_pass(butane):
    """Whatever the flow itself gives has a density, and so do frames at 1,500 K and bonds off by 30 %."""
    assert np.isfinite(butane.logDensity(butane.sample(500, seed=0).positions)).mean() > 0.9
    hot = thermal(load("butane"), 50, 1500.0)
    assert butane.logDensity(hot).shape == (50,)
    x = load("butane").positions
    for stretch in (0.7, 1.3):
        assert butane.logDensity(stretch * x).shape == (1,)


def test_atoms_on_one_another_are_refused():
    topology, system, x = load("butane")
    for distance in (0.0, 0.02):
        close = x.copy()
        close[5] = close[4] + [distance, 0, 0]
        with pytest.raises(
            cgf.InvalidInputError, match=r"LIG1:H\d-LIG1:H\d are 0\.0000 nm apart|LIG1:H1 and LIG1:H2 are 0\.020"
        ):
            cgf.CGFlow(topology, system, close)
    flow = cgf.CGFlow(topology, system, x)
    close[5] = close[4]
    with pytest.raises(cgf.InvalidInputError, match=r"apart in frame 1 \(1 of 2 frames: 1\)"):
        flow.logDensity(np.stack([x, close]))


def test_positions_in_the_order_of_another_file_are_refused_or_put_in_order():
    """Names tell the order of a Trajectory; bare numbers in another order have broken bonds."""
    topology, system, x = load("butane")
    frame = mdtraj.Trajectory(x[None], mdtraj.Topology.from_openmm(topology))
    backwards = frame.atom_slice(range(14))
    backwards.xyz = frame.xyz[:, ::-1]
    other = mdtraj.Topology()
    residue = other.add_residue("MOL", other.add_chain(), resSeq=1)
    for atom in reversed(list(frame.topology.atoms)):
        other.add_atom(atom.name, atom.element, residue)
    flow = cgf.CGFlow(topology, system, mdtraj.Trajectory(backwards.xyz, other))
    np.testing.assert_allclose(flow.positions._value, x, atol=1e-6)
    with pytest.raises(cgf.InvalidInputError, match=r"nm long.*another order"):
        cgf.CGFlow(topology, system, x[::-1])


def test_a_structure_that_comes_apart_when_minimised_is_refused():
    """The parameters are not those of this molecule: its ends repel one another without bound."""
    topology, system, x = load("butane")
    force = openmm.CustomBondForce("-200000*r")  # tears the ends apart
    force.addBond(0, 3)
    system.addForce(force)
    with pytest.raises(cgf.InvalidInputError, match=r"after minimising|cannot be minimised"):
        cgf.CGFlow(topology, system, x)


# -- constraints


@pytest.fixture(scope="module")
def constrained() -> cgf.CGFlow:
    return cgf.CGFlow(*load("butane", constraints="HBonds"))


def test_violated_constraints_have_no_density(constrained, caplog):
    x = constrained.positions._value
    i, j = next(iter(constrained.constraints))
    off = x.copy()
    off[j] += 0.1 * (x[j] - x[i])
    found = constrained.logDensity(np.stack([x, off]))
    assert np.isfinite(found[0])
    assert found[1] == -np.inf
    assert "constraints do not hold in 1 of 2 frames" in caplog.text
    with pytest.raises(cgf.MismatchError, match="constraints of the System do not hold"):
        constrained.train(time=1, frames=thermal(load("butane", constraints=None), 20))


def test_frames_with_three_decimals_hold_their_constraints(constrained, tmp_path):
    """XTC files round to 0.001 nm: a distance may be off by 0.0017 nm; float32 and the constraint solver far less."""
    rng = np.random.default_rng(0)
    x = thermal(load("butane", constraints="HBonds"), 20) + rng.uniform(0, 5, (20, 1, 3))
    trajectory = mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(constrained.topology))
    trajectory.save(str(tmp_path / "f.xtc"))
    rounded = mdtraj.load(str(tmp_path / "f.xtc"), top=trajectory.topology)
    assert np.isfinite(constrained.logDensity(rounded)).all()


# -- frames to learn from


def test_frames_of_the_mirror_image_are_not_learned():
    flow = cgf.CGFlow(*load("ALA", solvent=None))
    x = thermal(load("ALA", solvent=None), 10)
    with pytest.raises(cgf.InvalidInputError, match="all 10 frames are of the mirror image"):
        flow.train(time=1, frames=x * [1, 1, -1])
    with pytest.raises(cgf.InvalidInputError, match="no frames"):
        flow.train(time=1, frames=x[:0])


def test_frames_that_are_outside_are_said(aldp, frames, caplog):
    atoms = [atom.name for atom in frames.topology.atoms]
    swapped = frames.xyz.copy()
    first, second = atoms.index("HB1"), atoms.index("HB2")
    swapped[:, [first, second]] = swapped[:, [second, first]]
    for given in (-frames.xyz, swapped):
        caplog.clear()
        assert np.isinf(aldp.logDensity(given)).all()
        assert "all of 6 frames are ones that the flow never gives" in caplog.text
    assert "HB" in caplog.text
    caplog.clear()
    assert np.isfinite(aldp.logDensity(frames.xyz)).all()
    assert not caplog.text
    assert np.isfinite(aldp.logDensity(np.concatenate([frames.xyz, swapped]))).sum() == 6
    assert "6 of 12 frames are ones that the flow never gives" in caplog.text
    assert "(frame 6: " in caplog.text


def test_frames_of_another_isomer_are_left_out(caplog):
    flow = cgf.CGFlow(*load("ALA", solvent=None))
    x = thermal(load("ALA", solvent=None), 10)
    x[:3] *= [1, 1, -1]
    assert len(flow._frames(x)) == 7
    assert "3 of 10 frames are left out" in caplog.text


# -- bonds


def without_bond(topology: app.Topology, *pairs: tuple[int, int]) -> app.Topology:
    """The Topology less some bonds, as when CONECT records are lost."""
    wanted = [frozenset(pair) for pair in pairs]
    topology._bonds = [b for b in topology._bonds if frozenset((b[0].index, b[1].index)) not in wanted]
    return topology


def ring_bond(topology: app.Topology) -> tuple[int, int]:
    graph = networkx.Graph((b[0].index, b[1].index) for b in topology.bonds())
    bridges = {frozenset(edge) for edge in networkx.bridges(graph)}
    return next(edge for edge in graph.edges if frozenset(edge) not in bridges)


@pytest.mark.parametrize("solvent", [None, "OBC2"])
def test_door_refuses_a_lost_bond_or_takes_it_from_the_system(solvent):
    topology, system, x = load("camphor", solvent=solvent)
    bonds = {frozenset((b[0].index, b[1].index)) for b in topology.bonds()}
    without_bond(topology, ring_bond(topology))
    with pytest.raises(cgf.InvalidInputError, match=r"by the System, .* is bonded, but not in the Topology.*'system'"):
        cgf.CGFlow(topology, system, x)
    flow = cgf.CGFlow(topology, system, x, bonds="system")
    assert {frozenset((b[0].index, b[1].index)) for b in flow.topology.bonds()} == bonds
    assert flow.slow_names == []
    assert len(list(topology.bonds())) == len(bonds) - 1  # the user's is as it was


@pytest.mark.parametrize("constraints", [None, "HBonds"])
def test_door_refuses_a_bond_too_many(constraints):
    topology, system, x = load("butane", constraints=constraints)
    atoms = list(topology.atoms())
    first, second = [a for a in atoms if a.element.symbol == "H"][:2]
    topology.addBond(first, second)
    with pytest.raises(cgf.InvalidInputError, match=rf"{first.name}.*{second.name}.* is bonded in the Top"):
        cgf.CGFlow(topology, system, x)
    assert cgf.CGFlow(topology, system, x, bonds="system").topology.getNumBonds() == 13


def test_door_names_what_openmm_cannot_evaluate_everywhere():
    topology, system, x = load("butane")
    more = openmm.CustomNonbondedForce("0.01/(r+0.1)")  # without exclusions, which Reference alone accepts
    for _ in x:
        more.addParticle([])
    system.addForce(more)
    with pytest.raises(cgf.InvalidInputError, match=r"identical exclusions: give each .* exclusions \(addExclusion\)"):
        cgf.CGFlow(topology, system, x)


def test_door_refuses_a_system_without_energies():
    topology, system, x = load("butane")
    while system.getNumForces():
        system.removeForce(0)
    system.addForce(openmm.CMMotionRemover())
    with pytest.raises(cgf.InvalidInputError, match="no force with an energy"):
        cgf.CGFlow(topology, system, x)


def test_door_takes_neither_urey_bradley_terms_nor_restraints_nor_pairs_for_bonds():
    topology, system, x = load("butane")
    extra = openmm.HarmonicBondForce()
    extra.addBond(0, 2, 0.2536, 5000.0)  # Urey-Bradley
    extra.addBond(0, 3, 0.38, 1000.0)  # a restraint
    extra.addBond(0, 3, 0.15, 10.0)  # a pull together
    pairs = openmm.CustomBondForce("0.1/r")  # 1-4 pairs
    pairs.addBond(4, 13)
    system.addForce(extra)
    system.addForce(pairs)
    assert cgf.CGFlow(topology, system, x).topology.getNumBonds() == 13
    topology.addBond(*(list(topology.atoms())[k] for k in (0, 2)))
    with pytest.raises(cgf.InvalidInputError, match="bonded in the Topology, but not by the System"):
        cgf.CGFlow(topology, system, x)


def free_form(system: openmm.System) -> openmm.System:
    """The System with anharmonic bonds, as of AMOEBA or GROMOS: their lengths cannot be read."""
    force = openmm.CustomBondForce("140000*((r-r0)^2-20*(r-r0)^3)")
    force.addPerBondParameter("r0")
    for k in reversed(range(system.getNumForces())):
        harmonic = system.getForce(k)
        if isinstance(harmonic, openmm.HarmonicBondForce):
            for bond in range(harmonic.getNumBonds()):
                i, j, length, _ = harmonic.getBondParameters(bond)
                force.addBond(i, j, [length])
            system.removeForce(k)
    system.addForce(force)
    return system


@pytest.mark.parametrize("kind", ["anharmonic", "constrained"])
def test_door_reads_bonds_of_other_kinds(kind):
    topology, system, x = load("camphor", constraints="AllBonds" if kind == "constrained" else None)
    if kind == "anharmonic":
        free_form(system)
        assert cgf.CGFlow(topology, system, x).topology.getNumBonds() == 28
    pair = ring_bond(topology)
    with pytest.raises(cgf.InvalidInputError, match=r"by the System, .* is bonded, but not in the Topology"):
        cgf.CGFlow(without_bond(topology, pair), system, x)
    topology = load("camphor").topology
    topology.addBond(*[a for a in topology.atoms() if a.element.symbol == "H"][:2])
    with pytest.raises(cgf.InvalidInputError, match="is bonded in the Topology, but not by the System"):
        cgf.CGFlow(topology, system, x)


@pytest.mark.parametrize("element", [None, app.element.carbon], ids=["none", "carbon"])
def test_door_takes_springs_between_coarse_beads_for_bonds(element):
    topology, system = app.Topology(), openmm.System()
    chain, bonds = topology.addChain(), openmm.HarmonicBondForce()
    beads = [topology.addAtom("CA", element, topology.addResidue("GLY", chain)) for _ in range(6)]
    for _ in beads:
        system.addParticle(57.0)
    for k in range(5):
        topology.addBond(beads[k], beads[k + 1])
        bonds.addBond(k, k + 1, 0.38, 20_000.0)
    system.addForce(bonds)
    x = np.cumsum([[0.32, 0.2 * (-1) ** k, 0.03 * (k % 3)] for k in range(6)], 0)
    assert cgf.CGFlow(topology, system, x).topology.getNumBonds() == 5


def opaque(system: openmm.System) -> openmm.System:
    """The System without a single term of bonds: everything is in one force whose form cannot be read."""
    inner = openmm.CustomCVForce("energy")
    whole = openmm.CustomBondForce("150000*(r-r0)^2")
    whole.addPerBondParameter("r0")
    for k in range(system.getNumForces()):
        force = system.getForce(k)
        if isinstance(force, openmm.HarmonicBondForce):
            for bond in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(bond)
                whole.addBond(i, j, [length])
    inner.addCollectiveVariable("energy", whole)
    for k in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(k), openmm.HarmonicBondForce):
            system.removeForce(k)
    system.addForce(inner)
    return system


def test_door_judges_bonds_by_distances_where_the_system_has_no_terms():
    topology, system, x = load("camphor")
    opaque(system)
    assert cgf.CGFlow(topology, system, x).topology.getNumBonds() == topology.getNumBonds()
    with pytest.raises(cgf.InvalidInputError, match=r"no terms of bonds.*topology\.addBond"):
        cgf.CGFlow(topology, system, x, bonds="system")
    hydrogens = [a for a in topology.atoms() if a.element.symbol == "H"][:2]
    topology.addBond(*hydrogens)
    with pytest.raises(cgf.InvalidInputError, match=r"nm long|bonded in the Topology, but not by the distances"):
        cgf.CGFlow(topology, system, x)
    topology = load("camphor").topology
    without_bond(topology, ring_bond(topology))
    with pytest.raises(cgf.InvalidInputError, match=r"by the distances .* is bonded, but not in the Topology"):
        cgf.CGFlow(topology, system, x)


def test_scan_stands_behind_the_same_door():
    topology, system, x = load("camphor")
    without_bond(topology, ring_bond(topology))
    with pytest.raises(cgf.InvalidInputError, match="not in the Topology"):
        cgf.scanTorsions(topology, system, x)


def test_command_line_has_the_door(tmp_path):
    from typer.testing import CliRunner

    arguments = [DATA / "butane.prmtop", DATA / "butane.inpcrd", "-o", tmp_path / "m.cgflow", "--bonds", "guess"]
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    assert result.exit_code == 2
    assert 'bonds is \'guess\'; give "topology" or "system"' in result.output


def test_door_makes_few_contexts_where_energies_come_from_contexts(monkeypatch):
    """As with AMOEBA, whose Contexts take 12 s each: in double precision, with torsions to pull, for the potential."""
    topology, system, x = load("PRO")
    opaque = openmm.CustomCVForce("0*rmsd")
    opaque.addCollectiveVariable("rmsd", openmm.RMSDForce(x))
    system.addForce(opaque)
    monkeypatch.setattr(door, "_SLOW_TO_MAKE", 0.0)
    made, context = [], openmm.Context

    def counted(system, *arguments):
        made.append(system.getNumParticles())
        return context(system, *arguments)

    monkeypatch.setattr(openmm, "Context", counted)
    flow = cgf.CGFlow(topology, system, x)
    assert isinstance(flow.potential, ContextPotential)
    assert made == 3 * [len(x)]
