"""Structures of the whole pipeline: alpha carbons kept, isomers right, energies OpenMM's, dynamics that start."""

from dataclasses import replace

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from traces import SEQUENCE, helix, noisy, strand

import openmm_cgflow as cgf
from openmm_cgflow.proteins.beads.kinds import bridged_cysteines
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.checks import close_pairs
from openmm_cgflow.proteins.placing.planes import Backbone, Planes
from openmm_cgflow.proteins.relaxing.force_field import amber14, with_fast_solvent


@pytest.fixture(scope="module")
def mapper() -> cgf.ProteinBackmapper:
    return cgf.ProteinBackmapper(SEQUENCE)


@pytest.fixture(scope="module")
def built(mapper):
    """Three frames of all amino acids, two structures each."""
    trace = np.stack([helix(20), strand(20), noisy(helix(20), 1, 0.01)[0]]).astype(np.float32)
    return trace, mapper.backmap(trace, n=2, relax=0, seed=3)


def carbons(topology: app.Topology) -> list[int]:
    return [atom.index for atom in topology.atoms() if atom.name == "CA"]


def energy(system: openmm.System, x: np.ndarray) -> float:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x.astype(float))
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_alpha_carbons_are_kept_bit_by_bit(built):
    trace, result = built
    for k in range(2):
        np.testing.assert_array_equal(result.positions[:, k, carbons(result.topology)], trace)


def test_nothing_is_mirrored_cis_pierced_or_stretched(built):
    _, result = built
    checks = result.checks
    assert not checks.wrong_chirality.any()
    assert not checks.wrong_peptides.any()
    assert not checks.pierced_rings.any()
    assert checks.worst_bond.max() < 0.1
    assert close_pairs(result.topology, result.positions.reshape(-1, result.positions.shape[2], 3)).sum() == 0


def test_checks_find_what_is_wrong(built):
    _, result = built
    mirrored = result.positions[:1, :1] * np.array([1, 1, -1], dtype=np.float32)
    checks = replace(result, positions=mirrored).checks
    assert checks.wrong_chirality[0] == 21  # 19 alpha carbons, and the beta carbons of Thr and Ile
    names = {atom.name: atom.index for atom in list(result.topology.residues())[8].atoms()}
    x = result.positions[:1, :1].copy()
    x[0, 0, names["HB2"]] = x[0, 0, names["HZ"]]
    checks = replace(result, positions=x).checks
    assert checks.clashes[0] >= 1
    assert checks.worst_bond[0] > 0.2


def test_energies_are_those_of_openmm_and_solvent_in_its_fast_form_is_the_same(mapper, built):
    _, result = built
    x = result.positions[0, 0]
    exact = energy(amber14(result.topology), x)
    system = with_fast_solvent(amber14(result.topology))
    fast = energy(system, x)
    assert fast == pytest.approx(exact, rel=5e-5)  # other decimals of constants
    assert result.energies[0, 0] == pytest.approx(exact, abs=0.5)  # CPU platform, single precision
    names = [force.getName() for force in system.getForces()]
    assert "GBSAOBCForce" in names
    assert "CustomGBForce" not in names


def test_relaxing_lowers_the_energy_and_holds_alpha_carbons(mapper):
    trace = helix(20).astype(np.float32)
    raw, relaxed = (mapper.backmap(trace, relax=steps, seed=5) for steps in (0, 20))
    assert relaxed.energies[0, 0] < raw.energies[0, 0] - 50
    np.testing.assert_array_equal(relaxed.positions[0, 0, carbons(relaxed.topology)], trace)
    assert relaxed.relaxed


