"""`headstart bench quality`: what stacks of methods do to answers, beside the plain engine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headstart.cli.bench import options
from headstart.cli.bench.progress import (
    RichReporter,
    command_line,
    end_on_sigterm,
    fresh_directory,
    keep_results,
    leave,
    numbers,
    write_ledger,
)
from headstart.cli.bench.show import print_entry

_TASKS = "niah_depth,kv_retrieval,multi_turn,bits_per_byte"


def quality(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="A B ...", help="Methods as --use takes them, several in quotes; exact comes first."),
    ] = None,
    model: options.Model = None,
    shape: options.Shape = None,
    task: Annotated[
        str | None, typer.Option(help=f"Tasks or groups, parted by commas, or none. [default: {_TASKS}]")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of prompt and answer, parted by commas. [default: 512,1024]")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples for each task and length.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of all examples.")] = 0,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    data: options.Data = None,
    quick: Annotated[bool, typer.Option("--quick", help="One task at 256 tokens, one example.")] = False,
    ledger: options.Ledger = None,
    key: options.EntryName = "quality",
    out: Annotated[Path | None, typer.Option(help="New directory for a report. [default: none]")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Scores of generated tasks, and how far next-token distributions move from the exact stack's.

    `headstart eval` looks at one stack closely; this puts several beside the plain engine. With --shape, only the
    distance from exact is measured.

        headstart bench quality
        headstart bench quality minference "hip lserve" --model DIR --lengths 4096,16384 --count 10
    """
    from headstart.evaluation.compare import EXACT, Choice, contenders, run_quality
    from headstart.evaluation.compare_quality import QualityAsk

    parties = contenders([EXACT, *(name for name in names or () if name.strip() != EXACT)], least=1)
    chosen = "" if task == "none" or (task is None and shape is not None) else task or _TASKS
    tasks = tuple(name.strip() for name in chosen.split(",") if name.strip())
    if quick:
        ask = QualityAsk(tasks[:1], (256,), 1, seed, data)
    else:
        ask = QualityAsk(tasks, numbers(lengths, "lengths") or QualityAsk.lengths, count, seed, data)
    notes = Console(stderr=True)
    end_on_sigterm()
    choice = Choice(model, shape, dtype, device, seed)
    with fresh_directory(out) as directory:
        with RichReporter(notes) as reporter:
            entry = run_quality(parties, choice, ask, reporter, command=command_line(), key=key, threads=threads)
        if ledger is not None:
            write_ledger(entry, ledger, notes)
        print_entry(entry, Console(), as_json=as_json)
        if directory is not None:
            keep_results(entry, directory, lambda place: [], notes, title=f"Quality on {entry.model}")
    leave(entry)
