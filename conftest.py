"""How pytest runs: the whole suite in two processes, every test and example with one thread and the same seeds."""

import numpy as np
import pytest
import torch


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for `pytest` alone, which runs everything; none for what is chosen by a path or by `-k`."""
    everything = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    return 2 if everything else 0


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
