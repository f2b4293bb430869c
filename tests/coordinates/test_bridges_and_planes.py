"""Two atoms between two beads, such as the peptide planes of a C-alpha trace: one rotor, all else stiff."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from coordinate_tools import build, coordinates, draw, methyl, rigid_rmsd, system_for
from molecules import jiggled, load, small_networks, thermal
from test_coordinates import difference, gauge_log_det

import openmm_cgflow as cgf
from openmm_cgflow.chemistry import perceive
from openmm_cgflow.chemistry.molecule import Molecule, bond_key
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.coordinates.beads import plan_beads
from openmm_cgflow.coordinates.bridges import find_bridges
from openmm_cgflow.coordinates.zmatrix import build_zmatrix


def alphas(topology):
    """The C-alphas, with the methyl carbons of the caps."""
    return [
        a.index
        for a in topology.atoms()
        if a.name in ("CA", "CH3", "CAY", "CAT") or (a.residue.name, a.name) == ("NME", "C")
    ]


def named(molecule, *names):
    """Atoms by residue index and name."""
    where = {(a.residue.index, a.name): a.index for a in molecule.topology.atoms()}
    return [where[name] for name in names]


def peptide(name, **options):
    molecule = load(name, **({"solvent": None, "constraints": None} | options))
    return molecule, alphas(molecule.topology)


def lysine():
    """C-alpha and C-delta of lysine, between which chi2 turns, and the caps."""
    molecule = load("LYS", solvent=None)
    return molecule, named(molecule, (0, "CH3"), (1, "CA"), (1, "CD"), (2, "C"))


def tyrosine():
    """Two atoms of the ring opposite one another: it has two bridges between them."""
    molecule = load("TYR", solvent=None)
    return molecule, named(molecule, (0, "CH3"), (1, "CA"), (1, "CG"), (1, "CZ"), (2, "C"))


def side_group():
    """A carbon that holds three beads, one of which is far: C0 and C1 on C2, C4 on C3, which is on C2."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("C2", 0, 0, 0, 0.153, 0, 0), ("C1", 1, 0, 0, 0.153, 111, 0)]
    rows += [("C3", 1, 0, 2, 0.153, 111, 124), ("C4", 3, 1, 0, 0.153, 112, 175), ("H2", 1, 0, 2, 0.109, 108, -118)]
    rows += [(f"H3{k}", 3, 1, 4, 0.109, 109, s) for k, s in enumerate((120, -120))]
    rows += methyl("0", 0, 1, 2, 60) + methyl("1", 2, 1, 0, 60) + methyl("4", 4, 3, 1, 60)
    topology, system, x = build(rows)
    return (topology, system, x), [0, 2, 4]


MOLECULES = {
    "Ala3": lambda: peptide("ALA3"),
    "Ala3 with constraints": lambda: peptide("ALA3", constraints="HBonds"),
    "Ala5": lambda: peptide("ALA5"),
    "proline": lambda: peptide("ALA_PRO"),
    "a soft torsion between": lysine,
    "two sides of a ring": tyrosine,
    "a bridge held by two beads": side_group,
}


@cache
def made(name):
    molecule, beads = MOLECULES[name]()
    return molecule, beads, coordinates(molecule, beads=beads)


def soft(c):
    """Names of the rotors but those of symmetric ones."""
    return [entry.name for entry in c.layout.coordinates if entry.block == 2 and entry.name.startswith("torsion")]


every = pytest.mark.parametrize("name", MOLECULES)


@pytest.mark.parametrize(("name", "planes", "methyls"), [("Ala3", 4, 5), ("Ala5", 6, 7)])
def test_a_peptide_plane_has_one_rotor(name, planes, methyls):
    _, beads, c = made(name)
    assert c.sizes[:3] == (len(beads) - 3, 2 * len(beads) - 3, planes + methyls)
    assert len(soft(c)) == planes


