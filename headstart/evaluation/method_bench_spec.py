"""How a method says that it is measured: its baseline and its workloads, with a default for each slot.

A method that wants to be measured otherwise has a classmethod `bench` that returns a `MethodBench`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.evaluation.sides import BenchmarkError

if TYPE_CHECKING:
    from headstart.evaluation.compare_rounds import Reporter
    from headstart.evaluation.compare_subject import Subject
    from headstart.methods.registry import MethodCard


@dataclass(frozen=True)
class OfflineLengths:
    """One request at a time over prompt lengths: time to first token, decode speed, memory, and the crossover.

    Args:
        lengths: of prompts, in tokens; empty takes those that suit model and machine.
        decode_tokens: tokens over which the decode speed is taken.
        together: requests that arrive at once, their prompt and output lengths; None leaves that out.
    """

    lengths: tuple[int, ...] = ()
    decode_tokens: int = 32
    together: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Load:
    """Many requests through the server: first at a fixed pace below what it can do, then with a queue that never ends.

    The first shows what users wait for, with a long decode that watches for stalls; the second, throughput.

    Args:
        input_tokens: shortest and longest prompt, as shares of the model's positions.
        output_tokens: shortest and longest answer.
        most_input: the longest prompt in tokens, whatever the model's positions.
        cv: spread of the times between arrivals: 1 is Poisson, more is bursty.
        pace: arrivals as a share of the rate at which the baseline answers with a queue.
        users: length of that queue.
        seconds: of arrivals in each part of each round, at least.
        depth: arrivals go on for so many times what a request alone would take.
    """

    input_tokens: tuple[float, float] = (0.7, 0.95)
    output_tokens: tuple[int, int] = (32, 64)
    most_input: int = 4096
    cv: float = 1.0
    pace: float = 0.7
    users: int = 6
    seconds: tuple[float, float] = (5.0, 3.0)
    depth: int = 8


@dataclass(frozen=True)
class Quality:
    """What the method does to answers: distance from the exact stack, and tasks where the model is a trained one.

    Args:
        tasks: as `headstart eval --task` takes them.
        lengths: tokens of prompt and answer; empty takes those of the cost.
        count: examples for each task and length.
    """

    tasks: tuple[str, ...] = ("niah_depth", "kv_retrieval", "multi_turn", "bits_per_byte")
    lengths: tuple[int, ...] = ()
    count: int = 3


@dataclass(frozen=True)
class Rig:
    """A training method on the rig, whose arms its classmethod `rig_bench` names, with paired seeds."""


@dataclass(frozen=True)
class Own:
    """What no other workload shows: the method measures it beside sides of its own, in this process.

    Args:
        module: has a function `measure` that takes an `OwnAsk` and returns a `LengthsResult`.
    """

    module: str


@dataclass(frozen=True)
class OwnAsk:
    """What such a function is told.

    Attributes:
        subject: the model.
        use: the method, with options as `--use` takes them.
        repeats: rounds that count.
        seed: of prompts, with the round.
        quick: whether small sizes suffice, whose figures mean nothing.
        reporter: hears how it goes on.
    """

    subject: "Subject"
    use: str
    repeats: int
    seed: int
    quick: bool
    reporter: "Reporter"


Workload = OfflineLengths | Load | Quality | Rig | Own


@dataclass(frozen=True)
class MethodBench:
    """How a method is measured.

    Args:
        baseline: methods of the stack that it is compared with, as `--use` takes them; none is the plain engine.
        workloads: what is run, in this order.
        headline: the metrics that stand beside the paper's claim, the most telling first.
        needs_gpu: whether it says nothing without a GPU; a quick run goes everywhere.
        trained: the embedded checkpoint that the method has made of the built-in model and runs beside it, where no
            other model is asked for.
    """

    baseline: tuple[str, ...] = ()
    workloads: tuple[Workload, ...] = ()
    headline: tuple[str, ...] = ("TTFT",)
    needs_gpu: bool = False
    trained: str | None = None


_LOAD_HEADLINE = ("ITL p99", "ITL p99 (queue)", "probe gap max", "output throughput (queue)", "TTFT p50")
_SCHEDULING_BASELINE = "prefill-first"


def bench_of(card: "MethodCard") -> MethodBench:
    """The method's own `bench()`, else the default of its kind and slots.

    Raises:
        BenchmarkError: a method that has no code, or that measures rather than does something.
    """
    if card.implementation is None:
        raise BenchmarkError(
            f"{card.key} is planned and has no code to measure yet: `headstart methods {card.key}` shows its card"
        )
    own = getattr(card.implementation, "bench", None)
    if own is not None:
        return own()
    if card.kind == "training":
        return MethodBench(workloads=(Rig(),), headline=())
    if card.kind == "analysis":
        raise BenchmarkError(
            f"{card.key} only measures, so there is nothing to bench: see `headstart methods {card.key}`"
        )
    # What is exact by its card is held to it; tasks would say the same at more cost.
    quality = Quality(tasks=()) if card.exact else Quality()
    if "scheduler" in card.slots:
        baseline = () if card.key == _SCHEDULING_BASELINE else (_SCHEDULING_BASELINE,)
        return MethodBench(baseline, (Load(), quality), _LOAD_HEADLINE)
    return MethodBench((), (OfflineLengths(), quality), ("TTFT", "decode", "KV cache"))
