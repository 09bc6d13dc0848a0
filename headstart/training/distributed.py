"""One process or many: the world that torchrun made, and FSDP2 over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from headstart.training.errors import TrainingError
from headstart.training.select import Anatomy


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank, size: this process's number, and how many there are.
        device: where this process computes.
        mesh: the mesh that weights are sharded over; None for a process of its own.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.mesh is not None:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        if self.mesh is None:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)).item())

    def barrier(self) -> None:
        """Wait for all."""
        if self.mesh is not None:
            dist.barrier()


ONE_PROCESS = World(0, 1, torch.device("cpu"), None)
"""A process of its own on the CPU."""


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """The world of this process: torchrun's if it was started by it, else a process of its own.

    A process group that exists is used and left as it is.

    Args:
        device: "cpu" or "cuda"; None is CUDA where there is one.

    Raises:
        TrainingError: another device, or CUDA where there is none.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise TrainingError(f"the device is cpu or cuda, not {kind!r}; choose among several with CUDA_VISIBLE_DEVICES")
    if kind == "cuda" and not torch.cuda.is_available():
        raise TrainingError("there is no CUDA device here; use --device cpu")
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, torch.device(kind), None)
        return
    local = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(local)
    begins = not dist.is_initialized()
    if begins:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        yield World(dist.get_rank(), dist.get_world_size(), local, mesh)
    finally:
        if begins:
            dist.destroy_process_group()


def shard_(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every block, then the rest, with FSDP2: parameters stay float32, gradients are summed in float32."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for name in Anatomy.of(model).blocks:
        fully_shard(model.get_submodule(name), mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
