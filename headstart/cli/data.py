"""`headstart data`: prepare token shards for training, and show what they hold."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(help="Prepare the data that `headstart train` reads, and show what it holds.", no_args_is_help=True)


@app.command()
def prepare(
    settings: Annotated[Path, typer.Argument(help="YAML file: sources, tokenizer, held-out split.")],
    out: Annotated[Path, typer.Option(help="Directory for the tokenizer and the token shards.")],
    root: Annotated[
        Path | None, typer.Option(help="What the paths of sources are relative to. [default: the settings' directory]")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="For sources that code makes. [default: one for each core]")
    ] = None,
) -> None:
    """Read, clean, split, leave out duplicates, tokenise and write every source of a YAML file.

    What is there already and was made with the same settings is left as it is, so a run that was stopped goes on
    with the source it was at.

    headstart data prepare data.yaml --root ~/texts --out prepared
    """
    from headstart.training.data.prepare import Preparation
    from headstart.training.data.settings import read_settings

    wanted = read_settings(settings)
    base = settings.resolve().parent
    with _progress() as shown:
        preparation = Preparation(wanted, base, (root or base).resolve(), out, _Tasks(shown), processes)
        reports = preparation.run()
    _print_table(reports, Console())


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="What `headstart data prepare` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every checksum.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show documents, tokens, bytes and what was left out, for every source."""
    from headstart.training.data.prepare import read_reports, shard_parts
    from headstart.training.data.shards import ShardSource

    reports = read_reports(directory)
    for name, report in reports.items():
        for part in shard_parts(report):
            source = ShardSource(directory / name / part)
            if verify:
                source.verify()
    if as_json:
        print(json.dumps(reports))
    else:
        _print_table(reports, Console())


def _progress() -> "Progress":
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[documents]:,} documents, {task.fields[megabytes]:,.1f} million characters"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


class _Tasks:
    """Shows one line for each task."""

    def __init__(self, shown: "Progress") -> None:
        self._shown = shown
        self._task: Any = None
        self._documents = self._characters = 0

    def start(self, task: str) -> None:
        if self._task is not None:
            self._shown.update(self._task, total=1, completed=1)
        self._documents = self._characters = 0
        self._task = self._shown.add_task(task, total=None, documents=0, megabytes=0.0)

    def advance(self, documents: int, characters: int) -> None:
        self._documents += documents
        self._characters += characters
        self._shown.update(self._task, documents=self._documents, megabytes=self._characters / 1e6)


def _print_table(reports: dict[str, dict[str, Any]], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("source", "part", "documents", "tokens", "bytes", "tokens/byte"):
        table.add_column(title, justify="left" if title in ("source", "part") else "right", no_wrap=True)
    for name, report in reports.items():
        for part, title in (("train", "train"), ("held_out", "held out")):
            if part in report:
                counts = report[part]
                rate = f"{counts['tokens'] / counts['text_bytes']:.3f}" if counts["text_bytes"] else ""
                numbers = [f"{counts[key]:,}" for key in ("documents", "tokens", "text_bytes")]
                table.add_row(escape(name) if part == "train" else "", title, *numbers, rate)
    console.print(table)
    for name, report in reports.items():
        if report["dropped"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
            console.print(f"left out of {name}: {reasons}", style="dim", markup=False, highlight=False)
