"""Documents out of files: plain text, JSON lines and Parquet, compressed or not, one at a time."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from headstart.training.data.bpe import is_unicode
from headstart.training.data.compression import COMPRESSED, bare_name, open_binary
from headstart.training.data.errors import DataError
from headstart.training.documents import Span, TextDocument

FORMATS = (".txt", ".jsonl", ".parquet")
_PARQUET_ROWS = 256


def read_documents(
    path: str | Path,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    separator: str | None = None,
    name: str | None = None,
    drops: Counter[str] | None = None,
) -> Iterator[TextDocument]:
    """The documents of a `.txt`, `.jsonl` or `.parquet` file, which may be packed as `.gz`, `.xz`, `.bz2` or `.zst`.

    A document of a file is one line of JSON or one row, whose other fields become metadata where they are strings,
    numbers or booleans; or a whole text file, or each part of it between separators.

    Args:
        path: the file.
        text_field: the field that holds the text.
        id_field: the field that holds a unique id; None is `NAME:LINE`.
        separator: what stands between the documents of a text file; None takes the file as one document.
        name: the first part of ids; None is the file's name.
        drops: documents that are left out are counted here by reason: `empty`, `not Unicode`.

    Raises:
        DataError: the file cannot be read, a line holds no JSON object, or a field is missing or no text.
    """
    path = Path(path)
    drops = Counter() if drops is None else drops
    if _format(path) == ".txt":
        found = _text_documents(path, separator, name)
    else:
        found = (_document(*each, text_field, id_field) for each in read_records(path, name=name))
    for document in found:
        reason = "empty" if not document.text.strip() else "" if is_unicode(document.text) else "not Unicode"
        if reason:
            drops[reason] += 1
        else:
            yield document


def read_records(path: str | Path, *, name: str | None = None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The records of a `.jsonl` or `.parquet` file as they are: where (for messages), an id `NAME:LINE`, the fields."""
    path = Path(path)
    kind, name = _format(path), name or bare_name(path).rsplit(".", 1)[0]
    if kind == ".txt":
        raise DataError(f"{path} is plain text and has no records; use .jsonl or .parquet")
    with open_binary(path) as file:
        records = _json_lines(path, file) if kind == ".jsonl" else _parquet_rows(path, file)
        for number, where, record in records:
            yield where, f"{name}:{number}", record


def _format(path: Path) -> str:
    kind = Path(bare_name(path)).suffix
    if kind not in FORMATS:
        raise DataError(
            f"{path} has a suffix that cannot be read; use {', '.join(FORMATS)}, also packed as {', '.join(COMPRESSED)}"
        )
    return kind


def _document(where: str, id: str, record: Mapping[str, Any], text_field: str, id_field: str | None) -> TextDocument:
    for field in (text_field, id_field):
        if field is not None and field not in record:
            raise DataError(f"{where} has no field {field!r}; it has {', '.join(map(str, record)) or 'none'}")
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{where} has a field {text_field!r} that is no text but of type {type(text).__name__}")
    id = id if id_field is None else str(record[id_field])
    return TextDocument((Span(text),), id, scalars(record, text_field, id_field))


def scalars(record: Mapping[str, Any], *without: str | None) -> dict[str, Any]:
    """The fields of a record that can be metadata: strings, numbers, booleans."""
    kept = {key: value for key, value in record.items() if isinstance(value, str | int | float) and key not in without}
    return {str(key): value for key, value in kept.items()}


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            raise DataError(f"{where} is not UTF-8; convert the file") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} must hold a JSON object, not a {type(record).__name__}")
        yield number, where, record


def _parquet_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs the package pyarrow; run: pip install pyarrow") from None
    try:
        # Parquet is read from its end, so what is packed around it must be unpacked first.
        table = parquet.ParquetFile(io.BytesIO(file.read()) if path.suffix in COMPRESSED else file)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield number, f"{path}, row {number}", record
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _text_documents(path: Path, separator: str | None, name: str | None) -> Iterator[TextDocument]:
    name = name or bare_name(path).rsplit(".", 1)[0]
    with open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        try:
            if not separator:
                yield TextDocument.of(text.read(), name)
                return
            for number, part in enumerate(_split(text, separator), 1):
                yield TextDocument.of(part, f"{name}:{number}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 (byte {error.start} of a block); convert the file") from None


def _split(text: io.TextIOWrapper, separator: str) -> Iterator[str]:
    rest = ""
    while block := text.read(1 << 20):
        *parts, rest = (rest + block).split(separator)
        yield from parts
    yield rest
