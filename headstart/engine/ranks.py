"""Starts, leads and follows the engines of a model that is cut over several devices: one process for each rank.

Rank 0 lives where the engine was asked for, and is the only one that others talk to. It starts the other ranks on this
host and tells them through a pipe what to do; what they compute meets in NCCL's collectives on GPUs, gloo's on CPUs.
"""

import logging
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.group import Group, RanksError
from headstart.errors import HeadstartError
from headstart.models.parallel import Ranks

log = logging.getLogger(__name__)

T = TypeVar("T")
# The longest that a rank may be behind another: one may have to compile kernels, or read from a slower disk.
_TIMEOUT = timedelta(minutes=5)
# So long is an error taken for another rank's, which has a cause to tell, before it is taken for one of rank 0's own.
_CAUSE_SECONDS = 2.0
# What the others may take to end when asked to.
_END_SECONDS = 30.0


def start_engine(args: EngineArgs, checkpoint: Checkpoint | None = None) -> Engine:
    """An engine, and with it those of its model's other ranks; `Engine.close` ends them.

    Args:
        args: the settings; `tensor_parallel_size` says how many ranks there are.
        checkpoint: as for `Engine`, for a single rank.

    Raises:
        HeadstartError: what keeps the model from running, on whichever rank.
    """
    if args.tensor_parallel_size == 1:
        return Engine(args, checkpoint)
    if checkpoint is not None:
        raise HeadstartError("a model that is loaded already cannot be cut over several ranks: name its directory")
    leader = Leader(args)
    with leader.together():
        engine = Engine(leader.args, group=leader)
    weakref.finalize(engine, leader.close)
    return engine


