"""`headstart eval`: how well a model answers over long contexts, and what a stack of methods changes about it."""

import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from headstart.cli.options import EngineOptions, with_options

if TYPE_CHECKING:
    from headstart.evaluation.quality import Run
    from headstart.evaluation.quality_report import Score
    from headstart.evaluation.quality_results import ResultFile
    from headstart.evaluation.quality_settings import QualitySettings

_TASKS = "Tasks"
_LONG = 60.0


@with_options
def evaluate(
    engine: EngineOptions,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            rich_help_panel=_TASKS,
            help="Task or group; may be repeated, or parted by commas. Groups: ruler (13 tasks), niah, retrieval. "
            "Besides: logits (distance from the exact stack), bits_per_byte, context_bits (of the same tokens after "
            "contexts of every length), blimp, fairytaleqa, lm_eval:NAME. "
            "[default: a few of each kind]",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_TASKS, help="Tokens of prompt and answer, such as 4096,16k. [default: 1024,2048]"
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_TASKS,
            help="Contexts for each task and length, pairs for each of BLiMP's kinds. [default: 3]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_TASKS, help="Of all examples.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", rich_help_panel=_TASKS, help="Ask through the checkpoint's chat template.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="HEADSTART_DATA",
            rich_help_panel=_TASKS,
            show_default=False,
            help="Directory with evaluation sets, for qa_1, qa_2, fairytaleqa and blimp.",
        ),
    ] = None,
    haystack: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_TASKS, help="Text file to hide needles in. [default: a story of the package]"),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_TASKS, help="JSONL of documents, question, answers: your own, for the task qa."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_TASKS, help="Text or JSONL file for bits_per_byte and logits."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three tasks at 1,024 tokens, one context each: to see that it works.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for results, report and pictures. A run that was cut off goes on from it."),
    ] = None,
    failures: Annotated[int, typer.Option(min=0, help="Show this many failed examples of each task.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report to stdout as JSON.")] = False,
) -> None:
    """Measure what a model finds, tracks and answers over contexts of several lengths.

    Examples are generated from a seed, fitted to the model's own tokenizer, and answered greedily. With --use, the
    same is measured under those methods; the task logits then says how far they move the next-token distribution.

        headstart eval
        headstart eval DIR --task ruler --lengths 4096,16384 --count 20 --out results
        headstart eval DIR --use minference --task logits,niah,multi_turn
    """
    from headstart.errors import HeadstartError
    from headstart.evaluation.quality import Run, report
    from headstart.evaluation.quality_prompts import seconds_ahead
    from headstart.evaluation.quality_results import ResultFile, settings_hash

    settings = _settings(task, lengths, count, seed, chat, _sources(data, haystack, questions), text, quick)
    if checkpoint is not None and engine.model is not None and checkpoint != engine.model:
        raise HeadstartError(f"the model is named twice, as {checkpoint!r} and as {engine.model!r}; name it once")
    engine.model = checkpoint or engine.model
    # A terminated run still keeps what it found.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    llm = engine.load()
    if lengths is None:
        settings = replace(settings, lengths=_served(settings.lengths, llm.max_model_len))
    results = ResultFile(None if out is None else out / "results.jsonl", settings_hash(llm, settings.identity()))
    scores: list[Score] = []
    complete = False
    with _Progress(notes) as progress:
        run = Run(llm, settings, results, progress)
        run.check()
        _announce(notes, seconds_ahead(llm, run.work()))
        try:
            for score in run.scores():
                scores.append(score)
            complete = True
        finally:
            command = shlex.join(["headstart", *sys.argv[1:]])
            found = report(run, scores, command=command, seconds=time.monotonic() - began, complete=complete)
            if out is not None:
                found.write(out / "report.json")
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _print(scores, Console(highlight=False))
        _print_failures(run, results, failures, Console(highlight=False, soft_wrap=True))
    if out is not None:
        _keep_pictures(scores, out, notes)


def _settings(
    task: list[str] | None,
    lengths: str | None,
    count: int | None,
    seed: int,
    chat: bool,
    sources: object,
    text: Path | None,
    quick: bool,
) -> "QualitySettings":
    """The settings, checked before a model loads."""
    from headstart.evaluation.quality_settings import DEFAULT_TASKS, QUICK_TASKS, QualitySettings
    from headstart.evaluation.tasks import Sources

    assert isinstance(sources, Sources)
    given = tuple(name.strip() for names in task or () for name in names.split(",") if name.strip())
    settings = QualitySettings(
        tasks=given or (QUICK_TASKS if quick else DEFAULT_TASKS),
        lengths=_lengths(lengths) if lengths is not None else (1024,) if quick else (1024, 2048),
        count=count or (1 if quick else 3),
        seed=seed,
        chat=chat,
        sources=sources,
        text=text,
    )
    settings.check()
    return settings


