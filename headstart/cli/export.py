"""`headstart export`: a checkpoint of a run as a Hugging Face directory."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from headstart.errors import HeadstartError


def export(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or of one of its checkpoints.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory to write.", show_default=False)],
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the written weights.")
    ] = "bfloat16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a directory that is there.")] = False,
) -> None:
    """Write a run's newest checkpoint as a directory that this program, Transformers and others load.

    The run may be stopped or still going on, and may have had any number of processes.

        headstart export runs/small small-model
        headstart export runs/small/checkpoints/step-00000500 halfway --dtype float32
    """
    import torch

    from headstart.training.export import export_run

    if out.exists() and not overwrite:
        raise HeadstartError(f"{out} is there already; choose another directory or pass --overwrite")
    step = export_run(run, out, getattr(torch, dtype))
    Console(stderr=True).print(f"wrote step {step:,} to {out}", highlight=False, markup=False, soft_wrap=True)
