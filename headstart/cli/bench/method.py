"""`headstart bench method`: what one method is worth on one model and this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headstart.cli.bench import options
from headstart.cli.bench.progress import (
    RichReporter,
    command_line,
    end_on_sigterm,
    fresh_directory,
    given,
    keep_results,
    leave,
    numbers,
    write_ledger,
)
from headstart.cli.bench.show import print_entry

if TYPE_CHECKING:
    from headstart.evaluation.method_bench import Outcome
    from headstart.evaluation.plots import Picture


def method(
    key: Annotated[
        str, typer.Argument(metavar="METHOD", help="KEY or KEY:OPTION=VALUE; `headstart methods` lists them.")
    ],
    model: options.Model = None,
    shape: options.Shape = None,
    lengths: Annotated[
        str | None, typer.Option(help="Prompt lengths, parted by commas. [default: what suits the method]")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds, or seeds of training. [default: 5 or 3]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, arrivals and examples. [default: 0]")] = None,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Trace whose arrivals and lengths a scheduler is measured with, as `bench serve`."),
    ] = None,
    data: options.Data = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few small measurements, nothing kept: to see that it works.")
    ] = False,
    ledger: options.CheckoutLedger = None,
    ledger_key: Annotated[
        str | None, typer.Option("--key", help="Name of the ledger entry. [default: the method's key]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New directory for report and pictures. [default: bench-METHOD-DATE-TIME]")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a method beside its baseline: cost and quality in one run.

    Schedulers are measured under load, over HTTP; what changes attention, prefill or the cache over prompt lengths,
    with the length from which it pays; training methods on a rig with paired seeds. Medians stand with their spread,
    and a difference that noise may explain is called none.

        headstart bench method sarathi-serve
        headstart bench method sarathi-serve:chunk=256 --model DIR --repeats 9
        headstart bench method fastgen --trace AzureLLMInferenceTrace_conv.csv.xz
    """
    import time

    from headstart.evaluation import ledger as ledgers
    from headstart.evaluation.method_bench import MethodBenchSettings, run_method_bench

    settings = MethodBenchSettings(
        use=key,
        lengths=numbers(lengths, "lengths"),
        quick=quick,
        **given(
            model=model,
            shape=shape,
            repeats=repeats,
            seed=seed,
            threads=threads,
            dtype=dtype,
            device=device,
            trace=trace,
            data=data,
        ),
    )
    notes = Console(stderr=True)
    end_on_sigterm()
    if out is None and not quick:
        out = Path(time.strftime(f"bench-{key.partition(':')[0].strip()}-%Y%m%d-%H%M%S"))
    with fresh_directory(out) as directory:
        with RichReporter(notes) as reporter:
            outcome = run_method_bench(settings, reporter, command=command_line(), key=ledger_key, out=directory)
        entry = outcome.entry
        if ledger or not quick:
            write_ledger(entry, ledger or ledgers.default_directory(), notes)
        print_entry(entry, Console(), outcome.spec.headline, as_json=as_json)
        if directory is not None:
            keep_results(
                entry,
                directory,
                lambda place: _draw(outcome, place),
                notes,
                title=f"{outcome.card.key} on {entry.model or 'the training rig'}",
                headline=outcome.spec.headline,
                claim=outcome.card.claim,
            )
    leave(entry)


def _draw(outcome: "Outcome", out: Path) -> "list[Picture]":
    """The pictures that the measurements allow."""
    from headstart.evaluation.plots import check_pictures, draw_lengths, draw_loads, draw_quality, draw_steps

    check_pictures()
    entry = outcome.entry
    found: list[Picture | None] = [draw_loads(outcome.loads, out / "load")] if outcome.loads else []
    if entry.timelines:
        found.append(draw_steps(entry.timelines, out / "steps"))
    for metric, name in (("TTFT", "ttft"), ("decode", "decode"), ("KV cache", "kv-cache")):
        found.append(draw_lengths(entry.rows, metric, entry.crossovers, out / name))
    baseline, side = outcome.sides
    found.append(draw_quality(entry.rows, side, baseline, out / "quality"))
    return [picture for picture in found if picture is not None]
