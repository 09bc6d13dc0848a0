"""Cached pages in files: checksummed, complete or not there at all, and found again after a restart."""

import contextlib
import hashlib
import logging
import os
import queue
import re
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil

from headstart.errors import HeadstartError

log = logging.getLogger(__name__)

# Magic and version, the page's key, and the length of its bytes; a checksum of each of its parts follows, then they.
_HEADER = struct.Struct("<8s24sQ")
_MAGIC = b"HSKVPG02"
_CHECKSUM_BYTES = 16
_NAME = re.compile(r"[0-9a-f]{48}\.kv")
_MODEL = re.compile(r"[0-9a-f]{16}")
CATALOGUE = "library.json"
"""A list of documents whose pages lie here, which others keep beside them."""
_UNFINISHED = re.compile(r"\.[0-9a-f]{48}\.(\d+)\.tmp")
# What waits to be written takes at most this much memory; beyond it pages are dropped, for the engine must not wait.
_QUEUE_BYTES = 256 * 2**20


class DiskTier:
    """Pages as files below a directory, the least recently used of which make room. Not for several threads, but for
    `get_part`.

    A file is `MODEL/AB/KEY.kv`, written beside and renamed. What is not such a file is left alone; what is one and
    does not hold what it should is deleted, with a warning.

    Args:
        path: the directory; made if need be, for its owner alone, since keys tell of prompts.
        limit: bytes of all pages below it, other models' included.
        model: 16 hexadecimal digits.
        page_bytes: of one page.
        parts: bytes of the parts of a page that can be read alone, in order (default: the page is one part).

    Raises:
        HeadstartError: the directory cannot be made or written, or the limit is below one file's size.
    """

    def __init__(self, path: Path, limit: int, model: str, page_bytes: int, parts: Sequence[int] | None = None) -> None:
        self._root, self._limit, self._page_bytes = path, limit, page_bytes
        sizes = [page_bytes] if parts is None else list(parts)
        self._parts = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self._own = path / model
        self._head_bytes = _HEADER.size + _CHECKSUM_BYTES * len(sizes)
        self._file_bytes = page_bytes + self._head_bytes
        if limit < self._file_bytes:
            raise HeadstartError(
                f"the disk tier's limit of {limit} bytes holds not one page of this model: "
                f"give at least {self._file_bytes}"
            )
        # Every file with its size, the least recently used first.
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()
        self._waiting: dict[bytes, bytes] = {}
        self._room = max(1, _QUEUE_BYTES // page_bytes)
        self._tasks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._warned = False
        try:
            # Parents that a call makes get the usual mode, so that it is given to one directory at a time.
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own.mkdir(mode=0o700, exist_ok=True)
            (self._own / f".{os.getpid()}.probe").touch()
            (self._own / f".{os.getpid()}.probe").unlink()
        except OSError as error:
            raise HeadstartError(f"the disk tier cannot use {path}: {error.strerror}; choose another path") from None
        self._scan()
        self._writer = threading.Thread(target=self._write_all, name="headstart-disk-tier", daemon=True)
        self._writer.start()

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._waiting or self._place(key) in self._files

    def put(self, key: bytes, page: bytes) -> None:
        """Have a page written, unless it is there or too much waits already."""
        with self._lock:
            if key in self._waiting or self._place(key) in self._files or len(self._waiting) >= self._room:
                return
            self._waiting[key] = page
        self._tasks.put(key)

    def get(self, key: bytes) -> bytes | None:
        """A page, or None if it is not there or not whole."""
        place = self._place(key)
        with self._lock:
            if key in self._waiting:
                return self._waiting[key]
            if place not in self._files:
                return None
            self._files.move_to_end(place)
        page = self._read(place, key)
        if page is None:
            self._forget(place)
        return page

    def get_part(self, key: bytes, number: int) -> bytes | None:
        """One part of a page, or None if it is not there or not whole; safe beside whatever else is done."""
        part, place = self._parts[number], self._place(key)
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is not None:
                return waiting[part]
            if place not in self._files:
                return None
        try:
            with place.open("rb") as file:
                head = file.read(self._head_bytes)
                file.seek(self._head_bytes + part.start)
                data = file.read(part.stop - part.start)
        except OSError as error:
            log.warning("the disk tier's file %s cannot be read: %s", place, error.strerror)
            return None
        if self._heads(head, key) and _checksum_at(head, number) == _checksum(key, data):
            return data
        log.warning("the disk tier's file %s is corrupt and is ignored", place)
        return None

    def flush(self, pages: Iterable[tuple[bytes, Any]], seconds: float) -> None:
        """Write what waits and these pages too, for so long at most, and end the writing thread."""
        deadline = time.monotonic() + seconds
        for key, page in pages:
            while len(self._waiting) >= self._room and time.monotonic() < deadline:
                time.sleep(0.01)
            if time.monotonic() >= deadline:
                break
            self.put(key, page.tobytes())
        self._tasks.put(None)
        self._writer.join(max(0.0, deadline - time.monotonic()))

    def _place(self, key: bytes) -> Path:
        return self._own / page_file(key)

    def _scan(self) -> None:
        """Find what earlier processes have left."""
        found: list[tuple[float, Path, int]] = []
        foreign: list[Path] = []
        for path in self._root.rglob("*"):
            try:
                status = path.stat()
                if path.is_dir():
                    continue
            except OSError:
                continue
            depth = len(path.relative_to(self._root).parts)
            unfinished = _UNFINISHED.fullmatch(path.name)
            if depth == 3 and unfinished and _MODEL.fullmatch(path.parts[-3]):
                # This process has written nothing yet: what bears its id is another's, from before a restart.
                owner = int(unfinished[1])
                if owner == os.getpid() or not psutil.pid_exists(owner):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
            elif depth == 3 and _NAME.fullmatch(path.name) and _MODEL.fullmatch(path.parts[-3]):
                found.append((status.st_mtime, path, status.st_size))
            elif path != self._root / CATALOGUE:
                foreign.append(path)
        if foreign:
            log.warning("ignored %d files in the disk tier that are not its own, such as %s", len(foreign), foreign[0])
        for _, path, size in sorted(found):
            self._files[path] = size
            self._total += size
        self._make_room(0)

    def _read(self, place: Path, key: bytes) -> bytes | None:
        try:
            data = place.read_bytes()
            os.utime(place)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the disk tier's file %s cannot be read: %s", place, error.strerror)
            return None
        if len(data) == self._file_bytes and self._heads(data, key):
            page = data[self._head_bytes :]
            if all(_checksum_at(data, at) == _checksum(key, page[part]) for at, part in enumerate(self._parts)):
                return page
        log.warning("the disk tier's file %s is corrupt and is deleted", place)
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        return None

    def _heads(self, data: bytes, key: bytes) -> bool:
        """Whether a file that begins like this holds the page of this key."""
        return len(data) >= self._head_bytes and _HEADER.unpack_from(data) == (_MAGIC, key, self._page_bytes)

    def _forget(self, place: Path) -> None:
        with self._lock:
            self._total -= self._files.pop(place, 0)

    def _write_all(self) -> None:
        """The writing thread."""
        while (key := self._tasks.get()) is not None:
            page = self._waiting[key]
            written = self._write(key, page)
            with self._lock:
                if written:
                    self._files[self._place(key)] = self._file_bytes
                    self._total += self._file_bytes
                del self._waiting[key]

    def _write(self, key: bytes, page: bytes) -> bool:
        place = self._place(key)
        beside = place.with_name(f".{key.hex()}.{os.getpid()}.tmp")
        try:
            if not self._make_room(self._file_bytes):
                return False
            self._make_directories(place.parent)
            checksums = b"".join(_checksum(key, page[part]) for part in self._parts)
            beside.write_bytes(_HEADER.pack(_MAGIC, key, len(page)) + checksums + page)
            beside.replace(place)
            return True
        except (OSError, MemoryError) as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            if not self._warned:
                log.warning("the disk tier cannot write %s: %s; it goes on without what it cannot write", place, error)
                self._warned = True
            return False

    def _make_directories(self, last: Path) -> None:
        """Make those that are gone, too: somebody may have emptied the tier while it ran."""
        for directory in (self._root, self._own, last):
            directory.mkdir(mode=0o700, parents=directory is self._root, exist_ok=True)

    def _make_room(self, wanted: int) -> bool:
        """Delete the oldest files until so many bytes fit."""
        while True:
            with self._lock:
                if self._total + wanted <= self._limit:
                    return True
                if not self._files:
                    return False
                place, size = self._files.popitem(last=False)
                self._total -= size
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)


def page_file(key: bytes) -> str:
    """Where a page lies within its model's directory."""
    name = key.hex()
    return f"{name[:2]}/{name}.kv"


def _checksum(key: bytes, part: bytes) -> bytes:
    return hashlib.blake2b(part, key=key, digest_size=_CHECKSUM_BYTES).digest()


def _checksum_at(head: bytes, number: int) -> bytes:
    """The checksum of a part, from the beginning of a file."""
    start = _HEADER.size + _CHECKSUM_BYTES * number
    return head[start : start + _CHECKSUM_BYTES]
