"""Each kind of force, with random parameters, against a double-precision Context."""

import numpy as np
import openmm
import pytest
import torch

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials import TorchPotential
from openmm_cgflow.potentials.contexts.evaluator import Evaluator

N = 9


def positions(copies=6):
    rng = np.random.default_rng(3)
    lattice = 0.16 * np.stack(np.meshgrid(*3 * [np.arange(3)], indexing="ij"), -1).reshape(-1, 3)[:N]
    return lattice + rng.normal(0.0, 0.03, (copies, N, 3))


def system_with(*forces):
    system = openmm.System()
    for k in range(N):
        system.addParticle(1.0 + k)
    for force in forces:
        system.addForce(force)
    return system


def assert_agrees(system, x=None):
    x = positions() if x is None else x
    energy, forces = Evaluator(system, "Reference")(x)
    ours, our_forces = TorchPotential.fromSystem(system, dtype=torch.float64).energy_and_forces(torch.from_numpy(x))
    assert np.abs(energy).max() > 1e-3
    np.testing.assert_allclose(ours.numpy(), energy, rtol=1e-6, atol=1e-9)
    error = np.linalg.norm(our_forces.numpy() - forces, axis=(1, 2)) / np.linalg.norm(forces, axis=(1, 2)).clip(1e-6)
    assert error.max() < 1e-5


def rng():
    return np.random.default_rng(11)


def harmonic_bond():
    force, r = openmm.HarmonicBondForce(), rng()
    for k in range(N - 1):
        force.addBond(k, k + 1, r.uniform(0.1, 0.2), r.uniform(100, 1000))
    return force


def harmonic_angle():
    force, r = openmm.HarmonicAngleForce(), rng()
    for k in range(N - 2):
        force.addAngle(k, k + 1, k + 2, r.uniform(1, 2.5), r.uniform(10, 100))
    return force


def periodic_torsion():
    force, r = openmm.PeriodicTorsionForce(), rng()
    for k in range(N - 3):
        for n in (1, 2, 3, 6):
            force.addTorsion(k, k + 1, k + 2, k + 3, n, r.uniform(-3, 3), r.uniform(-5, 5))
    force.addTorsion(5, 4, 3, 2, 2, 0.4, 3.0)  # the reverse of a quadruple that is there already
    force.addTorsion(0, 2, 1, 5, 2, np.pi, 4.0)
    return force


def rb_torsion():
    force, r = openmm.RBTorsionForce(), rng()
    for k in range(N - 3):
        force.addTorsion(k, k + 1, k + 2, k + 3, *r.normal(0, 5, 6))
    return force


def cmap():
    force, r = openmm.CMAPTorsionForce(), rng()
    for size in (6, 9, 6):
        force.addMap(size, r.normal(0, 4, size * size))
    for k, (a, b) in enumerate([(0, 1), (2, 4), (1, 5)]):
        force.addTorsion(k, a, a + 1, a + 2, a + 3, b, b + 1, b + 2, b + 3)
    return force


def nonbonded(cutoff=False, switch=False, offsets=False):
    force, r = openmm.NonbondedForce(), rng()
    for _ in range(N):
        force.addParticle(r.normal(0, 0.5), r.uniform(0.1, 0.2), r.uniform(0.1, 1))
    for i in range(N - 1):
        force.addException(i, i + 1, 0, 1, 0)
    for i in range(N - 3):
        force.addException(i, i + 3, r.normal(0, 0.3), r.uniform(0.1, 0.2), r.uniform(0.1, 1))
    if cutoff:
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(0.35)
    if switch:
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(0.25)
    if offsets:
        force.addGlobalParameter("mix", 0.4)
        force.addGlobalParameter("other", -0.2)
        force.addParticleParameterOffset("mix", 2, 0.5, 0.02, 0.3)
        force.addParticleParameterOffset("other", 2, 0.1, 0.01, 0.2)
        force.addExceptionParameterOffset("mix", N, 0.3, 0.05, 0.6)
    return force


def gbsa(cutoff=False, surface=2.25936, dielectrics=(1.0, 78.5)):
    force, r = openmm.GBSAOBCForce(), rng()
    for _ in range(N):
        force.addParticle(r.normal(0, 0.5), r.uniform(0.1, 0.2), r.uniform(0.6, 1.4))
    force.setSurfaceAreaEnergy(surface)
    force.setSoluteDielectric(dielectrics[0])
    force.setSolventDielectric(dielectrics[1])
    if cutoff:
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(0.35)
    return force


def custom_bond():
    force, r = openmm.CustomBondForce("k*(1-exp(-alpha*(r-r0)))^2+g*r"), rng()
    force.addGlobalParameter("g", 1.5)
    for name in ("k", "alpha", "r0"):
        force.addPerBondParameter(name)
    for k in range(N - 1):
        force.addBond(k, k + 1, [r.uniform(5, 10), r.uniform(5, 10), 0.15])
    return force


