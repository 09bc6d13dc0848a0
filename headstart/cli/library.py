"""`headstart library`: documents that are read before anybody asks about them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headstart.cli.options import EngineOptions, with_options

app = typer.Typer(help="Documents that are read once, for servers that reuse them in any order.", no_args_is_help=True)
_Directory = Annotated[Path, typer.Option("--dir", help="The library: also the disk tier that servers name.")]
_DEFAULT = Path("headstart-library")


@app.command()
@with_options
def add(
    engine: EngineOptions,
    documents: Annotated[list[Path], typer.Argument(help="Text files, or directories of them.", show_default=False)],
    directory: _Directory = _DEFAULT,
    limit: Annotated[str, typer.Option(help="Most that the disk tier takes.")] = "10GB",
    longest: Annotated[int, typer.Option(min=1, help="Tokens of a chunk.")] = 512,
    before: Annotated[
        str, typer.Option(help="What stands before the documents in every prompt, for methods such as ape.")
    ] = "",
    cache_salt: Annotated[str | None, typer.Option(help="Requests find them under the same salt alone.")] = None,
) -> None:
    """Read documents, and write down their keys.

    The model, its dtype and the method must be those of the server, which finds the chunks with
    `--kv-tier disk=DIR:10GB`, after a restart.

        headstart library add manuals/ --dir ~/kv
        headstart serve --use cacheblend --kv-tier disk=~/kv:10GB
    """
    from headstart.library import Library, read_documents

    texts = read_documents(documents)
    library = Library(directory)
    engine.use = engine.use or ["cacheblend"]
    engine.kv_tier = f"disk={directory}:{limit}"
    console = Console(stderr=True)
    llm = engine.load()
    with console.status("reading …") as status:
        made = library.add(
            llm,
            texts,
            longest=longest,
            before=before,
            cache_salt=cache_salt,
            said=lambda name: status.update(f"reading {name} …"),
        )
    chunks, tokens = sum(len(each.chunks) for each in made), sum(each.tokens for each in made)
    told = f"{len(made)} documents, {chunks} chunks, {tokens:,} tokens in {directory}"
    Console(highlight=False, soft_wrap=True).print(told, markup=False)


@app.command("list")
def show_all(
    directory: _Directory = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, the texts of all chunks included.")] = False,
) -> None:
    """Show what is in a library, and how much of it is still on disk."""
    from rich.markup import escape
    from rich.table import Table

    from headstart.library import Library

    library = Library(directory)
    if as_json:
        told = [vars(each) | {"pages": library.on_disk(each)[0]} for each in library.documents.values()]
        print(json.dumps(told))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("document", "chunks", "tokens", "pages", "MB", "model", "method"):
        table.add_column(title, justify="left" if title in ("document", "model", "method") else "right")
    for each in library.documents.values():
        pages, size = library.on_disk(each)
        numbers = (f"{len(each.chunks)}", f"{each.tokens:,}", f"{pages} of {len(each.files)}", f"{size / 1e6:.1f}")
        table.add_row(escape(each.name), *numbers, escape(each.model), escape(each.use.partition(":")[0]))
    Console().print(table if library.documents else f"there are no documents in {directory}")


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="Documents, as `list` names them.", show_default=False)],
    directory: _Directory = _DEFAULT,
) -> None:
    """Forget documents, and delete what was written of them."""
    from headstart.library import Library

    library = Library(directory)
    for name in names:
        library.remove(name)
        Console(highlight=False, soft_wrap=True).print(f"removed {name}", markup=False)
