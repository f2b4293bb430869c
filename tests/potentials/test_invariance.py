"""Energies that depend on place or orientation are refused by the force's name; those that do not are not."""

import numpy as np
import pytest
from molecules import load

import openmm_cgflow as cgf
from openmm_cgflow.copies import copied_system
from openmm_cgflow.potentials.contexts.invariance import check_invariance
from openmm_cgflow.potentials.contexts.reference import Reference
from openmm_cgflow.units import KB

# isort: off
import openmm
from openmm import unit

# isort: on

KT = 300 * KB


def restraint_to_points(x: np.ndarray) -> openmm.Force:
    force = openmm.CustomExternalForce("500*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for k in range(4):
        force.addParticle(k, x[k])
    return force


def field(x: np.ndarray) -> openmm.Force:
    """1 V/nm along z on charges that add up to zero: nothing changes when the molecule is moved only."""
    force = openmm.CustomExternalForce("-96.485*q*z")
    force.addPerParticleParameter("q")
    for k in range(len(x)):
        force.addParticle(k, [0.1 if k % 2 else -0.1])
    return force


def container(x: np.ndarray) -> openmm.Force:
    """Flat where the molecule is; it matters only 5 nm away."""
    force = openmm.CustomExternalForce("1000*step(r-5)*(r-5)^2; r=sqrt(x^2+y^2+z^2)")
    for k in range(len(x)):
        force.addParticle(k)
    return force


def centroid_at_a_point(x: np.ndarray) -> openmm.Force:
    force = openmm.CustomCentroidBondForce(1, "100*((x1-1)^2+y1^2+z1^2)")
    force.addGroup(list(range(len(x))))
    force.addBond([0])
    return force


def compound_bond_with_places(x: np.ndarray) -> openmm.Force:
    force = openmm.CustomCompoundBondForce(2, "50*(x1-x2)^2")
    force.addBond([0, 3])
    return force


def orientation(x: np.ndarray) -> openmm.Force:
    return openmm.OrientationRestraintForce(100.0, [openmm.Vec3(*row) for row in x], list(range(len(x))))


def hidden_in_a_variable(x: np.ndarray) -> openmm.Force:
    force = openmm.CustomCVForce("3*place")
    inner = openmm.CustomExternalForce("z^2")
    inner.addParticle(0)
    force.addCollectiveVariable("place", inner)
    return force


class Place:
    """A function of positions for a PythonForce, at the top level so that it can be pickled."""

    def __call__(self, state):
        x = state.getPositions(asNumpy=True)._value
        forces = np.zeros_like(x)
        forces[0, 2] = -10.0
        return 10.0 * x[0, 2], forces


def python_force(x: np.ndarray) -> openmm.Force:
    return openmm.PythonForce(Place())


BAD = [
    *(restraint_to_points, field, container, centroid_at_a_point),
    *(compound_bond_with_places, orientation, hidden_in_a_variable, python_force),
]


@pytest.mark.parametrize("make", BAD, ids=[make.__name__ for make in BAD])
def test_invariance_is_asked_of_every_force(make):
    topology, system, x = load("butane")
    force = make(x)
    force.setName("mine")
    index = system.addForce(force)
    with pytest.raises(cgf.InvalidInputError, match=rf"force {index} .*\(mine, .*turned and moved.*Leave this force"):
        cgf.CGFlow(topology, system, x)


def test_invariance_names_the_force_by_the_users_own_index():
    """Forces without energy stand before it, one of which is not even kept."""
    _, system, x = load("butane")
    shifted = openmm.System()
    for k in range(system.getNumParticles()):
        shifted.addParticle(system.getParticleMass(k))
    shifted.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))
    shifted.addForce(openmm.CMMotionRemover())
    shifted.addForce(restraint_to_points(x))
    with pytest.raises(cgf.InvalidInputError, match=r"force 2 of the System \(CustomExternalForce\)"):
        check_invariance(shifted, x, KT, Reference(copied_system(shifted)))


def test_invariance_holds_with_more_forces_than_groups():
    system = load("butane").system
    x = load("butane").positions
    for _ in range(40):
        force = openmm.HarmonicBondForce()
        force.addBond(0, 3, 0.38, 100.0)
        system.addForce(force)
    check_invariance(system, x, KT, Reference(system))
    system.addForce(field(x))
    with pytest.raises(cgf.InvalidInputError, match=f"force {system.getNumForces() - 1} "):
        check_invariance(system, x, KT, Reference(system))


@pytest.mark.parametrize("name", ["aldp_obc1", "ALA_PRO", "lidocaine"])
def test_invariance_of_ordinary_force_fields(name):
    molecule = load(name)
    check_invariance(molecule.system, molecule.positions, KT, Reference(molecule.system))


def test_invariance_of_relative_restraints():
    """What the message advises is accepted: distances, RMSD, an RMSD inside a collective variable."""
    topology, system, x = load("butane")
    distance = openmm.CustomBondForce("50*(r-0.38)^2")
    distance.addBond(0, 3)
    rmsd = openmm.CustomCVForce("100*rmsd^2")
    rmsd.addCollectiveVariable("rmsd", openmm.RMSDForce(x, [0, 1, 2, 3]))
    for force in (distance, rmsd, openmm.CMMotionRemover(), openmm.AndersenThermostat(300, 1)):
        system.addForce(force)
    cgf.CGFlow(topology, system, x)


def test_a_force_without_a_finite_energy_is_named():
    """The minimiser said "Particle coordinate is NaN"."""
    topology, system, positions = load("butane")
    number = next(k for k, force in enumerate(system.getForces()) if isinstance(force, openmm.NonbondedForce))
    system.getForce(number).setParticleParameters(3, float("nan"), 0.3, 0.1)
    with pytest.raises(cgf.InvalidInputError, match=rf"force {number} of the System \(NonbondedForce\) is nan"):
        cgf.CGFlow(topology, system, positions)
