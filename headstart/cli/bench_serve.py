"""`headstart bench serve`: put a load on a server and show what every request got."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headstart.cli.options import EngineOptions, given, with_options
from headstart.cli.report import seconds
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.evaluation.load.capacity import Capacity
    from headstart.evaluation.load.figures import Distribution
    from headstart.evaluation.load.result import LoadResult
    from headstart.evaluation.load.settings import LoadSettings

_LOAD, _TRACE, _SERVER, _RESULT = "Load", "Trace", "Server", "Result"


def _option(panel: str, *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **kwargs)


@with_options
def serve(
    engine: EngineOptions,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, _option(_SERVER, help="A running server. [default: one is started for the time of the load]")
    ] = None,
    api_key: Annotated[
        str | None,
        _option(_SERVER, envvar="HEADSTART_API_KEY", help="Key of the server at --url.", show_default=False),
    ] = None,
    served_model: Annotated[
        str | None, _option(_SERVER, help="Name of the model at --url. [default: its first]")
    ] = None,
    rate: Annotated[
        float | None,
        _option(_LOAD, help="Requests per second. [default: one comes when the last, alone, would be done]"),
    ] = None,
    cv: Annotated[
        float,
        _option(_LOAD, help="Spread of the times between arrivals: 1 is Poisson, 0 a constant pace, more is bursty."),
    ] = 1.0,
    users: Annotated[int | None, _option(_LOAD, help="Instead of a rate: so many, each asks when answered.")] = None,
    input_len: Annotated[str, _option(_LOAD, help="Prompt tokens, as 256 or 64..512.")] = "256",
    output_len: Annotated[str, _option(_LOAD, help="Output tokens, as 64 or 16..128.")] = "64",
    num_requests: Annotated[
        int | None, _option(_LOAD, help="How many. [default: 100, or what the duration holds]")
    ] = None,
    duration: Annotated[
        float | None, _option(_LOAD, help="Seconds of arrivals. [default: at most 120, of a trace 60]")
    ] = None,
    probe: Annotated[
        bool, _option(_LOAD, "--probe", help="Hold one long decode meanwhile, and show how it is stalled.")
    ] = False,
    text: Annotated[bool, _option(_LOAD, "--text", help="Send prompts as text, not as token ids.")] = False,
    vocab: Annotated[int | None, _option(_LOAD, help="Vocabulary size, if the server has no /tokenize.")] = None,
    warmup: Annotated[int, _option(_LOAD, help="Requests that run first and do not count.")] = 2,
    seed: Annotated[int, _option(_LOAD, help="Of arrivals, lengths and prompts.")] = 0,
    timeout: Annotated[float, _option(_LOAD, help="Seconds until a request is given up.")] = 300.0,
    trace: Annotated[
        Path | None,
        _option(_TRACE, help="Azure LLM inference CSV, BurstGPT CSV or Mooncake JSONL to replay, also .gz or .xz."),
    ] = None,
    fast_forward: Annotated[float, _option(_TRACE, help="Divide the trace's times by it.")] = 1.0,
    length_scale: Annotated[float, _option(_TRACE, help="Multiply the trace's lengths by it.")] = 1.0,
    max_input: Annotated[int | None, _option(_TRACE, help="Cut longer prompts of a trace to it.")] = None,
    max_output: Annotated[int | None, _option(_TRACE, help="Cut longer outputs of a trace to it.")] = None,
    slo: Annotated[
        list[str] | None,
        _option(_RESULT, help="Objective, such as ttft=0.5,itl=100ms (also tpot, e2e); may be repeated."),
    ] = None,
    capacity: Annotated[
        bool, _option(_RESULT, "--capacity", help="Search for the highest rate at which 90% meet the first --slo.")
    ] = False,
    out: Annotated[
        Path | None, _option(_RESULT, help="New directory for the result. [default: bench-serve-DATE-TIME]")
    ] = None,
    as_json: Annotated[bool, _option(_RESULT, "--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Put a load on a server and measure what every request gets, over HTTP like any client.

    The server is this project's, started for the load with the given model and methods, or any that speaks OpenAI's
    API. Arrival times are kept however slow the server is, and latencies count from them. Time to first token, time
    per token, gaps between tokens, throughput and goodput; every request is kept as a line of JSON.

        headstart bench serve --probe
        headstart bench serve DIR --use prefill-first --rate 4 --input-len 64..1024 --slo ttft=1,itl=100ms
        headstart bench serve --url http://127.0.0.1:8000 --trace conversation_trace.jsonl --fast-forward 10
    """
    from headstart.evaluation.load.capacity import check_searchable
    from headstart.evaluation.load.plan import extent
    from headstart.evaluation.load.settings import Lengths, LoadSettings, Slo

    settings = LoadSettings(
        rate=rate,
        cv=cv,
        users=users,
        trace=None if trace is None else str(trace),
        fast_forward=fast_forward,
        length_scale=length_scale,
        max_input=max_input,
        max_output=max_output,
        input_tokens=Lengths.parse(input_len),
        output_tokens=Lengths.parse(output_len),
        num_requests=num_requests,
        duration=duration,
        slos=tuple(Slo.parse(item) for item in slo or ()),
        probe=probe,
        warmup=warmup,
        seed=seed,
        text=text,
        vocab=vocab,
        model=served_model,
        request_timeout=timeout,
    )
    # What cannot work is said before a model loads.
    extent(settings)
    if capacity:
        check_searchable(settings)
    options = _server_options(engine, checkpoint, url)
    directory = new_directory(out)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _server(options, url, engine.model is None and checkpoint is None, console) as address:
        key = api_key if url is not None else None
        if capacity:
            _search(settings, address, key, directory, console, as_json)
        else:
            _load(settings, address, key, directory, ", ".join(engine.use or []), console, as_json)


