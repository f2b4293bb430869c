"""What is compared with OpenMM: each Force by itself, in the precision and the form that run, in kT."""

import logging

import molecules
import numpy as np
import openmm
import pytest
import torch
from test_potentials_forces import FORCES, N, positions, system_with

from openmm_cgflow.errors import InvalidInputError, UnsupportedForceError
from openmm_cgflow.potentials import ContextPotential, TorchPotential, make_potential
from openmm_cgflow.potentials import torch_potential as torch_potential_module
from openmm_cgflow.potentials.contexts.check import ImpreciseError, Judge, compare_totals
from openmm_cgflow.potentials.contexts.evaluator import Evaluator, likely_platform
from openmm_cgflow.potentials.terms.frame import DifferenceTable
from openmm_cgflow.potentials.terms.translate import build_terms
from openmm_cgflow.units import KB

KT = KB * 300


def without(system, kind):
    """A potential that a wrong compiler might make: one kind of force is left out."""
    table = DifferenceTable()
    terms = [(k, t) for k, t in build_terms(system, table, torch.float32) if type(system.getForce(k)) is not kind]
    return TorchPotential(system, terms, table, torch.float32, compile=False)


@pytest.fixture(scope="module")
def aldp():
    return molecules.load("aldp_obc1")


@pytest.fixture(scope="module")
def judge(aldp):
    return Judge(aldp.system, aldp.positions, 300.0)


@pytest.mark.parametrize("kind", [openmm.PeriodicTorsionForce, openmm.CustomGBForce, openmm.HarmonicAngleForce])
def test_audit_of_terms_sees_what_a_compiler_leaves_out(aldp, judge, kind, monkeypatch):
    lacking = without(aldp.system, kind)
    monkeypatch.setattr(
        torch_potential_module, "compile_energy_gradient", lambda function, example: lacking._columns_gradient
    )
    potential = TorchPotential.fromSystem(aldp.system, compile=True)
    x = torch.from_numpy(molecules.jiggled(aldp.positions, 40)).float()
    with pytest.raises(ImpreciseError, match="compiled energies differ by"):
        potential.energy_and_forces(x)
    potential.stand_before(judge)
    with pytest.raises(ImpreciseError, match="compiled energies differ by"):
        potential.energy_and_forces(x)
    assert potential._compiled is None


def test_audit_of_terms_sees_what_single_precision_loses(aldp, caplog):
    force = openmm.CustomExternalForce("1e8*(x-x0)^2-1e8*(x^2-2*x*x0+x0^2)+k*x")
    force.setName("cancelling")
    force.addPerParticleParameter("x0")
    force.addPerParticleParameter("k")
    system = openmm.XmlSerializer.clone(aldp.system)
    force.addParticle(0, [7.0, 1.0])
    system.addForce(force)
    with pytest.raises(ImpreciseError, match=r"cancelling in float32 differs from OpenMM by .* kT"):
        TorchPotential.fromSystem(system, positions=aldp.positions)
    with caplog.at_level(logging.WARNING):
        potential = make_potential(system, aldp.positions)
    assert "cancelling" in caplog.text
    assert potential.dtype == torch.float64
    x = molecules.jiggled(aldp.positions, 4)
    np.testing.assert_allclose(potential.energy(torch.from_numpy(x)), Evaluator(system, "Reference")(x)[0], atol=1e-4)


def test_audit_of_terms_names_the_force_that_is_wrong(aldp, judge):
    potential = TorchPotential.fromSystem(aldp.system, dtype=torch.float64)
    term = next(t for name, t in zip(potential.forces, potential._terms, strict=True) if "Torsion" in name)
    term.a2 *= 1.0001
    with pytest.raises(UnsupportedForceError, match=r"PeriodicTorsionForce does not agree with OpenMM"):
        potential.stand_before(judge)
    potential.float()
    term.a2 *= 1.1
    with pytest.raises(ImpreciseError, match=r"PeriodicTorsionForce in float32 differs"):
        potential.stand_before(judge)


def test_audit_of_terms_has_thermal_structures(judge, aldp):
    total = judge.energies.sum(0)
    assert len(judge.x) == 8
    assert len(np.unique(total.round(6))) == 8
    lowest = Evaluator(aldp.system, "Reference")(aldp.positions[None])[0][0]
    dynamic = total[4:] - lowest
    assert (dynamic > 1.0).all()
    assert (dynamic < 3 * 22 * KT).all()  # 3/2 kT a degree of freedom are far above what 0.2 ps of dynamics reaches


