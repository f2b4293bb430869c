"""Which torsions are slow, which atoms are beads, and what is said where a choice cannot be followed."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from coordinate_tools import (
    build,
    butane,
    butynol,
    butyronitrile,
    coordinates,
    cyclohexanol,
    draw,
    methyl,
    rigid_rmsd,
    system_for,
    trifluoroethanol,
)
from molecules import load

from openmm_cgflow.chemistry import find_kept_back, perceive
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError

# isort: off
import openmm
from openmmtools import testsystems

# isort: on


@pytest.fixture(scope="module")
def dipeptide():
    made = testsystems.AlanineDipeptideVacuum(constraints=None)
    return made.topology, made.system, made.positions


def check_bijection(c):
    q = draw(c, 50, width=0.5)
    x, log_det = c.to_cartesian(q)
    back, again = c.to_internal(x)
    torch.testing.assert_close(log_det, again, rtol=0, atol=1e-8)
    assert rigid_rmsd(c.to_cartesian(back)[0], c.canonical(x)).max() < 1e-9


@pytest.mark.parametrize(
    ("molecule", "slow", "rotors", "dof"),
    [
        (butane, ["MOL1:C0-C1-C2-C3"], 2, 36),
        (butyronitrile, ["MOL1:C0-C1-C2-C3"], 1, 30),
        (butynol, ["MOL1:C2-C0-O1-H5"], 1, 27),
        (cyclohexanol, ["CHX1:C1-C0-O-HO"], 2, 51),  # the chairs: two torsions of the ring
        (trifluoroethanol, ["MOL1:C0-C1-O2-H3"], 1, 21),
    ],
)
def test_soft_torsions_by_default(molecule, slow, rotors, dof):
    c = coordinates(molecule())
    assert c.names[: c.sizes[0]] == slow
    assert c.sizes[2] == rotors
    assert c.dof == dof == 3 * c.n_atoms - 6


def test_the_system_decides_what_is_stiff():
    topology, _, x = butane()
    c = coordinates((topology, system_for(topology, x, stiff=[(1, 2)]), x))
    assert c.sizes[0] == 0
    assert c.bead_atoms == []
    check_bijection(c)
    torsion = [k for k, n in enumerate(c.names) if n.startswith("torsion")]
    assert len(torsion) == 1
    wrong = c.reference[None].clone()
    wrong[0, torsion[0]] += 2.0
    assert not c.in_domain(wrong)


def test_a_custom_torsion_decides_as_well():
    topology, system, x = butane()
    force = openmm.CustomTorsionForce("k*(1-cos(2*theta))*scale")
    force.addPerTorsionParameter("k")
    force.addGlobalParameter("scale", 2.0)
    force.addTorsion(0, 1, 2, 3, [30.0])
    assert coordinates((topology, system, x)).sizes[0] == 1
    system.addForce(force)
    assert coordinates((topology, system, x)).sizes[0] == 0


def test_rb_torsions_count():
    topology, system, x = butane()
    force = openmm.RBTorsionForce()
    force.addTorsion(0, 1, 2, 3, 0, 0, -60.0, 0, 0, 0)
    system.addForce(force)
    assert coordinates((topology, system, x)).sizes[0] == 0


def butene():
    """trans-2-butene, of which the force field of `system_for` does not know that it is stiff."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("C1", 0, 0, 0, 0.151, 0, 0), ("C2", 1, 0, 0, 0.134, 124, 0)]
    rows += [("C3", 2, 1, 0, 0.151, 124, 180), ("H4", 1, 2, 3, 0.109, 118, 0), ("H5", 2, 1, 0, 0.109, 118, 0)]
    return build(rows + methyl("6", 0, 1, 2, 0) + methyl("9", 3, 2, 1, 0))


def hidden_torsion(atoms, barrier):
    """A two-fold torsion in a force of which nobody reads that it is one, as in AMOEBA or a learned potential."""
    force = openmm.CustomCompoundBondForce(4, "barrier/2*(1-cos(2*dihedral(p1,p2,p3,p4)))")
    force.addPerBondParameter("barrier")
    force.addBond(list(atoms), [barrier])
    return force


