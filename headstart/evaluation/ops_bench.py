"""The benchmark of single ops: what each is off by, and how close it comes to what the machine allows."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstart.errors import HeadstartError, did_you_mean
from headstart.evaluation import ledger
from headstart.evaluation.compare_rounds import Reporter
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row, check_key
from headstart.evaluation.machine import Effort, MachinePeaks, describe_machine, measure_peaks, usable_cores
from headstart.evaluation.ops_cases import SOURCES
from headstart.evaluation.ops_shapes import OpCase, OpShapes
from headstart.evaluation.shape import SHAPES

# Inputs take turns until together they are larger than a cache of the device, so that none is found there.
_COLD_BYTES = {"cuda": 160 << 20, "cpu": 64 << 20}
_MOST_SETS = 16
# A measurement goes on until it has taken so long.
_SECONDS = {"cuda": 0.02, "cpu": 0.05}


@dataclass(frozen=True)
class OpsBenchSettings:
    """What to measure.

    Args:
        shape: a name of `headstart.evaluation.shape.SHAPES` (default: llama-3.1-8b on a GPU, qwen2.5-0.5b elsewhere).
        decode, prefill: numbers of rows (default: 1, 16, 64, 256 and 2,048 on a GPU, 1, 8 and 256 elsewhere).
        ops: names of `headstart.evaluation.ops_cases.SOURCES`; all of them where none is named.
        dtype: of weights and activations.
        device: "cpu" or "cuda".
        repeats: measurements of each side.
        sweep: try every tiling of the kernels that have several.
        seed: of inputs.

    Raises:
        HeadstartError: an unknown shape, op or dtype, or no such device.
    """

    shape: str = ""
    decode: tuple[int, ...] = ()
    prefill: tuple[int, ...] = ()
    ops: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    repeats: int = 5
    sweep: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        gpu = self.device == "cuda"
        defaults = {
            "shape": "llama-3.1-8b" if gpu else "qwen2.5-0.5b",
            "decode": (1, 16, 64, 256) if gpu else (1, 8),
            "prefill": (2048,) if gpu else (256,),
            "ops": tuple(SOURCES),
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        for known, asked, what in ((SHAPES, [self.shape], "shape"), (SOURCES, self.ops, "op")):
            for name in asked:
                if name not in known:
                    raise HeadstartError(f"there is no {what} {name!r}{did_you_mean(name, known)}")
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise HeadstartError(f"dtype must be bfloat16, float16 or float32, not {self.dtype!r}")
        if self.device not in ("cpu", "cuda") or (gpu and not torch.cuda.is_available()):
            raise HeadstartError(f"there is no device {self.device!r} to run on; give --device cpu")

    @property
    def shapes(self) -> OpShapes:
        """What the cases are made of."""
        model, dtype = SHAPES[self.shape], getattr(torch, self.dtype)
        return OpShapes(model, self.decode, self.prefill, dtype, torch.device(self.device), self.sweep)


def run_ops_bench(
    settings: OpsBenchSettings, reporter: Reporter, *, command: str, key: str = "ops", effort: Effort = "full"
) -> LedgerEntry:
    """Measure the machine's peaks, then every side of every case.

    Args:
        settings: what to measure.
        reporter: hears how it goes on.
        command: what a user types to measure again.
        key: of the entry.
        effort: for the machine's peaks.

    Raises:
        LedgerError: the key is none, said before anything runs.
    """
    check_key(key)
    commit, dirty = ledger.code_version()
    reporter.say("measuring the machine's peaks")
    threads = torch.get_num_threads() if settings.device == "cpu" else usable_cores()
    peaks = measure_peaks(threads, effort, settings.device)
    torch.manual_seed(settings.seed)
    cases = [case for name in settings.ops for case in SOURCES[name](settings.shapes)]
    reporter.begin(len(cases))
    rows: list[Row] = []
    with torch.inference_mode():
        for case in cases:
            reporter.step(f"{case.op}, {case.shape}")
            rows += measure(case, settings, peaks)
    reporter.done()
    return LedgerEntry(
        kind="ops",
        key=key,
        model=settings.shape,
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        peaks=peaks,
        versions={"python": platform.python_version(), "torch": torch.__version__},
        seeds=[settings.seed],
        settings={name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()},
        rows=rows,
        ratios=_ratios(rows),
        notes=[
            "errors are relative to the result in float64 (of draws: the share of other tokens)",
            "inputs take turns, so that none is found in a cache; a floor is what the measured peaks would allow",
        ],
    )


def measure(case: OpCase, settings: OpsBenchSettings, peaks: MachinePeaks) -> list[Row]:
    """A row per side."""
    inputs = case.make()
    expected = case.reference(*(x.double() if x.is_floating_point() else x.clone() for x in inputs))
    errors = {name: error(run(*(x.clone() for x in inputs)), expected) for name, run in case.sides.items()}
    size = sum(x.numel() * x.element_size() for x in inputs)
    count = max(2, min(_MOST_SETS, -(-_COLD_BYTES[settings.device] // max(size, 1))))
    sets = [inputs, *(case.make() for _ in range(count - 1))]
    limits = {"matmul": case.flops / peaks.best_matmul, "bandwidth": case.bytes / peaks.copy_bandwidth}
    rows = []
    for name, run in case.sides.items():
        seconds = _timer(run, sets, settings.device, name in case.waits)
        values = [seconds() for _ in range(settings.repeats)]
        taken = statistics.median(values)
        details = {"error": errors[name], "flops": case.flops, "bytes": case.bytes, "floor": max(limits.values())}
        details |= {f"fraction_of_{what}": least / taken for what, least in limits.items()}
        rows.append(Row.of(f"{case.op}, {case.shape}", name, "s", values, higher_is_better=False, details=details))
    return rows


def error(got: Tensor, expected: Tensor) -> float:
    """The relative error in the Euclidean norm; of whole numbers, the share of others."""
    if not got.is_floating_point():
        return (got != expected).double().mean().item()
    off = torch.linalg.vector_norm(got.double() - expected)
    size = torch.linalg.vector_norm(expected)
    return (off / size).item() if size > 0 else off.item()


def _timer(run: Callable[..., Any], sets: list[tuple[Tensor, ...]], device: str, waits: bool) -> Callable[[], float]:
    """What measures the seconds of one run over the inputs, in turns."""

    def once() -> None:
        for inputs in sets:
            run(*inputs)

    once()
    if device == "cpu":
        return lambda: _host_seconds(once, len(sets), _SECONDS[device])
    torch.cuda.synchronize()
    if waits:
        return lambda: _device_seconds(once, len(sets), 1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    graph.replay()
    rounds = max(1, round(_SECONDS[device] / max(_device_seconds(graph.replay, 1, 1), 1e-6)))
    return lambda: _device_seconds(graph.replay, len(sets), rounds)


def _host_seconds(once: Callable[[], None], count: int, least: float) -> float:
    start, rounds = time.perf_counter(), 0
    while rounds == 0 or time.perf_counter() - start < least:
        once()
        rounds += 1
    return (time.perf_counter() - start) / rounds / count


def _device_seconds(once: Callable[[], None], count: int, rounds: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        once()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / rounds / count


def _ratios(rows: list[Row]) -> list[Ratio]:
    """The first side of each case against the others."""
    first = {row.name: row for row in reversed(rows)}
    return [Ratio.of(first[row.name], row) for row in rows if row is not first[row.name]]