def _lengths(text: str) -> tuple[int, ...]:
    """`4096,8192` or `4k,8k` as numbers."""
    from headstart.errors import HeadstartError

    found = []
    for part in text.lower().replace(" ", "").split(","):
        digits, unit = (part[:-1], {"k": 1024, "m": 1024**2}[part[-1]]) if part[-1:] in ("k", "m") else (part, 1)
        if not digits.isdecimal():
            raise HeadstartError(f"--lengths takes whole numbers parted by commas, such as 4096,8192, not {text!r}")
        found.append(int(digits) * unit)
    return tuple(dict.fromkeys(found))


def _served(lengths: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Of lengths that nobody asked for, those that a model serves, or else the longest that it does."""
    return tuple(length for length in lengths if length <= longest) or (longest,)


def _sources(data: Path | None, haystack: Path | None, questions: Path | None) -> object:
    """Real text for tasks."""
    from headstart.errors import HeadstartError
    from headstart.evaluation.tasks import Sources

    prose = None
    if haystack is not None:
        try:
            prose = haystack.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HeadstartError(f"the haystack {haystack} cannot be read: {error}") from None
    if data is not None and not data.is_dir():
        raise HeadstartError(f"the data directory {data} does not exist; --data or HEADSTART_DATA names another")
    return Sources(data, prose, questions)


def _announce(console: Console, seconds: float) -> None:
    """Say how long it takes, when that is long."""
    if seconds > _LONG:
        minutes = seconds / 60
        shown = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
        console.print(f"this will take about {shown} on this machine, judged by a short prompt", style="yellow")


def _print(scores: "list[Score]", console: Console) -> None:
    """A table of tasks by lengths for each unit, the needle picture, and what was skipped."""
    from headstart.evaluation.quality_pictures import has_picture, heat_map

    measured = [score for score in scores if score.skipped is None]
    for unit in dict.fromkeys(score.unit for score in measured):
        console.print(f"\n{unit}", style="bold")
        console.print(_table([score for score in measured if score.unit == unit]))
    needles = has_picture([score for score in scores if score.task == "niah_depth"], "depth")
    if needles:
        console.print("\nneedle found in percent, by length and by depth in the text")
        console.print(heat_map(needles))
    for score in scores:
        for name in ("turn", "position"):
            if name in score.groups:
                parts = "  ".join(f"{value}: {_figure(mean, score.unit)}" for value, mean in score.groups[name].items())
                console.print(f"{score.task} at {score.length:,} by {name}  {parts}", style="dim", soft_wrap=True)
        if score.skipped:
            where = f" at {score.length:,}" if score.length else ""
            console.print(f"skipped {score.task}{where}: {score.skipped}", style="yellow", soft_wrap=True)


def _table(scores: "list[Score]") -> Table:
    """Tasks by lengths: mean with its standard error."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("task", no_wrap=True)
    lengths = sorted({score.length for score in scores})
    for length in lengths:
        table.add_column(f"{length:,}" if length else "all", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for task in dict.fromkeys(score.task for score in scores):
        by_length = {score.length: score for score in scores if score.task == task}
        counts = sorted({str(score.count) for score in by_length.values() if score.score is not None})
        table.add_row(task, *(_shown(by_length.get(length)) for length in lengths), "/".join(counts))
        if "top1" in next(iter(by_length.values())).values:
            agreement = [f"{by_length[n].values['top1']:.2f}%" if n in by_length else "" for n in lengths]
            table.add_row(f"{task}: top-1 agreement", *agreement, "")
    return table


def _shown(score: "Score | None") -> str:
    if score is None or score.score is None:
        return "-"
    error = "" if score.error is None else f" ±{_figure(score.error, score.unit)}"
    return f"{_figure(score.score, score.unit)}{error}"


def _figure(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit == "percent" else f"{value:.4f}"


def _print_failures(run: "Run", results: "ResultFile", most: int, console: Console) -> None:
    """Some failed examples of each task: asked, expected, got."""
    from headstart.evaluation.quality_report import failure

    for task, length in run.measured():
        failed = [record for record in results.find(task, length).values() if record.expected and record.score < 100]
        for record in sorted(failed, key=lambda record: record.index)[:most]:
            console.print(failure(record), markup=False)


def _keep_pictures(scores: "list[Score]", out: Path, notes: Console) -> None:
    from headstart.evaluation.quality_pictures import draw_pictures

    names = ["report.json", "results.jsonl", *(path.name for path in draw_pictures(scores, out))]
    notes.print(f"written to {out}: {', '.join(names)}")


class _Progress:
    """Shows on a console how far a run is."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            # The measurement shares the cores with this display.
            refresh_per_second=2,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("preparing", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, total: int) -> None:
        """Size the bar."""
        self._progress.update(self._bar, total=total)

    def step(self, description: str, done: int) -> None:
        """Name what is being worked on, and count what is finished."""
        self._progress.update(self._bar, description=description, advance=done)

    def scored(self, score: "Score") -> None:
        """Nothing to show: the table comes at the end."""
