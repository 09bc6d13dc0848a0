"""Token shards: documents as tokens on disk, read through memory maps."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import fingerprint, token_byte_lengths
from headstart.training.data.errors import DataError
from headstart.training.documents import Document

_FORMAT, _VERSION = "headstart token shards", 1
# One row a document: where its tokens and its line of metadata end, where its mask starts (-1: all is trained),
# and how many bytes of text it holds.
_TABLE = np.dtype([("tokens_end", "<i8"), ("line_end", "<i8"), ("mask_start", "<i8"), ("text_bytes", "<i8")])
_INDEX, _DOCUMENTS, _METADATA, _MASKS = "index.json", "documents.npy", "metadata.jsonl", "masks.bin"


class DocumentSource(Protocol):
    """Documents by number, from 0 to `len() - 1`. A list of documents is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document: ...


class ShardWriter:
    """Writes a directory of token shards, which appears whole when the writer is left without an error.

    Args:
        directory: replaced if it holds shards already.
        tokenizer: whose ids these are; its fingerprint is kept.
        shard_tokens: tokens after which a new file begins; no document is split between files.

    Raises:
        DataError: the directory holds something else or cannot be written; a document that cannot be kept.
    """

    def __init__(self, directory: str | Path, tokenizer: Tokenizer, shard_tokens: int = 1 << 27) -> None:
        self.directory = Path(directory)
        if self.directory.exists() and not (self.directory / _INDEX).is_file():
            raise DataError(f"{self.directory} exists and holds no token shards; give another directory")
        self._bytes_of = token_byte_lengths(tokenizer)
        self._vocab_size = tokenizer.vocab_size
        self._fingerprint = fingerprint(tokenizer)
        self._dtype = np.dtype("<u2" if self._vocab_size <= 1 << 16 else "<u4")
        self._shard_tokens = shard_tokens
        self._rows: list[tuple[int, int, int, int]] = []
        self._ids: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, _HashedFile] = {}
        self._tokens = self._line_end = self._mask_end = self._text_bytes = 0
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._beside = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}-", dir=self.directory.parent))
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add_all(self, documents: Iterable[Document]) -> None:
        """Add documents one by one."""
        for document in documents:
            self.add(document)

    def add(self, document: Document) -> None:
        """Append a document."""
        ids = np.asarray(document.token_ids)
        if document.id in self._ids:
            raise DataError(f"two documents of {self.directory.name} have the id {document.id!r}; make ids unique")
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self._vocab_size):
            raise DataError(
                f"document {document.id} of {self.directory.name} holds token ids outside the tokenizer's "
                f"{self._vocab_size}"
            )
        text_bytes = int(self._bytes_of[ids].sum())
        line = json.dumps({"id": document.id, "metadata": dict(document.metadata)})
        mask_start = -1
        try:
            self._append_tokens(ids)
            self._line_end += self._file(_METADATA).write(line.encode() + b"\n")
            if document.trained is not None:
                mask_start = self._mask_end
                self._mask_end += self._file(_MASKS).write(np.asarray(document.trained, np.uint8).tobytes())
        except OSError as error:
            self.abort()
            raise self._unwritable(error) from None
        self._ids.add(document.id)
        self._text_bytes += text_bytes
        self._rows.append((self._tokens, self._line_end, mask_start, text_bytes))

    def close(self) -> None:
        """Finish the files and put them in place of the directory."""
        try:
            self._file(_METADATA)
            files = {name: file.finish() for name, file in self._files.items()}
            table = self._beside / _DOCUMENTS
            np.save(table, np.array(self._rows, _TABLE))
            files[_DOCUMENTS] = {"bytes": table.stat().st_size, "blake2b": _digest(table)}
            index = {
                "format": _FORMAT,
                "version": _VERSION,
                "dtype": self._dtype.name,
                "documents": len(self._rows),
                "tokens": self._tokens,
                "text_bytes": self._text_bytes,
                "tokenizer": {"fingerprint": self._fingerprint, "vocab_size": self._vocab_size},
                "shards": self._shards,
                "files": files,
            }
            (self._beside / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            self._beside.chmod(0o755)
            replace_directory(self._beside, self.directory)
        except OSError as error:
            self.abort()
            raise self._unwritable(error) from None

    def abort(self) -> None:
        """Throw away what was written; an earlier directory stays as it was."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._beside, ignore_errors=True)

    def _append_tokens(self, ids: np.ndarray) -> None:
        if (
            not self._shards
            or self._shards[-1]["tokens"] + len(ids) > self._shard_tokens > 0 < self._shards[-1]["tokens"]
        ):
            self._shards.append({"name": f"tokens-{len(self._shards):05d}.bin", "tokens": 0})
        self._file(self._shards[-1]["name"]).write(ids.astype(self._dtype).tobytes())
        self._shards[-1]["tokens"] += len(ids)
        self._tokens += len(ids)

    def _file(self, name: str) -> "_HashedFile":
        if name not in self._files:
            self._files[name] = _HashedFile(self._beside / name)
        return self._files[name]

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"token shards cannot be written to {self.directory}: {error.strerror or error}")


class _HashedFile:
    """A file that knows its size and checksum as it is written."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115
        self._hash = hashlib.blake2b(digest_size=16)
        self._bytes = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)
        return len(data)

    def finish(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._bytes, "blake2b": self._hash.hexdigest()}

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            # A full disk lets even the closing fail; the file goes away anyway.
            return


