"""What the engine benchmark measures: its settings, its sides, and the tasks with their cost formulas."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from headstart.errors import did_you_mean
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.shape import SHAPES, LlamaShape
from headstart.evaluation.sides import SIDES, BenchmarkError

Operation = Literal["prefill", "decode", "concurrent", "serial"]

# Warm-up runs every task at this part of its lengths.
WARM_UP_PART = 8


@dataclass(frozen=True)
class EngineBenchSettings:
    """What to measure and how often. Lengths are in tokens.

    Args:
        shape: key of `SHAPES`.
        dtype: of all sides but the float32 column of Transformers.
        prefill: prompt lengths whose time to first token is measured.
        decode_context: prompt length of the decode measurement.
        decode_tokens: tokens over which the decode speed is taken.
        requests: concurrent requests.
        request_in: prompt length of each.
        request_out: output length of each.
        repeats: rounds, after a warm-up that is dropped.
        threads: of every side.
        seed: of weights (itself) and prompts (itself plus the round).
        sides: keys of `SIDES`.
        engine_options: further arguments of `headstart.LLM`.
        device: "cpu", or "cuda": then the weights are drawn on the device and nothing but a config is written.
        decode_batches: (sequences, context) of further decode measurements, of this engine alone.
    """

    threads: int
    shape: str = "qwen2.5-0.5b"
    dtype: str = "bfloat16"
    prefill: tuple[int, ...] = (2048, 8192)
    decode_context: int = 2048
    decode_tokens: int = 32
    requests: int = 32
    request_in: int = 128
    request_out: int = 64
    repeats: int = 3
    seed: int = 0
    sides: tuple[str, ...] = tuple(SIDES)
    engine_options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    decode_batches: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise BenchmarkError(f"unknown shape {self.shape!r}{did_you_mean(self.shape, SHAPES)}")
        for side in self.sides:
            if side not in SIDES:
                raise BenchmarkError(f"unknown side {side!r}{did_you_mean(side, SIDES)}")
        if "headstart" not in self.sides:
            raise BenchmarkError("the sides must include headstart, which the others are compared with")
        if self.dtype not in ("bfloat16", "float32"):
            raise BenchmarkError(f"dtype must be bfloat16 or float32, not {self.dtype!r}")
        counts = (*self.prefill, self.decode_context, self.decode_tokens, self.requests)
        if min(*counts, self.request_in, self.request_out, self.repeats, self.threads) < 1:
            raise BenchmarkError("lengths, counts, repeats and threads must all be at least 1")
        if self.max_length > self.llama.max_positions:
            raise BenchmarkError(
                f"the longest request has {self.max_length} tokens, but shape {self.shape!r} allows "
                f"{self.llama.max_positions}; lower the lengths"
            )

    @property
    def llama(self) -> LlamaShape:
        """The sizes behind `shape`."""
        return SHAPES[self.shape]

    @property
    def max_length(self) -> int:
        """Tokens of the longest request, prompt plus output."""
        longest = max(*self.prefill, *(context + self.decode_tokens for _, context in self.decodes))
        return max(longest + 1, self.max_concurrent_length)

    @property
    def decodes(self) -> list[tuple[int, int]]:
        """(sequences, context) of every decode measurement."""
        return [(1, self.decode_context), *self.decode_batches]

    @property
    def max_sequences(self) -> int:
        """Sequences at once."""
        return max(self.requests, *(sequences for sequences, _ in self.decodes))

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys are held at once, at most."""
        # Of a batch, those that were read first write on until all are read.
        batches = (sequences * (context + 2 * self.decode_tokens + sequences) for sequences, context in self.decodes)
        return max(self.max_length, self.requests * self.max_concurrent_length, *batches)

    @property
    def max_concurrent_length(self) -> int:
        """Tokens of one of the concurrent requests, prompt plus output."""
        return self.request_in + self.request_out

    @classmethod
    def quick(cls, threads: int, **changes: Any) -> "EngineBenchSettings":
        """A tiny shape and short lengths: shows in a minute that the command works, and measures nothing."""
        small: dict[str, Any] = {
            "shape": "tiny",
            "prefill": (128, 256),
            "decode_context": 128,
            "decode_tokens": 16,
            "requests": 8,
            "request_in": 16,
            "request_out": 16,
            "repeats": 2,
        }
        return cls(threads=threads, **{**small, **changes})


