"""`headstart bench capacity`: the highest rate that each scheduler serves within targets for the tails."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headstart.evaluation.capacity.loads import LoadShape
    from headstart.evaluation.capacity.search import CapacityFound, Probe, Targets
    from headstart.evaluation.simulate.cost import StepCost
    from headstart.evaluation.simulate.worker import WorkerSettings

_SCHEDULERS = ("prefill-first", "orca", "sarathi", "sarathi-serve", "fastgen")
_LOAD = "Load"


def capacity(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint. [default: the built-in model]", show_default=False)
    ] = None,
    slo: Annotated[str, typer.Option(help="The 99th percentiles to meet, such as ttft=2,tbt=100ms.")] = (
        "ttft=2,tbt=200ms"
    ),
    use: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler with its options; may be repeated. [default: all that mix or put off]"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Trace to replay faster or slower, as `bench serve`.", rich_help_panel=_LOAD)
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="So many of it.", rich_help_panel=_LOAD)] = 200,
    length_scale: Annotated[
        float, typer.Option(help="Multiply the trace's lengths by it.", rich_help_panel=_LOAD)
    ] = 1.0,
    max_input: Annotated[int | None, typer.Option(help="Cut longer prompts to it.", rich_help_panel=_LOAD)] = None,
    max_output: Annotated[int | None, typer.Option(help="Cut longer answers to it.", rich_help_panel=_LOAD)] = None,
    input_len: Annotated[
        str, typer.Option(help="Prompt tokens without a trace, as 64..512.", rich_help_panel=_LOAD)
    ] = "64..512",
    output_len: Annotated[str, typer.Option(help="Answer tokens without a trace.", rich_help_panel=_LOAD)] = "16..64",
    seed: Annotated[int, typer.Option(help="Of the load and of the mixtures.", rich_help_panel=_LOAD)] = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also search on servers of this machine: minutes for each scheduler.")
    ] = False,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Step budget of schedulers that name none. [default: the engine's]")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Most sequences at once.")] = 32,
    steps: Annotated[int, typer.Option(min=40, help="Steps to measure for the cost model.")] = 240,
    threads: Annotated[int | None, typer.Option(min=1, help="Of PyTorch.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="New directory for every measured request.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Search for the highest rate at which 99% of first tokens and of gaps between tokens meet their targets.

    A cost model is fitted to measured steps of this machine; a simulation then drives the engine's own schedulers with
    it, at rate after rate. --measure repeats the search on real servers, from the simulated capacity on.

        headstart bench capacity --slo ttft=2,tbt=200ms
        headstart bench capacity DIR --trace AzureLLMInferenceTrace_conv.csv.xz --length-scale 0.25 --measure
    """
    from headstart.cli.bench_serve import new_directory
    from headstart.engine.args import EngineArgs
    from headstart.evaluation.capacity.loads import LoadShape
    from headstart.evaluation.capacity.search import Targets
    from headstart.evaluation.load.settings import Lengths, LoadSettings

    targets = Targets.parse(slo)
    schedulers = use or list(_SCHEDULERS)
    for item in schedulers:
        check_scheduler(item)
    settings = LoadSettings(
        trace=None if trace is None else str(trace),
        length_scale=length_scale,
        max_input=max_input,
        max_output=max_output,
        input_tokens=Lengths.parse(input_len),
        output_tokens=Lengths.parse(output_len),
        seed=seed,
    )
    shape = LoadShape.of(settings, requests)
    args = EngineArgs(model=model, dtype=dtype, device=device, max_num_batched_tokens=max_num_batched_tokens)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    directory = new_directory(out) if out is not None else None
    cost, error, worker = calibrated(args, shape, max_num_seqs, steps, threads, seed, console)
    found: dict[str, dict[str, CapacityFound]] = {}
    for item in schedulers:
        start = first_rate(cost, shape)
        console.print(f"{item}: simulating", markup=False)
        found[item] = {"simulated": _simulate(item, shape, targets, cost, worker, start)}
        if measure:
            begin = found[item]["simulated"].rate or start / 8
            found[item]["measured"] = _measure(
                item, args, shape, targets, begin, max_num_seqs, threads, directory, console
            )
    if as_json:
        report = {
            "slo": asdict(targets),
            "load": {"requests": len(shape.asks), "longest": shape.longest, "natural_rate": shape.natural},
            "cost": asdict(cost) | {"median_error": error},
            "schedulers": {
                name: {how: asdict(item) | {"sentence": item.sentence} for how, item in both.items()}
                for name, both in found.items()
            },
        }
        typer.echo(json.dumps(report, indent=2))
        return
    _print(found, error, Console(highlight=False, soft_wrap=True))


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


