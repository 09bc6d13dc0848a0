"""What the benches share that simulate: the load, the engine whose steps are measured, and the ledger entry."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.bench.progress import command_line, write_ledger

if TYPE_CHECKING:
    from headstart.engine.args import EngineArgs
    from headstart.evaluation.capacity.loads import LoadShape
    from headstart.evaluation.ledger import Ratio, Row
    from headstart.evaluation.simulate.cost import StepCost
    from headstart.evaluation.simulate.worker import WorkerSettings

_LOAD, _ENGINE = "Load", "Engine"


def _load(**kwargs: Any) -> Any:
    return typer.Option(rich_help_panel=_LOAD, **kwargs)


def _engine(**kwargs: Any) -> Any:
    return typer.Option(rich_help_panel=_ENGINE, **kwargs)


@dataclass
class SimulationOptions:
    """A load, and the engine that it is put on."""

    trace: Annotated[Path | None, _load(help="Trace to replay faster or slower, as `bench serve`.")] = None
    requests: Annotated[int, _load(min=1, help="So many of it.")] = 200
    length_scale: Annotated[float, _load(help="Multiply the trace's lengths by it.")] = 1.0
    max_input: Annotated[int | None, _load(help="Cut longer prompts to it.")] = None
    max_output: Annotated[int | None, _load(help="Cut longer answers to it.")] = None
    input_len: Annotated[str, _load(help="Prompt tokens without a trace, as 64..512.")] = "64..512"
    output_len: Annotated[str, _load(help="Answer tokens without a trace.")] = "16..64"
    seed: Annotated[int, _load(help="Of the load and of the measured steps.")] = 0
    shape: Annotated[
        str | None, _engine(help="Random weights instead of a model: qwen2.5-0.5b, llama-3.1-8b or tiny.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, _engine(min=1, help="Step budget of schedulers that name none. [default: the engine's]")
    ] = None
    max_num_seqs: Annotated[int, _engine(min=1, help="Most sequences at once in an engine.")] = 32
    steps: Annotated[int, _engine(min=40, help="Steps to measure for the cost model.")] = 240
    threads: Annotated[int | None, _engine(min=1, help="Of PyTorch in each engine.")] = None
    dtype: Annotated[str, _engine(help="auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str, _engine(help="auto, cpu or cuda:N.")] = "auto"
    ledger: Annotated[Path | None, typer.Option(help="Keep the entry in this ledger directory.")] = None
    key: Annotated[str | None, typer.Option(help="Name of the ledger entry. [default: the command's]")] = None


@dataclass(frozen=True)
class Ground:
    """What every simulation stands on.

    Attributes:
        name: of the model, for people.
        args: of an engine.
        load: its shape.
        cost: of the engine's steps, as measured.
        error: of that, the median on steps that it was not fitted to.
        worker: the engine's sizes.
    """

    name: str
    args: "EngineArgs"
    load: "LoadShape"
    cost: "StepCost"
    error: float
    worker: "WorkerSettings"
    options: SimulationOptions

    @property
    def first_rate(self) -> float:
        """The rate at which prompts alone would keep one engine busy, halved."""
        seconds = sum(self.cost.seconds([(ask.input_tokens, ask.input_tokens)]) for ask in self.load.asks)
        return 0.5 * len(self.load.asks) / seconds

    def server(self, *more: str) -> list[str]:
        """Options of `headstart serve` for the same engine."""
        args = self.args
        options = ["--max-num-seqs", str(self.worker.max_num_seqs), "--dtype", str(args.dtype), "--device", args.device]
        options += ["--num-pages", str(self.worker.num_pages), "--page-size", str(self.worker.page_size)]
        options += ["--max-model-len", str(self.load.longest + 2), "--load-format", args.load_format]
        options += ["--max-num-batched-tokens", str(args.max_num_batched_tokens)] if args.max_num_batched_tokens else []
        options += ["--model", args.model] if args.model else []
        return [*options, *more]


@contextmanager
def ground(model: str | None, options: SimulationOptions, console: Console) -> Iterator[Ground]:
    """Measure the engine's steps; within the block, the model is there to be served.

    Raises:
        HeadstartError: a load or a model that cannot be.
    """
    from tempfile import TemporaryDirectory

    import torch

    from headstart.engine.args import EngineArgs
    from headstart.evaluation.compare_subject import Subject
    from headstart.evaluation.load.settings import Lengths, LoadSettings
    from headstart.evaluation.sides import BenchmarkError
    from headstart.evaluation.simulate.calibrate import calibrate
    from headstart.evaluation.simulate.worker import WorkerSettings

    if model is not None and options.shape is not None:
        raise BenchmarkError("a model has its own shape: leave out the model or --shape")
    with TemporaryDirectory(prefix="headstart-bench-") as directory:
        name, vocab, load_format = model or "the built-in model", None, "auto"
        if options.shape is not None:
            subject = Subject.of_shape(options.shape, Path(directory), seed=options.seed, dummy=True)
            name, vocab, model, load_format = subject.name, subject.config.vocab_size, directory, "dummy"
        settings = LoadSettings(
            trace=None if options.trace is None else str(options.trace),
            length_scale=options.length_scale,
            max_input=options.max_input,
            max_output=options.max_output,
            input_tokens=Lengths.parse(options.input_len),
            output_tokens=Lengths.parse(options.output_len),
            seed=options.seed,
            vocab=vocab,
        )
        load = _load_of(settings, options.requests)
        args = EngineArgs(
            model=model,
            dtype=options.dtype,
            device=options.device,
            load_format=load_format,
            max_num_batched_tokens=options.max_num_batched_tokens,
        )
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        cost, error = calibrate(
            args,
            context=load.longest + 2,
            sequences=min(options.max_num_seqs, 16),
            largest=max(args.step_tokens, max(ask.input_tokens for ask in load.asks)),
            steps=options.steps,
            seed=options.seed,
            say=console.print,
        )
        console.print(f"the fitted cost model is off by {error:.1%} on the median step that it has not seen")
        pages = options.max_num_seqs * -(-(load.longest + 2) // args.tokens_per_page)
        worker = WorkerSettings(
            pages,
            args.tokens_per_page,
            options.max_num_seqs,
            args.step_tokens,
            asked_tokens=options.max_num_batched_tokens,
        )
        yield Ground(name, args, load, cost, error, worker, options)


def _load_of(settings: Any, requests: int) -> "LoadShape":
    from headstart.evaluation.capacity.loads import LoadShape

    return LoadShape.of(settings, requests)


def check_scheduler(use: str) -> None:
    """Refuse what is no scheduler.

    Raises:
        HeadstartError: it is something else, or nothing.
    """
    from headstart.engine.seams import Scheduler
    from headstart.evaluation.capacity.search import CapacityError
    from headstart.methods import registry

    if not isinstance(registry.build(use, "inference"), Scheduler):
        raise CapacityError(f"{use} is no scheduler; its capacity is measured with `headstart bench serve --capacity`")


def keep(
    kind: Any,
    base: Ground,
    console: Console,
    *,
    rows: "Sequence[Row]",
    ratios: "Sequence[Ratio]" = (),
    notes: Sequence[str] = (),
    settings: dict[str, Any],
    methods: Sequence[str],
) -> None:
    """Write the ledger entry, where one is asked for.

    Args:
        kind: of the entry, and its name unless the user gave another.
        base: what was measured.
        console: where it is said.
        rows: figures.
        ratios: of them.
        notes: in sentences.
        settings: of the command, beside the load and the engine.
        methods: that ran, as `--use` takes them.
    """
    if base.options.ledger is None:
        return
    import platform

    import torch

    import headstart
    from headstart.evaluation import ledger
    from headstart.evaluation.ledger_sources import source_digests
    from headstart.evaluation.machine import describe_machine
    from headstart.methods import registry

    ledger.check_key(base.options.key or kind)
    options = asdict(base.options) | {"trace": base.options.trace and base.options.trace.name, "ledger": None}
    commit, dirty = ledger.code_version()
    entry = ledger.LedgerEntry(
        kind=kind,
        key=base.options.key or kind,
        model=base.name,
        command=command_line(),
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        versions={
            "python": platform.python_version(),
            "headstart": headstart.__version__,
            "torch": torch.__version__,
        },
        seeds=[base.options.seed],
        settings={**options, **settings, "cost_model_error": base.error},
        sources=source_digests([type(registry.build(use)) for use in methods]),
        rows=list(rows),
        ratios=list(ratios),
        notes=list(notes),
    )
    write_ledger(entry, base.options.ledger, console)