def test_a_given_backbone_is_kept_and_its_atoms_are_placed(mapper):
    made = mapper.backmap(helix(20), relax=30, seed=5)
    places = [{atom.name: atom.index for atom in residue.atoms()} for residue in made.topology.residues()]
    backbone = np.array([[atoms[name] for name in ("N", "CA", "C")] for atoms in places])
    given = made.positions[0][:, backbone]
    for options in ({"relax": 0}, {"relax": 20}, {"relax": 0, "assemble": "chain"}):
        again = mapper.backmap(given, seed=1, **options)
        np.testing.assert_array_equal(again.positions[0][:, backbone], given)
        assert not again.checks.wrong_chirality.any()
        assert not again.checks.wrong_peptides.any()
        assert again.log_evidence is None
        if options["relax"]:
            assert again.energies[0, 0] < made.energies[0, 0] + 300
    inner = [atoms for atoms in places[1:-1] if "H" in atoms]
    others = np.array([[atoms["O"], atoms["H"]] for atoms in inner])
    raw = mapper.backmap(given, relax=0, seed=1).positions[0, 0]
    assert np.linalg.norm(raw[others] - made.positions[0, 0][others], axis=2).max() < 0.03  # nm
    with pytest.raises(cgf.InvalidInputError, match="the bond C-N of GLY 1"):
        mapper.backmap(given[:, :, ::-1])


