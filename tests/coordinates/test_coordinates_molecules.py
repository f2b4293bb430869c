"""The same promises on real molecules: amino acids, peptides with constraints, CHARMM, ligands with rings."""

from functools import cache

import pytest
import torch
from coordinate_tools import coordinates, draw, rigid_rmsd
from molecules import ALDP, ALL, AMINO_ACIDS, PEPTIDES, load, thermal
from test_coordinates import difference, gauge_log_det

BACKBONE = {"phi", "psi"}
SIDE_CHAIN = {
    "ALA": set(),
    "ARG": {"chi1", "chi2", "chi3", "chi4"},
    "ASN": {"chi1", "chi2"},
    "ASP": {"chi1", "chi2"},
    "CYS": {"chi1", "CA-CB-SG-HG"},
    "GLN": {"chi1", "chi2", "chi3"},
    "GLU": {"chi1", "chi2", "chi3"},
    "GLY": set(),
    "HIS": {"chi1", "chi2"},
    "ILE": {"chi1", "chi2"},
    "LEU": {"chi1", "chi2"},
    "LYS": {"chi1", "chi2", "chi3", "chi4"},
    "MET": {"chi1", "chi2", "chi3"},
    "PHE": {"chi1", "chi2"},
    "PRO": set(),
    "SER": {"chi1", "CA-CB-OG-HG"},
    "THR": {"chi1", "CA-CB-OG1-HG1"},
    "TRP": {"chi1", "chi2"},
    "TYR": {"chi1", "chi2", "CE1-CZ-OH-HH"},
    "VAL": {"chi1"},
}
METHYLS = {"ALA": 3, "ILE": 4, "LEU": 4, "LYS": 3, "MET": 3, "THR": 3, "VAL": 4}
"""Symmetric rotors, those of the two caps included; 2 for all others."""

every_molecule = pytest.mark.parametrize("name", ALL)


def in_vacuum(name, **options):
    """No solvent, which has no say in coordinates, and takes most of the time to minimise in."""
    return load(name, **options) if name in ALDP else load(name, solvent=None, **options)


@cache
def made(name):
    molecule = in_vacuum(name)
    return molecule, coordinates(molecule)


@every_molecule
def test_thermal_frames_survive_the_round_trip(name):
    molecule, c = made(name)
    x = torch.as_tensor(thermal(molecule, 10))
    assert c.dof == 3 * c.n_atoms - 6 - molecule.system.getNumConstraints()
    # MD keeps constraints to 1e-5 of their length, about 1e-6 nm; here they are exact
    exact = (2e-6, 1e-4) if name in PEPTIDES else (1e-9, 1e-9)
    for dtype, (tolerance, log_tolerance) in ((torch.float64, exact), (torch.float32, (1e-5, 1e-2))):
        q, log_det = c.to_internal(x.to(dtype))
        back, again = c.to_cartesian(q)
        assert c.in_domain(q).all()
        assert (rigid_rmsd(back, c.canonical(x)) < tolerance).all()
        torch.testing.assert_close(log_det, again, rtol=0, atol=log_tolerance)


@every_molecule
def test_drawn_coordinates_survive_the_round_trip(name):
    _, c = made(name)
    q = draw(c, 30, width=0.7)
    q = q[c.in_domain(q)]
    assert len(q) > 20
    assert difference(c, c.to_internal(c.to_cartesian(q)[0])[0], q).abs().max() < 1e-9


@every_molecule
def test_log_determinant_against_autograd(name):
    c = coordinates(in_vacuum(name, constraints=None)) if name in PEPTIDES else made(name)[1]
    q = draw(c, 1, seed=3, width=0.7)
    torch.testing.assert_close(c.to_cartesian(q)[1][0], gauge_log_det(c, q[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", AMINO_ACIDS)
def test_soft_torsions_of_amino_acids(name):
    _, c = made(name)
    slow = {n.partition(":")[2] for n in c.names[: c.sizes[0]]}
    assert slow == SIDE_CHAIN[name] | (BACKBONE - {"phi"} if name == "PRO" else BACKBONE)
    assert c.sizes[2] == METHYLS.get(name, 2) + (name == "PRO")  # whose ring flips
    assert len(c.slow_torsions) == c.sizes[0]


def test_torsions_of_a_peptide_are_in_order():
    _, c = made("ALA5")
    assert [n.rpartition(":")[2] for n in c.names[:10]] == ["phi", "psi"] * 5
    assert c.sizes[0] == 10
    assert c.sizes[2] == 7


@pytest.mark.parametrize(
    ("name", "slow", "rotors"),
    [
        ("butane", 1, 2),
        ("pentanenitrile", 2, 1),
        ("biphenyl", 1, 0),
        ("caffeine", 0, 3),
        ("nicotine", 1, 2),
        ("camphor", 0, 3),
    ],
)
def test_soft_torsions_of_ligands(name, slow, rotors):
    _, c = made(name)
    assert (c.sizes[0], c.sizes[2]) == (slow, rotors)


@pytest.mark.parametrize(
    ("name", "beads"),
    [
        ("aldp_vacuum", [1, 8, 18, 10]),
        ("aldp_vacuum", [1, 6, 14, 18]),
        ("aldp_vacuum", [4, 8, 16]),
        ("ALA5", "CA"),
        ("ALA5", ["CA", "CB"]),
        ("TRP", ["CA", "CB", "CZ2", "CH3", "C"]),
    ],
)
def test_beads_that_are_not_bonded_leave_md_in_the_domain(name, beads):
    molecule, _ = made(name)
    if not isinstance(beads[0], int):
        names = [beads] if isinstance(beads, str) else beads
        beads = [a.index for a in molecule.topology.atoms() if a.name in names]
    c = coordinates(molecule, beads=beads)
    x = torch.as_tensor(thermal(molecule, 40))
    q, _ = c.to_internal(x)
    assert c.in_domain(q).all()
    assert (rigid_rmsd(c.to_cartesian(q)[0], c.canonical(x)) < 2e-6).all()
    assert sum(c.sizes[:2]) == 3 * len(beads) - 6
