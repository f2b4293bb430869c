"""Bad input: every message names the thing, the value and the fix."""

import mdtraj
import numpy as np
import pytest
import torch
from coordinate_tools import butane, coordinates

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.units import KB, in_kelvin, in_nm, in_seconds

# isort: off
import openmm
from openmm import app, unit

# isort: on


def refuse(message, topology, system, positions):
    with pytest.raises(InvalidInputError, match=message):
        InternalCoordinates.fromTopology(topology, system, positions)


def bare(topology):
    """A System with the right number of particles and no forces."""
    system = openmm.System()
    for _ in range(topology.getNumAtoms()):
        system.addParticle(12.0)
    return system


def with_extra(residue_name, atom_names, bonded=True):
    """Butane with one more molecule."""
    topology, _, x = butane()
    residue = topology.addResidue(residue_name, topology.addChain())
    atoms = [topology.addAtom(name, app.element.get_by_symbol(name), residue) for name in atom_names]
    if bonded:
        for atom in atoms[1:]:
            topology.addBond(atoms[0], atom)
    far = np.arange(3 * len(atoms)).reshape(-1, 3) * 0.05 + 2.0
    return topology, bare(topology), np.concatenate([x, far])


def test_no_bonds():
    topology, system, x = butane()
    empty = app.Topology()
    residue = empty.addResidue("X", empty.addChain())
    for atom in topology.atoms():
        empty.addAtom(atom.name, atom.element, residue)
    refuse("no bonds; add them .*createStandardBonds", empty, system, x)


def test_explicit_water():
    refuse("explicit water .1 residues named HOH.*implicit solvent", *with_extra("HOH", ["O", "H", "H"]))


def test_ions():
    refuse("atom 14 .Cl2:Cl. has no bonds.*remove ions", *with_extra("Cl", ["Cl"]))


def test_several_molecules():
    refuse("2 molecules .of 14, 2 atoms.*give one molecule", *with_extra("LIG", ["C", "O"]))


def test_periodic_system():
    topology, system, x = butane()
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    for _ in x:
        force.addParticle(0, 1, 0)
    system.addForce(force)
    refuse("the System is periodic.*nonbondedMethod=NoCutoff", topology, system, x)


def test_a_restraint_with_a_periodic_box_is_named():
    topology, system, x = butane()
    force = openmm.CustomExternalForce("periodicdistance(x, y, z, 0, 0, 0)^2")
    force.setName("restraint")
    system.addForce(force)
    refuse("periodic .restraint uses a periodic box.*write .x-x0.*in place of periodicdistance", topology, system, x)


def test_virtual_sites_and_frozen_atoms():
    topology, system, x = butane()
    system.setParticleMass(13, 0)
    refuse("particle 13 has mass 0", topology, system, x)
    system.setVirtualSite(13, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    refuse("particle 13 is a virtual site", topology, system, x)


def test_numbers_of_atoms():
    topology, system, x = butane()
    refuse("14 atoms of the System|there are 13 positions for the 14 atoms", topology, system, x[:13])
    refuse(r"shape \(14, 2\)", topology, system, x[:, :2])
    system.addParticle(1.0)
    refuse("15 particles and the Topology 14 atoms", topology, system, x)


def test_small_and_linear_molecules():
    topology = app.Topology()
    residue = topology.addResidue("HCN", topology.addChain())
    atoms = [topology.addAtom(s, app.element.get_by_symbol(s), residue) for s in "HCN"]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[1], atoms[2])
    line = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.22, 0, 0]])
    refuse("3 atoms; at least 4", topology, bare(topology), line)
    topology.addBond(atoms[2], topology.addAtom("H2", app.element.hydrogen, residue))
    refuse("lie on one line", topology, bare(topology), np.concatenate([line, [[0.32, 0, 0]]]))


def test_positions_that_are_no_structure():
    topology, system, x = butane()
    broken = x.copy()
    broken[3, 1] = np.nan
    refuse("position of atom 3 is .*nan", topology, system, broken)
    refuse("bond MOL1:C0-MOL1:C1 is 1.53 nm long.*unit", topology, system, 10 * x)
    refuse("bond MOL1:C0-MOL1:C1 is 0 nm", topology, system, 0 * x)


def test_topologies_of_other_kinds():
    topology, system, x = butane()
    refuse("topology is a str", "butane.pdb", system, x)
    by_mdtraj = coordinates((mdtraj.Topology.from_openmm(topology), system, x))
    assert by_mdtraj.dof == 36


def test_constraints_that_are_no_bonds():
    topology, system, x = butane()
    system.addConstraint(4, 5, 0.178)
    refuse("constraint between MOL1:H10 and MOL1:H11 .0.178 nm.*constraints=None or HBonds", topology, system, x)


def test_a_constraint_that_closes_a_ring():
    from coordinate_tools import cyclohexanol

    topology, system, x = cyclohexanol()
    for bond in topology.bonds():
        system.addConstraint(bond[0].index, bond[1].index, 0.15)
    refuse("closes a ring.*constraints=None or HBonds", topology, system, x)


def test_units_of_positions():
    x = np.arange(6.0).reshape(2, 3)
    vectors = [openmm.Vec3(*row) for row in x]
    for given in (
        x,
        x.tolist(),
        10 * x * unit.angstrom,
        vectors * unit.nanometer,
        [v * unit.nanometer for v in vectors],
        torch.tensor(x),
    ):
        np.testing.assert_allclose(in_nm(given), x)
        assert in_nm(given).dtype == np.float64
    frames = mdtraj.Trajectory(x[None], None)
    np.testing.assert_allclose(in_nm(frames), x[None])
    with pytest.raises(InvalidInputError, match=r"given in .*s.*nanometer"):
        in_nm(x * unit.second)
    with pytest.raises(InvalidInputError, match="not an array of numbers"):
        in_nm([["a", "b", "c"]])


def test_a_bare_temperature_that_may_be_in_degrees_celsius_is_doubted(caplog):
    assert in_kelvin(77 * unit.kelvin) == 77
    assert in_kelvin(110) == 110
    assert not caplog.text
    assert in_kelvin(25) == 25
    assert "taken to be 25 K: if it was meant in degrees Celsius, give 298.15" in caplog.text


def test_units_of_temperature_and_time():
    assert in_kelvin(300) == in_kelvin(300 * unit.kelvin) == 300.0
    assert in_seconds(2) == in_seconds(2000 * unit.millisecond) == 2.0
    assert pytest.approx(2.494339, abs=1e-5) == KB * 300
    for wrong, message in ((0, "0 K; give one above 0"), (-5, "-5 K"), ("hot", "'hot'"), (float("nan"), "finite")):
        with pytest.raises(InvalidInputError, match=message):
            in_kelvin(wrong)
    with pytest.raises(InvalidInputError, match="given in"):
        in_seconds(3 * unit.kelvin)
