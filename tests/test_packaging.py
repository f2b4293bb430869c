"""What is said about the package in more than one place is the same everywhere."""

import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import openmm_cgflow as cgf

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = yaml.safe_load((ROOT / "conda-recipe" / "recipe.yaml").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "openmmml": "openmm-ml"}


def conda_ranges(requirements):
    """Ranges by names, of lines of a recipe."""
    return {name: SpecifierSet(range_) for name, _, range_ in (line.partition(" ") for line in requirements)}


def pip_ranges(requirements):
    """The same of lines of pyproject, by conda's names."""
    found = [Requirement(line) for line in requirements]
    return {CONDA_NAMES.get(each.name, each.name): each.specifier for each in found}


def test_conda_recipe_agrees_with_pyproject():
    """Same packages with the same ranges, apart from conda's own names; same version, command and optional packages."""
    context = RECIPE["context"]
    run = conda_ranges(RECIPE["requirements"]["run"][1:])
    assert RECIPE["requirements"]["run"][0] == "python >=${{ python_min }}"
    assert PROJECT["requires-python"] == f">={context['python_min']}"
    assert run.pop("openmm-torch")
    assert len(run) >= 10
    assert run == pip_ranges(PROJECT["dependencies"])
    optional = conda_ranges(RECIPE["requirements"]["run_constraints"])
    assert optional.pop("nnpops")
    assert optional == pip_ranges(PROJECT["optional-dependencies"]["ml"])
    assert context["version"] == cgf.__version__
    assert f"\nversion: {cgf.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    commands = [f"{command} = {entry}" for command, entry in PROJECT["scripts"].items()]
    assert RECIPE["build"]["python"]["entry_points"] == commands


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