@pytest.mark.parametrize("name", FORCES)
def test_audit_of_terms_passes_every_force_in_single_precision(name):
    system = system_with(FORCES[name]())
    judge = Judge(system, positions(1)[0], 300.0)
    TorchPotential.fromSystem(system, dtype=torch.float64).stand_before(judge)
    TorchPotential.fromSystem(system).stand_before(judge)


def test_force_groups_and_many_forces_do_not_matter():
    system = system_with(*(FORCES["harmonic_bond"]() for _ in range(40)), FORCES["custom_gb"](), FORCES["nonbonded"]())
    for k, force in enumerate(system.getForces()):
        force.setForceGroup(k % 3 * 7)
    x = positions(4)
    potential = make_potential(system, x[0])
    assert isinstance(potential, TorchPotential)
    np.testing.assert_allclose(potential.energy(torch.from_numpy(x)), Evaluator(system, "Reference")(x)[0], rtol=1e-5)
    assert [force.getForceGroup() for force in system.getForces()] == [k % 3 * 7 for k in range(42)]


def odd_forces():
    """Forces at their edges: each is right, or goes to Contexts by name."""
    empty = openmm.NonbondedForce()
    for _ in range(N):
        empty.addParticle(0.0, 1.0, 0.0)
    no_direct = FORCES["nonbonded"]()
    no_direct.setIncludeDirectSpace(False)
    excluded = openmm.CustomNonbondedForce("r")
    for _ in range(N):
        excluded.addParticle([])
    for i in range(N):
        for j in range(i):
            excluded.addExclusion(i, j)
    constant = openmm.CustomBondForce("7")
    constant.addBond(0, 1, [])
    changed = FORCES["nonbonded_offsets"]()
    changed.setGlobalParameterDefaultValue(0, 1.7)
    rmsd = openmm.RMSDForce(positions(1)[0])
    cv = openmm.CustomCVForce("2*d^2")
    cv.addCollectiveVariable("d", FORCES["harmonic_bond"]())
    barostat = openmm.MonteCarloBarostat(1.0, 300.0)
    twice = FORCES["harmonic_angle"]()
    for k in range(twice.getNumAngles()):
        twice.addAngle(*twice.getAngleParameters(k))
    return {
        "no charge and no epsilon": (empty, TorchPotential),
        "no direct space": (no_direct, ContextPotential),
        "all pairs excluded": (excluded, TorchPotential),
        "constant": (constant, TorchPotential),
        "global parameter": (changed, TorchPotential),
        "rmsd": (rmsd, ContextPotential),
        "collective variable": (cv, ContextPotential),
        "barostat": (barostat, TorchPotential),
        "thermostat": (openmm.AndersenThermostat(300.0, 1.0), TorchPotential),
        "duplicates": (twice, TorchPotential),
        "no particles": (openmm.CustomExternalForce("x"), TorchPotential),
        "no bonds": (openmm.HarmonicBondForce(), TorchPotential),
    }


@pytest.mark.parametrize("name", odd_forces())
def test_audit_of_terms_at_their_edges(name, caplog):
    force, kind = odd_forces()[name]
    force.setName("the odd one")
    system = system_with(FORCES["harmonic_bond"](), force)
    system.setParticleMass(4, 0.0)
    x = positions(3)
    with caplog.at_level(logging.WARNING):
        potential = make_potential(system, x[0])
    assert type(potential) is kind
    assert ("the odd one" in caplog.text) is (kind is ContextPotential)
    plain = openmm.XmlSerializer.clone(system)
    if name == "barostat":
        plain.removeForce(1)
    energy, forces = Evaluator(plain, "Reference")(x)
    ours, our_forces = potential.energy_and_forces(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), energy, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(our_forces.numpy(), forces, rtol=1e-3, atol=1e-3 * np.abs(forces).max())


def test_what_openmm_refuses_is_said():
    force = openmm.HarmonicBondForce()
    force.addBond(0, 99, 0.1, 1000.0)
    with pytest.raises(InvalidInputError, match="OpenMM cannot make a Context of this System"):
        make_potential(system_with(force), positions(1)[0])
    first, second = openmm.CustomExternalForce("a*x"), openmm.CustomExternalForce("a*y")
    first.addGlobalParameter("a", 1.0)
    second.addGlobalParameter("a", 2.0)
    with pytest.raises(InvalidInputError, match="different default values"):
        make_potential(system_with(first, second), positions(1)[0])


