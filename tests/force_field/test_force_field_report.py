"""The report of a force field: what it says beside what is known, with a flow and without, and of a chain."""

import re

import numpy as np
import pytest
from molecules import MODELS
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app
from openmm_cgflow.compute import seeded
from openmm_cgflow.force_field import Fitted
from openmm_cgflow.force_field import report as module
from openmm_cgflow.forcematching import BeadModel, BeadNetwork, DistilSettings, StudentSettings, judge_beads
from openmm_cgflow.forcematching.density.fit_settings import FitSettings
from openmm_cgflow.forcematching.density.splits import build_density

FITTED = Fitted(0.1, 0.2, 1000, 10, 0, 1.0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("_BINS", 24), ("_POINTS", 4_000), ("_COMPARED", 500), ("_WALKERS", 6), ("_STEPS", 60)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu")


@pytest.fixture(scope="module")
def force_field(flow) -> cgf.CGForceField:
    quick = DistilSettings(points=3_000, steps=300, batch=128, student=StudentSettings(hidden=32, layers=2))
    return cgf.CGForceField.fromFlow(flow, quick)


def said(html: str, label: str) -> str:
    """The text beside a label of the table."""
    return re.search(rf">{re.escape(label)}</th><td>(.*?)</td>", html).group(1)


def test_report_beside_a_flow_says_how_far_it_is(flow, force_field, tmp_path):
    html = module.report_force_field(force_field, tmp_path / "r", flow, "the command").read_text()
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {
        "report.html", "energy_errors.png", "free_energy_difference.png", "free_energy_surface.png",
        "free_energy_torsions.png",
    }  # fmt: skip
    assert html.count("<img") == 4
    kT, beads = flow.target.kT, flow.coordinates.bead_coordinates()
    found = judge_beads(force_field.student, flow.flow.bead_flow, beads, kT, bins=24, n=4_000)
    assert said(html, "torsions: Jensen-Shannon divergence from the flow").startswith(
        f"{found.js(module._probabilities(flow)):.5f}"
    )
    assert said(html, "ALA2:phi &gt; 0").startswith(f"{100 * found.population():.2f} %")
    # the flow's own share, by its density on a grid, beside its samples: a standard error of 0.02 %
    drawn = flow.sample(40_000, seed=0).slow[:, 0]
    assert float(said(html, "ALA2:phi &gt; 0").split("(")[1].split(" %")[0]) == pytest.approx(
        100 * np.mean(np.sin(drawn) > 0), abs=0.12
    )
    assert said(html, "energies at beads of the flow") == f"off by {errors(flow, force_field).std():.3f} kT"
    assert said(html, "command") == "the command"
    assert "3,000" not in said(html, "beads")


def test_a_flow_with_other_slow_torsions_is_not_compared(flow, force_field, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_slow_names", lambda coordinates: [str(id(coordinates)), "ALA2:psi"])
    html = module.report_force_field(force_field, tmp_path, flow).read_text()
    assert "not compared" in said(html, "torsions of the flow")
    assert "divergence" not in html
    assert said(html, "energies at beads of the flow").startswith("off by")


def errors(flow, force_field) -> np.ndarray:
    """Energies of the force field less those of the flow, kT, at the frames of the report."""
    beads = flow.coordinates.bead_coordinates()
    drawn = flow.flow.bead_flow.sample(500, seeded(0))
    x, log_measure = beads.to_cartesian(drawn.value.double())
    u = force_field.student(x.contiguous()) / flow.target.kT
    return (u + drawn.log_prob.double() - log_measure)[beads.in_domain(drawn.value.double())].detach().numpy()


def test_report_of_a_file_needs_no_flow(force_field, tmp_path):
    force_field.save(tmp_path / "a.cgff")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "a.cgff"), "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    html = (tmp_path / "r" / "report.html").read_text()
    assert html.count("<img") == 2
    ess = float(re.search(r"ESS (\d+) %", said(html, "torsions")).group(1))
    assert ess > 30
    assert "Basins of the force field" in html
    assert "openmm-cgflow report" in said(html, "command")
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "m.cgflow"), "--flow", str(tmp_path / "a.cgff")])
    assert wrong.exit_code == 2
    assert "--flow goes with a force field" in wrong.output


def test_report_of_a_chain_is_of_walkers(tmp_path):
    model, rng = BeadModel.fromSequence("GGGGGGG"), np.random.default_rng(0)
    steps = np.array([0.38, 0, 0]) * np.ones((7, 1)) + np.array([0, 0.2, 0]) * (np.arange(7) % 2)[:, None]
    x = np.cumsum(steps, 0) + rng.normal(0, 0.02, (60, 7, 3))
    coordinates = model.coordinates(x)
    student = BeadNetwork(coordinates, 2.494, StudentSettings(hidden=4, layers=1))
    student.calibrate(build_density(coordinates, FitSettings(), 0, 0).sample(200, seeded(0)).value.double())
    chain = cgf.CGForceField(student, cgf.BeadParticles(model.topology, x[0], model.masses), 300.0, FITTED)
    html = module.report_force_field(chain, tmp_path / "r").read_text()
    assert said(html, "torsions") == "by 6 walkers from one structure, 0.12 ps each in steps of 2 fs"
    assert html.count("<img") == 1
    beads = cgf.BeadParticles(model.topology, x[0], model.masses, {(0, 1): 0.38})
    bound = cgf.CGForceField(student, beads, 300.0, FITTED)
    html = module.report_force_field(bound, tmp_path / "r").read_text()
    assert "walkers cannot keep" in said(html, "torsions")
    assert html.count("<img") == 0


def test_errors_of_walkers_are_those_of_independent_ones():
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (1, 4_000))  # one frame: walkers are samples
    found = module._with_errors(angles, 300.0, bins=8)
    # kT sqrt((1 - p) / (n p)) with p = 1/8, n = 4,000
    assert found.errors == pytest.approx(2.494 * (7 / 4_000) ** 0.5, rel=0.15)


def test_flows_that_are_no_match_are_refused(flow, force_field, tmp_path):
    hotter = cgf.CGForceField(force_field.student, force_field.beads, 320.0, FITTED)
    with pytest.raises(cgf.MismatchError, match="the force field is of 320 K, the flow of 300 K"):
        module.report_force_field(hotter, tmp_path, flow)
    model = BeadModel.fromSequence("GGGG")
    x = np.array([[0, 0, 0], [0.38, 0, 0], [0.38, 0.38, 0], [0.38, 0.38, 0.38]])
    coordinates = model.coordinates(x + np.random.default_rng(0).normal(0, 0.02, (30, 4, 3)))
    student = BeadNetwork(coordinates, 2.494, StudentSettings(hidden=4, layers=1))
    other = cgf.CGForceField(student, cgf.BeadParticles(model.topology, x, model.masses), 300.0, FITTED)
    with pytest.raises(cgf.MismatchError, match="there are 4 beads, but the flow has 5"):
        module.report_force_field(other, tmp_path, flow)
    (tmp_path / "file").write_text("")
    with pytest.raises(cgf.InvalidInputError, match="cannot write the report"):
        module.report_force_field(force_field, tmp_path / "file")


def test_density_at_corners_is_that_around_them():
    table = np.zeros((24, 24))
    table[3, 5] = 1.0
    corners = module._at_corners(table) * (2 * np.pi / 24) ** 2
    assert {tuple(k) for k in np.argwhere(corners)} == {(3, 5), (4, 5), (3, 6), (4, 6)}
    assert corners.sum() == pytest.approx(1)
    assert corners[4, 6] == pytest.approx(0.25)
