"""The options that the bench commands share, each said once."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Checkpoint directory or hub id. [default: the built-in model]"),
]
Shape = Annotated[
    str | None,
    typer.Option(help="Random weights instead of a model: qwen2.5-0.5b, llama-3.1-8b or tiny.", show_default=False),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of every side. [default: what suits the model]")]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: the checkpoint's]")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: an accelerator if there is one]")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="HEADSTART_DATA", help="Directory with texts and evaluation sets.", show_default=False),
]
Ledger = Annotated[Path | None, typer.Option(help="Keep the entry in this ledger directory.")]
CheckoutLedger = Annotated[
    Path | None, typer.Option(help="Ledger directory. [default: benchmarks/ledger of the checkout]")
]
EntryName = Annotated[str, typer.Option(help="Name of the ledger entry.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the ledger entry to stdout.")]
