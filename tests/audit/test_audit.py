"""What a flow does not reach is named, and nothing else is."""

import dataclasses
import json
import math
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openmm
import pytest
import torch
from molecules import DATA, jiggled, load, small_networks
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow import cli, model
from openmm_cgflow.analysis import summary, trust
from openmm_cgflow.audit import Coverage, Form, run
from openmm_cgflow.audit.relabel import Relabel
from openmm_cgflow.audit.surface import Surface, langevin, quench
from openmm_cgflow.audit.weigh import log_partition
from openmm_cgflow.chemistry import axes, perception
from openmm_cgflow.chemistry.checks import check_inputs
from openmm_cgflow.chemistry.forms import Fingerprint
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials import make_potential
from openmm_cgflow.storage import locked, read_as
from openmm_cgflow.training import Parallel, TrainSettings
from openmm_cgflow.units import KB

MODELS = DATA.parents[1] / "examples" / "models"


@pytest.fixture(scope="module")
def vacuum() -> cgf.CGFlow:
    """The shipped flow of alanine dipeptide: trained well, nothing missing."""
    return cgf.CGFlow.load(MODELS / "aldp_vacuum.cgflow")


def quickly(name, evaluations=5_000):
    """A flow of a molecule, trained for some seconds and without an audit."""
    with small_networks():
        flow = cgf.CGFlow(*load(name))
    settings = TrainSettings(points=64, sweeps=4, fit_steps=80)
    return flow.train(evaluations=evaluations, settings=settings, progress=False, audit=False)


def surface(molecule, limit=10**9):
    return Surface(make_potential(molecule.system, molecule.positions), molecule.system, Parallel(1), limit)


def reference_context(molecule):
    platform = openmm.Platform.getPlatformByName("Reference")
    return openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)


# -- forms that are missing


@pytest.fixture(scope="module")
def vinylether() -> cgf.CGFlow:
    """Methyl vinyl ether with its torsion stiff, as it was: the other form is 10 kJ/mol lower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(axes, "TURNING_BARRIER", 0.0)
        return quickly("vinylether")


def test_audit_names_a_form_behind_a_torsion_that_is_kept(vinylether, monkeypatch):
    monkeypatch.setattr(axes, "TURNING_BARRIER", 0.0)
    flow = vinylether
    assert flow.slow_names == []
    coverage = flow.audit(8_000)
    assert not coverage.covered
    lowest = coverage.forms[0]
    assert lowest.what == "LIG1:C1-C2-O1-C3"
    assert lowest.energy == pytest.approx(-10.1, abs=0.3)
    assert lowest.weight > 0.8
    assert lowest.include == "slow=['LIG1:C1-C2-O1-C3']"
    assert "10.1 kJ/mol lower than any that this flow can give" in coverage.verdict
    rows = dict(summary(flow, flow.sample(500, seed=0)))
    assert rows["coverage"].startswith("NOT covered")
    assert "some forms are missing" in rows["Pareto k-hat"] or "not to be trusted" in rows["Pareto k-hat"]


def test_audit_names_a_form_once_where_descents_are_unfinished(vinylether, monkeypatch):
    """Then one minimum comes at several energies, 1 kT and more apart."""
    monkeypatch.setattr(axes, "TURNING_BARRIER", 0.0)
    monkeypatch.setattr(run, "_DESCENT", 15)
    coverage = vinylether.audit(8_000)
    assert [form.what for form in coverage.forms] == ["LIG1:C1-C2-O1-C3"]
    assert coverage.forms[0].energy == pytest.approx(-10.1, abs=0.3)


def test_audit_of_a_flow_that_turns_the_torsion_finds_nothing():
    flow = quickly("vinylether")
    assert flow.slow_names == ["LIG1:C1-C2-O1-C3"]
    coverage = flow.audit(8_000)
    assert coverage.covered, coverage
    assert coverage.kept == []


@pytest.mark.slow
def test_audit_finds_the_other_forms_of_a_ring_of_ten():
    """A lactone: minima 13, 10, 7 and 6 kJ/mol below the input's.

    They are searched for, whatever the dynamics find.
    """
    flow = quickly("macrolactone", 4_000)
    coverage = flow.audit(8_000)
    assert not coverage.covered
    rings = [form for form in coverage.forms if form.what == "ring of 10 atoms"]
    assert min(form.energy for form in rings) < -12
    assert "start from it" in rings[0].include
    start = np.array(rings[0].positions)
    context = openmm.Context(
        flow.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(start)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    openmm.LocalEnergyMinimizer.minimize(context, 0.1)
    assert energy - context.getState(energy=True).getPotentialEnergy()._value < 0.3  # it is a minimum
    cgf.CGFlow(flow.topology, flow.system, start)  # what is advised can be done


# -- and nothing else


@pytest.fixture(scope="module")
def one_chair() -> cgf.CGFlow:
    """Cyclohexanol with a stiff ring, as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perception, "_remembered", OrderedDict())  # other tests perceive this molecule as it is
        patch.setattr(perception, "ring_flip", lambda *_: set())
        return quickly("cyclohexanol")


