"""`headstart bench placement`: whether taking prefill and decode apart pays, by simulation."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

_LOAD = "Load"


def placement(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint. [default: the built-in model]", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="So many engines, each on its own device or cores.")] = 2,
    slo: Annotated[str, typer.Option(help="What nine of ten requests must meet, such as ttft=2,tpot=100ms.")] = (
        "ttft=2,tpot=200ms"
    ),
    use: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler of replicas; may be repeated. [default: prefill-first, sarathi-serve]"),
    ] = None,
    link: Annotated[str, typer.Option(help="Bytes per second between engines, as 5GB.")] = "5GB",
    latency_ms: Annotated[float, typer.Option(min=0, help="Before the first of them arrives.")] = 1.0,
    trace: Annotated[Path | None, typer.Option(help="Trace to replay.", rich_help_panel=_LOAD)] = None,
    requests: Annotated[int, typer.Option(min=1, help="So many of it.", rich_help_panel=_LOAD)] = 200,
    length_scale: Annotated[float, typer.Option(help="Multiply its lengths by it.", rich_help_panel=_LOAD)] = 1.0,
    max_input: Annotated[int | None, typer.Option(help="Cut longer prompts to it.", rich_help_panel=_LOAD)] = None,
    max_output: Annotated[int | None, typer.Option(help="Cut longer answers to it.", rich_help_panel=_LOAD)] = None,
    input_len: Annotated[str, typer.Option(help="Prompt tokens without a trace.", rich_help_panel=_LOAD)] = "64..512",
    output_len: Annotated[str, typer.Option(help="Answer tokens without a trace.", rich_help_panel=_LOAD)] = "16..64",
    seed: Annotated[int, typer.Option(help="Of the load.", rich_help_panel=_LOAD)] = 0,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Most sequences at once in an engine.")] = 32,
    steps: Annotated[int, typer.Option(min=40, help="Steps to measure for the cost model.")] = 240,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch in each engine.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Say whether prefill and decode should run apart, and how many engines each should have.

    One engine is measured here; replicas behind a router, and every split into prefill and decode, are then simulated
    with its cost model and the given link. Goodput is the highest rate at which nine of ten requests meet both bounds.

        headstart bench placement --workers 2 --slo ttft=1,tpot=60ms
        headstart bench placement DIR --workers 4 --link 50GB --trace AzureLLMInferenceTrace_conv.csv.xz
    """
    from headstart.cli.bench.capacity import calibrated, check_scheduler, first_rate
    from headstart.engine.args import EngineArgs
    from headstart.engine.tiers import read_size
    from headstart.evaluation.capacity.loads import LoadShape
    from headstart.evaluation.capacity.search import CapacityError
    from headstart.evaluation.load.settings import Lengths, LoadSettings, Slo
    from headstart.evaluation.plan.costs import ModelCosts, read_config
    from headstart.evaluation.simulate.placement import Cluster, choose, placements, verdict
    from headstart.evaluation.simulate.run import Link

    bounds = Slo.parse(slo)
    if bounds.ttft is None or bounds.tpot is None or len(bounds.bounds) > 2:
        raise CapacityError(f"goodput needs bounds for ttft and tpot, as ttft=2,tpot=100ms, not {slo!r}")
    schedulers = use or ["prefill-first", "sarathi-serve"]
    for item in schedulers:
        check_scheduler(item)
    options = placements(workers, schedulers)
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
    costs = ModelCosts.of(*read_config(model), dtype)
    between = Link(float(read_size(link)), latency_ms / 1000, costs.kv_token_bytes)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    args = EngineArgs(model=model, dtype=dtype, device=device)
    cost, error, worker = calibrated(args, shape, max_num_seqs, steps, threads, seed, console)
    found = choose(
        Cluster(cost, worker, between),
        options,
        shape,
        bounds.ttft,
        bounds.tpot,
        first_rate(cost, shape) * workers,
        lambda item: console.print(f"{item.placement}: {item.rate:.3g} requests per second", markup=False),
    )
    if as_json:
        report = [asdict(item) | {"name": str(item.placement), "per_worker": item.per_worker} for item in found]
        typer.echo(json.dumps({"placements": report, "verdict": verdict(found), "median_error": error}, indent=2))
        return
    table = Table(box=SIMPLE)
    for place, header in enumerate(("placement", "requests/s", "per worker", "within both", "keys on the link")):
        table.add_column(header, justify="left" if place == 0 else "right", no_wrap=True)
    for item in found:
        cells = [f"{item.rate:.3g}", f"{item.per_worker:.3g}", f"{item.attainment:.0%}", f"{item.transfer:.1%}"]
        table.add_row(str(item.placement), *cells)
    out = Console(highlight=False, soft_wrap=True)
    out.print(table, soft_wrap=False)
    out.print(verdict(found), markup=False)