def _server_options(engine: EngineOptions, checkpoint: str | None, url: str | None) -> list[str]:
    """The engine's options as `headstart serve` takes them."""
    options = given(engine)
    if checkpoint is not None:
        options["model"] = checkpoint
    if url is not None and options:
        name = next(iter(options)).replace("_", "-")
        raise HeadstartError(f"--{name} is for a server that this command starts; leave it out, or leave out --url")
    arguments: list[str] = []
    for field in fields(EngineOptions):
        value, name = options.get(field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            arguments += [f"--no-{name}"]
        elif value is not None:
            for item in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}", str(item)]
    return arguments


def new_directory(out: Path | None) -> Path:
    """Where the result goes; never over an earlier one."""
    directory = out or Path(time.strftime("bench-serve-%Y%m%d-%H%M%S"))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise HeadstartError(f"{directory} is there already; choose a new directory with --out")
    return directory


@contextmanager
def _server(options: list[str], url: str | None, tiny: bool, console: Console) -> Iterator[str]:
    """The address of the server under load."""
    from headstart.evaluation.load.served import ServedModel

    if url is not None:
        yield url
        return
    console.print("starting the server")
    # The built-in model is so small that threads would only wait for each other.
    with ServedModel(options, threads=1 if tiny else None) as served:
        yield served.url


class Display:
    """Lines above a line that lives. It is redrawn once a second, for it shares the cores with what is measured."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, refresh_per_second=1, transient=True)
        self._task = self._progress.add_task("warming up")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above."""
        self._progress.console.print(text, markup=False)

    def progress(self, finished: int, total: int | None, running: int, failed: int) -> None:
        """How far it is."""
        share = f"{finished} of {total}" if total is not None else f"{finished}"
        trouble = f", {failed} failed" if failed else ""
        self._progress.update(self._task, description=f"{share} requests done, {running} under way{trouble}")


def _load(
    settings: "LoadSettings",
    url: str,
    key: str | None,
    directory: Path,
    stack: str,
    console: Console,
    as_json: bool,
) -> None:
    """One load."""
    from headstart.evaluation.load.run import run_load

    with Display(console) as display:
        result = run_load(settings, url, api_key=key, file=directory / "load.jsonl", observer=display)
    _write(directory / "load.json", result.to_json())
    # Who has pressed Ctrl-C does not want to wait for a picture.
    pictures = "" if result.ended_by else _draw({stack or result.target.model: result}, directory / "load", console)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print_load(result, Console(highlight=False, soft_wrap=True))
    console.print(f"written to {directory}: load.json, load.jsonl (every request){pictures}", markup=False)
    _leave(result)


def _search(
    settings: "LoadSettings", url: str, key: str | None, directory: Path, console: Console, as_json: bool
) -> None:
    """Loads until the capacity is found."""
    from headstart.evaluation.load.capacity import find_capacity, forecast

    console.print(forecast(settings))
    with Display(console) as display:
        found = find_capacity(settings, url, api_key=key, directory=directory, observer=display)
    _write(directory / "capacity.json", found.to_json())
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_capacity(found, settings, Console(highlight=False, soft_wrap=True))
    console.print(f"written to {directory}: capacity.json, load-N.jsonl (every request of each load)", markup=False)
    if found.partial:
        console.print(f"partial result: {found.partial}", style="red", markup=False)
        raise typer.Exit(128 + found.ended_by if found.ended_by else 1)


