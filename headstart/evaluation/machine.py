"""What this machine is, and the matrix-product and memory speeds it reaches, as measured here and now."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel

_COPY_BYTES = 1 << 30


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
    """Best speeds seen: matrix products in FLOP/s, memory in bytes/s, where a copy counts read and write."""

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


def measure_peaks(threads: int, *, quick: bool = False) -> MachinePeaks:
    """Measure in a fresh process with `threads` threads, whose buffers are gone afterwards.

    Args:
        threads: of PyTorch.
        quick: small matrices and buffers, for trying the command out; the figures are then no peaks.
    """
    arguments = [sys.executable, "-m", "headstart.evaluation.machine", str(threads), str(int(quick))]
    result = subprocess.run(arguments, env=thread_environment(threads), stdout=subprocess.PIPE, check=True)
    return MachinePeaks.model_validate_json(result.stdout)


def thread_environment(threads: int) -> dict[str, str]:
    """This process's environment with every thread pool set to `threads`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def _measure(threads: int, quick: bool) -> MachinePeaks:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    copy, read = _bandwidths(16 << 20 if quick else _COPY_BYTES)
    sizes = (256,) if quick else (1024, 2048, 4096)
    return MachinePeaks(
        threads=threads,
        matmul={
            str(dtype).removeprefix("torch."): _matmul_peak(dtype, sizes) for dtype in (torch.float32, torch.bfloat16)
        },
        copy_bandwidth=copy,
        read_bandwidth=read,
    )


def _matmul_peak(dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """The best FLOP/s over square products of these sizes."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        seconds = _best_seconds(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out))
        best = max(best, 2 * size**3 / seconds)
    return best


def _bandwidths(buffer_bytes: int) -> tuple[float, float]:
    """Copy (read plus write) and read bandwidth in bytes/s, on touched buffers larger than any cache."""
    source = torch.ones(buffer_bytes // 4)
    target = torch.zeros_like(source)
    rows = source.view(-1, 1024)
    vector = torch.ones(1024)
    copy = 2 * buffer_bytes / _best_seconds(lambda: target.copy_(source))
    # A sum and a matrix-vector product only read; whichever streams faster shows what the memory can deliver.
    read = buffer_bytes / min(_best_seconds(source.sum), _best_seconds(lambda: torch.mv(rows, vector)))
    return copy, read


def _best_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs, after one that warms up."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    print(_measure(int(sys.argv[1]), bool(int(sys.argv[2]))).model_dump_json())
