"""The command that fits a student to a model."""

import pytest
from molecules import MODELS
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["fit-cg", str(MODELS / "aldp.cgflow"), *map(str, arguments)])


def test_fit_cg_writes_a_force_field(tmp_path):
    path = tmp_path / "folder" / "a.cgff"
    result = run("-o", path, "--points", 500, "--steps", 20, "--seed", 3)
    assert result.exit_code == 0, result.output
    for text in ("20 steps", "KL from the model", str(path)[:10]):
        assert text in result.output
    read = cgf.CGForceField.load(path)
    assert (read.fitted.steps, read.fitted.seed) == (20, 3)
    assert read.fitted.points == pytest.approx(500, abs=20)  # fewer where the flow drew another isomer


@pytest.mark.parametrize(("option", "value"), [("--points", 5), ("--steps", 0)])
def test_fit_cg_names_what_is_wrong(tmp_path, option, value):
    result = run("-o", tmp_path / "a.cgff", option, value)
    assert result.exit_code != 0
    assert f"{option[2:]} is {value}; give a whole number" in result.output
    assert not (tmp_path / "a.cgff").exists()


def test_fit_cg_of_a_model_refuses_what_is_of_frames(tmp_path):
    """It took 300 K for 350 K without a word."""
    result = run("-o", tmp_path / "a.cgff", "--temperature", 350, "--stride", 5)
    assert result.exit_code == 2
    assert "--temperature, --stride: of frames alone" in " ".join(result.output.split())
