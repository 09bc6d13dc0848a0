"""Engines as actors of a Ray cluster: where they run is a placement group's, what is said to them goes over a
connection of our own, and one that dies is started again in its place."""

import atexit
import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from headstart.engine.child import Child
from headstart.engine.worker import work
from headstart.errors import HeadstartError

LOCAL = "local"
"""The address that starts a Ray of this machine alone, which ends with this process."""

# What an actor may take to be placed and to call back, its machine's imports included.
_PLACING_SECONDS = 60.0
_STARTING_SECONDS = 120.0
_POLL_SECONDS = 0.05
_KEY_BYTES = 32


class RayError(HeadstartError):
    """Ray is not there, or its cluster has no room."""


def place(count: int, address: str, *, on_cpu: bool, here: bool) -> list[Callable[[Mapping[str, Any]], Child]]:
    """Reserve room for so many engines; each answer starts one in its own bundle, as often as it is called.

    Args:
        count: of engines.
        address: of the cluster, "auto" for the one of this machine, or `LOCAL`.
        on_cpu: each takes a core, or else a GPU.
        here: all of them on this machine, whose memory they share.

    Raises:
        RayError: Ray is not installed or not running, or the cluster is too small.
    """
    ray = connect(address)
    from ray.util.placement_group import placement_group, remove_placement_group

    kind = "CPU" if on_cpu else "GPU"
    has = int(ray.cluster_resources().get(kind, 0))
    if has < count:
        raise RayError(
            f"{count} engines need {count} {kind}s, and the Ray cluster has {has}; start fewer, or add nodes to it"
        )
    least = min(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    cores = max(1, min(least // count if here else int(ray.cluster_resources()["CPU"]) // count, least))
    bundle = {"CPU": float(cores)} if on_cpu else {"CPU": 1.0, "GPU": 1.0}
    if here:
        bundle[f"node:{ray.util.get_node_ip_address()}"] = 0.001
    group = placement_group([bundle] * count, strategy="STRICT_PACK" if here else "SPREAD")
    if not group.wait(_PLACING_SECONDS):
        remove_placement_group(group)
        free = int(ray.available_resources().get(kind, 0))
        raise RayError(
            f"{count} engines need {count} {kind}s{' of this machine' if here else ''}, and of {has} in the Ray "
            f"cluster {free} are free: they were not placed within {_PLACING_SECONDS:.0f} s"
        )
    atexit.register(_forgiving, partial(remove_placement_group, group))
    return [partial(RayChild, group, index, bundle) for index in range(count)]


def connect(address: str) -> Any:
    """The `ray` module, connected.

    Raises:
        RayError: it is not installed, or no cluster answers at the address.
    """
    if find_spec("ray") is None:
        raise RayError("Ray is not installed: pip install 'headstart[ray]'")
    import ray

    if ray.is_initialized():
        return ray
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=True,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RayError(f"no Ray cluster answers at {address!r}: {reason}; start one with: ray start --head") from None
    return ray


class RayChild(Child):
    """An engine's process that is an actor.

    Args:
        group: the placement group.
        index: of its bundle.
        bundle: what it takes.
        settings: of `EngineArgs`.

    Raises:
        RayError: the actor does not come up.
    """

    def __init__(self, group: Any, index: int, bundle: Mapping[str, float], settings: Mapping[str, Any]) -> None:
        import ray
        from ray.exceptions import RayError as RayException
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray = ray
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        resources = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_restarts": 0}
        self._actor: Any = ray.remote(**resources, scheduling_strategy=where)(_Actor).remote()
        try:
            self._pid: int = ray.get(self._actor.pid.remote(), timeout=_STARTING_SECONDS)
        except RayException as error:
            self.kill()
            raise RayError(f"an actor of Ray for an engine did not come up: {type(error).__name__}") from None
        key = secrets.token_bytes(_KEY_BYTES)
        with Listener((ray.util.get_node_ip_address(), 0), authkey=key) as listener:
            self._life = self._actor.serve.remote(listener.address, key, dict(settings), int(bundle["CPU"]))
            super().__init__(self._called_back(listener))

    def _called_back(self, listener: Listener) -> Connection:
        """The connection that the actor opens."""
        found: queue.SimpleQueue[Connection] = queue.SimpleQueue()

        def accept() -> None:
            while True:
                try:
                    return found.put(listener.accept())
                except AuthenticationError:
                    continue  # somebody else
                except OSError:
                    return None

        threading.Thread(target=accept, name="headstart-accept", daemon=True).start()
        while found.empty():
            done, _ = self._ray.wait([self._life], timeout=_POLL_SECONDS)
            if done and found.empty():
                raise RayError(f"an engine's actor ended {self.ending} before it could be reached")
        return _prompt(found.get())

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def ending(self) -> str:
        try:
            self._ray.get(self._life, timeout=_PLACING_SECONDS)
        except Exception as error:
            return f"with its actor, by {type(error).__name__}"
        return "with its actor's work done"

    def end(self, seconds: float) -> None:
        _forgiving(partial(self._ray.get, self._life, timeout=seconds))
        self.kill()
        self.close()

    def kill(self) -> None:
        _forgiving(partial(self._ray.kill, self._actor))

    def give_up(self, fault: str) -> None:
        self.fault = fault
        self.kill()


class _Actor:
    """What runs in Ray's process."""

    def pid(self) -> int:
        """Its number."""
        return os.getpid()

    def serve(self, address: Any, key: bytes, settings: dict[str, Any], threads: int) -> None:
        """Be the engine of whoever listens at the address, for as long as it wants."""
        work(_prompt(Client(address, authkey=key)), settings, threads)


def _prompt(connection: Connection) -> Connection:
    """The same, with small messages sent at once."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _forgiving(work: Callable[[], Any]) -> None:
    """Do what may be in vain: Ray, or what it is asked to end, may be gone already."""
    import ray

    # Without the check Ray would start a new cluster to ask it.
    if ray.is_initialized():
        with suppress(Exception):
            work()
