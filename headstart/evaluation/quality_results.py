"""What was found so far, one JSON line per example: a run that is cut off goes on where it stopped."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import headstart.evaluation.tasks as tasks_package
import headstart.texts as texts_package
from headstart.engine.llm import LLM
from headstart.errors import HeadstartError
from headstart.methods import registry

_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """One example, judged.

    Attributes:
        task, length, index: which one; length 0 where a task has none.
        score: 0 to 100, or what the task measures.
        values: further numbers by name.
        groups: what the example can be grouped by, such as `depth`.
        expected, output: for people to look at.
        asked: the question as people read it.
    """

    task: str
    length: int
    index: int
    score: float
    values: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    asked: str = ""
    expected: str = ""
    output: str = ""


class ResultFile:
    """Records in a file, appended one line at a time; lines made under other settings are left alone.

    Args:
        path: the file, made if it is not there; None keeps records in memory alone.
        settings: a hash of whatever a result depends on.

    Raises:
        HeadstartError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self.path = path
        self.settings = settings
        self._records: dict[tuple[str, int, int], Record] = {}
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if text and not text.endswith("\n"):
                # A line that was being written when the process ended.
                path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
            for line in text.splitlines():
                self._read(line)
        except (OSError, UnicodeDecodeError) as error:
            raise HeadstartError(f"the results in {path} cannot be read or continued: {error}") from None

    def find(self, task: str, length: int) -> dict[int, Record]:
        """The records of a task at a length, by index."""
        return {key[2]: record for key, record in self._records.items() if key[:2] == (task, length)}

    def add(self, record: Record) -> None:
        """Keep a record.

        Raises:
            HeadstartError: the disk does not take it.
        """
        self._records[record.task, record.length, record.index] = record
        if self.path is not None:
            line = json.dumps({"settings": self.settings} | asdict(record), ensure_ascii=False)
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise HeadstartError(f"a result could not be written to {self.path}: {error.strerror}") from None

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry.pop("settings") != self.settings:
                return
            record = Record(**entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        self._records[record.task, record.length, record.index] = record


def settings_hash(llm: LLM, more: Mapping[str, Any]) -> str:
    """A hash of the model, the methods in force, the tasks' own code and texts, and `more`."""
    engine = llm.engine
    found = hashlib.sha256()
    parts: list[Any] = [
        sorted(registry.describe(method) for method in engine.stack.methods),
        str(engine.checkpoint.decoder.dtype),
        sorted(more.items()),
    ]
    found.update(json.dumps(parts, default=str).encode())
    for package in (tasks_package, texts_package):
        folder = Path(str(package.__file__)).parent
        for path in sorted([*folder.glob("*.py"), *folder.glob("*.txt")]):
            found.update(path.read_bytes())
    if engine.checkpoint.path is not None:
        for path in sorted(engine.checkpoint.path.iterdir()):
            if path.suffix in (".json", ".safetensors", ".jinja"):
                found.update(path.name.encode() + _sample(path))
    return found.hexdigest()[:16]


def _sample(path: Path) -> bytes:
    """A file's size, beginning and end, which tell checkpoints apart without reading gigabytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(_SAMPLED_BYTES)
        file.seek(max(0, size - _SAMPLED_BYTES))
        return str(size).encode() + beginning + file.read(_SAMPLED_BYTES)
