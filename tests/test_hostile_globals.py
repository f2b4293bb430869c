"""What belongs to the user's process is left as it was found: by imports, training, sampling, reports, commands."""

import decimal
import gc
import locale
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor
import torch.utils.cpp_extension
from fuzz.seeds import model, peroxide
from molecules import MODELS

import openmm_cgflow as cgf
from openmm_cgflow import cli
from openmm_cgflow.compute import with_plain_torch

QUICK = cgf.TrainSettings(points=32, sweeps=1, fit_steps=5, buffer=500, buffer_steps=2, soft_buffers=2, batch=128)


def snapshot() -> dict[str, Any]:
    """Everything of the process that a library might change in passing."""
    import matplotlib as mpl

    status = Path("/proc/self/status").read_text()
    package = logging.getLogger("openmm_cgflow")
    return {
        "umask": next(line for line in status.splitlines() if line.startswith("Umask")),
        "signals": {
            k: signal.getsignal(k) for k in signal.valid_signals() if k not in (signal.SIGKILL, signal.SIGSTOP)
        },
        "threads": torch.get_num_threads(),
        "threads of torch between operations": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "denormal": torch.tensor(1e-310, dtype=torch.float64).mul(1.0).item(),
        "torch's numbers": hash(tuple(torch.get_rng_state().tolist())),
        "numpy's numbers": hash(str(np.random.get_state())),
        "random numbers": hash(random.getstate()),
        "numpy's errors": np.geterr(),
        "numpy's print": np.get_printoptions(),
        "warnings": [str(f) for f in warnings.filters],
        "showwarning": warnings.showwarning,
        "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": str(decimal.getcontext()),
        "folder": os.getcwd(),
        "path": (list(sys.path), list(sys.argv)),
        "recursion": sys.getrecursionlimit(),
        "switching": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook, sys.unraisablehook),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "logging": (list(logging.root.handlers), logging.root.level, logging.root.manager.disable),
        "package's logging": (list(package.handlers), package.level, package.propagate, package.disabled),
        "pictures": dict(mpl.rcParams),
        "backend": mpl.rcParams._get("backend"),
    }


def changed(before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    after = snapshot()
    return {name: (value, after[name]) for name, value in before.items() if value != after[name]}


class Odd:
    """Unusual settings of a process, so that what is set back to a default is seen as well."""

    def __enter__(self) -> None:
        self.before = (signal.getsignal(signal.SIGINT), torch.get_num_threads(), np.geterr(), os.umask(0o027))
        signal.signal(signal.SIGINT, lambda *_: None)
        torch.set_num_threads(3)
        np.seterr(over="raise", under="warn")

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before[0])
        torch.set_num_threads(self.before[1])
        np.seterr(**self.before[2])
        os.umask(self.before[3])


