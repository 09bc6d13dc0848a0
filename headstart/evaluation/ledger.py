"""The ledger: one JSON file per measurement and machine, which the bench alone writes."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

import headstart
from headstart.errors import HeadstartError
from headstart.evaluation.ledger_sources import file_digest
from headstart.evaluation.machine import Machine, MachinePeaks
from headstart.evaluation.timeline import Timeline

SCHEMA_VERSION = 1

Kind = Literal[
    "engine", "method", "compare", "serve", "quality", "training", "ops", "capacity", "placement", "simulator"
]
Verdict = Literal["better", "same", "worse", "unknown"]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]


class LedgerError(HeadstartError):
    """A ledger file that is missing, broken or of another schema."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(_Strict):
    """One quantity of one side, over all repeats.

    Attributes:
        name: the quantity, its setting included, such as "TTFT at 2,048".
        side: what was measured.
        values: one per repeat, in their order.
        median: of the values.
        spread: the lowest and the highest value.
        details: further numbers by name, such as peak memory in bytes or the fraction of a machine peak.
        metric: the quantity alone, where it was taken at several lengths.
        length: tokens of context that it was taken at.
    """

    name: str
    side: str
    unit: str
    values: list[float] = Field(min_length=1)
    median: float
    spread: tuple[float, float]
    higher_is_better: bool
    details: dict[str, float] = {}
    metric: str | None = None
    length: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        side: str,
        unit: str,
        values: Sequence[float],
        *,
        higher_is_better: bool,
        details: dict[str, float] | None = None,
        metric: str | None = None,
        length: int | None = None,
    ) -> Self:
        """A row with median and spread (lowest, highest) taken from the values."""
        return cls(
            name=name,
            side=side,
            unit=unit,
            values=list(values),
            median=statistics.median(values),
            spread=(min(values), max(values)),
            higher_is_better=higher_is_better,
            details=details or {},
            metric=metric,
            length=length,
        )

    @model_validator(mode="after")
    def _earned(self) -> Self:
        if self.median != statistics.median(self.values):
            raise ValueError(f"the median of row {self.name!r} is not that of its values")
        if self.spread != (min(self.values), max(self.values)):
            raise ValueError(f"the spread of row {self.name!r} is not that of its values")
        return self


class Ratio(_Strict):
    """How many times better a side is than another: above 1 is better, whichever way the unit counts.

    `spread` is the lowest and highest ratio within one round; `target` is the least that was asked for.
    """

    name: str
    side: str
    against: str
    value: float
    spread: tuple[float, float]
    target: float | None = None

    @classmethod
    def of(cls, side: Row, against: Row, *, name: str | None = None, target: float | None = None) -> Self:
        """The ratio of the medians, with the spread of the ratios of values measured in the same round."""

        def times_better(a: float, b: float) -> float:
            return a / b if side.higher_is_better else b / a

        paired = [times_better(a, b) for a, b in zip(side.values, against.values, strict=True)]
        return cls(
            name=name or side.name,
            side=side.side,
            against=against.side,
            value=times_better(side.median, against.median),
            spread=(min(paired), max(paired)),
            target=target,
        )

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.value >= self.target


class Crossover(_Strict):
    """From which length on a side is better than another in one metric, beyond noise.

    Attributes:
        name: the metric.
        side, against: who is compared with whom.
        lengths: those measured, ascending.
        verdicts: on the side at each of them.
        length: the first from which the side is better there and at every longer one; None if it is not at the last.
        monotone: the side never falls back as the length grows.
    """

    name: str
    side: str
    against: str
    lengths: list[int] = Field(min_length=1)
    verdicts: list[Verdict]
    length: int | None
    monotone: bool

    @classmethod
    def of(cls, name: str, side: str, against: str, verdicts: Mapping[int, Verdict]) -> Self:
        """The crossover that verdicts by length show."""
        lengths = sorted(verdicts)
        found: list[Verdict] = [verdicts[length] for length in lengths]
        length, monotone = _turn(lengths, found)
        return cls(
            name=name, side=side, against=against, lengths=lengths, verdicts=found, length=length, monotone=monotone
        )

    @model_validator(mode="after")
    def _earned(self) -> Self:
        if len(self.verdicts) != len(self.lengths) or sorted(set(self.lengths)) != self.lengths:
            raise ValueError(f"the crossover in {self.name!r} needs one verdict for each of its ascending lengths")
        if (self.length, self.monotone) != _turn(self.lengths, self.verdicts):
            raise ValueError(f"the crossover in {self.name!r} is not that of its verdicts")
        return self


def _turn(lengths: Sequence[int], verdicts: Sequence[Verdict]) -> tuple[int | None, bool]:
    """The first length of the unbroken run of "better" that reaches the last one, and whether no verdict falls."""
    turn = None
    for length, verdict in zip(reversed(lengths), reversed(verdicts), strict=True):
        if verdict != "better":
            break
        turn = length
    ranks = [("worse", "same", "better").index(verdict) for verdict in verdicts if verdict != "unknown"]
    return turn, ranks == sorted(ranks)