def test_audit_names_the_other_chair_of_a_ring_of_six(one_chair):
    """Cyclohexanol, GAFF2: the hydroxyl is axial in one chair, equatorial in the other, 0.4 kJ/mol higher; half of the
    ensemble was missing, "covered", for no dynamics of some ps turns a chair over."""
    coverage = one_chair.audit(8_000)
    lowest = min(coverage.forms, key=lambda form: form.energy)
    assert lowest.what == "flip of the ring of 6 atoms"
    assert min(abs(lowest.energy - energy) for energy in (0.45, 1.51)) < 0.1  # by where the hydrogen points
    assert 0.1 < sum(form.weight for form in coverage.forms) < 0.6


def test_audit_says_nothing_on_a_flow_that_has_it_all(vacuum):
    coverage = vacuum.audit(20_000)
    assert coverage.covered, coverage
    assert coverage.minima >= 3  # C7eq, C7ax and more
    assert {form.what for form in coverage.kept} <= {"ACE1:omega", "ALA2:omega"}
    assert coverage.verdict.startswith("covered: ")
    assert trust(0.2, 1000, covered=True) == "the weights can be trusted"


@pytest.mark.parametrize("poor", ["density", "samples", "time"])
def test_audit_names_what_it_found_where_the_flow_is_too_poor_to_tell(one_chair, monkeypatch, poor):
    """A short training of a ring was "not audited", without a word of the chair that it cannot give."""
    flow = one_chair
    if poor == "density":
        density = flow.log_density_at
        monkeypatch.setattr(flow, "log_density_at", lambda x: density(x) - 15.0)
    elif poor == "samples":
        monkeypatch.setattr(run, "_LEAST_SAMPLES", 10**6)
    else:
        monkeypatch.setattr(Surface, "affords", lambda *_: False)
    coverage = flow.audit(8_000)
    assert not coverage.audited
    assert not coverage.covered
    assert {form.what for form in coverage.forms} == {"flip of the ring of 6 atoms"}
    assert 0.05 < max(form.weight for form in coverage.forms) < 0.6
    assert coverage.verdict.startswith("NOT covered: flip of the ring of 6 atoms")
    assert "Not audited otherwise: " in coverage.verdict
    rows = dict(summary(flow, flow.sample(200, seed=0)))
    assert "some forms are missing" in rows["Pareto k-hat"] or "not to be trusted" in rows["Pareto k-hat"]


def test_audit_of_weights_that_spread_too_far_does_not_say_covered(vacuum, monkeypatch):
    """At an ESS of some percent a form may be e^8 times too seldom without standing out: that is no coverage."""
    density, phi = vacuum.log_density_at, vacuum.slow_names.index("ALA2:phi")

    def without_one(x):  # of the two lowest minima, at phi -74 and -147: the one with fewer samples
        return density(x) - 6.0 * (np.degrees(vacuum.slowVariables(x)[:, phi]) > -120)

    monkeypatch.setattr(vacuum, "log_density_at", without_one)
    assert [form.what[:23] for form in vacuum.audit(8_000).forms] == ["torsions at ALA2:phi -7"]
    monkeypatch.setattr(run, "_SPREADS", 1000.0)
    coverage = vacuum.audit(8_000)
    assert not coverage.covered
    assert not coverage.forms
    assert "cannot be told from missing ones: torsions at ALA2:phi -7" in coverage.verdict


@pytest.mark.slow
def test_audit_says_nothing_on_proline():
    """Whose ring has two puckers, both of which the flow has."""
    flow = quickly("PRO")
    coverage = flow.audit(5_000)
    shown = [form for form in coverage.forms if form.weight > 0.05]
    assert not shown, coverage


# -- what it costs, and where it is said


def test_audit_costs_at_most_a_tenth_of_the_budget(butane_file):
    flow = cgf.CGFlow.load(butane_file)
    coverage, budget = flow.coverage, 70_000  # of the fixture's training
    assert coverage.audited
    assert coverage.covered
    assert 1000 < coverage.evaluations <= 0.1 * budget
    assert flow.evaluations <= budget


