"""What devices can do at their peak: a catalogue from data sheets, and this machine as measured here and now."""

from dataclasses import dataclass
from typing import Self

import psutil
import torch

from headstart.errors import HeadstartError, did_you_mean
from headstart.evaluation.machine import Effort, MachinePeaks, describe_machine, measure_peaks


class PlanError(HeadstartError):
    """A plan that cannot be made: an unknown device, or a model that does not fit on it."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        key: its name on the command line.
        name: what people call it.
        memory: bytes.
        flops: by dtype, dense matrix products per second times two; never the sparse figure.
        bandwidth: bytes per second from its memory.
        link: bytes per second to the host's memory, in one direction; None where there is no other memory.
        source: where the numbers are from.
    """

    key: str
    name: str
    memory: float
    flops: dict[str, float]
    bandwidth: float
    link: float | None
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s in a dtype; float16 and bfloat16 are alike on all devices here."""
        return self.flops.get(dtype, self.flops["bfloat16"] if dtype == "float16" else self.flops["float32"])

    @classmethod
    def measured(cls, peaks: MachinePeaks, memory: float, name: str, link: float | None) -> Self:
        """A machine from its measured peaks."""
        flops = dict(peaks.matmul)
        if peaks.device == "cpu":
            # Without bfloat16 instructions a processor computes wide, from weights that are stored narrow.
            flops = dict.fromkeys(flops, peaks.best_matmul)
        bandwidth = max(peaks.copy_bandwidth, peaks.read_bandwidth)
        return cls("this", name, memory, flops, bandwidth, link, "measured here and now")


def _nvidia(
    key: str, name: str, memory: int, half: float, single: float, bandwidth: float, link: float, source: str
) -> Device:
    """In the units of data sheets: decimal GB, TFLOP/s, GB/s."""
    flops = {"bfloat16": half * 1e12, "float32": single * 1e12}
    return Device(key, name, memory * 1e9, flops, bandwidth * 1e9, link * 1e9, source)


DEVICES: dict[str, Device] = {
    device.key: device
    for device in (
        _nvidia("a100", "NVIDIA A100 SXM 80GB", 80, 312, 19.5, 2039, 32, "NVIDIA A100 data sheet, PCIe 4 x16"),
        _nvidia("h100", "NVIDIA H100 SXM 80GB", 80, 989, 67, 3350, 64, "NVIDIA H100 data sheet, PCIe 5 x16"),
        _nvidia("h200", "NVIDIA H200 SXM 141GB", 141, 989, 67, 4800, 64, "NVIDIA H200 data sheet, PCIe 5 x16"),
        _nvidia("l4", "NVIDIA L4 24GB", 24, 121, 30.3, 300, 32, "NVIDIA L4 data sheet, PCIe 4 x16"),
        _nvidia(
            "rtx4090", "GeForce RTX 4090 24GB", 24, 165.2, 82.6, 1008, 32, "NVIDIA Ada GPU architecture, PCIe 4 x16"
        ),
        Device(
            key="laptop",
            name="laptop, 8 cores",
            memory=16e9,
            flops={"bfloat16": 768e9, "float32": 768e9},
            bandwidth=89.6e9,
            link=None,
            source="8 cores x 3 GHz x 32 FLOPs of two AVX2 units; two channels of DDR5-5600",
        ),
    )
}
"""By key."""


def device_of(key: str) -> Device:
    """A device of the catalogue.

    Raises:
        PlanError: there is none of this name.
    """
    plain = key.lower().replace(" ", "").replace("-", "").replace("_", "")
    if plain not in DEVICES:
        hint = did_you_mean(plain, DEVICES) or f"; there are: {', '.join(DEVICES)}"
        raise PlanError(f"there is no device {key!r} in the catalogue{hint}, or leave --gpu out for this machine")
    return DEVICES[plain]


def this_machine(device: str, threads: int, effort: Effort = "short") -> Device:
    """What this machine reaches.

    Args:
        device: "cpu" or "cuda:N".
        threads: of PyTorch.
        effort: of the measurement.
    """
    peaks = measure_peaks(threads, effort, device)
    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return Device.measured(peaks, memory, torch.cuda.get_device_name(device), _link(device))
    machine = describe_machine()
    name = f"{machine.cpu}, {threads} thread{'s' if threads > 1 else ''}"
    return Device.measured(peaks, psutil.virtual_memory().total, name, None)


def _link(device: str, size: int = 1 << 28) -> float:
    """Bytes per second from pinned memory of the host, the best of several copies."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    best = float("inf")
    for _ in range(4):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        target.copy_(source, non_blocking=True)
        ended.record()
        torch.cuda.synchronize(device)
        best = min(best, begun.elapsed_time(ended) / 1000)
    return size / best