@dataclass(frozen=True)
class Column:
    """A side at a dtype: one process, one column of the results."""

    side: str
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes per number of weights and cache."""
        return getattr(torch, self.dtype).itemsize

    @property
    def name(self) -> str:
        """How rows name it."""
        return f"{self.side} {self.dtype}"


def columns(settings: EngineBenchSettings) -> list[Column]:
    """Headstart first, then the peers at the run's dtype, and Transformers in float32 too.

    On a processor without bfloat16 instructions the float32 column is the harder baseline.
    """
    found = [Column("headstart", settings.dtype)]
    if settings.device != "cpu":
        return found + [Column(side, settings.dtype) for side in settings.sides if side != "headstart"]
    for side in settings.sides:
        if side != "headstart":
            found.append(Column(side, settings.dtype))
        if side == "transformers" and settings.dtype != "float32":
            found.append(Column(side, "float32"))
    return found


@dataclass(frozen=True)
class Task:
    """One quantity: what a side is asked, on what lengths.

    Args:
        operation: method of `Side`.
        length: tokens per prompt.
        tokens: output tokens (`decode`, `concurrent`, `serial`).
        requests: prompts.
    """

    operation: Operation
    length: int
    tokens: int = 1
    requests: int = 1

    @property
    def name(self) -> str:
        """How rows name it."""
        if self.operation == "prefill":
            return f"prefill {self.length:,}"
        if self.operation == "decode":
            return f"decode at {self.length:,}" if self.requests == 1 else f"decode {self.requests} at {self.length:,}"
        how = "together" if self.operation == "concurrent" else "one by one"
        return f"{self.requests} requests {how}"

    @property
    def unit(self) -> str:
        """Of the measured value."""
        return "tokens/s" if self.operation == "decode" else "s"

    def warm_up(self) -> "Task":
        """The same at a fraction of the lengths."""
        return Task(
            self.operation,
            max(1, self.length // WARM_UP_PART),
            max(1, self.tokens // WARM_UP_PART),
            self.requests,
        )

    def arguments(self, prompts: list[list[int]]) -> list[Any]:
        """Arguments of the side's method."""
        if self.operation == "prefill":
            return [prompts[0]]
        return [prompts, self.tokens]

    def growth_from_warm_up(self, shape: LlamaShape) -> float:
        """How much longer the task takes than its warm-up, by its FLOPs and tokens."""
        small = self.warm_up()
        prefill = shape.prefill_flops(self.length) / shape.prefill_flops(small.length)
        return max(prefill, self.tokens / small.tokens)

    def bounds(self, shape: LlamaShape, itemsize: int, peaks: MachinePeaks) -> dict[str, float]:
        """The best value that the machine's peaks allow (`floor`, in the task's unit) and the cost behind it.

        Prefill is bounded by FLOPs over the matmul peak, decode by bytes over the copy bandwidth. The tasks
        of many requests mix both and have no bound here.
        """
        if self.operation == "prefill":
            flops = shape.prefill_flops(self.length)
            return {"flops": flops, "floor": flops / peaks.best_matmul}
        if self.operation == "decode":
            # Step i reads the prompt, the first output token and the i tokens since.
            moved = shape.decode_bytes(self.length + (self.tokens + 1) / 2, itemsize, self.requests)
            return {"bytes_per_token": moved, "floor": peaks.copy_bandwidth / moved}
        return {}

    def fraction_of_peak(self, median: float, bounds: dict[str, float]) -> dict[str, float]:
        """The part of the machine's peak that the median reached."""
        if self.operation == "prefill":
            return {"fraction_of_matmul_peak": bounds["floor"] / median}
        if self.operation == "decode":
            return {"fraction_of_copy_bandwidth": median / bounds["floor"]}
        return {}


def tasks(settings: EngineBenchSettings) -> list[list[Task]]:
    """Groups of tasks; the sides alternate within a group, so that neighbours in time are compared."""
    requests = (settings.request_in, settings.request_out, settings.requests)
    return [
        *([Task("prefill", length)] for length in settings.prefill),
        *([Task("decode", context, settings.decode_tokens, sequences)] for sequences, context in settings.decodes),
        # One by one shows what an engine is for where a peer has none; on a GPU it would take minutes to say so.
        [Task("concurrent", *requests), *([Task("serial", *requests)] if settings.device == "cpu" else [])],
    ]


def applies(task: Task, column: Column) -> bool:
    """Whether a side runs a task: only Transformers, which has no batching of its own, answers one by one, and only
    this engine reads the many long prompts of a batch."""
    if task.operation == "decode" and task.requests > 1:
        return column.side == "headstart"
    return task.operation != "serial" or column.side == "transformers"