def test_a_soft_torsion_between_is_left_soft():
    """CA-CB-CG-CD: the rotation of the bridge, and chi2, whose sign the beads do not know."""
    molecule, _, c = made("a soft torsion between")
    cb, cg = named(molecule, (1, "CB"), (1, "CG"))
    about = [name.split() for name in soft(c)]
    assert sum(f"LYS2:{atom}" in words[1] for words in about for atom in ("CB", "CG")) == 2
    x = torch.as_tensor(molecule.positions)[None]
    q = c.to_internal(x)[0].repeat(37, 1)
    second = next(k for k, name in enumerate(c.names) if name in soft(c) and name.split()[1] in ("LYS2:CG", "LYS2:CB")
                  and not set(name.split()[2:]) & {"ACE1:CH3", "NME3:C"})  # fmt: skip
    q[:, second] += torch.linspace(0, 2 * np.pi, 37)
    y = c.to_cartesian(q)[0]
    assert (torch.linalg.norm(y[:, cb] - y[:, cg], dim=1) - 0.153).abs().max() < 0.01


def test_both_sides_of_a_ring_turn_as_one():
    molecule, _, c = made("two sides of a ring")
    ring = {f"TYR2:{name}" for name in ("CD1", "CD2", "CE1", "CE2")}
    assert sum(name.split()[1] in ring for name in soft(c)) == 1
    x = torch.as_tensor(molecule.positions)[None]
    q = c.to_internal(x)[0].repeat(5, 1)
    turn = next(k for k, name in enumerate(c.names) if name in soft(c) and name.split()[1] in ring)
    q[:, turn] += torch.linspace(0.0, 5.0, 5, dtype=q.dtype)
    atoms = named(molecule, *((1, name) for name in ("CG", "CD1", "CE1", "CZ", "CE2", "CD2")))
    distances = torch.cdist(*[c.to_cartesian(q)[0][:, atoms]] * 2)
    torch.testing.assert_close(distances, distances[:1].expand_as(distances), rtol=0, atol=1e-9)


def test_the_sides_of_a_ring_may_begin_at_either_bead():
    """Which atom comes first depends on the input; that there is one rotor does not."""
    molecule, beads, _ = made("two sides of a ring")
    perceived = perceive(*molecule)
    ring = set(named(molecule, *((1, name) for name in ("CD1", "CD2", "CE1", "CE2"))))
    firsts = set()
    for x in jiggled(molecule.positions, 16):
        moved = replace(perceived, molecule=replace(perceived.molecule, positions=x))
        rows = build_zmatrix(moved.molecule, plan_beads(moved, beads, None), moved.centres)
        assert sum(row.soft for row in rows if row.atom in ring) == 1
        firsts.add(tuple(bridge.atoms[1] for bridge in find_bridges(moved.molecule, beads))[-2:])
    assert len(firsts) > 2


@pytest.mark.parametrize("name", ["Ala3", "Ala3 with constraints", "proline"])
def test_a_plane_turns_rigidly_about_its_virtual_bond(name):
    """C, O, N, H (CD of proline) and the C-alphas of a plane keep their distances whatever its rotor is."""
    molecule, _, c = made(name)
    x = torch.as_tensor(thermal(molecule, 3))
    q = c.to_internal(x)[0]
    names = [a.name for a in molecule.topology.atoms()]
    planes = [
        k for k, entry in enumerate(c.names) if entry in soft(c) and entry.split()[1].split(":")[1] in ("C", "CY")
    ]
    atoms = {f"{a.residue.name}{a.residue.id}:{a.name}": a for a in molecule.topology.atoms()}
    near = {a.index: [] for a in molecule.topology.atoms()}
    for first, second in molecule.topology.bonds():
        near[first.index].append(second.index)
        near[second.index].append(first.index)
    assert len(planes) >= 3
    for k in planes:
        turned = q.clone()
        turned[:, k] += torch.tensor([0.3, 2.0, -2.5], dtype=q.dtype)
        before, after = (torch.cdist(x, x) for x in (c.to_cartesian(rows)[0] for rows in (q, turned)))
        assert (before - after).abs().max() > 0.1
        carbon = atoms[c.names[k].split()[1]].index
        nitrogen = next(i for i in near[carbon] if names[i] in ("N", "NT"))
        plane = sorted({carbon, nitrogen, *near[carbon], *near[nitrogen]})
        assert len(plane) == 6
        assert (before - after)[:, plane][:, :, plane].abs().max() < 1e-7