class LedgerEntry(_Strict):
    """What was measured, where, with what, and the command that measures it again.

    Attributes:
        kind: what sort of measurement it is.
        key: its name; with the machine's, that of its file.
        method: key of the method it is about, if it is about one.
        model: what ran: a checkpoint's name, or the shape of a random one.
        command: what measures it again.
        commit: of the checkout whose code ran, None outside of one.
        dirty: files had changed since the commit.
        sources: digests of the source files of the methods that ran, by path from the package's parent.
        crossovers: from which lengths on sides are better than others.
        timelines: what the engine's steps were made of under load, a side each.
        partial: why the run ended early; such an entry is shown and never written to the ledger.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Kind
    key: Key
    method: str | None = None
    model: str | None = None
    command: str
    commit: str | None
    dirty: bool
    created: datetime
    machine: Machine
    peaks: MachinePeaks | None = None
    versions: dict[str, str]
    seeds: list[int]
    settings: dict[str, JsonValue]
    sources: dict[str, str] = {}
    rows: list[Row]
    ratios: list[Ratio] = []
    crossovers: list[Crossover] = []
    notes: list[str] = []
    timelines: list[Timeline] = []
    partial: str | None = None

    @property
    def file_name(self) -> str:
        """Where the entry lies in a ledger directory: one file per key and machine."""
        return f"{self.key}-{self.machine.slug}.json"

    @property
    def stale(self) -> list[str]:
        """The source files of its methods that have changed or gone since; with any, it shows other code."""
        return [path for path, digest in self.sources.items() if file_digest(path) != digest]


def default_directory() -> Path:
    """`benchmarks/ledger` of the git checkout around the working directory, else of that directory."""
    root = _git("rev-parse", "--show-toplevel", where=Path.cwd())
    return Path(root or Path.cwd()) / "benchmarks" / "ledger"


def check_key(key: str) -> None:
    """Refuse a key that cannot name an entry.

    Raises:
        LedgerError: it has other characters than small letters, digits, dot, plus and minus.
    """
    try:
        TypeAdapter(Key).validate_python(key)
    except ValidationError:
        raise LedgerError(f"a ledger key is made of small letters, digits, '.', '+' and '-', unlike {key!r}") from None


def code_version() -> tuple[str | None, bool]:
    """The commit of the checkout that this package runs from, and whether its files changed since."""
    package = Path(headstart.__file__).parent
    if _git("ls-files", "--error-unmatch", "__init__.py", where=package) is None:
        return None, False  # installed beside or inside somebody else's checkout
    commit = _git("rev-parse", "HEAD", where=package)
    changed = _git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/ledger", where=package)
    return commit, bool(changed)


def _git(*arguments: str, where: Path) -> str | None:
    """What git prints, or None when it is not there or refuses."""
    try:
        result = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def now() -> datetime:
    """The time of a measurement: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def write(entry: LedgerEntry, directory: Path) -> Path:
    """Write the entry over an earlier one of the same key and machine; a reader never sees half a file.

    Args:
        entry: the measurement.
        directory: made if it is not there.

    Raises:
        LedgerError: the run was cut short, the file there is of another schema, or the directory cannot be written.
    """
    if entry.partial is not None:
        raise LedgerError(f"a run that was cut short does not go into the ledger: {entry.partial}")
    target = directory / entry.file_name
    if target.exists():
        _refuse_other_schema(target)
    write_whole(target, entry.model_dump_json(indent=2) + "\n")
    return target


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file, making its directory; a reader never sees half of it.

    Raises:
        LedgerError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(beside, 0o644)
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise LedgerError(f"{target} could not be written: {error.strerror or error}") from error


def _refuse_other_schema(path: Path) -> None:
    """A file of another schema may hold what this program does not know: it is never written over."""
    try:
        version = json.loads(path.read_text())["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} is no ledger entry of schema {SCHEMA_VERSION} and is not written over; move it away, or name "
            "another directory with --ledger"
        )


def read(path: Path) -> LedgerEntry:
    """Read one entry.

    Raises:
        LedgerError: no such file, not JSON, or not an entry of this schema.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"the ledger file {path} cannot be read: {error}") from error
    try:
        return LedgerEntry.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LedgerError(
            f"{path} is no ledger entry of schema {SCHEMA_VERSION}: {where}: {first['msg']}; "
            "measure again with the bench command instead of editing it"
        ) from error


def scan(directory: Path) -> tuple[list[LedgerEntry], list[LedgerError]]:
    """Read a ledger directory: its entries in the order of the file names, and why other files are refused.

    Raises:
        LedgerError: there is no such directory.
    """
    if not directory.is_dir():
        raise LedgerError(f"there is no ledger directory {directory}; a bench command makes one")
    entries, refused = [], []
    for path in sorted(directory.glob("*.json")):
        try:
            entry = read(path)
            if path.name != entry.file_name:
                raise LedgerError(f"{path} holds the entry {entry.file_name!r}; give it that name, or measure again")
            entries.append(entry)
        except LedgerError as error:
            refused.append(error)
    return entries, refused


def check(directory: Path) -> list[LedgerEntry]:
    """Read every entry of a ledger directory, in the order of the file names.

    Raises:
        LedgerError: no directory, a file that `read` refuses, or one whose name is not that of its key and machine.
    """
    entries, refused = scan(directory)
    if refused:
        raise refused[0]
    return entries
