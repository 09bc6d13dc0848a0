"""`headstart batch`: answer an OpenAI batch file offline."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.options import EngineOptions, given, with_options

if TYPE_CHECKING:
    from headstart.engine.engine import Engine
    from headstart.server.batch import Progress
    from headstart.server.batch_file import BatchRow, Results


@with_options
def batch(
    engine: EngineOptions,
    requests: Annotated[
        Path, typer.Argument(metavar="IN", help="OpenAI batch file: a request in each line.", show_default=False)
    ],
    results: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where results go, a line each as they are done.", show_default=False)
    ],
    served_model_name: Annotated[
        str | None, typer.Option(help="What the file calls the model. [default: its own name]")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Requests that are planned and held in memory together.")] = 16384,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws of requests that bring no seed.", rich_help_panel="Engine")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no report.")] = False,
) -> None:
    """Answer a batch file, planned as one job.

    Prompts that begin alike run together, so that what they share is read once (`--use batchllm`, the default here).
    A request that is wrong gets its own error, and a broken line one with its number; the others run. A job that was
    stopped goes on where it was when the same command runs again.

        headstart batch requests.jsonl results.jsonl
        headstart batch requests.jsonl results.jsonl --model DIR --use batchllm --use hydragen
    """
    from headstart.server.batch_file import BatchFileError, Results

    if requests.exists() and results.exists() and requests.samefile(results):
        raise BatchFileError("the results would be written over the requests: name another file")
    rows, refused, total = _read(requests)
    out = Results(results)
    try:
        _check_same_job(out, rows, refused, results)
        todo = [row for row in rows if row.custom_id not in out.done]
        for row in refused:
            if row["custom_id"] not in out.done and row["error"]["line"] not in out.broken:
                out.add(row)
        if todo:
            _run(given(engine) | ({} if seed is None else {"seed": seed}), served_model_name, todo, out, window, quiet)
        if not quiet:
            _say(f"{total} lines: {len(rows) - len(todo)} were done before, {len(refused)} are no requests")
    finally:
        out.close()


def _read(path: Path) -> tuple[list["BatchRow"], list[dict[str, Any]], int]:
    """Requests, error rows of lines that are none, and how many there are in all."""
    from headstart.server.batch_file import BatchFileError, BatchRow, line_error, read_rows

    rows: list[BatchRow] = []
    refused: list[dict[str, Any]] = []
    for item in read_rows(path):
        if isinstance(item, BatchRow):
            rows.append(item)
        else:
            refused.append(line_error(*item))
    if not rows and not refused:
        raise BatchFileError(f"the batch file {path} has no requests")
    return rows, refused, len(rows) + len(refused)


def _check_same_job(out: "Results", rows: list["BatchRow"], refused: list[dict[str, Any]], path: Path) -> None:
    """Refuse to go on with the results of another file."""
    from headstart.server.batch_file import BatchFileError

    known = {row.custom_id for row in rows} | {row["custom_id"] for row in refused}
    strangers = sorted(out.done - known)
    if strangers:
        raise BatchFileError(
            f"{path} has results of another job ({strangers[0]!r} is not in this one): name another file"
        )


def _run(
    settings: dict[str, Any],
    served_model_name: str | None,
    rows: list["BatchRow"],
    out: "Results",
    window: int,
    quiet: bool,
) -> None:
    import asyncio

    from headstart.engine.args import EngineArgs
    from headstart.engine.ranks import start_engine
    from headstart.server.batch_file import BatchFileError

    engine = start_engine(EngineArgs(**_planned(settings)))
    name = served_model_name or engine.checkpoint.name
    if out.models - {name}:
        raise BatchFileError(
            f"{out.path} has results of the model {min(out.models - {name})!r}, and this one is {name!r}: name another "
            "file"
        )
    began = time.perf_counter()
    progress = asyncio.run(_serve(engine, name, rows, out, window, quiet))
    if not quiet:
        tokens, seconds = progress.tokens, time.perf_counter() - began
        shared = f"{tokens['cached'] / max(tokens['prompt'], 1):.0%} of them read before"
        _say(
            f"{progress.done} answered in {seconds:.1f} s, {progress.failed} of them refused or failed; "
            f"{tokens['prompt']:,} prompt tokens, {shared}; {tokens['completion']:,} written"
        )


def _planned(settings: dict[str, Any]) -> dict[str, Any]:
    """With the scheduler for jobs where no other is named, and many requests at once."""
    from headstart.methods import registry

    use: list[str] = [*(settings.get("use") or ())]
    if not any("scheduler" in registry.card(item.partition(":")[0].strip()).slots for item in use):
        use.append("batchllm")
    return {"max_num_seqs": 256, **settings, "use": use}


async def _serve(
    engine: "Engine", name: str, rows: list["BatchRow"], out: "Results", window: int, quiet: bool
) -> "Progress":
    """The rows, so many at a time."""
    from rich.progress import Progress as Bar

    from headstart.server.app import create_app
    from headstart.server.batch import JobEngine, Progress, run_job

    runner = JobEngine(engine)
    whole = Progress()
    try:
        app = create_app(runner, served_model_name=name)
        with Bar(console=_console(), disable=quiet, transient=True) as bar:
            task = bar.add_task("requests", total=len(rows))
            for first in range(0, len(rows), window):
                part = rows[first : first + window]
                before = whole.done
                part_done = await run_job(
                    app, runner, part, out, lambda now, before=before: bar.update(task, completed=before + now.done)
                )
                whole.done += part_done.done
                whole.failed += part_done.failed
                whole.tokens = {name: count + part_done.tokens[name] for name, count in whole.tokens.items()}
    finally:
        await runner.shutdown()
    return whole


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    _console().print(text, style="dim", markup=False)