@pytest.mark.parametrize(("barrier", "slow"), [(250.0, 0), (15.0, 1)])
def test_torsions_whose_terms_are_hidden_are_judged_by_energies(barrier, slow):
    topology, system, x = butene()
    system.removeForce(2)
    system.addForce(hidden_torsion((0, 1, 2, 3), barrier))
    assert coordinates((topology, system, x)).sizes[0] == slow
    restraint = openmm.CustomTorsionForce("0.5*k*(1-cos(theta-3))")
    restraint.addGlobalParameter("k", 1.0)
    restraint.addTorsion(0, 1, 2, 3, [])
    system.addForce(restraint)  # one term that can be read does not make the others nothing
    assert coordinates((topology, system, x)).sizes[0] == slow


def test_torsions_of_peptide_bonds_stay_stiff_when_their_terms_are_hidden(dipeptide):
    """As with AMOEBA or a learned potential that has one torsion restraint on top: omegas were slow then."""
    topology, system, x = dipeptide
    system = copy.deepcopy(system)
    index = next(k for k, force in enumerate(system.getForces()) if isinstance(force, openmm.PeriodicTorsionForce))
    terms = system.getForce(index)
    hidden = openmm.CustomCompoundBondForce(4, "k*(1+cos(n*dihedral(p1,p2,p3,p4)-phase))")
    for name in ("n", "phase", "k"):
        hidden.addPerBondParameter(name)
    for t in range(terms.getNumTorsions()):
        *atoms, n, phase, k = terms.getTorsionParameters(t)
        hidden.addBond(atoms, [n, phase, k])
    system.removeForce(index)
    system.addForce(hidden)
    restraint = openmm.CustomTorsionForce("2*(1-cos(theta-1))")
    restraint.addTorsion(4, 6, 8, 14, [])
    system.addForce(restraint)
    assert set(coordinates((topology, system, x)).slow_torsions) == {(4, 6, 8, 14), (6, 8, 14, 16)}


def test_a_torsion_turns_where_the_rest_undoes_its_terms():
    """50 kJ/mol of torsion terms, undone by a force between the ends, as in 1,2-diols with OPLS's terms."""
    topology, system, x = butane()
    torsion = openmm.PeriodicTorsionForce()
    torsion.addTorsion(0, 1, 2, 3, 1, 0.0, 25.0)
    system.addForce(torsion)
    assert coordinates((topology, system, x)).sizes[0] == 0
    pull = openmm.CustomBondForce("50*(r-0.26)/0.13")
    pull.addBond(0, 3, [])
    system.addForce(pull)
    assert coordinates((topology, system, x)).sizes[0] == 1


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("vinylether", ["LIG1:C1-C2-O1-C3"]),  # relaxed barrier 21 kJ/mol, the other form 10 lower
        ("acrylamide", ["LIG1:C1-C2-C3-O1"]),  # 36, 27.5 lower
        ("ASN", ["ASN2:chi1", "ASN2:chi2", "ASN2:phi", "ASN2:psi"]),  # omegas and the amide of the side chain stay
        ("lidocaine", None),
    ],
)
def test_torsions_are_judged_by_relaxed_energies(name, slow):
    c = InternalCoordinates.fromTopology(*load(name))
    found = sorted(c.names[: c.sizes[0]])
    assert found == slow if slow else not any("O1-C6-N2-C7" in torsion for torsion in found)


