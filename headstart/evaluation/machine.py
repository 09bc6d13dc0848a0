"""What this machine is, and the matrix-product and memory speeds it reaches, as measured here and now."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import psutil
import torch
from pydantic import BaseModel


class Machine(BaseModel):
    """The hardware and system under a measurement; memory in bytes."""

    cpu: str
    cores: int
    memory: int
    os: str
    accelerators: list[str] = []

    @property
    def slug(self) -> str:
        """A name for files: processor (or accelerators), cores, and memory in GiB."""
        name = " ".join(self.accelerators) or self.cpu
        text = re.sub(r"\((r|tm)\)", "", name, flags=re.IGNORECASE).lower()
        words = re.sub(r"[^a-z0-9.]+", "-", text).strip("-.") or "machine"
        return f"{words}-{self.cores}c-{round(self.memory / 2**30)}g"


class MachinePeaks(BaseModel):
    """Best speeds seen: matrix products in FLOP/s, memory in bytes/s, where a copy counts read and write.

    `device` is the type of what was measured, "cpu" or "cuda"; threads are those of the CPU.
    """

    device: str = "cpu"
    threads: int
    matmul: dict[str, float]
    copy_bandwidth: float
    read_bandwidth: float

    @property
    def best_matmul(self) -> float:
        """The higher matrix-product speed of the dtypes, in FLOP/s.

        A processor without bfloat16 instructions is faster in float32, and a side is free to compute there.
        """
        return max(self.matmul.values())

    def best_of(self, other: "MachinePeaks") -> "MachinePeaks":
        """The higher of every figure of two measurements with the same threads."""
        return MachinePeaks(
            device=self.device,
            threads=self.threads,
            matmul={dtype: max(flops, other.matmul[dtype]) for dtype, flops in self.matmul.items()},
            copy_bandwidth=max(self.copy_bandwidth, other.copy_bandwidth),
            read_bandwidth=max(self.read_bandwidth, other.read_bandwidth),
        )


def describe_machine() -> Machine:
    """The machine this process runs on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        accelerators=gpus,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


Effort = Literal["full", "short", "quick"]


def measure_peaks(threads: int, effort: Effort = "full", device: str = "cpu") -> MachinePeaks:
    """Measure in a fresh process with `threads` threads, whose buffers are gone afterwards.

    Args:
        threads: of PyTorch.
        effort: "full" takes up to a minute, "short" some seconds on smaller matrices and buffers, which come close;
            "quick" is for trying a command out: its figures are no peaks.
        device: "cpu", "cuda" or "cuda:N".
    """
    arguments = [sys.executable, "-m", "headstart.evaluation.machine", str(threads), effort, device]
    result = subprocess.run(
        arguments,
        env=thread_environment(threads),
        stdout=subprocess.PIPE,
        check=True,
        # Ctrl-C ends it through the parent, without a word of its own.
        start_new_session=True,
    )
    return MachinePeaks.model_validate_json(result.stdout)


def thread_environment(threads: int) -> dict[str, str]:
    """This process's environment with every thread pool set to `threads`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


_COPY_BYTES: dict[Effort, int] = {"full": 1 << 30, "short": 1 << 28, "quick": 1 << 24}
_MATMUL_SIZES: dict[Effort, tuple[int, ...]] = {"full": (1024, 2048, 4096), "short": (1024, 2048), "quick": (256,)}


def _measure(threads: int, effort: Effort, device: str) -> MachinePeaks:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    copy, read = _bandwidths(_COPY_BYTES[effort], device)
    sizes = _MATMUL_SIZES[effort]
    if torch.device(device).type == "cuda" and effort != "quick":
        sizes = (*sizes, 8192)  # a large accelerator is not filled by less
    return MachinePeaks(
        device=torch.device(device).type,
        threads=threads,
        matmul={
            str(dtype).removeprefix("torch."): _matmul_peak(dtype, sizes, device)
            for dtype in (torch.float32, torch.bfloat16)
        },
        copy_bandwidth=copy,
        read_bandwidth=read,
    )


def _matmul_peak(dtype: torch.dtype, sizes: tuple[int, ...], device: str) -> float:
    """The best FLOP/s over square products of these sizes."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype, device=device)
        seconds = _best_seconds(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out), device)
        best = max(best, 2 * size**3 / seconds)
    return best


def _bandwidths(buffer_bytes: int, device: str) -> tuple[float, float]:
    """Copy (read plus write) and read bandwidth in bytes/s, on touched buffers larger than any cache."""
    source = torch.ones(buffer_bytes // 4, device=device)
    target = torch.zeros_like(source)
    rows = source.view(-1, 1024)
    vector = torch.ones(1024, device=device)
    copy = 2 * buffer_bytes / _best_seconds(lambda: target.copy_(source), device)
    # A sum and a matrix-vector product only read; whichever streams faster shows what the memory can deliver.
    reads = (_best_seconds(source.sum, device), _best_seconds(lambda: torch.mv(rows, vector), device))
    return copy, buffer_bytes / min(reads)


def _best_seconds(run: Callable[[], object], device: str, repeats: int = 3) -> float:
    """The shortest of several runs, after one that warms up."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    run()
    wait()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    print(_measure(int(sys.argv[1]), cast(Effort, sys.argv[2]), sys.argv[3]).model_dump_json())