def calibrated(
    args: Any, shape: "LoadShape", sequences: int, steps: int, threads: int | None, seed: int, console: Console
) -> "tuple[StepCost, float, WorkerSettings]":
    """The cost model of this machine, its error, and the sizes that the engine would have."""
    import torch

    from headstart.evaluation.simulate.calibrate import calibrate
    from headstart.evaluation.simulate.worker import WorkerSettings

    if threads is not None:
        torch.set_num_threads(threads)
    budget = args.step_tokens
    context = shape.longest + 2
    cost, error = calibrate(
        args,
        context=context,
        sequences=min(sequences, 16),
        largest=max(budget, max(ask.input_tokens for ask in shape.asks)),
        steps=steps,
        seed=seed,
        say=lambda text: console.print(text),
    )
    console.print(f"the fitted cost model is off by {error:.1%} on the median step that it has not seen")
    pages = sequences * -(-context // args.tokens_per_page)
    return cost, error, WorkerSettings(pages, args.tokens_per_page, sequences, budget)


def first_rate(cost: "StepCost", shape: "LoadShape") -> float:
    """The rate at which prompts alone would keep the machine busy, halved."""
    seconds = sum(cost.seconds([(ask.input_tokens, ask.input_tokens)]) for ask in shape.asks)
    return 0.5 * len(shape.asks) / seconds


def _simulate(
    use: str, shape: "LoadShape", targets: "Targets", cost: "StepCost", worker: "WorkerSettings", start: float
) -> "CapacityFound":
    from headstart.evaluation.capacity.probes import simulated
    from headstart.evaluation.capacity.search import search

    probe = simulated(shape, use, cost, worker)
    return search(probe, targets, start, most=shape.most_telling(targets.ttft), precision=1.02)


def _measure(
    use: str,
    args: Any,
    shape: "LoadShape",
    targets: "Targets",
    start: float,
    sequences: int,
    threads: int | None,
    directory: Path | None,
    console: Console,
) -> "CapacityFound":
    """The same search on a server, which is started for it."""
    from headstart.cli.bench_serve import Display
    from headstart.evaluation.capacity.probes import measured
    from headstart.evaluation.capacity.search import search
    from headstart.evaluation.load.served import ServedModel

    options = ["--use", use, "--max-num-seqs", str(sequences), "--dtype", str(args.dtype), "--device", args.device]
    options += ["--max-num-batched-tokens", str(args.max_num_batched_tokens)] if args.max_num_batched_tokens else []
    options += ["--model", args.model] if args.model else []
    folder = None if directory is None else directory / use.partition(":")[0]

    def heard(probe: "Probe", met: bool) -> None:
        verdict = "met" if met else "missed"
        console.print(
            f"{use} at {probe.rate:.3g}/s: p99 TTFT {probe.ttft:.3g} s, p99 TBT {1000 * probe.tbt:.3g} ms, {verdict}",
            markup=False,
        )

    with ServedModel(options, threads=threads) as served, Display(console) as display:
        probe = measured(shape, served.url, targets, display, folder)
        # A lower rate takes as much longer, and the simulation is not wrong by that much.
        limits = {"most": shape.most_telling(targets.ttft), "least": start / 8}
        return search(probe, targets, start, **limits, precision=1.1, heard=heard)


def _print(found: "dict[str, dict[str, CapacityFound]]", error: float, console: Console) -> None:
    table = Table(box=SIMPLE)
    for place, header in enumerate(("scheduler", "how", "requests/s", "p99 TTFT", "p99 TBT", "tokens/s")):
        table.add_column(header, justify="left" if place < 2 else "right", no_wrap=True)
    for name, both in found.items():
        for how, item in both.items():
            best = item.best
            cells = ["none", "", "", ""]
            if best is not None:
                cells = [
                    f"{best.rate:.3g}",
                    f"{best.ttft:.3g} s",
                    f"{1000 * best.tbt:.3g} ms",
                    f"{best.output_rate:,.0f}",
                ]
            table.add_row(name, how, *cells)
    console.print(table, soft_wrap=False)
    for name, both in found.items():
        for how, item in both.items():
            console.print(f"{name}, {how}: {item.sentence}", markup=False)
    console.print(f"simulated with a cost model that is off by {error:.1%} on the median measured step", style="dim")
