"""Readers: every format and compression gives the same documents, and bad files get one sentence."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.training.data.errors import DataError
from headstart.training.data.readers import read_documents
from headstart.training.documents import TextDocument

RECORDS = [
    {"text": "Once.\n", "author": "A", "year": 1900, "id": 7, "tags": ["x"], "none": None},
    {"text": "Größe 😀", "author": "B", "score": 0.5, "good": True},
]


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2
    # Two frames, as joined files have.
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}


def lines(records: list[dict]) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode() + b"\n\n"


def parquet(records: list[dict]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(records, schema=None), sink)
    return sink.getvalue().to_pybytes()


def read(path: Path, **options: str) -> list[TextDocument]:
    return list(read_documents(path, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", PACK)
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.b.jsonl{suffix}"
    path.write_bytes(PACK[suffix](lines(RECORDS)))
    first, second = read(path)
    assert (first.text, first.id) == ("Once.\n", "a.b:1")
    assert first.metadata == {"author": "A", "year": 1900, "id": 7}
    assert (second.text, second.metadata) == ("Größe 😀", {"author": "B", "score": 0.5, "good": True})


@pytest.mark.parametrize("suffix", PACK)
def test_parquet(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.parquet{suffix}"
    path.write_bytes(PACK[suffix](parquet([{"body": record["text"], "n": i} for i, record in enumerate(RECORDS)])))
    found = read(path, text_field="body")
    assert [(d.text, d.id, d.metadata) for d in found] == [("Once.\n", "p:1", {"n": 0}), ("Größe 😀", "p:2", {"n": 1})]


@pytest.mark.parametrize("suffix", PACK)
def test_plain_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.txt{suffix}"
    text = "é first\n<|end|>second" + "x" * 3_000_000 + "<|end|>\n"
    path.write_bytes(PACK[suffix](text.encode()))
    assert [d.text for d in read(path)] == [text]
    drops: Counter[str] = Counter()
    found = list(read_documents(path, separator="<|end|>", name="n", drops=drops))
    assert [d.text for d in found] == text.split("<|end|>")[:2]
    assert [d.id for d in found] == ["n:1", "n:2"]
    assert drops == {"empty": 1}


def test_ids_from_a_field_and_dropped_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "key": 5}\n{"text": " \\n", "key": 6}\n{"text": "\\ud800", "key": 7}\n')
    drops: Counter[str] = Counter()
    (document,) = read_documents(path, id_field="key", drops=drops)
    assert (document.id, document.metadata) == ("5", {})
    assert drops == {"empty": 1, "not Unicode": 1}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (b'{"text": "a"}\n\n[1]\n', "line 3 must hold a JSON object, not a list"),
        (b'{"body": "a", "n": 1}\n', "line 1 has no field 'text'; it has body, n"),
        (b'{"text": 3}\n', "line 1 has a field 'text' that is no text but of type int"),
        (b'{"text": "\xff"}\n', "line 1 is not UTF-8"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("suffix", [suffix for suffix in PACK if suffix])
@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_damaged_compression_is_said(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    packed = PACK[suffix](lines(RECORDS * 50))
    path.write_bytes(packed[:-9] if damage == "cut" else b"junk" + packed)
    with pytest.raises(DataError, match=r"a\.jsonl.* cannot be"):
        read(path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="suffix"):
        read(tmp_path / "a.csv.gz")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "d.jsonl")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="Parquet"):
        read(tmp_path / "x.parquet")
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "t.txt")
