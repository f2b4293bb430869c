"""Fixtures that every test can use; `tests/molecules.py` has the molecules."""

import gc
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_cuda
from molecules import Molecule, load, small_networks

gc.disable()  # while all the modules are imported, nothing of which is ever garbage


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection: a tenth of the time of the tests."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device` and `--dtype`: where, and in which precision, the contract tests run."""
    parser.addoption("--device", default="fake-cuda", choices=["cpu", "cuda", "fake-cuda"], help="of contract tests")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="of contract tests")


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The precision that was asked for."""
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device by its name: with `--device fake-cuda`, the default, a GPU that is not there (see `fake_cuda.py`)."""
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    with fake_cuda() if name == "fake-cuda" else nullcontext():
        yield "cpu" if name == "cpu" else "cuda:0"


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator for the functions that take one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def butane_file(tmp_path_factory, worker_id) -> Path:
    """A flow of butane, trained for some seconds, in a file: once for all processes of a test run."""
    import openmm_cgflow as cgf
    from openmm_cgflow.storage import locked

    folder = tmp_path_factory.getbasetemp()
    path = (folder if worker_id == "master" else folder.parent) / "butane.cgflow"
    while not path.exists():
        try:
            with locked(path):
                if not path.exists():
                    quick = cgf.TrainSettings(
                        points=128, sweeps=5, fit_steps=120, buffer=2000, buffer_steps=20, soft_buffers=10, batch=512
                    )
                    with small_networks():
                        flow = cgf.CGFlow(*load("butane"), seed=1)
                    flow.train(evaluations=70_000, progress=False, settings=quick).save(path)  # enough for an audit
        except cgf.ModelFileError:  # the other process is training it
            time.sleep(1)
    return path


@pytest.fixture
def aldp_vacuum() -> Molecule:
    """Alanine dipeptide of openmmtools, vacuum, no constraints."""
    return load("aldp_vacuum")


@pytest.fixture
def aldp_obc1() -> Molecule:
    """Alanine dipeptide of openmmtools, OBC1, no constraints: the demo's target."""
    return load("aldp_obc1")
