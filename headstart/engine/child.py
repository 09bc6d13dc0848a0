"""The process that an engine runs in, as its parent sees it: a pipe of messages, and a way to end it."""

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from headstart.engine.worker import work

# What a process that hangs has to say where.
_LAST_WORDS_SECONDS = 0.5


class Child(ABC):
    """One process and the pipe to it. What is sent goes through a thread: a process that has stopped reading must
    not hold up the caller.

    Args:
        connection: to the process, which runs `worker.work` on its other end.

    Attributes:
        fault: why it was given up; empty if it was not.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.fault = ""
        self._outgoing: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="headstart-write", daemon=True).start()

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Its number, on the machine where it runs."""

    @property
    @abstractmethod
    def ending(self) -> str:
        """How it has ended, once it has, as in "with status 1"."""

    @abstractmethod
    def end(self, seconds: float) -> None:
        """Wait so long for the process to end by itself, then kill it."""

    @abstractmethod
    def kill(self) -> None:
        """End it now, whatever it does."""

    @abstractmethod
    def give_up(self, fault: str) -> None:
        """Kill a process that hangs; its standard error tells what its threads were doing."""

    def send(self, *message: Any) -> None:
        """Queue a message."""
        self._outgoing.put(message)

    def receive(self) -> tuple[Any, ...]:
        """The next message.

        Raises:
            EOFError: the process has ended.
        """
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (OSError, pickle.UnpicklingError):
            raise EOFError from None

    def close(self) -> None:
        """Send nothing more."""
        self._outgoing.put(None)

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            try:
                self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            except OSError:
                return


class LocalChild(Child):
    """A process of this machine, which ends with this one.

    Args:
        settings: of `EngineArgs`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, dict(settings), torch.get_num_threads())
        self.process = context.Process(target=work, args=arguments, name="headstart-engine", daemon=True)
        self.process.start()
        theirs.close()
        super().__init__(ours)

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def ending(self) -> str:
        self.process.join()
        return f"with status {self.process.exitcode}"

    def end(self, seconds: float) -> None:
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        self.close()

    def kill(self) -> None:
        self.process.kill()

    def give_up(self, fault: str) -> None:
        self.fault = fault
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(_LAST_WORDS_SECONDS)
        self.process.kill()