def _write(path: Path, data: dict[str, Any]) -> None:
    """JSON that a reader never sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(data, indent=2) + "\n")
    beside.replace(path)


def _draw(loads: "dict[str, LoadResult]", stem: Path, console: Console) -> str:
    """Draw the timeline if that can be; returns what to say of it."""
    from headstart.evaluation.load.plot import plot_loads

    try:
        paths = plot_loads(loads, stem)
    except HeadstartError as error:
        console.print(str(error), markup=False)
        return ""
    return "".join(f", {path.name}" for path in paths)


def _leave(result: "LoadResult") -> None:
    """Exit as a program does that was interrupted, that could not finish, or whose requests all failed."""
    if result.ended_by is not None:
        raise typer.Exit(128 + result.ended_by)
    if result.partial or not result.summary.answered:
        raise typer.Exit(1)


def _print_load(result: "LoadResult", console: Console) -> None:
    """Throughput, latencies, goodput, the probe, the generator's own cost, and what the server says."""
    summary = result.summary
    outcomes = ", ".join(f"{number} {name}" for name, number in sorted(summary.outcomes.items()))
    console.print(f"\n{result.target.model} at {result.url}: {summary.asked} requests ({outcomes})", markup=False)
    offered = f"{summary.offered_rate:.3g} asked, " if summary.offered_rate else ""
    cached = f", {summary.cached_share:.0%} of it cached" if summary.cached_share else ""
    console.print(
        f"requests per second: {offered}{summary.request_rate:.3g} answered; tokens per second: "
        f"{summary.input_rate:,.0f} in{cached}, {summary.output_rate:,.0f} out"
    )
    rows = {
        "time to first token (TTFT)": summary.ttft,
        "per token after it (TPOT)": summary.tpot,
        "between tokens (ITL)": summary.itl,
        "to last token (E2E)": summary.e2e,
        "waiting in the server": summary.queue,
    }
    if summary.probe is not None:
        rows["probe's gaps, alone"] = summary.probe.alone
        rows["probe's gaps, under load"] = summary.probe.loaded
    console.print(_latencies(rows), soft_wrap=False)
    for item in summary.goodput:
        console.print(f"goodput at {item.slo}: {item.per_second:.3g} requests per second, {item.share:.0%} of all")
    overhead = result.overhead
    if overhead is not None:
        console.print(
            f"the load generator took {overhead.cpu_share:.1%} of this machine; it was late by "
            f"{seconds(overhead.loop_lag[0])} (p99 {seconds(overhead.loop_lag[1])}), in sending by "
            f"{seconds(overhead.send_lag[0])} (p99 {seconds(overhead.send_lag[1])})"
        )
    if result.agreement and all(item.agrees for item in result.agreement):
        names = ", ".join(item.name for item in result.agreement)
        console.print(f"the server's /metrics agree: {names}")
    for note in result.notes():
        console.print(f"- {note}", markup=False)


def _latencies(rows: "dict[str, Distribution | None]") -> Table:
    table = Table(box=SIMPLE, min_width=60)
    table.add_column("")
    for column in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in rows.items():
        if found is not None:
            table.add_row(name, *(seconds(getattr(found, column)) for column in ("mean", "p50", "p90", "p99", "max")))
    return table


def _print_capacity(found: "Capacity", settings: "LoadSettings", console: Console) -> None:
    """The loads by their rate, and where the objective holds."""
    table = Table(title=str(settings.slos[0]), title_justify="left", box=SIMPLE)
    for column in ("requests/s", "SLO", "share", "TTFT p50", "TTFT p99", "ITL p99", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    tried = zip(found.loads, found.met, strict=True)
    for load, met in sorted(tried, key=lambda item: item[0].settings.rate or 0.0):
        summary = load.summary
        table.add_row(
            f"{load.settings.rate:.3g}",
            "met" if met else "missed",
            "ended early" if load.partial else f"{summary.goodput[0].share:.0%}",
            "" if summary.ttft is None else seconds(summary.ttft.p50),
            "" if summary.ttft is None else seconds(summary.ttft.p99),
            "" if summary.itl is None else seconds(summary.itl.p99),
            f"{summary.output_rate:,.0f}",
        )
    console.print(table, soft_wrap=False)
    if found.rate and found.bound:
        console.print(f"capacity: {found.rate:.3g} requests per second (missed at {found.bound:.3g})")
    elif found.rate:
        console.print(f"capacity: above {found.rate:.3g} requests per second, the highest rate that was tried")
    else:
        console.print("no rate that was tried meets the objective")
