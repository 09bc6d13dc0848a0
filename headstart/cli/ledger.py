"""`headstart ledger`: what was measured, re-read from its files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from headstart.evaluation.ledger import LedgerEntry

app = typer.Typer(help="Look at the ledger: every measurement that a bench has kept.", no_args_is_help=True)

_DIRECTORY = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="Ledger directory. [default: benchmarks/ledger of the checkout]"),
]


@app.command()
def check(
    directory: _DIRECTORY = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Re-read every entry: its schema, its figures, and whether the code that it measured is still the same.

    A row is stale when a source file of its method has changed since. Files of another schema are refused, never
    rewritten, and make the command fail.
    """
    from headstart.evaluation import ledger

    entries, refused = ledger.scan(directory or ledger.default_directory())
    if as_json:
        typer.echo(json.dumps({"entries": list(map(_summary, entries)), "refused": list(map(str, refused))}, indent=2))
    else:
        _print(entries, Console())
    for error in refused[1:]:
        Console(stderr=True).print(f"headstart: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    if refused:
        raise refused[0]


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="Key of an entry, or of a method.")],
    directory: Annotated[
        Path | None, typer.Option("--ledger", help="Ledger directory. [default: benchmarks/ledger of the checkout]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
) -> None:
    """Show the entries of a key, or about a method, from all machines."""
    from headstart.cli.bench.show import print_entry
    from headstart.errors import did_you_mean
    from headstart.evaluation import ledger

    place = directory or ledger.default_directory()
    entries, _ = ledger.scan(place)
    chosen = [entry for entry in entries if key in (entry.key, entry.method)]
    if not chosen:
        known = sorted({entry.key for entry in entries})
        near = did_you_mean(key, known) or (f"; it has: {', '.join(known)}" if known else "; it is empty")
        raise ledger.LedgerError(f"the ledger {place} has no entry {key!r}{near}")
    if as_json:
        typer.echo(json.dumps([json.loads(entry.model_dump_json()) for entry in chosen], indent=2))
        return
    console = Console()
    for entry in chosen:
        about = f" of {escape(entry.model)}" if entry.model else ""
        console.print(
            f"[bold]{escape(entry.key)}[/]{about}, {entry.created:%Y-%m-%d}, {_state(entry)}", highlight=False
        )
        print_entry(entry, console, _headline(entry))
        console.print(f"measure again: {entry.command}", markup=False, highlight=False, soft_wrap=True)


def _headline(entry: "LedgerEntry") -> tuple[str, ...]:
    """The metrics that its method puts first, as long as the method has code."""
    from headstart.evaluation.method_bench_spec import bench_of
    from headstart.methods import registry

    if entry.method is None or entry.method not in {card.key for card in registry.catalogue(status="implemented")}:
        return ()
    return bench_of(registry.card(entry.method)).headline


def _state(entry: "LedgerEntry") -> str:
    """Whether the entry shows the present code, as far as that is known."""
    if not entry.sources:
        return "[dim]no method[/]"
    return "[yellow]stale[/]" if entry.stale else "[green]fresh[/]"


def _summary(entry: "LedgerEntry") -> dict[str, Any]:
    return {
        "key": entry.key,
        "kind": entry.kind,
        "method": entry.method,
        "model": entry.model,
        "machine": entry.machine.slug,
        "created": entry.created.isoformat(),
        "stale": bool(entry.stale),
        "changed": entry.stale,
        "command": entry.command,
    }


def _print(entries: "list[LedgerEntry]", console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("key", "kind", "machine", "date", "code"):
        table.add_column(title, no_wrap=title == "key")
    for entry in entries:
        cells = (entry.key, entry.kind, entry.machine.slug, f"{entry.created:%Y-%m-%d}")
        table.add_row(*map(escape, cells), _state(entry))
    console.print(table)
    for entry in entries:
        if entry.stale:
            changed = ", ".join(entry.stale)
            console.print(
                f"{entry.key} is stale, since {changed} changed: {entry.command}", markup=False, soft_wrap=True
            )
