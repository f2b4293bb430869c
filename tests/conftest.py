"""Fixtures that every test can use; `tests/molecules.py` has the molecules."""

import numpy as np
import pytest
import torch
from molecules import Molecule, load


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator for the functions that take one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def aldp_vacuum() -> Molecule:
    """Alanine dipeptide of openmmtools, vacuum, no constraints."""
    return load("aldp_vacuum")


@pytest.fixture
def aldp_obc1() -> Molecule:
    """Alanine dipeptide of openmmtools, OBC1, no constraints: the demo's target."""
    return load("aldp_obc1")