def test_stiff_torsions_are_named_with_their_other_form():
    def reasons(name: str) -> dict[str, str]:
        molecule = load(name)
        return {entry.name: entry.reason for entry in find_kept_back(perceive(*molecule))}

    kept = reasons("enaminone")
    assert re.search(r"another form, 7 kJ/mol higher, behind a barrier of 6\d kJ/mol", kept["LIG1:C1-C2-C3-O1"])
    assert "no other form" in reasons("ASN")["ASN2:OD1-CG-ND2-HD21"]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_long_linear_chains(length):
    """CH3-(C#C)n-CH3: where all placed atoms are in line, a torsion needs a reference still."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("H1", 0, 0, 0, 0.109, 0, 0)]
    ends = [0]
    for k in range(2 * length + 1):
        bond = 0.146 if k in (0, 2 * length) else 0.120 if k % 2 else 0.138
        before = 1 if k == 0 else ends[-2]
        rows.append((f"C{k + 2}", ends[-1], before, 1, bond, 110 if k == 0 else 180, 0))
        ends.append(k + 2)
    rows += [("H8", 0, 1, 2, 0.109, 109, 120), ("H9", 0, 1, 2, 0.109, 109, 240)]
    c = coordinates(build(rows + methyl("7", ends[-1], ends[-2], 1, 20)))
    assert c.dof == 3 * c.n_atoms - 6
    check_bijection(c)


def test_a_methyl_with_a_different_hydrogen_is_no_symmetric_rotor():
    topology, system, x = butane()
    assert coordinates((topology, system, x)).log_symmetry == pytest.approx(2 * math.log(3))
    charge = openmm.CustomExternalForce("q*(x^2+y^2+z^2)")
    charge.addPerParticleParameter("q")
    charge.addParticle(8, [500.0])
    system.addForce(charge)
    c = coordinates((topology, system, x))
    assert c.log_symmetry == pytest.approx(math.log(3))
    assert c.sizes[0] == 2


def test_a_restraint_of_one_hydrogen_is_seen_where_it_is_kept():
    """A flat bottom has no energy at the input: the methyl was symmetric, and its labels were changed at will."""
    topology, system, x = butane()
    hydrogens = [a.index for a in topology.atoms() if a.element.symbol == "H"]
    far = openmm.CustomBondForce("5000*max(0, r-1.0)^2")
    far.addBond(8, next(i for i in hydrogens if i != 8 and np.linalg.norm(x[i] - x[8]) > 0.3))
    system.addForce(far)
    assert coordinates((topology, system, x)).log_symmetry < 1.5 * math.log(3)


def test_slow_by_name(dipeptide):
    c = coordinates(dipeptide, slow=["phi"])
    assert c.slow_torsions == [(4, 6, 8, 14)]
    assert c.bead_atoms == [4, 6, 8, 14]
    assert c.sizes == (1, 5, 4, 50)
    assert c.names[6:10].count("ALA2:psi") == 1
    psi = c.names.index("ALA2:psi")
    assert c.period[psi] == pytest.approx(2 * math.pi)
    check_bijection(c)
    for names in (["ALA2:phi", "psi"], ["2:phi", "ala2:PSI"], [(4, 6, 8, 14), (16, 14, 8, 6)]):
        assert coordinates(dipeptide, slow=names).slow_torsions == [(4, 6, 8, 14), (6, 8, 14, 16)]


@pytest.mark.parametrize("given", [(7, 6, 8, 14), (14, 8, 6, 7), (9, 8, 14, 15), (0, 1, 4, 6)])
def test_names_of_torsions_that_were_given_by_other_atoms_can_be_given_back(dipeptide, given):
    c = coordinates(dipeptide, slow=[given])
    assert set(c.slow_torsions[0]) == set(given)
    again = coordinates(dipeptide, slow=c.names[:1])
    assert (again.slow_torsions, again.names) == (c.slow_torsions, c.names)


def test_names_of_two_torsions_about_one_bond_are_refused(dipeptide):
    with pytest.raises(InvalidInputError, match="two slow torsions turn about the bond ALA2:N-ALA2:CA"):
        coordinates(dipeptide, slow=["phi", "2:h-n-ca-c"])


def test_omega_becomes_soft_when_it_is_named(dipeptide):
    c = coordinates(dipeptide, slow=["phi", "psi", "ACE1:omega"])
    assert c.names[:3].count("ACE1:omega") == 1
    assert c.sizes[0] == 3
    k = c.names.index("ACE1:omega")
    cis = c.reference[None].clone()
    cis[0, k] += math.pi
    assert c.in_domain(cis)
    check_bijection(c)


def test_a_methyl_torsion_can_be_slow(dipeptide):
    c = coordinates(dipeptide, slow=[(6, 8, 10, 11)])
    assert c.sizes[0] == 1
    assert c.period[0] == pytest.approx(2 * math.pi)
    assert c.log_symmetry == pytest.approx(2 * math.log(3))
    check_bijection(c)


def test_soft_torsions_between_the_named_ones_are_slow_too(dipeptide):
    c = coordinates(dipeptide, slow=["ACE1:omega", "ALA2:omega"])
    assert set(c.names[: c.sizes[0]]) == {"ACE1:omega", "ALA2:phi", "ALA2:psi", "ALA2:omega"}


def test_no_slow_torsions(dipeptide):
    c = coordinates(dipeptide, slow=[])
    assert c.sizes == (0, 0, 5, 55)
    check_bijection(c)


def test_beads_that_are_bonded(dipeptide):
    c = coordinates(dipeptide, beads=[16, 14, 8, 6, 4])
    assert c.bead_atoms == [16, 14, 8, 6, 4]
    assert set(c.names[:2]) == {"ALA2:phi", "ALA2:psi"}
    heavy = [1, 4, 5, 6, 8, 10, 14, 15, 16, 18]
    c = coordinates(dipeptide, beads=heavy)
    assert c.sizes[0] + c.sizes[1] == 3 * len(heavy) - 6
    assert c.sizes[0] == 2
    check_bijection(c)


@pytest.mark.parametrize("beads", [[1, 8, 18, 10], [4, 8, 16], [1, 6, 14, 18]])
def test_beads_that_are_not_bonded(dipeptide, beads):
    c = coordinates(dipeptide, beads=beads)
    assert c.sizes[0] + c.sizes[1] == 3 * len(beads) - 6
    check_bijection(c)
    q = draw(c, 2)
    n = c.sizes[0] + c.sizes[1]
    q[1, :n] = q[0, :n]
    x = c.to_cartesian(q)[0][:, beads]
    assert (x[0] - x[1]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow": ["chi1"]}, "no torsion is called 'chi1'; there are .*ALA2:phi"),
        ({"slow": [(4, 6, 8)]}, "four different atom indices"),
        ({"slow": [(4, 6, 8, 99)]}, "from 0 to 21"),
        ({"slow": [(4, 6, 14, 16)]}, "ALA2:N and ALA2:C are not bonded"),
        ({"slow": [(4, 6, 8, 14), (7, 6, 8, 10)]}, "two slow torsions turn about the bond"),
        ({"slow": [3.5]}, "slow contains 3.5"),
        ({"beads": [4, 6]}, "beads are 2 atoms"),
        ({"beads": [4, 6, 6]}, "twice"),
        ({"beads": [4, 6, 22]}, "beads contain 22"),
        ({"beads": [[4, 5], [6, 7], [8, 9]]}, r"groups of atoms.*CGForceField\.fromFrames"),
        ({"beads": [4, 6, 8], "slow": ["phi"]}, r"ALA2:C.*\[14\].*not beads"),
    ],
)
def test_choices_that_cannot_be_followed(dipeptide, options, message):
    with pytest.raises(InvalidInputError, match=message):
        coordinates(dipeptide, **options)


def test_ring_and_linear_torsions_cannot_be_slow():
    with pytest.raises(InvalidInputError, match="a bond in a ring"):
        coordinates(cyclohexanol(), slow=[(0, 1, 2, 3)])
    with pytest.raises(InvalidInputError, match="linear group"):
        coordinates(butyronitrile(), slow=[(1, 2, 3, 4)])


def test_a_seed_of_atoms_in_line_is_avoided():
    topology, system, x = butyronitrile()
    c = InternalCoordinates.fromTopology(topology, system, x, beads=[2, 3, 4, 1])
    assert np.abs(c.reference.numpy()).max() < 4
    check_bijection(c)


@pytest.mark.parametrize("beads", [None, [16, 14, 8, 6, 4], [1, 8, 18, 10], [1, 4, 5, 6, 8, 10, 14, 15, 16, 18]])
def test_coordinates_of_the_beads_alone(dipeptide, beads):
    c = coordinates(dipeptide, beads=beads)
    alone = c.bead_coordinates()
    n = sum(c.sizes[:2])
    assert alone.sizes == (*c.sizes[:2], 0, 0)
    q = draw(c, 20)
    x, log_det = alone.to_cartesian(q[:, :n])
    whole, _ = c.to_cartesian(q)
    assert (x - whole[:, c.bead_atoms]).abs().max() < 1e-12
    back, again = alone.to_internal(whole[:, c.bead_atoms])
    torch.testing.assert_close(back, c.to_internal(whole)[0][:, :n], rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, again, rtol=0, atol=1e-9)


def test_too_few_beads_to_stand_alone(dipeptide):
    with pytest.raises(InvalidInputError, match=r"3 beads; .* at least 4"):
        coordinates(dipeptide, beads=[4, 6, 8]).bead_coordinates()
