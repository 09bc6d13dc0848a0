"""`headstart bench`: measure, print, and write to the ledger."""

import math
import shlex
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from headstart.evaluation.ledger import LedgerEntry, Ratio, Row

app = typer.Typer(help="Measure this engine on this machine, beside others, and keep the result in the ledger.")


@app.callback()
def _group() -> None:
    """Keep `engine` a subcommand while it is the only one."""


@app.command()
def engine(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shape, short lengths, nothing kept: a minute to see that it works.")
    ] = False,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count, after a warm-up. [default: 3]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of every side. [default: all cores]")] = None,
    shape: Annotated[str | None, typer.Option(help="Sizes of the random Llama: qwen2.5-0.5b or tiny.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32. [default: bfloat16]")] = None,
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Prompt length to prefill; may be repeated. [default: 2048, 8192]"),
    ] = None,
    decode_context: Annotated[int | None, typer.Option(help="Prompt length before the decode. [default: 2048]")] = None,
    decode_tokens: Annotated[int | None, typer.Option(help="Tokens decoded. [default: 32]")] = None,
    requests: Annotated[int | None, typer.Option(help="Concurrent requests. [default: 32]")] = None,
    request_in: Annotated[int | None, typer.Option(help="Prompt length of each. [default: 128]")] = None,
    request_out: Annotated[int | None, typer.Option(help="Output length of each. [default: 64]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and prompts. [default: 0]")] = None,
    side: Annotated[
        list[str] | None,
        typer.Option(help="headstart, transformers or llama.cpp; may be repeated. [default: all installed]"),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(help="Method for this engine, as `headstart serve --use`; may be repeated."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Token budget of a step of this engine. [default: the engine's]")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger directory. [default: benchmarks/ledger of the checkout]")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the ledger entry. [default: engine, or engine-quick]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger entry to stdout.")] = False,
) -> None:
    """Prefill, decode and concurrent requests beside Transformers and llama.cpp, in one run.

    Every side loads the same random Llama of Qwen2.5-0.5B's shape in a process of its own; the sides take
    turns. The report gives medians with their spread, the ratios, and the part of this machine's measured
    matmul peak and copy bandwidth that was reached. Leave the machine alone meanwhile.
    """
    from headstart.evaluation import ledger as ledgers
    from headstart.evaluation.engine_bench import run_engine_bench
    from headstart.evaluation.engine_plan import EngineBenchSettings
    from headstart.evaluation.machine import usable_cores

    given = {
        "repeats": repeats,
        "shape": shape,
        "dtype": dtype,
        "prefill": tuple(prefill) if prefill else None,
        "decode_context": decode_context,
        "decode_tokens": decode_tokens,
        "requests": requests,
        "request_in": request_in,
        "request_out": request_out,
        "seed": seed,
        "sides": tuple(side) if side else None,
        "engine_options": _given({"use": use, "max_num_batched_tokens": max_num_batched_tokens}),
    }
    make = EngineBenchSettings.quick if quick else EngineBenchSettings
    settings = make(threads=threads or usable_cores(), **_given(given))
    key = key or ("engine-quick" if quick else "engine")
    command = shlex.join(["headstart", *sys.argv[1:]])
    # A terminated run must not leave gigabytes of weights behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _RichReporter(Console(stderr=True)) as reporter:
        entry = run_engine_bench(settings, reporter, command=command, key=key, quick=quick)
    if as_json:
        typer.echo(entry.model_dump_json(indent=2))
    else:
        _print_entry(entry, Console())
    if ledger or not quick:
        path = ledgers.write(entry, ledger or ledgers.default_directory())
        Console(stderr=True).print(f"written to {path}", soft_wrap=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


class _RichReporter:
    """Shows lines and a bar on a console."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            # The benchmark shares the cores with this display.
            refresh_per_second=1,
        )
        self._bar = self._progress.add_task("preparing", total=None)
        self._begun = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, highlight=False)

    def begin(self, total: int) -> None:
        """Size the bar."""
        self._progress.update(self._bar, total=total, completed=0)

    def step(self, description: str) -> None:
        """Name the step that begins; the one before it is done."""
        self._progress.update(self._bar, description=description, advance=1 if self._begun else 0)
        self._begun = True

    def done(self) -> None:
        """The last step is done."""
        self._progress.update(self._bar, description="measured", advance=1)


def _print_entry(entry: "LedgerEntry", console: Console) -> None:
    """The machine, a table for each quantity, and the notes."""
    machine, peaks = entry.machine, entry.peaks
    console.print(f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.os}")
    if peaks:
        products = ", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in peaks.matmul.items())
        console.print(
            f"measured peaks with {peaks.threads} threads: matmul {products}; copy "
            f"{peaks.copy_bandwidth / 1e9:.1f} GB/s, read {peaks.read_bandwidth / 1e9:.1f} GB/s"
        )
    for name in dict.fromkeys(row.name for row in entry.rows):
        rows = [row for row in entry.rows if row.name == name]
        console.print(_table(rows, [ratio for ratio in entry.ratios if ratio.name == name]))
    for note in entry.notes:
        console.print(f"- {note}", highlight=False)


def _table(rows: "list[Row]", ratios: "list[Ratio]") -> Table:
    """All sides of one quantity: how many times better headstart is, and what the machine's peaks would allow."""
    title = f"{rows[0].name} ({'share' if rows[0].unit == 'fraction' else rows[0].unit})"
    for ratio in ratios:
        if ratio.target is not None:
            title += f", target {ratio.target:g}x of {ratio.against}: {'met' if ratio.met else 'missed'}"
    table = Table(title=title, title_justify="left", box=SIMPLE, min_width=60)
    table.add_column("side")
    for column in ("median", "min..max", *(("headstart is",) if ratios else ())):
        table.add_column(column, justify="right", no_wrap=True)
    bounded = any("floor" in row.details for row in rows)
    weighed = any("peak_rss_bytes" in row.details for row in rows)
    for column in (("at peak", "reached") if bounded else ()) + (("memory",) if weighed else ()):
        table.add_column(column, justify="right", no_wrap=True)
    by_side = {ratio.against: ratio for ratio in ratios}
    for row in rows:
        cells = [row.side, _figure(row.median), f"{_figure(row.spread[0])}..{_figure(row.spread[1])}"]
        if ratios:
            ratio = by_side.get(row.side)
            cells.append(f"{ratio.value:.2f}x ({ratio.spread[0]:.2f}..{ratio.spread[1]:.2f})" if ratio else "")
        if bounded:
            reached = next((value for key, value in row.details.items() if key.startswith("fraction_of_")), 0.0)
            cells += [_figure(row.details["floor"]), f"{reached:.0%}"]
        if weighed:
            cells.append(f"{row.details['peak_rss_bytes'] / 2**30:.2f} GiB")
        table.add_row(*cells)
    return table


def _figure(value: float) -> str:
    """Three digits that count, never in powers of ten."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