def test_one_seed_gives_one_result(mapper):
    first, second, other = (mapper.backmap(strand(20), n=2, relax=0, seed=seed).positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.01


def test_density_is_given_where_it_is_known_alone(mapper):
    chain = mapper.backmap(helix(20), n=3, relax=0, seed=0, assemble="chain")
    packed = mapper.backmap(helix(20), n=3, relax=0, seed=0)
    assert chain.log_evidence is None
    assert packed.log_density is None
    assert np.isfinite(chain.log_density).all()
    assert np.isfinite(packed.log_evidence).all()
    assert packed.ess.shape == (1, 3, 20)
    assert np.all((packed.ess > 0) & (packed.ess <= 1 + 1e-6))


def test_density_of_the_chain_is_normalised():
    # of a glycine dipeptide: three planes, no choice of side chains, so that 72^3 bins can be added up
    mapper = cgf.ProteinBackmapper("GG")
    trace = helix(2)
    result = mapper.backmap(trace, n=2000, relax=0, seed=1, assemble="chain")
    # E_q[1 / q] over the circle of volume (2 pi)^3 is that volume where q covers it; its error is wide, so by bins:
    density = np.exp(result.log_density[0])
    parts = mapper._known()
    _, chain = parts._planes(torch.as_tensor(trace - trace.mean(0), dtype=torch.float32)[None])
    log_w = chain.unary[0, 0][:, None, None] + chain.unary[0, 1][None, :, None] + chain.unary[0, 2][None, None, :]
    log_w = log_w + chain.log_factors[0, 0][:, :, None] + chain.log_factors[0, 1][None]
    cell = (2 * np.pi / 72) ** 3
    exact = torch.softmax(log_w.double().flatten(), 0) / cell
    mean, error = density.mean(), density.std() / np.sqrt(len(density))
    assert mean == pytest.approx(float((exact**2).sum() * cell), abs=4 * error)


def test_chains_have_their_own_termini_and_disulfides_are_built():
    trace = np.concatenate([helix(6), helix(6) + np.array([1.2, 0, 0])])
    mapper = cgf.ProteinBackmapper("GACAAG/AGSCKA", disulfides=[(2, 9)])
    result = mapper.backmap(trace, relax=0, seed=0)
    names = [atom.name for atom in result.topology.atoms()]
    assert names.count("OXT") == names.count("H3") == 2
    bonds = [(a.name, b.name) for a, b in result.topology.bonds()]
    assert bonds.count(("SG", "SG")) == 1
    assert names.count("HG") == 1  # that of the serine
    system = app.ForceField("amber14-all.xml").createSystem(result.topology)
    assert system.getNumParticles() == result.positions.shape[2]


def test_near_cysteines_are_bonded_unless_it_is_said_otherwise():
    trace = np.stack([*strand(6), *(strand(6)[::-1] + np.array([0.0, 0.55, 0.0]))])
    sequence = "GACAAG/GAACAG"
    auto = cgf.ProteinBackmapper(sequence)
    with pytest.raises(cgf.InvalidInputError, match="call backmap first"):
        _ = auto.topology
    bonded = auto.backmap(trace, relax=20, seed=0)
    sulfurs = [atom.index for atom in bonded.topology.atoms() if atom.name == "SG"]
    length = np.linalg.norm(np.diff(bonded.positions[0, 0, sulfurs], axis=0))
    assert length == pytest.approx(0.204, abs=0.02)
    mapper = cgf.ProteinBackmapper(sequence, disulfides=[])
    free = mapper.backmap(trace, relax=20, seed=0)
    assert free.positions.shape[2] == bonded.positions.shape[2] + 2
    for kind in ("martini2", "martini3", "com"):  # beads tell as well, those of Martini without a doubt
        of_bonded, of_free = (
            cgf.ProteinBackmapper(sequence, disulfides=pairs, beads=kind).beadsOf(made.positions[0, 0])
            for pairs, made in (([(2, 9)], bonded), ([], free))
        )
        assert bridged_cysteines(of_bonded, mapper.given, kind) == [(2, 9)]
        if kind != "com":
            assert bridged_cysteines(of_free, mapper.given, kind) == []


def test_cysteines_in_no_disulfide_have_their_hydrogen(caplog):
    """Without it amber14 takes them for thiolates."""
    names = ["GLY", "CYX", "ALA", "CYX", "ALA", "ALA", "CYX"]
    mapper = cgf.ProteinBackmapper(names, disulfides=[(1, 6)])
    hydrogens = [atom.residue.index for atom in mapper.topology.atoms() if atom.name == "HG"]
    assert hydrogens == [3]
    assert caplog.text.count("CYX 4 of chain A is in no disulfide, and is built as CYS") == 1
    assert cgf.ProteinBackmapper(names, disulfides=[]).topology.getNumBonds() == mapper.topology.getNumBonds() + 1


@pytest.mark.parametrize("pairs", [[(2, 9)], []], ids=["bonded", "free"])
def test_disulfides_of_a_topology_of_heavy_atoms_are_taken(pairs, caplog):
    made = cgf.ProteinBackmapper("GACAAG/GAACAG", disulfides=pairs).topology
    heavy = app.Modeller(made, np.zeros((made.getNumAtoms(), 3)) * unit.nanometer)
    heavy.delete([atom for atom in heavy.topology.atoms() if atom.element.symbol == "H"])
    for topology in (heavy.topology, mdtraj.Topology.from_openmm(heavy.topology)):
        mapper = cgf.ProteinBackmapper(topology)
        assert mapper._known().layout.disulfides == tuple(pairs)
        near = np.concatenate([strand(6), strand(6)[::-1] + np.array([0, 0.55, 0])])
        caplog.clear()
        for _ in range(2):
            mapper._of_beads(near[None], "ca")
        assert caplog.text.count("no bond of the Topology joins them: disulfides=[(2, 9)") == (not pairs)


def test_the_order_of_atoms_of_a_topology_is_kept(built):
    trace, result = built
    x = result.positions[0, 0]
    shuffled, order = app.Topology(), []
    chain = shuffled.addChain("Q")
    made = {}
    for residue in result.topology.residues():
        added = shuffled.addResidue(residue.name, chain, residue.id)
        for atom in sorted(residue.atoms(), key=lambda a: a.name):
            made[atom.index] = shuffled.addAtom(atom.name, atom.element, added)
            order.append(atom.index)
    for a, b in result.topology.bonds():
        shuffled.addBond(made[a.index], made[b.index])
    again = cgf.ProteinBackmapper(shuffled).backmap(trace[:1], relax=0, seed=3)
    assert [atom.name for atom in again.topology.atoms()] == [atom.name for atom in shuffled.atoms()]
    np.testing.assert_array_equal(again.positions[0, 0, carbons(shuffled)], trace[0])
    assert not again.checks.wrong_chirality.any()
    assert np.abs(x[order].mean(0) - again.positions[0, 0].mean(0)).max() < 0.1


def test_dynamics_start_without_a_further_minimisation(mapper):
    result = mapper.backmap(helix(20), relax=50, seed=2)
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(
        result.topology, constraints=app.HBonds
    )
    integrator = openmm.LangevinMiddleIntegrator(300, 1 / unit.picosecond, 2 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(result.positions[0, 0].astype(float))
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(250)
    state = context.getState(energy=True, positions=True)
    assert np.isfinite(state.getPotentialEnergy()._value)
    moved = state.getPositions(asNumpy=True)._value - result.positions[0, 0]
    assert np.linalg.norm(moved, axis=1).mean() < 0.3


def test_virtual_beta_carbons_are_where_those_of_l_residues_are(mapper, built):
    """They keep planes away from side chains that are not placed yet."""
    trace, result = built
    backbone = Backbone.of(Planes.of(mapper.given), torch.as_tensor(trace))
    guessed = backbone.virtual_cb.numpy()
    atoms = [(a.residue.index, a.index) for a in result.topology.atoms() if a.name == "CB"]
    inner = [(k, index) for k, index in atoms if 0 < k < 19]
    off = np.linalg.norm(guessed[:, [k for k, _ in inner]] - result.positions[:, 0, [i for _, i in inner]], axis=-1)
    assert np.median(off) < 0.06  # 0.23 nm where they are mirrored


def test_energies_of_a_system_with_constraints_are_its_own(mapper):
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(mapper.topology, constraints=app.HBonds)
    result = cgf.ProteinBackmapper(SEQUENCE, system=system).backmap(helix(20), relax=0, seed=1)
    assert result.energies[0, 0] == pytest.approx(energy(system, result.positions[0, 0]), abs=0.3)


def test_a_system_without_lennard_jones_terms_is_refused(mapper):
    system = amber14(mapper.topology)
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    for k in range(force.getNumParticles()):
        charge, sigma, _ = force.getParticleParameters(k)
        force.setParticleParameters(k, charge, sigma, 0.0)
    with pytest.raises(cgf.InvalidInputError, match=r"no Lennard-Jones terms.*CHARMM36"):
        cgf.ProteinBackmapper(SEQUENCE, system=system)


@pytest.mark.parametrize(("sequence", "axis"), [("GWG", 1), ("GFG", 1), ("GNG", 1), ("GTG", 0)])
def test_torsions_of_the_descent_are_those_of_openmm(sequence, axis):
    """A turn of a side chain changes the energy of OpenMM's torsions by what the descent has for it."""
    mapper = cgf.ProteinBackmapper(sequence)
    refiner = mapper._parts.refiner
    x = torch.as_tensor(mapper.backmap(helix(3), relax=0, refine=0, seed=1).positions[0])
    chi = torch.zeros(8, 3, 4)
    chi[:, 1, axis] = torch.arange(8) * 0.7
    turned = refiner.structures_of(x.expand(8, -1, -1), chi).numpy()
    system = amber14(mapper.topology)
    for k in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(k), openmm.PeriodicTorsionForce):
            system.removeForce(k)
    exact = np.array([energy(system, frame) for frame in turned])
    n = torch.arange(1, refiner.fourier.shape[2] + 1)
    turns, factors = chi[:, 1, axis, None] * n, refiner.fourier[1, axis]
    ours = (factors[:, 0] * torch.cos(turns) + factors[:, 1] * torch.sin(turns)).sum(1).numpy()
    # templates are not quite at the angles of the built structure; an improper of Trp would be 9.2 off
    np.testing.assert_allclose(ours - ours[0], exact - exact[0], atol=1.0)


def test_near_cysteines_of_a_helix_are_not_bonded():
    sequence = ProteinSequence.of("ACACCACAAAAC")
    assert bridged_cysteines(helix(12)[None], sequence, "ca") == []


def test_a_residue_before_proline_has_its_own_class():
    library = cgf.FragmentLibrary.load()
    more = replace(library, free_energy=library.free_energy | {"GLY-PRO": library.free_energy["GLY"]})
    assert more.class_of("GLY", "PRO") == "GLY-PRO"
    assert more.class_of("GLY", "ALA") == "GLY"
    assert library.class_of("SER", "PRO") == "ALA"


def test_fragments_of_charged_ends_and_before_proline_are_used_where_they_stand():
    library = cgf.FragmentLibrary.load()
    names = ("N-ALA", "N-GLY", "C-ALA", "C-PRO", "ALA-PRO", "SER")
    more = replace(library, free_energy=library.free_energy | {name: library.free_energy["ALA"] for name in names})
    classes = more.classes(ProteinSequence.of("SASPGS/GIAP/PAV"))
    assert classes == [
        "N-ALA",
        "ALA",
        "ALA-PRO",
        "PRO",
        "GLY",
        "C-ALA",
        "N-GLY",
        "VAL",
        "ALA-PRO",
        "C-PRO",
        "PRO",
        "ALA",
        "C-ALA",
    ]
    assert library.classes(ProteinSequence.of("SGPV")) == ["ALA", "GLY", "PRO", "VAL"]


def test_the_free_energy_of_an_end_decides_on_its_plane(mapper):
    """A first residue that has to have one psi has it, whatever its ghost does."""
    library = cgf.FragmentLibrary.load()
    table = torch.full((72, 72), 60.0)
    table[:, 60:64] = 0.0  # psi of 120 to 140 degrees
    ends = replace(
        library,
        free_energy=library.free_energy | {"N-ALA": table},
        angle=library.angle | {"N-ALA": library.angle["ALA"]},
    )
    made = cgf.ProteinBackmapper("AAAAAA", ends).backmap(strand(6), n=20, relax=0, refine=0, seed=0, assemble="chain")
    psi = np.degrees(mdtraj.compute_psi(made.trajectory, opt=False)[1][:, 0])
    assert np.all((psi > 105) & (psi < 155))


def test_the_map_of_glycine_is_its_own_mirror_image():
    energy = cgf.FragmentLibrary.load().free_energy["GLY"]
    k = torch.arange(72)
    assert torch.equal(energy, energy[(-k % 72)[:, None], (-k % 72)[None]])
    assert float(energy.min()) == 0.0


def test_a_density_is_given_for_what_has_one(mapper):
    assert mapper.backmap(helix(20), relax=1, assemble="chain", seed=1).log_density is None
    assert np.isfinite(mapper.backmap(helix(20), relax=0, assemble="chain", seed=1).log_density).all()


def test_what_a_mapper_gives_is_a_copy():
    trace, topology = helix(3), cgf.ProteinBackmapper("GAS").topology
    system = amber14(topology)
    mapper = cgf.ProteinBackmapper(topology, system=system)
    before = mapper.backmap(trace, relax=0, refine=0, seed=0)
    force = openmm.CustomExternalForce("1000")
    force.addParticle(0, [])
    for given in (system, mapper.system):
        given.addForce(openmm.XmlSerializer.clone(force))
    for given in (topology, mapper.topology, before.topology):
        given.setPeriodicBoxVectors(np.eye(3) * unit.nanometer)
    cgf.FragmentLibrary.load().free_energy["ALA"].zero_()
    parts = cgf.ProteinBackmapper(topology, system=mapper.system)
    after = mapper.backmap(trace, relax=0, refine=0, seed=0)
    assert after.topology.getPeriodicBoxVectors() is None
    for again in (after, parts.backmap(trace, relax=0, refine=0, seed=0)):
        np.testing.assert_array_equal(again.positions, before.positions)
        np.testing.assert_array_equal(again.energies, before.energies)