def custom_angle():
    force, r = openmm.CustomAngleForce("k*(cos(theta)-cos(t0))^2"), rng()
    force.addPerAngleParameter("k")
    force.addPerAngleParameter("t0")
    for k in range(N - 2):
        force.addAngle(k, k + 1, k + 2, [r.uniform(10, 20), r.uniform(1, 2)])
    return force


def custom_torsion():
    force, r = openmm.CustomTorsionForce("k*min(dt, 2*pi-dt)^2; dt=abs(theta-t0); pi=3.1415926535"), rng()
    force.addPerTorsionParameter("k")
    force.addPerTorsionParameter("t0")
    for k in range(N - 3):
        force.addTorsion(k, k + 1, k + 2, k + 3, [r.uniform(1, 5), r.uniform(-2, 2)])
    return force


def custom_external():
    force = openmm.CustomExternalForce("k*((x-x0)^2+2*y^2)+z")
    force.addPerParticleParameter("k")
    force.addPerParticleParameter("x0")
    force.addParticle(1, [3.0, 0.2])
    force.addParticle(4, [5.0, -0.1])
    return force


def custom_compound():
    text = "k*distance(p1,p2)*cos(angle(p1, p2, p3))+dihedral(p1,p2,p3,p4)^2+x1*y2-z4+pointdistance(x1,y1,z1,x3,y3,0.1)"
    text += "+pointangle(x1,y1,z1,x2,y2,z2,x3,y3,z3)+cos(pointdihedral(x1,y1,z1,x2,y2,z2,x3,y3,z3,x4,y4,z4))"
    text += "+f(distance(p2,p4))"
    force = openmm.CustomCompoundBondForce(4, text)
    force.addPerBondParameter("k")
    force.addTabulatedFunction("f", openmm.Continuous1DFunction(rng().normal(0, 1, 12), 0.0, 1.0))
    force.addBond([0, 1, 2, 5], [2.5])
    force.addBond([3, 7, 4, 8], [-1.5])
    return force


def custom_centroid():
    force = openmm.CustomCentroidBondForce(3, "k*distance(g1,g2)^2+cos(angle(g1,g2,g3))+x3")
    force.addPerBondParameter("k")
    force.addGroup([0, 1, 2])
    force.addGroup([3, 4], [0.25, 2.0])
    force.addGroup([5, 8, 7])
    force.addBond([0, 1, 2], [20.0])
    force.addBond([2, 0, 1], [10.0])
    return force


def custom_nonbonded(method="none", groups=False, table=None):
    text = "4*sqrt(e1*e2)*((s/r)^12-(s/r)^6)+q1*q2/r; s=0.5*(s1+s2)"
    if table is not None:
        text += "*1+0.01*f(r" + (",s1" if isinstance(table, openmm.Continuous2DFunction) else "") + ")"
    force, r = openmm.CustomNonbondedForce(text), rng()
    if table is not None:
        force.addTabulatedFunction("f", table)
    for name in ("q", "s", "e"):
        force.addPerParticleParameter(name)
    for _ in range(N):
        force.addParticle([r.normal(0, 3), r.uniform(0.1, 0.2), r.uniform(0.1, 1)])
    for k in range(N - 1):
        force.addExclusion(k, k + 1)
    if method != "none":
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(0.35)
    if method == "switch":
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(0.22)
    if groups:
        force.addInteractionGroup([0, 1, 2, 3], [2, 3, 4, 5])
        force.addInteractionGroup([6, 0], [7, 8, 1])
    return force


def table_1d():
    return openmm.Continuous1DFunction(rng().normal(0, 5, 14), 0.05, 0.9)


def table_1d_periodic():
    values = rng().normal(0, 5, 14)
    values[-1] = values[0]
    return openmm.Continuous1DFunction(values, 0.1, 0.35, True)


def table_2d():
    return openmm.Continuous2DFunction(9, 7, rng().normal(0, 5, 63), 0.02, 0.9, 0.05, 0.25)


def custom_gb(exclusions=False, cutoff=False, discrete=False):
    force, r = openmm.CustomGBForce(), rng()
    for name in ("q", "or", "kind"):
        force.addPerParticleParameter(name)
    force.addGlobalParameter("scale", 1.3)
    for k in range(N):
        force.addParticle([r.normal(0, 0.5), r.uniform(0.1, 0.2), k % 3])
    extra = "+0.1*t1(kind1)*t2(kind1,kind2)+t3(kind2, 1, kind1)" if discrete else ""
    if discrete:
        force.addTabulatedFunction("t1", openmm.Discrete1DFunction(r.uniform(1, 2, 3)))
        force.addTabulatedFunction("t2", openmm.Discrete2DFunction(3, 4, r.uniform(1, 2, 12)))
        force.addTabulatedFunction("t3", openmm.Discrete3DFunction(3, 2, 4, r.uniform(1, 2, 24)))
    force.addComputedValue("I", f"exp(-r/or1)*or2^2{extra}", force.ParticlePair)
    force.addComputedValue("B", "1/(1/or-tanh(scale*I)/0.5)+0.1*x", force.SingleParticle)
    force.addComputedValue("C", "sqrt(B^2+I)", force.SingleParticle)
    force.addEnergyTerm("q^2/B+C+y*z", force.SingleParticle)
    force.addEnergyTerm("q1*q2/sqrt(r^2+B1*B2*exp(-r^2/(C1*C2)))", force.ParticlePair)
    force.addEnergyTerm("I1*C2+I2*C1-r", force.ParticlePairNoExclusions)
    if exclusions:
        for k in range(N - 1):
            force.addExclusion(k + 1, k)
    if cutoff:
        force.setNonbondedMethod(force.CutoffNonPeriodic)
        force.setCutoffDistance(0.35)
    return force