@pytest.mark.parametrize("name", ["Ala3", "proline", "a soft torsion between"])
def test_the_bond_between_does_not_depend_on_the_torsion_that_stands_for_it(name):
    """All three bonds of a bridge and the angle at its first bead: functions of what is stiff in any molecule."""
    molecule, beads, c = made(name)
    x = torch.as_tensor(thermal(molecule, 3))
    q = c.to_internal(x)[0]
    order = c.layout.order
    where = {atom: k for k, atom in enumerate(order)}
    graph = [(b[0].index, b[1].index) for b in molecule.topology.bonds()]
    near = [sorted({i for pair in graph if a in pair for i in pair} - {a}) for a in range(len(order))]
    molecule_ = Molecule(near, [6] * len(order), ["X"] * len(order), [""] * len(order), [0] * len(order), x[0].numpy())
    bridges = find_bridges(molecule_, beads)
    assert bridges
    for bridge in bridges:
        row = max(where[bridge.atoms[1]], where[bridge.atoms[2]])
        slot = c.layout.torsion_slots[row - 3]
        turned = q.clone()
        turned[:, slot] += 0.4
        before, after = (c.to_cartesian(rows)[0] for rows in (q, turned))
        for i, j in zip(bridge.atoms, bridge.atoms[1:], strict=False):
            change = (before[:, i] - before[:, j]).norm(dim=1) - (after[:, i] - after[:, j]).norm(dim=1)
            assert change.abs().max() < 1e-9
        assert (before - after).abs().max() > 1e-3


@every
def test_thermal_frames_are_in_the_domain_and_come_back(name):
    molecule, _, c = made(name)
    x = torch.as_tensor(thermal(type(load("ALA"))(*molecule), 40))
    q, log_det = c.to_internal(x)
    back, again = c.to_cartesian(q)
    assert c.in_domain(q).all()
    assert (rigid_rmsd(back, c.canonical(x)) < 2e-6).all()
    torch.testing.assert_close(log_det, again, rtol=0, atol=1e-4)


@every
def test_drawn_coordinates_come_back(name):
    _, _, c = made(name)
    q = draw(c, 60, width=0.3)
    q = q[c.in_domain(q)]
    assert len(q) > 20
    assert difference(c, c.to_internal(c.to_cartesian(q)[0])[0], q).abs().max() < 1e-8