def test_hostile_free_training_and_samples_leave_the_process_alone(tmp_path):
    flow = cgf.CGFlow(*peroxide(), seed=0)
    with Odd():
        before = snapshot()
        flow.train(evaluations=6000, settings=QUICK, progress=True, checkpoint=tmp_path / "c", metrics=tmp_path / "m")
        assert not changed(before)
        samples = flow.sample(100, seed=0)
        flow.logDensity(samples.positions[:3])
        flow.save(tmp_path / "f")
        cgf.CGFlow.load(tmp_path / "f")
        assert not changed(before)
        samples.save(tmp_path / "s.dcd")
        assert not changed(before)
    for name in ("c", "m", "f", "s.dcd", "s.npz"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640, name


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def what_a_model_gives(folder: Path) -> dict[str, np.ndarray]:
    flow = cgf.CGFlow.load(MODELS / "alanine_dipeptide.cgflow", device="cpu")
    samples = flow.sample(50, seed=0)
    flow.save(folder / "f")
    return {
        "samples": samples.positions,
        "weights": samples.log_weights,
        "density": flow.logDensity(samples.positions),
        "free energy": flow.freeEnergy(samples.slow)._value,
        "atoms": flow.backmap(samples.positions[:, flow.beads.atoms], seed=0).positions,
    }


@pytest.mark.parametrize(
    "setting",
    [
        double_by_default,
        torch.inference_mode,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["double", "inference", "device", "autocast"],
)
def test_hostile_settings_of_torch_change_nothing(tmp_path, setting):
    """As other packages' potentials and training loops leave them: MACE sets the default precision, for instance."""
    wanted = what_a_model_gives(tmp_path)
    with setting():
        got = what_a_model_gives(tmp_path)
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values, name)


def test_hostile_settings_of_torch_do_not_reach_a_training():
    got = []
    for setting in (nullcontext, double_by_default):
        with setting():
            flow = cgf.CGFlow(*peroxide(), seed=0)
            flow.train(evaluations=3000, settings=QUICK, progress=False, audit=False)
            got.append(flow.sample(50, seed=0).positions)
    np.testing.assert_array_equal(*got)


def test_hostile_free_failed_training_leaves_the_process_alone(tmp_path, monkeypatch):
    """Whatever ends it: an error in its middle, a folder that is gone, Ctrl-C twice."""
    flow = cgf.CGFlow(*peroxide(), seed=0)
    with Odd():
        before = snapshot()
        with pytest.raises(cgf.ModelFileError):
            flow.train(evaluations=6000, settings=QUICK, progress=False, checkpoint=tmp_path / "none" / "c")
        for error in (RuntimeError, KeyboardInterrupt):

            def fail(*_: object, error=error, **__: object) -> None:
                raise error

            monkeypatch.setattr(flow.potential, "energy", fail)
            with pytest.raises(error):
                flow.train(evaluations=6000, settings=QUICK, progress=False)
            with pytest.raises(error):
                flow.sample(10, seed=0)
        (tmp_path / "bad").write_bytes(b"x")
        with pytest.raises(cgf.ModelFileError):
            cgf.CGFlow.load(tmp_path / "bad")
        assert not changed(before)


def test_hostile_free_commands_leave_the_process_alone(tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.cgflow"
    path.write_bytes(model(*peroxide()))
    with Odd():
        for command in (
            ["sample", str(path), "-o", str(tmp_path / "s.npz"), "-n", "50", "--seed", "0"],
            ["report", str(path), "--out", str(tmp_path / "r"), "-n", "200", "--seed", "0"],
            ["sample", str(tmp_path / "none"), "-o", str(tmp_path / "s.npz")],
            ["--version"],
        ):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "argv", ["openmm-cgflow", *command])
                before = snapshot()
                with pytest.raises(SystemExit):
                    cli.main()
                assert not changed(before), command


def test_hostile_free_imports_leave_the_process_alone():
    """All modules of the package; other libraries are there before, for what they do is not ours."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, openmm, openmm.app, mdtraj, parmed, matplotlib.pyplot, rich.progress, rich.table, typer
import safetensors.torch, scipy.stats
import torch._dynamo, torch._inductor, torch.utils.cpp_extension
try:
    import openmmtools.mcmc, openmmtools.multistate, openmmml
except ImportError:
    pass
import ast
tree = ast.parse(open({str(Path(__file__))!r}).read())
tree.body = [n for n in tree.body if getattr(n, "name", None) in ("snapshot", "changed")
             or isinstance(n, ast.Import | ast.ImportFrom) and "openmm_cgflow" not in ast.unparse(n)
             and "fuzz" not in ast.unparse(n) and "pytest" not in ast.unparse(n)]
exec(compile(tree, "snapshot", "exec"))
before = snapshot()
import importlib, pkgutil, openmm_cgflow
for module in pkgutil.walk_packages(openmm_cgflow.__path__, "openmm_cgflow."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("changed", changed(before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["changed {}"], done.stdout + done.stderr


def test_hostile_precision_of_two_threads_is_given_back_by_the_last():
    inside, leave = threading.Event(), threading.Event()

    def stay() -> torch.dtype:
        with with_plain_torch():
            inside.set()
            leave.wait()
            return torch.get_default_dtype()

    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(stay)
            inside.wait()
            with with_plain_torch():
                pass
            assert torch.get_default_dtype() == torch.float32  # the other is still there
            leave.set()
            assert waiting.result() == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
