"""One safetensors file, read in slices whose memory is given back as soon as they are copied.

The safetensors library keeps every page that was read mapped until the file is closed, so a process that
converts the dtype would hold the checkpoint twice. The format is simple enough to map here: 8 bytes of
length, a JSON header of names, dtypes, shapes and offsets, then the numbers.
"""

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.errors import CheckpointError
from headstart.models.fields import shown

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_SLICE_BYTES = 8 << 20
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its dtype, its shape, and where its bytes lie in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shard:
    """A safetensors file, open for reading; a context manager.

    Attributes:
        path: the file.
        entries: its tensors by name.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"the weights file {path} is missing; copy the checkpoint again")
        self._file = path.open("rb")
        try:
            self.entries = self._read_header(path.stat().st_size)
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        # Slices handed out may still be referenced by a caller's frame; the mapping goes when they do.
        self._file.close()

    def slices(
        self,
        name: str,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        index: int | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """A tensor, or a part of it, in slices along its first dimension; nothing else of the file is read.

        Args:
            name: the tensor.
            rows: `(start, stop)` along the first dimension; None is all.
            columns: `(start, stop)` along the last dimension; None is all.
            index: take this one of the tensors that are stacked along the first dimension.

        Yields:
            The first row of a slice, counted from the start of `rows`, and the slice, good until the next is taken.
        """
        entry = self.entries[name]
        shape = [*entry.shape] or [1]
        start, size = entry.start, entry.stop - entry.start
        if index is not None:
            shape, start, size = shape[1:], start + size // shape[0] * index, size // shape[0]
        low, high = rows or (0, shape[0])
        if not size:
            return
        row_bytes = size // shape[0]
        step = max(1, _SLICE_BYTES // row_bytes)
        for first in range(low, high, step):
            count = min(step, high - first)
            offset = start + first * row_bytes
            flat = torch.frombuffer(self._map, dtype=entry.dtype, count=count * math.prod(shape[1:]), offset=offset)
            found = flat.view(count, *shape[1:]) if entry.shape else flat.view(())
            yield first - low, found if columns is None else found[..., slice(*columns)]
            self._release(offset, count * row_bytes)

    def _release(self, offset: int, size: int) -> None:
        """Give the memory of whole pages in this range back to the system."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _read_header(self, file_size: int) -> dict[str, Entry]:
        length = int.from_bytes(self._file.read(8), "little")
        if file_size < 8 or length > min(file_size - 8, _MAX_HEADER_BYTES):
            raise self._damaged("is truncated in its header or is not a safetensors file")
        try:
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            entries = {name: self._entry(name, described, 8 + length) for name, described in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._damaged("has a header that is not that of a safetensors file") from None
        for name, entry in entries.items():
            if entry.stop > file_size:
                raise self._damaged(f"is truncated: tensor {name!r} ends at byte {entry.stop} of {file_size}")
        return entries

    def _entry(self, name: str, described: dict, data_start: int) -> Entry:
        if described["dtype"] not in DTYPES:
            raise CheckpointError(f"tensor {name!r} in {self.path} has the unknown dtype {shown(described['dtype'])}")
        dtype, shape = DTYPES[described["dtype"]], tuple(described["shape"])
        start, stop = described["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise self._damaged(f"is damaged: the shape or the place of tensor {name!r} is not in whole numbers")
        if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
            raise self._damaged(f"is damaged: tensor {name!r} of shape {shown(list(shape))} has {stop - start} bytes")
        return Entry(dtype, shape, data_start + start, data_start + stop)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"the weights file {self.path} {what}; copy the checkpoint again")
