"""Energies asked for from many threads, processes and interrupted calls: every row has its own known answer."""

import _thread
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openmm
import pytest
import torch

from openmm_cgflow.errors import CGFlowError
from openmm_cgflow.potentials import ContextPotential, DoubleWell, TorchPotential
from openmm_cgflow.potentials import torch_potential as torch_potential_module
from openmm_cgflow.potentials.contexts.workers import WorkerPool
from openmm_cgflow.training import Parallel

ATOMS = 6


@pytest.fixture(scope="module")
def shared():
    """With a worker process: to start one takes seconds."""
    potential = ContextPotential(system(), platform="CPU", workers=1)
    yield potential
    potential.close()


def system(scale=1.0):
    """Energy `scale` times the sum of the first coordinates, of which each row has its own."""
    made = openmm.System()
    force = openmm.CustomExternalForce(f"{scale}*x")
    for k in range(ATOMS):
        made.addParticle(1.0)
        force.addParticle(k)
    made.addForce(force)
    return made


def slow_system(milliseconds):
    made = openmm.System()
    for _ in range(ATOMS):
        made.addParticle(1.0)
    made.addForce(openmm.PythonForce(Slow(milliseconds / 1000), {}))
    return made


class Slow:
    """A force of Python, as machine-learned ones are; picklable, for workers."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, state):
        x = state.getPositions(asNumpy=True)._value
        time.sleep(self.seconds)
        forces = np.zeros_like(x)
        forces[:, 0] = -1.0
        return float(x[:, 0].sum()), forces


def batches(n, rows):
    """`n` batches (rows, ATOMS, 3) with the energy of each row."""
    values = torch.arange(n * rows, dtype=torch.float64).reshape(n, rows)
    x = torch.zeros(n, rows, ATOMS, 3, dtype=torch.float64)
    x[:, :, 0, 0] = values
    return x, values


def wrong_rows(potential, threads, n, rows, scale=1.0):
    x, expected = batches(n, rows)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda batch: potential.energy_and_forces(batch)[0], x))
    return int((torch.stack(found) != scale * expected).sum())


def test_threads_that_share_a_context_get_their_own_answers():
    potential = ContextPotential(system(), platform="Reference", workers=0)
    assert wrong_rows(potential, threads=8, n=100, rows=20) == 0
    assert potential.evaluations == 2000


def test_threads_that_share_worker_processes_get_their_own_answers(shared):
    before = shared.evaluations
    assert wrong_rows(shared, threads=8, n=60, rows=20) == 0
    assert shared._pool is not None
    assert shared.evaluations == before + 1200


def test_the_threads_of_a_training_get_their_own_answers():
    potential = ContextPotential(system(), platform="Reference", workers=0)
    x, expected = batches(40, 25)
    with Parallel(4) as parallel:
        (energy,) = parallel.map(lambda rows: (potential.energy(rows),), x.flatten(0, 1), chunk=16)
    assert torch.equal(energy, expected.flatten())


def test_threads_of_two_potentials_do_not_mix(shared):
    both = [shared, ContextPotential(system(-3.0), platform="Reference", workers=1)]
    with ThreadPoolExecutor(2) as pool:
        wrong = list(pool.map(lambda k: wrong_rows(both[k], 4, 30, 10, scale=(1.0, -3.0)[k]), range(2)))
    assert wrong == [0, 0]
    both[1].close()


def test_threads_count_every_evaluation():
    potential = DoubleWell()
    x = torch.zeros(1, 2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [potential.energy(x) for _ in range(250)], range(8)))
    assert potential.evaluations == 2000
    potential.evaluations = 10  # to go on from an earlier run
    potential.energy(x)
    assert potential.evaluations == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_threads_an_interrupted_question_leaves_no_answer_behind(workers):
    potential = ContextPotential(slow_system(100) if workers else system(), platform="Reference", workers=workers)
    x, expected = batches(2, 8)
    potential.energy(x[1])  # the workers have started
    question = x[0] if workers else x[0].repeat(100_000, 1, 1)
    timer = threading.Timer(0.3, _thread.interrupt_main)  # Ctrl-C in the middle of it
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        potential.energy(question)
    timer.join()
    assert torch.equal(potential.energy(x[1]), expected[1])
    potential.close()


def test_threads_ctrl_c_does_not_end_workers(shared):
    x, expected = batches(1, 8)
    shared.energy(x[0])
    before = shared._pool
    for process, _ in before._workers:
        os.kill(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    assert torch.equal(shared.energy(x[0]), expected[0])
    assert shared._pool is before


def test_threads_workers_answer_by_number_and_end_with_the_process_that_asks():
    pool = WorkerPool(openmm.XmlSerializer.serialize(system()), "Reference", 1)
    ((process, connection),) = pool._workers
    pool(np.zeros((1, ATOMS, 3)))  # its first question, number 0
    connection.send((999, np.zeros((1, ATOMS, 3))))  # somebody asked without waiting
    with pytest.raises(CGFlowError, match="question 999 instead of 1"):
        pool(np.zeros((1, ATOMS, 3)))
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGTERM  # nobody can be asked any more whose answers may be old
    pool = WorkerPool(openmm.XmlSerializer.serialize(system()), "Reference", 1)
    ((process, connection),) = pool._workers
    connection.close()  # as when the process that asks has died
    process.join(timeout=60)
    assert process.exitcode == 0
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_threads_a_fork_asks_contexts_of_its_own(shared):
    x, expected = batches(40, 8)
    shared.energy(x[0][:1])  # here
    shared.energy(x[0])  # by the worker
    before = shared._pool
    child = os.fork()
    if child == 0:
        right = torch.equal(shared.energy(x[0][:1]), expected[0][:1])
        shared.workers = 0
        right &= all(torch.equal(shared.energy(x[k]), expected[k]) for k in range(20))
        os._exit(0 if right and shared._pool is None and before._workers else 1)
    here = [torch.equal(shared.energy(x[k]), expected[k]) for k in range(20, 40)]
    assert _exit_code(child, seconds=60) == 0
    assert all(here)
    assert torch.equal(shared.energy(x[0]), expected[0])
    assert shared._pool is before  # the child did not end the worker of this process


def _exit_code(child, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def test_threads_whether_compiled_depends_on_counts_alone(aldp_vacuum, monkeypatch):
    made = []

    def fake(function, example):
        made.append(example.shape)
        return function

    monkeypatch.setattr(torch_potential_module, "compile_energy_gradient", fake)
    monkeypatch.setattr(torch_potential_module, "compiler_available", lambda device: True)
    x = torch.from_numpy(np.repeat(aldp_vacuum.positions[None], 40, 0))

    def potential():
        made.clear()
        fresh = TorchPotential.fromSystem(aldp_vacuum.system, positions=aldp_vacuum.positions)
        monkeypatch.setattr(torch_potential_module, "_AUTO_WORK", 200 * fresh._work)
        return fresh

    judged = potential()
    for _ in range(5):
        judged.energy(x)  # without gradients: never compiled, but counted
        judged.energy_and_forces(x)
    assert made == []  # in the middle of a batch nothing changes
    judged.settle()
    assert len(made) == 1
    few = potential()
    few.energy_and_forces(x[:10])
    few.evaluations = 10**9  # what an earlier run computed does not count
    few.settle()
    assert made == []


def test_threads_and_chunks_do_not_change_a_bit(aldp_obc1):
    potential = TorchPotential.fromSystem(aldp_obc1.system, compile=False)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(aldp_obc1.positions + rng.normal(0.0, 0.01, (133, *aldp_obc1.positions.shape))).float()
    energy, forces = potential.energy_and_forces(x)
    assert torch.equal(potential.energy(x), energy)
    for size in (7, 33, 100):
        parts = [potential.energy_and_forces(part) for part in x.split(size)]
        assert torch.equal(torch.cat([e for e, _ in parts]), energy)
        assert torch.equal(torch.cat([f for _, f in parts]), forces)
