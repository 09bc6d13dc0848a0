"""Traces of real traffic: the Azure LLM inference CSV, Mooncake's JSONL and BurstGPT's CSV, plain, .gz or .xz."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from headstart.evaluation.load.settings import LoadError

# Mooncake's traces name one hash per so many tokens of the prompt.
MOONCAKE_BLOCK = 512

_KNOWN = "the Azure LLM inference CSV, BurstGPT's CSV and Mooncake's JSONL"


@dataclass(frozen=True)
class TraceRequest:
    """One line of a trace.

    Attributes:
        time: seconds since the trace's own zero.
        input_tokens: length of the prompt.
        output_tokens: length of the answer; 0 is a request that failed.
        hash_ids: name of each block of 512 prompt tokens, the last one shorter; equal names are equal tokens after
            equal beginnings. None if the trace tells nothing of that kind.
    """

    time: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] | None = None


class _Malformed(Exception):
    """What is wrong with a line."""


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """Read a trace line by line, so that the beginning of a huge one comes at once.

    Raises:
        LoadError: no such file, an unknown format, or a malformed line, which is named by its number.
    """
    try:
        with _open(path) as file:
            yield from _requests(path, file)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise LoadError(f"the trace {path} is damaged: {error}; fetch it again") from None
    except UnicodeDecodeError:
        raise LoadError(f"the trace {path} is no text, nor compressed with gzip (.gz) or xz (.xz)") from None
    except OSError as error:
        raise LoadError(f"the trace {path} cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> IO[str]:
    opener: Callable[..., IO[str]] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _requests(path: Path, file: IO[str]) -> Iterator[TraceRequest]:
    first = file.readline()
    parse, is_header = _format(path, first)
    last = float("-inf")
    lines = [] if is_header else [first]
    for number, line in enumerate(_chain(lines, file), start=2 if is_header else 1):
        if not line.strip():
            continue
        try:
            request = parse(line)
            if request.time < last:
                raise _Malformed("its time is before that of the line above; sort the trace by time")
        except _Malformed as error:
            raise LoadError(f"{path}, line {number}: {error}") from None
        last = request.time
        yield request


def _chain(lines: list[str], file: IO[str]) -> Iterator[str]:
    yield from lines
    yield from file


def _format(path: Path, first: str) -> tuple[Callable[[str], TraceRequest], bool]:
    """How to parse a line, and whether the first one is a header."""
    if not first.strip():
        raise LoadError(f"the trace {path} is empty")
    if first.lstrip().startswith("{"):
        return _mooncake, False
    columns = [name.strip() for name in next(csv.reader(io.StringIO(first)))]
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(columns):
        return lambda line: _azure(_fields(columns, line)), True
    if {"Timestamp", "Request tokens", "Response tokens"} <= set(columns):
        return lambda line: _burstgpt(_fields(columns, line)), True
    raise LoadError(f"{path} is no trace that is known here ({_KNOWN}): it begins with {first.strip()[:60]!r}")


def _fields(columns: list[str], line: str) -> dict[str, str]:
    values = next(csv.reader(io.StringIO(line)))
    if len(values) != len(columns):
        raise _Malformed(f"it has {len(values)} fields, not the {len(columns)} of the header")
    return dict(zip(columns, values, strict=True))


def _azure(fields: dict[str, str]) -> TraceRequest:
    stamp = fields["TIMESTAMP"].strip()
    try:
        time = datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        raise _Malformed(f"TIMESTAMP is {stamp!r}, not a date and time") from None
    return TraceRequest(
        time, _count("ContextTokens", fields["ContextTokens"]), _count("GeneratedTokens", fields["GeneratedTokens"])
    )


def _burstgpt(fields: dict[str, str]) -> TraceRequest:
    try:
        time = float(fields["Timestamp"])
    except ValueError:
        raise _Malformed(f"Timestamp is {fields['Timestamp']!r}, not a number of seconds") from None
    return TraceRequest(
        _finite("Timestamp", time),
        _count("Request tokens", fields["Request tokens"]),
        _count("Response tokens", fields["Response tokens"]),
    )


def _mooncake(line: str) -> TraceRequest:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Malformed(f"it is not JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise _Malformed("it is not a JSON object")
    missing = {"timestamp", "input_length", "output_length", "hash_ids"} - set(data)
    if missing:
        raise _Malformed(f"it lacks {min(missing)!r}")
    time, hashes = data["timestamp"], data["hash_ids"]
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise _Malformed(f"timestamp is {time!r}, not a number of milliseconds")
    if not isinstance(hashes, list) or not all(type(item) is int and item >= 0 for item in hashes):
        raise _Malformed("hash_ids is not a list of whole numbers")
    length = _count("input_length", data["input_length"])
    blocks = -(-length // MOONCAKE_BLOCK)
    if len(hashes) != blocks:
        raise _Malformed(f"it names {len(hashes)} hash_ids, not {blocks} for its {length} tokens")
    return TraceRequest(
        _finite("timestamp", time) / 1000, length, _count("output_length", data["output_length"]), tuple(hashes)
    )


def _finite(name: str, value: float) -> float:
    if not abs(value) < float("inf"):
        raise _Malformed(f"{name} is {value}, not a time")
    return value


def _count(name: str, value: str | int) -> int:
    """A number of tokens."""
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        return int(value)
    raise _Malformed(f"{name} is {value!r}, not a whole number of at least 0")