def test_audit_that_cannot_be_paid_is_no_audit(vacuum):
    fresh = cgf.CGFlow(*load("butane"))
    assert fresh.coverage is None
    assert dict(summary(fresh, fresh.sample(50, seed=0)))["coverage"].startswith("not audited")
    with pytest.raises(InvalidInputError, match="not trained"):
        fresh.audit()
    before = vacuum.evaluations
    coverage = vacuum.audit(1_000)
    assert vacuum.evaluations == before
    assert not coverage.audited
    assert not coverage.covered
    assert coverage.verdict.startswith("not audited: 1,000 evaluations are too few")


def test_audit_of_a_flow_that_has_not_learned_its_own_minima_says_so(vacuum, monkeypatch):
    """Cyclooctane at an ESS of 0.0 % was "covered": what is far below everything cannot be told from what is not."""
    density = vacuum.log_density_at
    monkeypatch.setattr(vacuum, "log_density_at", lambda x: density(x) - 15.0)
    coverage = vacuum.audit(8_000)
    assert not coverage.covered
    assert "e^15 times too little" in str(coverage)


def test_audit_ends_when_it_is_told_to(vacuum):
    coverage = vacuum.audit(300_000, time=0.5)
    assert coverage.evaluations < 100_000
    assert not coverage.audited or coverage.picoseconds > 0


def test_audit_is_kept_with_the_model(vacuum, tmp_path):
    form = Form("ring of 10 atoms", -13.1, 0.9, "start from it", [[0.0, 0.1, 0.2]], None)
    vacuum.coverage = Coverage(forms=[form], kept=[form], evaluations=7, walkers=3, temperatures=(600.0, 1500.0))
    assert read_as(Coverage, json.loads(json.dumps(dataclasses.asdict(vacuum.coverage))), "coverage") == vacuum.coverage
    vacuum.save(tmp_path / "model.cgflow")
    loaded = cgf.CGFlow.load(tmp_path / "model.cgflow")
    assert loaded.coverage == vacuum.coverage
    assert "ring of 10 atoms: another form 13.1 kJ/mol lower than any that this flow can give" in str(loaded.coverage)
    assert not dataclasses.replace(loaded.coverage, forms=[], why_not="no time").covered
    assert dataclasses.replace(loaded.coverage, forms=[]).covered


def test_audit_in_the_shell(vacuum, tmp_path):
    vacuum.coverage = None
    path = tmp_path / "model.cgflow"
    vacuum.save(path)
    arguments = ["audit", str(path), "--evaluations", "8000"]
    with ThreadPoolExecutor(1) as other, locked(path):  # a training, whose model would be written over
        refused = other.submit(CliRunner().invoke, cli.app, arguments).result()
    assert refused.exit_code == 2
    assert "model.cgflow is being written" in " ".join(refused.stderr.split())
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0
    assert "covered" in done.stdout
    assert cgf.CGFlow.load(path).coverage.audited


def test_audit_of_before_stays_where_nothing_is_trained(vacuum, tmp_path):
    vacuum.coverage = before = Coverage(evaluations=7)
    for arguments in ({"settings": 3}, {"metrics": tmp_path / "no" / "m.csv"}, {"frames": np.zeros((1, 3, 3))}):
        with pytest.raises(cgf.CGFlowError):
            vacuum.train(evaluations=1000, progress=False, **arguments)
    with pytest.raises(InvalidInputError, match="audit: evaluations is 0"):
        vacuum.audit(0)
    assert vacuum.coverage == before


def test_audit_is_paid_by_its_own_call(tmp_path, monkeypatch):
    """One below its least came on top of a budget; after a resume it had a tenth of all calls."""
    limits, file = [], tmp_path / "state"
    for module in (model, run):
        monkeypatch.setattr(module, "LEAST", 200)
    monkeypatch.setattr(cgf.CGFlow, "audit", lambda flow, limit, seconds: limits.append(limit))
    settings = TrainSettings(points=32, sweeps=1, fit_steps=5, soft_buffers=1, buffer=500)
    for evaluations in (2_150, 2_400):
        with small_networks():
            flow = cgf.CGFlow(*load("vinylether"))
        flow.train(evaluations=evaluations, checkpoint=file, settings=settings, progress=False)
    assert limits[0] < 200  # too few: 2,150 are taken by the training
    assert 200 <= limits[1] <= 240


# -- its parts


