"""The ledger: one JSON file per measurement and machine, which the bench alone writes."""

import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
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
from headstart.evaluation.machine import Machine, MachinePeaks

SCHEMA_VERSION = 1

Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]


class LedgerError(HeadstartError):
    """A ledger file that is missing, broken or of another schema."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """One quantity of one side, over all repeats.

    `details` holds further numbers by name, such as peak memory in bytes or the fraction of a machine peak.
    """

    name: str
    side: str
    unit: str
    values: list[float] = Field(min_length=1)
    median: float
    spread: tuple[float, float]
    higher_is_better: bool
    details: dict[str, float] = {}

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


class LedgerEntry(_Strict):
    """What was measured, where, with what, and the command that measures it again.

    `commit` is that of the checkout whose code ran, None outside of one; `dirty`: files had changed since.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["engine", "method"]
    key: Key
    command: str
    commit: str | None
    dirty: bool
    created: datetime
    machine: Machine
    peaks: MachinePeaks | None = None
    versions: dict[str, str]
    seeds: list[int]
    settings: dict[str, JsonValue]
    rows: list[Row]
    ratios: list[Ratio] = []
    notes: list[str] = []

    @property
    def file_name(self) -> str:
        """Where the entry lies in a ledger directory: one file per key and machine."""
        return f"{self.key}-{self.machine.slug}.json"


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
        LedgerError: the directory cannot be written.
    """
    target = directory / entry.file_name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=directory, prefix=f".{entry.key}-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(entry.model_dump_json(indent=2) + "\n")
            os.chmod(beside, 0o644)
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise LedgerError(f"the ledger entry could not be written to {target}: {error.strerror or error}") from error
    return target


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


def check(directory: Path) -> list[LedgerEntry]:
    """Read every entry of a ledger directory, in the order of the file names.

    Raises:
        LedgerError: a file that `read` refuses, or one whose name is not that of its key and machine.
    """
    entries = []
    for path in sorted(directory.glob("*.json")):
        entry = read(path)
        if path.name != entry.file_name:
            raise LedgerError(f"{path} holds the entry {entry.file_name!r}; give it that name, or measure again")
        entries.append(entry)
    return entries
