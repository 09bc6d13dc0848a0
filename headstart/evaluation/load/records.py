"""What became of each request, and the file that keeps it, a line for each as soon as it is over."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from headstart.evaluation.load.settings import LoadError, Slo

SCHEMA_VERSION = 1

Status = Literal["ok", "refused", "failed", "broken", "timeout", "cut"]


@dataclass
class RequestRecord:
    """One request. Times are in seconds after the load's start, durations in seconds.

    Attributes:
        kind: "load", or "probe" for the long decode that watches.
        index: its number within its kind.
        at: intended arrival; of a user in a closed loop, and of a probe, when it was sent.
        sent: when the load generator set about sending it.
        end: when it was over.
        status: "ok"; "refused" with an HTTP error; "failed" with an error in the stream; "broken" connection;
            "timeout"; "cut" off by the end of the load.
        asked_input, asked_output: tokens of prompt and answer as planned.
        first: when the first token came.
        gaps: time between one event with tokens and the next (ITL).
        prompt_tokens, completion_tokens, cached_tokens: as the server counts them, if it does.
        queue: seconds that it waited in the server, if the server tells (`queue_time` of the usage).
        http_status: 0 if no answer came.
        error: why it is not "ok".
    """

    kind: Literal["load", "probe"]
    index: int
    at: float
    sent: float
    end: float
    status: Status
    asked_input: int
    asked_output: int
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    queue: float | None = None
    http_status: int = 0
    error: str | None = None

    @property
    def last(self) -> float | None:
        """When the last token came."""
        return None if self.first is None else self.first + sum(self.gaps)

    @property
    def output_tokens(self) -> int:
        """Generated tokens: the server's count, or else the events that brought some."""
        if self.completion_tokens is not None:
            return self.completion_tokens
        return 0 if self.first is None else 1 + len(self.gaps)

    @property
    def ttft(self) -> float | None:
        """Intended arrival to first token: a request that had to wait for its turn to be sent has waited too."""
        return None if self.first is None else self.first - self.at

    @property
    def e2e(self) -> float | None:
        """Intended arrival to last token."""
        return None if self.last is None else self.last - self.at

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; None for a single token."""
        return sum(self.gaps) / (self.output_tokens - 1) if self.output_tokens > 1 and self.gaps else None

    @property
    def outcome(self) -> str:
        """The status for people, with the HTTP status of a refusal."""
        return f"HTTP {self.http_status}" if self.status == "refused" else self.status

    def meets(self, slo: Slo) -> bool:
        """Whether it was answered within every bound; an answer without gaps between tokens has none to bound."""
        if self.status != "ok":
            return False
        measured = ((self.ttft, slo.ttft), (self.tpot, slo.tpot), (self.e2e, slo.e2e))
        if any(value is not None and bound is not None and value > bound for value, bound in measured):
            return False
        return slo.itl is None or not self.gaps or float(np.percentile(self.gaps, 99)) <= slo.itl


class RecordFile:
    """A JSON-lines file: a header, a line per request that is over, and the end. Whatever ends the process, every line
    that was begun is complete, since each is one write.

    Args:
        path: of a file that is not there yet.

    Raises:
        LoadError: there is one, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists():
                raise LoadError(f"{path} holds an earlier result; choose another directory with --out")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except OSError as error:
            raise LoadError(f"{path} cannot be written: {error.strerror}; choose another directory") from None

    def header(self, **data: Any) -> None:
        """The first line."""
        self._write({"line": "header", "schema_version": SCHEMA_VERSION, **data})

    def request(self, record: RequestRecord) -> None:
        """A request that is over."""
        data = {key: value for key, value in asdict(record).items() if value is not None}
        data["gaps"] = [round(gap, 6) for gap in record.gaps]
        self._write({"line": "request", **data})

    def end(self, **data: Any) -> None:
        """The last line."""
        self._write({"line": "end", **data})

    def _write(self, data: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(data, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> tuple[dict[str, Any], list[RequestRecord], dict[str, Any] | None]:
    """Header, requests and end of a record file; the end is None if the process was killed before it.

    Raises:
        LoadError: no such file, another schema, or a line that is none of ours, named by its number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"the load result {path} cannot be read: {error}") from None
    header: dict[str, Any] = {}
    records: list[RequestRecord] = []
    end: dict[str, Any] | None = None
    # What follows the last line break was being written when the disk was full or the power went.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            data = json.loads(line)
            kind = data.pop("line")
            if (kind == "header") != (number == 1):
                raise ValueError
            if kind == "header":
                header = data
                if data["schema_version"] != SCHEMA_VERSION:
                    raise ValueError
            elif kind == "request":
                records.append(RequestRecord(**data))
            else:
                end = data
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LoadError(f"{path}, line {number}: no line of a load result of schema {SCHEMA_VERSION}") from None
    if not header:
        raise LoadError(f"the load result {path} is empty")
    return header, records, end