def test_a_periodic_flag_in_a_system_without_a_box_is_named():
    force = FORCES["harmonic_bond"]()
    force.setUsesPeriodicBoundaryConditions(True)
    force.setName("wrapped bonds")
    with pytest.raises(InvalidInputError, match=r"wrapped bonds uses a periodic box"):
        make_potential(system_with(force), positions(1)[0])


class FarAway:
    """A model with the energy of all electrons, in double or in single precision."""

    def __init__(self, single):
        self.single = single

    def __call__(self, state):
        x = state.getPositions(asNumpy=True)._value
        energy = -5e7 + 500 * float((x**2).sum())
        return float(np.float32(energy)) if self.single else energy, -1000 * x


@pytest.mark.parametrize("where", ["contexts", "torch"])
def test_large_offsets_do_not_coarsen_energies(where):
    if where == "contexts":
        force = openmm.PythonForce(FarAway(single=False), {})
    else:
        force = openmm.CustomExternalForce("500*(x^2+y^2+z^2)+offset")
        force.addPerParticleParameter("offset")
        for k in range(N):
            force.addParticle(k, [-5e7 if k == 0 else 0.0])
    x = positions(6)
    potential = make_potential(system_with(force), x[0])
    leaf = torch.from_numpy(x).float().requires_grad_(True)
    energy = potential.energy(leaf)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    expected = 500 * (leaf.detach().double().numpy() ** 2).sum((1, 2))
    assert energy.dtype == torch.float64
    np.testing.assert_allclose(energy.detach().numpy() + 5e7, expected, atol=1e-3)  # float32 has steps of 4 kJ/mol
    np.testing.assert_allclose(gradient.numpy(), 1000 * leaf.detach().numpy(), rtol=1e-3, atol=1e-3)


def test_energies_that_come_in_single_precision_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        make_potential(system_with(openmm.PythonForce(FarAway(single=True), {})), positions(1)[0])
    assert "in steps of 1.6 kT" in caplog.text
    caplog.clear()
    potential = make_potential(system_with(openmm.PythonForce(FarAway(single=False), {})), positions(1)[0])
    assert "in steps of" not in caplog.text
    assert potential.evaluations == 0


def test_the_platform_is_chosen_by_the_system_alone(aldp):
    assert likely_platform(molecules.load("aldp_vacuum").system) == "Reference"
    assert likely_platform(aldp.system) == "CPU"
    cutoff = system_with(FORCES["nonbonded_cutoff"](), FORCES["custom_gb"]())
    assert likely_platform(cutoff) == "Reference"


def test_a_minimum_among_thermal_structures_is_no_reason_for_double_precision():
    """Forces are compared with the largest of all structures: at a minimum rounding errors are as large as they are."""
    energies = np.array([-300.0, -100.0])
    forces = np.zeros((2, 5, 3))
    forces[0, 0, 0], forces[1, 0, 0] = 1.0, 5000.0
    rounded = forces.copy()
    rounded[:, 1, 1] = 0.05
    compare_totals(energies, rounded, energies, forces, "energies")
    rounded[1, 0, 0] *= 1.01
    with pytest.raises(ImpreciseError, match="1 % of the largest"):
        compare_totals(energies, rounded, energies, forces, "energies")


@pytest.mark.parametrize("bend", [0.0, 1e-9, 1e-6])
def test_a_straight_angle_is_no_reason_for_contexts_or_double_precision(bend, caplog):
    system = openmm.System()
    for mass in (1.0, 12.0, 12.0, 1.0):
        system.addParticle(mass)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for k, length in enumerate((0.107, 0.12, 0.107)):
        bonds.addBond(k, k + 1, length, 2e5)
    for k in range(2):
        angles.addAngle(k, k + 1, k + 2, np.pi, 500.0)
    system.addForce(bonds)
    system.addForce(angles)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    x = np.array([[0, 0, 0], [0.107, 0, 0], [0.227, 0, 0], [0.334, bend, 0]]) @ turn
    with caplog.at_level(logging.WARNING):
        assert make_potential(system, x).dtype == torch.float32
    assert not caplog.messages


def test_a_structure_far_from_the_origin_is_no_reason_for_double_precision(caplog):
    _, system, x = molecules.load("butane")
    with caplog.at_level(logging.WARNING):
        assert make_potential(system, x + 1000.0).dtype == torch.float32
    assert not caplog.messages
