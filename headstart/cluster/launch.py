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


def start_replicas(count: int, settings: Mapping[str, Any], ray: str | None = None) -> ClusterEngine:
    """So many equal engines behind a cache-aware router.

    Args:
        count: of engines.
        settings: the fields of `EngineArgs`.
        ray: address of the Ray cluster whose actors they are to be (see `ray_workers.connect`); None starts processes
            of this machine.

    Raises:
        HeadstartError: there is no room for them, or one cannot start.
    """
    return ReplicatedEngine(_start([dict(settings)] * count, settings, ray))


def start_disaggregated(parts: Disaggregation, settings: Mapping[str, Any], ray: str | None = None) -> ClusterEngine:
    """Engines that read and engines that write, whose caches lie in shared memory.

    Args:
        parts: how many of either.
        settings: the fields of `EngineArgs`.
        ray: as for `start_replicas`; the actors then run on this machine of the cluster.

    Raises:
        HeadstartError: the machine has no room for them, the methods in force cannot be parted, or one cannot start.
    """
    if settings.get("enable_prefix_caching") is False:
        raise PlacementError("keys migrate by way of the prefix cache, which --no-enable-prefix-caching switches off")
    directory = shared_directory()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    use = list(settings.get("use", ()))
    tokens = settings.get("max_num_batched_tokens") or 512
    # What computes prompts in its own way may write layers in its own order, too.
    layered = not any("prefill" in getattr(_built(item), "slots", ()) for item in use)
    sides = []
    for role, count in (("prefill", parts.prefill), ("decode", parts.decode)):
        side = registry.build(f"distserve:role={role},tokens={tokens}", "inference")
        own = {**settings, "use": [*use, side, SharedKVStore(str(directory), layered)]}
        sides += [own] * count
    try:
        workers = _start(sides, settings, ray, together=True)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return DisaggregatedEngine(workers[: parts.prefill], workers[parts.prefill :])


def _built(item: Any) -> Any:
    return registry.build(item, "inference") if isinstance(item, str) else item


def _start(
    each: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], ray: str | None, together: bool = False
) -> list[ProcessEngine]:
    """Start engines one after the other, which share the cores or take a device each; `together` on this machine."""
    count, device = len(each), settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if count < 1:
        raise PlacementError(f"a cluster needs at least 1 engine, not {count}")
    on_cpu = torch.device(device).type == "cpu"
    if ray is not None:
        from headstart.cluster.ray_workers import place

        starts = place(count, ray, on_cpu=on_cpu, here=together)
        return _engines(
            [
                {**own, "start": start, "device": "cpu" if on_cpu else "cuda:0"}
                for own, start in zip(each, starts, strict=True)
            ]
        )
    room = usable_cores() if on_cpu else torch.cuda.device_count()
    if count > room:
        what = "cores" if on_cpu else "devices"
        raise PlacementError(f"{count} engines need {count} {what}, and there are {room}; start fewer")
    before = torch.get_num_threads()
    try:
        if on_cpu:
            torch.set_num_threads(max(1, min(before, room // count)))
        return _engines([{**own, "device": "cpu" if on_cpu else f"cuda:{place}"} for place, own in enumerate(each)])
    finally:
        torch.set_num_threads(before)


def _engines(each: Sequence[Mapping[str, Any]]) -> list[ProcessEngine]:
    """All of them, or none."""
    workers: list[ProcessEngine] = []
    try:
        for own in each:
            workers.append(ProcessEngine(**own))
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    return workers