@pytest.mark.parametrize("name", ["butane", "ALA3"])
def test_audit_descends_to_minima(name):
    """As OpenMM's minimiser does; with constraints too (ALA3)."""
    molecule = load(name)
    x = torch.as_tensor(jiggled(molecule.positions, 8, sigma=0.01), dtype=torch.float32)
    minima, energy = quench(surface(molecule), x, 500)
    context = reference_context(molecule)
    for row in range(2):
        context.setPositions(minima[row].double().numpy())
        context.applyConstraints(1e-6)
        start = context.getState(energy=True).getPotentialEnergy()._value
        assert start == pytest.approx(float(energy[row]), abs=0.3)
        openmm.LocalEnergyMinimizer.minimize(context, 1.0)
        assert start - context.getState(energy=True).getPotentialEnergy()._value < 0.5


def test_audit_dynamics_have_their_temperature():
    """Mean potential energy of butane's vibrations: near kT/2 for each of 36 degrees of freedom.

    64 walkers at 300 K: the standard error is 0.14 kT of 18; torsions and anharmonicity take up to 1.5.
    """
    molecule = load("butane")
    start = torch.as_tensor(molecule.positions, dtype=torch.float32).repeat(64, 1, 1)
    kT = 300 * KB
    generator = torch.Generator().manual_seed(0)
    energies = surface(molecule)
    x = langevin(energies, start, torch.full((64,), kT), 700, kT, generator)
    above = (energies(x)[0] - energies(quench(energies, start[:1], 500)[0])[0]).mean() / kT
    assert 15.5 < float(above) < 20.5


def test_audit_spends_no_more_than_it_may():
    molecule = load("butane")
    energies = surface(molecule, limit=1000)
    x = torch.as_tensor(jiggled(molecule.positions, 50, sigma=0.01), dtype=torch.float32)
    quench(energies, langevin(energies, x, torch.ones(50), 1000, 1.0, torch.Generator()), 1000)
    assert 900 < energies.potential.evaluations <= 1050


def test_audit_fingerprints_do_not_see_names_or_mirrors():
    molecule = load("ASN")
    graph = check_inputs(*molecule)
    fingerprint = Fingerprint(graph)
    x = graph.positions
    names = [f"{a.residue.name}:{a.name}" for a in molecule.topology.atoms()]
    same = x.copy()
    for pair in (("ASN:HD21", "ASN:HD22"), ("ASN:HB2", "ASN:HB3"), ("ACE:H1", "ACE:H2")):
        i, j = (names.index(name) for name in pair)
        same[[i, j]] = same[[j, i]]
    assert fingerprint.distance(x, np.stack([same, -same, x[:, [1, 2, 0]]])).max() < 1e-12
    other = x.copy()
    other[names.index("ASN:HD21")] += 0.05
    assert fingerprint.distance(x, other[None])[0] > 0.02


def test_audit_exchanges_equivalent_atoms_to_get_into_the_domain():
    """Half a turn of an amide's NH2 or of a guanidinium group is no other form."""
    for name, pairs in {
        "ASN": [("HD21", "HD22")],
        "ARG": [("NH1", "NH2"), ("HH11", "HH21"), ("HH12", "HH22")],
    }.items():
        molecule = load(name)
        coordinates = InternalCoordinates.fromTopology(*molecule)
        names = [a.name for a in molecule.topology.atoms()]
        turned = molecule.positions.copy()
        for first, second in pairs:
            i, j = names.index(first), names.index(second)
            turned[[i, j]] = turned[[j, i]]

        def inside(x, coordinates=coordinates):
            return bool(coordinates.in_domain(coordinates.to_internal(torch.as_tensor(x))[0]))

        assert not inside(turned[None])
        relabelled = Relabel(check_inputs(*molecule), coordinates)(turned[None])
        assert inside(relabelled)
        context = reference_context(molecule)
        energies = []
        for x in (turned, relabelled[0]):
            context.setPositions(x)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        assert energies[0] == pytest.approx(energies[1], abs=1e-3)


def test_audit_weighs_minima_by_their_curvature(vacuum):
    """The lowest minimum of alanine dipeptide has most of the partition function, which the flow gives exactly."""
    samples = vacuum.sample(2000, seed=0)
    x = torch.as_tensor(samples.positions[int(samples.reduced_energies.argmin())])[None]
    minimum, _ = quench(surface(load("aldp_vacuum")), x, 500)
    with Parallel(1) as parallel:
        log = log_partition(
            vacuum.potential, vacuum.coordinates, minimum[0].double().numpy(), vacuum.target.kT, parallel
        )
    assert log == pytest.approx(samples.logZ, abs=math.log(5))
