"""What is said about the package in more than one place is the same everywhere."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import openmm_cgflow as cgf

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (ROOT / "conda-recipe" / "meta.yaml").read_text(encoding="utf-8")


def test_conda_recipe_agrees_with_pyproject():
    """Same packages with the same ranges, apart from conda's own names for two of them; same version and command."""
    run_section = RECIPE.split("  run:\n")[1].split("\ntest:")[0]
    names = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    conda = {names.get(m[1], m[1]): m[2] for m in re.finditer(r"- (\S+) (\S+)", run_section)}
    pip = {m[1]: m[2] for m in (re.fullmatch(r"([\w-]+)(>=.+)", line) for line in PROJECT["dependencies"])}
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("openmm-torch").startswith(">=")
    assert len(pip) >= 10
    assert conda == pip
    assert f'set version = "{cgf.__version__}"' in RECIPE
    assert f"\nversion: {cgf.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for command, entry in PROJECT["scripts"].items():
        assert f"- {command} = {entry}\n" in RECIPE


def test_the_pins_of_torchforce_stand_in_one_place():
    """The message that names them takes them from the metadata; nowhere else are they written."""
    pins = [Requirement(line) for line in PROJECT["optional-dependencies"]["torchforce"]]
    installed = [Requirement(line) for line in metadata.requires("openmm_cgflow")]
    stated = {each.name: each.specifier for each in installed if str(each.marker) == 'extra == "torchforce"'}
    assert {each.name: each.specifier for each in pins} == stated
    exact = [str(each) for each in pins if "==" in str(each)]
    assert exact
    sources = [ROOT / "setup.py", *(ROOT / "openmm_cgflow").rglob("*.py")]
    assert not [path for path in sources if any(pin in path.read_text(encoding="utf-8") for pin in exact)]
