"""Worker processes, each with a Context of its own."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import openmm
import torch

from openmm_cgflow.errors import CGFlowError
from openmm_cgflow.potentials.contexts.evaluator import Evaluator, Result

__all__ = ["WorkerPool"]

_STARTING = threading.Lock()  # `_script_hidden` changes what the whole process sees
_READY = -1  # the number of a worker's first word: its Context is made
_PATIENCE = 2.0  # seconds that workers have to end by themselves


def _serve(connection: Connection, system_xml: str, platform: str) -> None:
    """Answer numbered chunks of positions with their number and (energies, forces), or the text of an error.

    Ends when told to, and when the process that asks is gone. Ctrl-C, which a terminal sends to every process, is for
    that process to deal with.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # for forces that are torch models
    parent = multiprocessing.parent_process()
    assert parent is not None
    with suppress(EOFError, OSError):
        evaluate = Evaluator(openmm.XmlSerializer.deserialize(system_xml), platform)
        connection.send((_READY, ""))
        while connection in wait([connection, parent.sentinel]):
            request = connection.recv()
            if request is None:
                return
            number, x = request
            answer: Result | str
            try:
                answer = evaluate(x)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            connection.send((number, answer))


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep spawned processes from running the user's script again: they need this package alone."""
    main = sys.modules["__main__"]
    with _STARTING:
        hidden: dict[str, Any] = {
            name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__
        }
        main.__dict__.pop("__file__", None)
        main.__dict__["__spec__"] = None
        try:
            yield
        finally:
            main.__dict__.update(hidden)


class WorkerPool:
    """Processes that evaluate one chunk of a batch each. Not to be shared by threads.

    Whatever interrupts a call (Ctrl-C, a worker's death) ends all workers: an answer that is still under way must not
    become that of the next question.

    Arguments:
        system_xml: The System, as XML.
        platform: The platform's name.
        workers: Number of processes.
    """

    def __init__(self, system_xml: str, platform: str, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._numbers = itertools.count()
        self._process = os.getpid()
        self._workers: list[tuple[Any, Connection]] = []
        try:
            with _script_hidden():
                for _ in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, system_xml, platform), daemon=True)
                    self._workers.append((process, ours))
                    process.start()
                    theirs.close()
        except BaseException:
            self.close(at_once=True)
            raise
        self._starting = [connection for _, connection in self._workers]

    def __call__(self, x: np.ndarray) -> Result:
        """As `Evaluator`, with the batch cut into one chunk a worker.

        Raises:
            CGFlowError: A worker failed or died; the message says how.
        """
        with self._asking():
            self._started(wait=True)
            number = next(self._numbers)
            for (_, connection), chunk in zip(self._workers, np.array_split(x, len(self._workers)), strict=True):
                connection.send((number, chunk))
            answers = [self._answer(connection, number) for _, connection in self._workers]
        if failed := [answer for answer in answers if isinstance(answer, str)]:
            raise CGFlowError(f"a worker process could not evaluate energies: {failed[0]}")
        return np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers])

    def ready(self) -> bool:
        """Whether every worker has its Context, which takes seconds; a question before that waits for it.

        Raises:
            CGFlowError: A worker died.
        """
        with self._asking():
            return self._started(wait=False)

    def _started(self, wait: bool) -> bool:
        while self._starting and (wait or self._starting[0].poll()):
            self._answer(self._starting[0], _READY)
            del self._starting[0]
        return not self._starting

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            codes = [process.exitcode for process, _ in self._workers]
            self.close(at_once=True)
            raise CGFlowError(f"a worker process that evaluates energies died (exit codes {codes})") from error
        except BaseException:
            self.close(at_once=True)
            raise

    @staticmethod
    def _answer(connection: Connection, number: int) -> Result | str:
        answered, answer = connection.recv()
        if answered != number:
            raise CGFlowError(f"a worker process answered question {answered} instead of {number}")
        return answer

    def close(self, at_once: bool = False) -> None:
        """Stop the processes; may be called twice, and does nothing in a fork of the process that started them."""
        workers, self._workers = self._workers, []
        if os.getpid() != self._process:
            return
        started = [(process, connection) for process, connection in workers if process.pid is not None]
        for process, connection in started:
            with suppress(OSError):
                if at_once:
                    process.terminate()
                else:
                    connection.send(None)
        for _, connection in workers:
            connection.close()
        deadline = time.monotonic() + _PATIENCE
        for process, _ in started:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(timeout=_PATIENCE)