FORCES = {
    "harmonic_bond": harmonic_bond,
    "harmonic_angle": harmonic_angle,
    "periodic_torsion": periodic_torsion,
    "rb_torsion": rb_torsion,
    "cmap": cmap,
    "nonbonded": nonbonded,
    "nonbonded_cutoff": lambda: nonbonded(cutoff=True),
    "nonbonded_switch": lambda: nonbonded(cutoff=True, switch=True),
    "nonbonded_offsets": lambda: nonbonded(offsets=True),
    "gbsa": gbsa,
    "gbsa_cutoff": lambda: gbsa(cutoff=True),
    "gbsa_no_surface": lambda: gbsa(surface=0.0, dielectrics=(2.0, 40.0)),
    "custom_bond": custom_bond,
    "custom_angle": custom_angle,
    "custom_torsion": custom_torsion,
    "custom_external": custom_external,
    "custom_compound": custom_compound,
    "custom_centroid": custom_centroid,
    "custom_nonbonded": custom_nonbonded,
    "custom_nonbonded_cutoff": lambda: custom_nonbonded("cutoff"),
    "custom_nonbonded_switch": lambda: custom_nonbonded("switch"),
    "custom_nonbonded_groups": lambda: custom_nonbonded(groups=True),
    "table_1d": lambda: custom_nonbonded(table=table_1d()),
    "table_1d_periodic": lambda: custom_nonbonded(table=table_1d_periodic()),
    "table_2d": lambda: custom_nonbonded(table=table_2d()),
    "custom_gb": custom_gb,
    "custom_gb_exclusions": lambda: custom_gb(exclusions=True),
    "custom_gb_cutoff": lambda: custom_gb(cutoff=True, exclusions=True),
    "custom_gb_discrete": lambda: custom_gb(discrete=True),
}


@pytest.mark.parametrize("name", FORCES)
def test_force_agrees_with_openmm(name):
    assert_agrees(system_with(FORCES[name]()))


def test_forces_together_share_their_pairs():
    assert_agrees(system_with(harmonic_bond(), nonbonded(), gbsa(), custom_gb(), cmap(), openmm.CMMotionRemover()))


def test_born_radius_of_an_atom_inside_another():
    force = openmm.GBSAOBCForce()
    for k in range(N):
        force.addParticle(0.3, 0.3 if k == 0 else 0.1, 1.0)
    x = positions()
    x[:, 1] = x[:, 0] + [0.12, 0.0, 0.0]
    assert_agrees(system_with(force), x)


def test_straight_angle_has_a_finite_gradient():
    x = positions()
    x[0, :3] = [[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]]
    potential = TorchPotential.fromSystem(system_with(harmonic_angle()), dtype=torch.float64)
    _, forces = potential.energy_and_forces(torch.from_numpy(x))
    assert torch.isfinite(forces).all()


def test_no_force_means_no_energy():
    energy, forces = TorchPotential.fromSystem(system_with()).energy_and_forces(torch.from_numpy(positions()))
    assert not energy.any()
    assert not forces.any()


def test_an_unsupported_force_is_named():
    force = openmm.CustomHbondForce("distance(a1,d1)")
    force.setName("my bonds")
    with pytest.raises(UnsupportedForceError, match=r"my bonds.*CustomHbondForce"):
        TorchPotential.fromSystem(system_with(force))


def test_an_unsupported_table_is_named():
    force = openmm.CustomCompoundBondForce(2, "f(x1,y1,z1)")
    force.addTabulatedFunction("f", openmm.Continuous3DFunction(2, 2, 2, [0.0] * 8, 0, 1, 0, 1, 0, 1))
    force.addBond([0, 1], [])
    with pytest.raises(UnsupportedForceError, match="'f' is a Continuous3DFunction"):
        TorchPotential.fromSystem(system_with(force))


def test_a_periodic_system_is_refused():
    force = nonbonded()
    force.setNonbondedMethod(force.PME)
    with pytest.raises(InvalidInputError, match=r"periodic.*NoCutoff"):
        TorchPotential.fromSystem(system_with(force))
