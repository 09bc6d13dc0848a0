"""Opening files that may be compressed, by the last suffix of their name."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from headstart.training.data.errors import DataError

COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked.

    Raises:
        DataError: it is missing, unreadable, or ends too early, also while it is being read.
    """
    try:
        with _open(path) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be unpacked, so it is damaged or cut off: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def bare_name(path: Path) -> str:
    """The file's name without the suffix of its compression."""
    return path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name


def _open(path: Path) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case ".zst":
            return cast(BinaryIO, io.BufferedReader(_Zstandard(path), 1 << 20))
        case _:
            return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard one after another. The library's own reader takes a file that is cut off for a whole one."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path} needs the package zstandard; run: pip install zstandard") from None
        self._library: Any = zstandard
        self._file = open(path, "rb")  # noqa: SIM115
        self._frame: Any = None
        self._ready = self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._rest or self._file.read(1 << 17)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(packed)
            except self._library.ZstdError as error:
                raise EOFError(str(error)) from None
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()