class ShardSource:
    """The documents of a directory that `ShardWriter` wrote.

    Args:
        directory: where they lie.

    Attributes:
        tokens, text_bytes: tokens, and bytes of text in UTF-8, of all documents together.
        lengths: int64 `[len(self)]`, tokens of each document.
        tokenizer_fingerprint: of the tokenizer that made the ids.
        vocab_size: of that tokenizer.

    Raises:
        DataError: the directory holds no shards, or they are truncated, or of another version.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._index = index = _read_index(self.directory)
        try:
            self.tokens, self.text_bytes = int(index["tokens"]), int(index["text_bytes"])
            self.tokenizer_fingerprint = str(index["tokenizer"]["fingerprint"])
            self.vocab_size = int(index["tokenizer"]["vocab_size"])
            for name, file in index["files"].items():
                self._check_size(name, int(file["bytes"]))
            dtype = np.dtype(index["dtype"]).newbyteorder("<")
            self._table = np.load(self.directory / _DOCUMENTS, mmap_mode="r", allow_pickle=False)
            self._shards = [self._map(shard["name"], dtype) for shard in index["shards"]]
            counts = [int(shard["tokens"]) for shard in index["shards"]]
            whole = self._table.dtype == _TABLE and len(self._table) == index["documents"]
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise self._damaged(f"its {_INDEX} does not fit its files ({error})") from None
        if not whole or counts != [len(shard) for shard in self._shards] or sum(counts) != self.tokens:
            raise self._damaged(f"its {_INDEX} does not fit its files")
        self._shard_ends = np.cumsum(counts, dtype=np.int64)
        self._ends = np.asarray(self._table["tokens_end"])
        self.lengths = np.diff(self._ends, prepend=0)
        self._metadata = self._map(_METADATA, np.dtype(np.uint8))
        self._masks = self._map(_MASKS, np.dtype(np.bool_)) if _MASKS in index["files"] else None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Document:
        """The document; ids of 32 bits are a view of the file, of 16 bits a copy."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        end, length = int(self._ends[index]), int(self.lengths[index])
        row = self._table[index]
        line_start = int(self._table[index - 1]["line_end"]) if index else 0
        record = json.loads(bytes(self._metadata[line_start : int(row["line_end"])]))
        trained = None
        if (mask_start := int(row["mask_start"])) >= 0 and self._masks is not None:
            trained = self._masks[mask_start : mask_start + length]
        return Document(self._token_ids(end - length, length), trained, record["id"], record["metadata"])

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: a file's content is not what was written.
        """
        for name, file in self._index["files"].items():
            if _digest(self.directory / name) != file["blake2b"]:
                raise self._damaged(f"{name} does not have the checksum it was written with")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that did not make these ids.

        Raises:
            DataError: it is another one.
        """
        if fingerprint(tokenizer) != self.tokenizer_fingerprint:
            raise DataError(
                f"the token shards in {self.directory} were made with another tokenizer; prepare them anew "
                "with `headstart data prepare` or use the tokenizer they were made with"
            )

    def _token_ids(self, start: int, length: int) -> np.ndarray:
        if not length:
            return np.empty(0, np.int32)
        shard = int(np.searchsorted(self._shard_ends, start, side="right"))
        start -= int(self._shard_ends[shard - 1]) if shard else 0
        ids = self._shards[shard][start : start + length]
        return ids.view(np.int32) if ids.itemsize == 4 else ids.astype(np.int32)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self.directory / name
        if path.stat().st_size == 0:
            return np.empty(0, dtype)
        # A plain array over the map: slices of `np.memmap` itself cost microseconds each.
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def _check_size(self, name: str, size: int) -> None:
        path = self.directory / name
        if Path(name).name != name or not path.is_file():
            raise self._damaged(f"{name} is missing")
        if (found := path.stat().st_size) != size:
            raise self._damaged(f"{name} has {found} bytes instead of {size}")

    def _damaged(self, what: str) -> DataError:
        return DataError(f"the token shards in {self.directory} are damaged: {what}; prepare them anew")


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{directory} holds no token shards ({_INDEX} is missing); make them with `headstart data prepare`"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as the index of token shards: {error}") from None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise DataError(f"{directory} holds no token shards: its {_INDEX} is of something else")
    if index.get("version") != _VERSION:
        raise DataError(
            f"the token shards in {directory} are of version {index.get('version')}, and this program reads "
            f"version {_VERSION}; prepare them anew"
        )
    return index


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def replace_directory(beside: Path, directory: Path) -> None:
    """Rename `beside` to `directory`, putting away what was there only once the new one can take its place."""
    if not directory.exists():
        beside.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    directory.rename(old / directory.name)
    beside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
