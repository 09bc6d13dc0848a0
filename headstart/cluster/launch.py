"""Starting the engines of a cluster: processes of this machine, each with its own cores or device."""

import atexit
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headstart.cluster.client import ClusterEngine
from headstart.cluster.disaggregated import DisaggregatedEngine
from headstart.cluster.replicas import ReplicatedEngine
from headstart.cluster.shared_store import SharedKVStore, shared_directory
from headstart.engine.process import ProcessEngine
from headstart.errors import HeadstartError
from headstart.evaluation.machine import usable_cores
from headstart.methods import registry


class PlacementError(HeadstartError):
    """Engines that this machine has no room for, or a placement that is not understood."""


@dataclass(frozen=True)
class Disaggregation:
    """How many engines read prompts, and how many write answers."""

    prefill: int
    decode: int

    @classmethod
    def parse(cls, text: str) -> "Disaggregation":
        """`prefill=1,decode=2`.

        Raises:
            PlacementError: anything else.
        """
        found = dict(re.findall(r"(prefill|decode)=(\d+)", text))
        if re.fullmatch(r"(prefill|decode)=\d+,(prefill|decode)=\d+", text.replace(" ", "")) is None or len(found) < 2:
            raise PlacementError(f"--disaggregate takes prefill=N,decode=M, not {text!r}")
        if not all(int(count) for count in found.values()):
            raise PlacementError(f"both sides need at least 1 engine: {text!r} leaves one without")
        return cls(int(found["prefill"]), int(found["decode"]))


def start_replicas(count: int, settings: Mapping[str, Any]) -> ClusterEngine:
    """So many equal engines behind a cache-aware router.

    Raises:
        HeadstartError: the machine has no room for them, or one cannot start.
    """
    return ReplicatedEngine(_start([dict(settings)] * count, settings))


def start_disaggregated(parts: Disaggregation, settings: Mapping[str, Any]) -> ClusterEngine:
    """Engines that read and engines that write, whose caches lie in shared memory.

    Raises:
        HeadstartError: the machine has no room for them, the methods in force cannot be parted, or one cannot start.
    """
    if settings.get("enable_prefix_caching") is False:
        raise PlacementError("keys migrate by way of the prefix cache, which --no-enable-prefix-caching switches off")
    directory = shared_directory()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    use = list(settings.get("use", ()))
    tokens = settings.get("max_num_batched_tokens") or 512
    sides = []
    for role, count in (("prefill", parts.prefill), ("decode", parts.decode)):
        side = registry.build(f"distserve:role={role},tokens={tokens}", "inference")
        own = {**settings, "use": [*use, side, SharedKVStore(str(directory))]}
        sides += [own] * count
    try:
        workers = _start(sides, settings)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return DisaggregatedEngine(workers[: parts.prefill], workers[parts.prefill :])


def _start(each: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[ProcessEngine]:
    """Start engines one after the other, which share the cores or take a device each."""
    count, device = len(each), settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if count < 1:
        raise PlacementError(f"a cluster needs at least 1 engine, not {count}")
    on_cpu = torch.device(device).type == "cpu"
    room = usable_cores() if on_cpu else torch.cuda.device_count()
    if count > room:
        what = "cores" if on_cpu else "devices"
        raise PlacementError(f"{count} engines need {count} {what}, and there are {room}; start fewer")
    before = torch.get_num_threads()
    workers: list[ProcessEngine] = []
    try:
        if on_cpu:
            torch.set_num_threads(max(1, min(before, room // count)))
        for place, own in enumerate(each):
            workers.append(ProcessEngine(**{**own, "device": "cpu" if on_cpu else f"cuda:{place}"}))
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    finally:
        torch.set_num_threads(before)
    return workers