@pytest.mark.parametrize("name", [n for n in MOLECULES if "constraints" not in n and n != "Ala5"])
def test_log_determinant_against_autograd(name):
    _, _, c = made(name)
    q = draw(c, 1, seed=3, width=0.3)
    torch.testing.assert_close(c.to_cartesian(q)[1][0], gauge_log_det(c, q[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["Ala3", "proline"])
def test_mirror_images_and_cis_bonds_are_outside(name):
    molecule, _, c = made(name)
    x = torch.as_tensor(thermal(molecule, 5))
    q, _ = c.to_internal(x)
    assert c.in_domain(q).all()
    assert not c.in_domain(c.to_internal(x * torch.tensor([1.0, 1.0, -1.0], dtype=x.dtype))[0]).any()
    turns = [k for k, e in enumerate(c.layout.coordinates) if e.block == 3 and e.name.startswith("torsion")
             and e.high - e.low < 4 and e.name.split()[1].split(":")[1] in ("N", "C")]  # fmt: skip
    assert turns
    for k in turns:  # the other isomer of the bond that it stands for
        other = q.clone()
        other[:, k] += np.pi
        assert not c.in_domain(other).any()


@every
def test_a_stored_layout_gives_the_same_coordinates(name):
    _, _, c = made(name)
    again = InternalCoordinates.from_state(c.state())
    q = draw(c, 5, width=0.3)
    for mine, theirs in zip(c.to_cartesian(q), again.to_cartesian(q), strict=True):
        assert torch.equal(mine, theirs)


def test_beads_that_a_ring_of_beads_joins_have_no_bridge():
    """All of a six-ring but two neighbours: the ring closes as in any Z-matrix, by stiff torsions."""
    molecule = load("PHE", solvent=None)
    beads = named(molecule, *((1, name) for name in ("CB", "CG", "CD1", "CE1", "CZ")))
    c = coordinates(molecule, beads=beads)
    assert not any("CD2" in name or "CE2" in name for name in soft(c))


def test_a_triple_bond_is_no_bridge():
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("H1", 0, 0, 0, 0.109, 0, 0), ("C2", 0, 1, 0, 0.146, 110, 0)]
    rows += [("C3", 2, 0, 1, 0.12, 179, 0), ("C4", 3, 2, 1, 0.146, 179, 0)]
    rows += [("H5", 0, 1, 2, 0.109, 109, 120), ("H6", 0, 1, 2, 0.109, 109, 240), *methyl("4", 4, 3, 1, 20)]
    topology, _, x = build(rows)
    c = coordinates((topology, system_for(topology, x), x), beads=[0, 1, 4])
    x = torch.as_tensor(np.asarray(x))[None]
    assert (rigid_rmsd(c.to_cartesian(c.to_internal(x)[0])[0], c.canonical(x)) < 1e-9).all()


def test_what_turns_with_the_planes_is_known():
    """Audits compare forms by the axes that the flow turns about: phi and psi are none of its own coordinates."""
    molecule, _, c = made("Ala3")
    axes = perceive(*molecule).axes
    turning = c.turning(axes)
    turned = {axis.name.partition(":")[2] for axis in axes if bond_key(*axis.ends[0]) in turning}
    kept = {axis.name.partition(":")[2] for axis in axes if bond_key(*axis.ends[0]) not in turning}
    assert {"phi", "psi"} <= turned
    assert kept == {"omega"}
    molecule, _, c = made("a soft torsion between")
    axes = perceive(*molecule).axes
    assert {"LYS2:chi1", "LYS2:chi2", "LYS2:chi3", "LYS2:chi4"} <= {
        axis.name for axis in axes if bond_key(*axis.ends[0]) in c.turning(axes)
    }


@pytest.mark.slow
def test_planes_are_learned_from_energies_alone():
    """With two rotors a plane no energy was finite. ESS given the beads is 5.3 % after so short a training."""
    topology, system, x = load("ALA3", solvent=None)
    with small_networks():
        flow = cgf.CGFlow(topology, system, x, temperature=300, beads=alphas(topology))
    quick = cgf.TrainSettings(points=128, sweeps=5, fit_steps=120)
    flow.train(evaluations=25_000, progress=False, audit=False, settings=quick)
    frames = flow.sample(2000, seed=1)
    assert np.isfinite(frames.log_weights).mean() > 0.9
    log = frames.log_weights - frames.log_weights.max()
    likely = np.argsort(log)[-40:]
    made = flow.backmap(frames.trajectory.xyz[likely][:, flow.coordinates.bead_atoms], n=64, seed=2)
    assert made.checks.wrong_chirality.sum() == made.checks.wrong_peptides.sum() == 0
    assert np.median(made.ess) > 0.02


@pytest.mark.parametrize("beads", [(0, 2, 4), (1, 2, 4), (0, 1, 2, 4), (0, 2, 5), (1, 2, 5), (0, 1, 2, 5)])
def test_linear_groups_between_beads_bend_to_every_side(beads):
    """Half of the frames of a nitrile were "another isomer": the direction of its bend was a torsion of 180 degrees."""
    molecule = load("pentanenitrile", solvent=None)
    c = coordinates(molecule, beads=list(beads))
    frames = torch.as_tensor(thermal(molecule, 20))
    q, log_det = c.to_internal(frames)
    assert c.in_domain(q).all()
    back, again = c.to_cartesian(q)
    assert (rigid_rmsd(back, c.canonical(frames)) < 1e-9).all()
    torch.testing.assert_close(log_det, again, rtol=0, atol=1e-9)