class Leader(Group):
    """Rank 0's side: starts the other ranks and watches over them.

    Args:
        args: the settings of all.

    Attributes:
        args: those of rank 0.

    Raises:
        HeadstartError: this process has a group already, or a rank cannot be started.
    """

    def __init__(self, args: EngineArgs) -> None:
        if not dist.is_available() or dist.is_initialized():
            raise HeadstartError(
                "tensor_parallel_size above 1 needs torch.distributed, which this process lacks or uses already: "
                "close the other model first, or use another process"
            )
        self.args = _args_of(args, 0)
        self._closing = threading.Event()
        self._failed = threading.Event()
        self._failure: RanksError | None = None
        self._busy = threading.RLock()
        size = args.tensor_parallel_size
        # Where the ranks find each other: a file, since a port would be open to others.
        self._meeting = tempfile.TemporaryDirectory(prefix="headstart-ranks-", ignore_cleanup_errors=True)
        self._others: list[_Other] = []
        try:
            for rank in range(1, size):
                self._others.append(_Other(_args_of(args, rank), rank, self._meeting.name))
            for other in self._others:
                other.await_arrival()
            _join(self._meeting.name, 0, self.args)
        except BaseException:
            self.close()
            raise
        self.ranks = Ranks(0, size, args.all_reduce_chunks)
        for other in self._others:
            threading.Thread(
                target=self._watch, args=(other,), name=f"headstart-rank-{other.rank}", daemon=True
            ).start()

    def tell(self, command: str, *arguments: Any) -> None:
        data = pickle.dumps((command, *arguments), pickle.HIGHEST_PROTOCOL)
        for other in self._others:
            # One that has gone is noticed by who watches it.
            with suppress(OSError):
                other.connection.send_bytes(data)

    def agree(self, value: T) -> T:
        self.tell("agreed", value)
        return value

    @contextmanager
    def together(self, command: str | None = None) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        if command is not None:
            self.tell(command)
        try:
            yield
        except BaseException as error:
            if isinstance(error, RuntimeError):
                # A collective that breaks says nothing of the cause.
                self._failed.wait(_CAUSE_SECONDS)
            cause = self._failure
            self._fail(RanksError(f"rank 0 has stopped because of an error: {error}"))
            self.close()
            if cause is not None and isinstance(error, Exception) and not isinstance(error, HeadstartError):
                raise cause from error
            raise
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the other ranks: in good order if they still work, else at once."""
        with self._busy:
            if self._closing.is_set():
                return
            self._closing.set()
            self.tell("stop")
        deadline = time.monotonic() + (0.0 if self._failed.is_set() else _END_SECONDS)
        for other in self._others:
            other.end(max(0.0, deadline - time.monotonic()))
        if dist.is_initialized():
            dist.destroy_process_group()
        self._meeting.cleanup()

    def _watch(self, other: "_Other") -> None:
        """The thread of one other rank: waits for its end."""
        cause = other.await_end()
        if not self._closing.is_set():
            self._fail(RanksError(f"rank {other.rank} of {self.ranks.size} has stopped: {cause}"))

    def _fail(self, failure: RanksError) -> None:
        """Note the first cause, and let go of what waits for the others."""
        with self._busy:
            if self._failure is not None or self._closing.is_set():
                return
            log.error("%s", failure)
            self._failure = failure
            self._failed.set()
            if torch.device(self.args.device).type == "cuda" and dist.group.WORLD is not None:
                # Else the host would wait for a kernel that waits for the others.
                dist.group.WORLD.abort()


class _Other:
    """The process of another rank, seen from rank 0."""

    def __init__(self, args: EngineArgs, rank: int, meeting: str) -> None:
        self.rank = rank
        self.connection, theirs = Pipe()
        try:
            settings = pickle.dumps((args, rank, meeting, torch.get_num_threads()))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise HeadstartError(f"the settings cannot be sent to another rank: {error}") from None
        # Not multiprocessing's: a script without a main guard would be run again by it, and daemons have no children.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headstart.engine.ranks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection.send_bytes(settings)

    def await_arrival(self) -> None:
        """Wait until the process is about to join the group.

        Raises:
            RanksError: it has ended instead.
        """
        try:
            self.connection.recv_bytes()
        except (EOFError, OSError):
            raise RanksError(f"rank {self.rank} could not be started: {self._ending()}") from None

    def await_end(self) -> str:
        """Wait until the process ends; returns why."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._ending()

    def end(self, seconds: float) -> None:
        """Wait so long for the process to end by itself, then kill it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        self._process.wait()

    def _ending(self) -> str:
        code = self._process.wait()
        return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with status {code}"


class Follower(Group):
    """The side of a rank other than 0.

    Args:
        connection: to rank 0.
        args: this rank's settings.
        rank: its number.
    """

    def __init__(self, connection: Connection, args: EngineArgs, rank: int) -> None:
        self.ranks = Ranks(rank, args.tensor_parallel_size, args.all_reduce_chunks)
        self._connection = connection

    def agree(self, value: T) -> T:
        kind, *content = pickle.loads(self._connection.recv_bytes())
        if kind != "agreed":
            raise RanksError(f"rank {self.ranks.rank} works on a step that rank 0 has ended")
        return content[0]

    def obey(self, engine: Engine) -> None:
        """Do what rank 0 does, until it stops.

        Raises:
            RanksError: this engine has come to another state than rank 0's.
        """
        while True:
            # Requests that rank 0 finds at fault are aborted by it.
            engine.failures = []
            kind, *content = pickle.loads(self._connection.recv_bytes())
            match kind:
                case "step":
                    engine.step()
                case "arrange":
                    engine.arrange(*content)
                case "submit":
                    engine.submit(engine.preparation.completed(*content))
                case "abort":
                    engine.abort(*content)
                case "stop":
                    engine.store.flush()
                    return
                case _:
                    raise RanksError(f"rank {self.ranks.rank} has ended a step that rank 0 works on")


def _args_of(args: EngineArgs, rank: int) -> EngineArgs:
    """The settings of one rank: each has a device of its own, where there are several."""
    device = torch.device(args.device)
    return replace(args, device=f"cuda:{(device.index or 0) + rank}") if device.type == "cuda" else args


def _join(meeting: str, rank: int, args: EngineArgs) -> None:
    """Make the process group, with its connections, by way of a directory of this host."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=FileStore(os.path.join(meeting, "store"), args.tensor_parallel_size),
        rank=rank,
        world_size=args.tensor_parallel_size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


def _leave_with(connection: Connection, meeting: str) -> None:
    """A thread that ends this process when rank 0's has gone, also from within a collective that nobody answers."""

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLHUP)
        poll.poll()
        shutil.rmtree(meeting, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="headstart-watch", daemon=True).start()


def main(descriptor: int) -> None:
    """The whole life of another rank's process.

    Args:
        descriptor: of the pipe to rank 0.
    """
    # Rank 0 decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(descriptor)
    args, rank, meeting, threads = pickle.loads(connection.recv_bytes())
    torch.set_num_threads(threads)
    _leave_with(connection, meeting)
    connection.send_bytes(b"here")
    try:
        _join(meeting, rank, args)
        follower = Follower(connection, args, rank)
        follower.obey(Engine(args, group=follower))
    except EOFError:
        os._exit(1)
    except Exception as error:
        said = str(error) if isinstance(error, HeadstartError) else f"{type(error).__name__}: {error}"
        log.debug("rank %d has stopped", rank, exc_info=True)
        connection.send_bytes(pickle.dumps(said))
        os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
