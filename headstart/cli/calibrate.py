"""`headstart calibrate`: the file that a method needs for a model, made by reading a text once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer


def calibrate(
    method: Annotated[str, typer.Argument(help="As --use takes it: KEY, or KEY:OPTION=VALUE.", show_default=False)],
    model: Annotated[str, typer.Argument(help="Checkpoint directory, hub id, or default.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    text: Annotated[
        Path | None, typer.Option(help="Text to read. [default: a generated JSON object in which to look up a key]")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of it. [default: as many as there are, of a generated one 4,096]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. [default: a GPU if there is one]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Fit a method to a model: patterns or classes of heads, found once and kept in a file.

    headstart calibrate minference MODEL patterns.json
    headstart calibrate minference MODEL patterns.json --text book.txt --length 32768
    headstart serve MODEL --use minference:pattern=patterns.json
    """
    import torch

    from headstart.checkpoints.reader import load_checkpoint
    from headstart.engine.args import EngineArgs
    from headstart.methods import registry

    if out.exists() and not overwrite:
        raise HeadstartError(f"{out} is there already; choose another file or pass --overwrite")
    built: Any = registry.build(method, "inference")
    if not hasattr(built, "calibrate"):
        raise HeadstartError(f"{built.card.key} needs no calibration: give it to --use as it is")
    name = None if model == "default" else model
    checkpoint = load_checkpoint(name, dtype, EngineArgs(device=device or "auto").device)
    assert checkpoint.tokenizer is not None
    with torch.inference_mode():
        content = built.calibrate(checkpoint, _tokens(checkpoint.tokenizer, text, length))
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(out)
    Console(stderr=True).print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _tokens(tokenizer: "Tokenizer", path: Path | None, length: int | None) -> list[int]:
    """The first tokens of a text, or of a generated one.

    Raises:
        HeadstartError: the text cannot be read, or has fewer tokens than are asked for.
    """
    if path is None:
        from headstart.evaluation.tasks.retrieval import KeyValueRetrieval

        length = 4096 if length is None else length
        (example,) = KeyValueRetrieval().examples(tokenizer, length, 1, seed=0)
        return tokenizer.encode(example.text)
    try:
        tokens = tokenizer.encode(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise HeadstartError(f"the calibration text {path} cannot be read: {error}") from None
    if length is not None and len(tokens) < length:
        raise HeadstartError(f"the calibration text {path} has {len(tokens)} tokens, fewer than the {length} asked for")
    return tokens[:length]
