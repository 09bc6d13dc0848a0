"""What all bench commands share: progress on a terminal, and where results go."""

import shlex
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headstart.evaluation.ledger import LedgerEntry
    from headstart.evaluation.plots import Picture


def command_line() -> str:
    """What was typed."""
    return shlex.join(["headstart", *sys.argv[1:]])


def end_on_sigterm() -> None:
    """Let a terminated run end its processes and leave no gigabytes of weights behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def given(**options: Any) -> dict[str, Any]:
    """The options that have a value; lists as tuples."""
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return {name: value for name, value in found.items() if value not in (None, ())}


def numbers(text: str | None, name: str) -> tuple[int, ...]:
    """`"1024,4096"` as numbers; nothing as none.

    Raises:
        HeadstartError: something in it is no whole number above 0.
    """
    from headstart.errors import HeadstartError

    found = []
    for part in (text or "").split(","):
        digits = part.strip().replace("_", "")
        if digits and not (digits.isdecimal() and int(digits) > 0):
            raise HeadstartError(f"--{name} takes whole numbers above 0, parted by commas, not {part.strip()!r}")
        found += [int(digits)] if digits else []
    return tuple(found)


class RichReporter:
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
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, total: int) -> None:
        """Size the bar."""
        self._progress.update(self._bar, total=total, completed=0)
        self._begun = False

    def step(self, description: str) -> None:
        """Name the step that begins; the one before it is done."""
        self._progress.update(self._bar, description=description, advance=1 if self._begun else 0)
        self._begun = True

    def done(self) -> None:
        """The last step is done."""
        self._progress.update(self._bar, description="measured", advance=1 if self._begun else 0)
        self._begun = False


@contextmanager
def fresh_directory(out: Path | None) -> "Iterator[Path | None]":
    """A directory for results, made if it is not there, and gone again if nothing was put into it; None for none.

    Raises:
        HeadstartError: there is something in it, or it cannot be made.
    """
    from headstart.errors import HeadstartError

    if out is None:
        yield None
        return
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise HeadstartError(f"{out} is there already; choose a new directory with --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadstartError(f"results cannot be written to {out}: {error.strerror}; choose another --out") from None
    try:
        yield out
    finally:
        with suppress(OSError):
            out.rmdir()


def keep_results(
    entry: "LedgerEntry",
    out: Path,
    draw: "Callable[[Path], list[Picture]]",
    notes: Console,
    **page: Any,
) -> None:
    """Write the entry, its pictures and its page into a directory.

    Args:
        entry: what was measured.
        out: the directory.
        draw: makes the pictures in it.
        notes: where it is said what was written.
        page: further arguments of `write_report`.
    """
    from headstart.errors import HeadstartError
    from headstart.evaluation.ledger import write_whole
    from headstart.evaluation.report import write_report

    write_whole(out / "result.json", entry.model_dump_json(indent=2) + "\n")
    pictures: list[Picture] = []
    try:
        pictures = draw(out)
    except HeadstartError as error:
        notes.print(str(error), markup=False, soft_wrap=True)
    write_report(out / "report.html", entry, pictures, **page)
    names = ["report.html", "result.json", *(f.name for picture in pictures for f in picture.files.values())]
    notes.print(f"written to {out}: {', '.join(names)}", markup=False, highlight=False, soft_wrap=True)


def write_ledger(entry: "LedgerEntry", directory: Path, notes: Console) -> None:
    """Keep a complete run in the ledger."""
    from headstart.evaluation import ledger

    if entry.partial is None:
        path = ledger.write(entry, directory)
        notes.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def leave(entry: "LedgerEntry") -> None:
    """End as an interrupted program does, if it was; a run that broke off ends with 1."""
    from headstart.evaluation.compare_rounds import INTERRUPTED, TERMINATED

    if entry.partial is not None:
        raise typer.Exit({INTERRUPTED: 130, TERMINATED: 143}.get(entry.partial, 1))
