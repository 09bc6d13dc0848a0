"""OpenAI's batch files: a request in each line in, a result in each line out, in whatever order they are done."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from headstart.errors import HeadstartError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""What a line may ask."""
_KEYS = ("custom_id", "method", "url", "body")


class BatchFileError(HeadstartError):
    """An input or output file that cannot be used."""


class LineError(HeadstartError):
    """A line that is no request; the sentence says which line, and why. `custom_id` is its id, if it has one."""

    custom_id: str | None = None


@dataclass(frozen=True)
class BatchRow:
    """A request of the file.

    Attributes:
        line: its number, from 1.
        custom_id: what its result is called.
        url: one of `URLS`.
        body: of the request.
    """

    line: int
    custom_id: str
    url: str
    body: dict[str, Any]

    @classmethod
    def parse(cls, line: int, text: str, seen: dict[str, int]) -> Self:
        """The request in a line.

        Args:
            line: its number.
            text: what stands there.
            seen: the lines of the ids before it; its own is added.

        Raises:
            LineError: it is none.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            raise LineError(f"line {line} is not JSON: {reason}") from None
        if not isinstance(found, dict):
            raise LineError(f"line {line} is not a JSON object with {', '.join(_KEYS)}")
        custom_id, method, url, body = map(found.get, _KEYS)
        if not isinstance(custom_id, str) or not custom_id:
            raise LineError(f"line {line} has no custom_id: give it a text that no other line has")
        if custom_id in seen:
            raise LineError(f"line {line} has the custom_id {custom_id!r} of line {seen[custom_id]}: make it another")
        seen[custom_id] = line
        wrong = _what_is_wrong(method, url, body)
        if wrong is not None:
            error = LineError(f"line {line} {wrong}")
            error.custom_id = custom_id
            raise error
        return cls(line, custom_id, url, body)  # type: ignore[arg-type]


def _what_is_wrong(method: Any, url: Any, body: Any) -> str | None:
    """What keeps a line from being a request, or None."""
    if method != "POST":
        return f'has the method {json.dumps(method)}: it must be "POST"'
    if url not in URLS:
        return f"asks {json.dumps(url)}: the url must be one of {', '.join(URLS)}"
    if not isinstance(body, dict):
        return "has no body: it must be the JSON object of a request"
    if body.get("stream"):
        return "wants a stream, which a file cannot take: leave stream out"
    return None


def read_rows(path: Path) -> Iterator[BatchRow | tuple[int, LineError]]:
    """Every line of an input file that is not blank: a request, or its number and what is wrong.

    Raises:
        BatchFileError: the file cannot be read.
    """
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    yield BatchRow.parse(number, raw.decode("utf-8"), seen)
                except UnicodeDecodeError:
                    yield number, LineError(f"line {number} is not UTF-8 text")
                except LineError as error:
                    yield number, error
    except OSError as error:
        raise BatchFileError(f"the batch file {path} cannot be read: {error.strerror}") from None


class Results:
    """The output file: rows are added as they are done, and those of an earlier run are kept.

    A run that was killed may have left half a line, and rows that failed for want of an engine: both are dropped, so
    that they are computed again. Whatever else is there stays as it is.

    Args:
        path: made if it is not there.

    Attributes:
        done: the ids that have a result.
        broken: the numbers of lines without an id that have their error.
        models: what the models of the results are called.

    Raises:
        BatchFileError: it cannot be written, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.broken: set[int] = set()
        self.models: set[str] = set()
        try:
            if path.exists():
                self._keep(path.read_bytes())
            self._file = path.open("ab")
        except OSError as error:
            raise BatchFileError(f"the results file {path} cannot be written: {error.strerror}") from None

    def add(self, row: dict[str, Any]) -> None:
        """Write a result."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _keep(self, found: bytes) -> None:
        lines = found.split(b"\n")
        kept = [line for line in lines[:-1] if self._note(line)]
        # The last line has ended only if nothing follows it.
        if lines[-1] or len(kept) < len(lines) - 1:
            _replace(self.path, b"".join(line + b"\n" for line in kept))

    def _note(self, line: bytes) -> bool:
        """Whether a line is a result that stands."""
        try:
            row = json.loads(line)
            custom_id, response, error = row["custom_id"], row["response"], row["error"]
        except (ValueError, KeyError, TypeError):
            raise BatchFileError(f"{self.path} holds something else than results: name another file") from None
        if response is not None:
            if response["status_code"] >= 500:
                return False
            self.models |= {response["body"]["model"]} if "model" in response["body"] else set()
        if custom_id is not None:
            self.done.add(custom_id)
        elif error is not None and "line" in error:
            self.broken.add(error["line"])
        return True


def result(custom_id: str, status: int, body: Any) -> dict[str, Any]:
    """The row of a request that was answered or refused."""
    response = {"status_code": status, "request_id": uuid4().hex, "body": body}
    return {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}


def line_error(line: int, error: LineError) -> dict[str, Any]:
    """The row of a line that is no request."""
    told = {"code": "invalid_line", "message": str(error), "line": line}
    return {"id": f"batch_req_{uuid4().hex}", "custom_id": error.custom_id, "response": None, "error": told}


def _replace(path: Path, content: bytes) -> None:
    """Put another content in place of a file's; nobody sees half of it."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(beside, path.stat().st_mode & 0o777)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
