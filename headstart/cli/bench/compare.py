"""`headstart bench compare`: stacks of methods and peers side by side."""

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
    from headstart.evaluation.ledger import LedgerEntry
    from headstart.evaluation.plots import Picture

_QUICK = {"lengths": (64, 128, 256), "decode_tokens": 8, "repeats": 2, "together": (4, 32, 8)}


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Each: exact, methods as --use takes them (several in quotes), transformers or llama.cpp.",
        ),
    ],
    model: options.Model = None,
    shape: options.Shape = None,
    lengths: Annotated[
        str | None, typer.Option(help="Prompt lengths, parted by commas. [default: from 256 up, as time allows]")
    ] = None,
    decode_tokens: Annotated[int | None, typer.Option(help="Tokens decoded after each prompt. [default: 32]")] = None,
    requests: Annotated[int, typer.Option(min=0, help="Also answer so many requests at once; 0 for none.")] = 16,
    request_in: Annotated[int, typer.Option(min=1, help="Prompt length of each.")] = 128,
    request_out: Annotated[int, typer.Option(min=1, help="Output length of each.")] = 32,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count. [default: 5]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and random weights. [default: 0]")] = None,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    gguf: Annotated[
        Path | None, typer.Option(help="The model for llama.cpp. [default: written from the checkpoint]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short lengths, two rounds: to see that it works.")] = False,
    ledger: options.Ledger = None,
    key: options.EntryName = "compare",
    out: Annotated[Path | None, typer.Option(help="New directory for report and pictures. [default: none]")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time to first token, decode speed and memory over prompt lengths, everybody in turns.

    The first is what the others are compared with. The same name twice shows what noise alone does.

        headstart bench compare exact transformers llama.cpp
        headstart bench compare exact "sarathi-serve:chunk=512" --model DIR --lengths 1024,4096 --out result
    """
    from headstart.evaluation.compare import Choice, contenders, run_compare
    from headstart.evaluation.compare_lengths import LengthsSettings

    parties = contenders(names)
    asked = given(
        lengths=numbers(lengths, "lengths"),
        decode_tokens=decode_tokens,
        repeats=repeats,
        together=(requests, request_in, request_out) if requests else None,
        seed=seed,
        threads=threads,
        gguf=gguf,
    )
    if quick:
        asked = {**asked, **_QUICK, **given(lengths=numbers(lengths, "lengths"), repeats=repeats)}
    settings = LengthsSettings(**asked)
    choice = Choice(model, shape, dtype, device, seed or 0)
    notes = Console(stderr=True)
    end_on_sigterm()
    with fresh_directory(out) as directory:
        with RichReporter(notes) as reporter:
            entry = run_compare(
                parties,
                choice,
                settings,
                reporter,
                command=command_line(),
                key=key,
                effort="quick" if quick else "short",
            )
        if ledger is not None:
            write_ledger(entry, ledger, notes)
        print_entry(entry, Console(), as_json=as_json)
        if directory is not None:
            title = f"{', '.join(party.label for party in parties)} on {entry.model}"
            keep_results(entry, directory, lambda place: _draw(entry, place), notes, title=title)
    leave(entry)


def _draw(entry: "LedgerEntry", out: Path) -> "list[Picture]":
    """Cost over length."""
    from headstart.evaluation.plots import check_pictures, draw_lengths

    check_pictures()
    metrics = (("TTFT", "ttft"), ("decode", "decode"), ("KV cache", "kv-cache"))
    found = [draw_lengths(entry.rows, metric, entry.crossovers, out / name) for metric, name in metrics]
    return [picture for picture in found if picture is not None]
