"""Fixtures that every test can use; `tests/molecules.py` has the molecules."""

import time
from pathlib import Path

import pytest
import torch
from molecules import Molecule, load


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
                    flow = cgf.CGFlow(*load("butane"), seed=1)
                    flow.train(evaluations=60_000, progress=False, settings=quick).save(path)
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
