"""Token shards: what goes in comes out; damaged, foreign and half-written ones are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as InnerTokenizer

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import encode_documents, train_tokenizer
from headstart.training.data.errors import DataError
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.documents import Document, Span, TextDocument

TEXT = "The king and the queen went to the sea.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 280)


def write(directory: Path, tokenizer: Tokenizer, found: list[Document], shard_tokens: int = 1 << 20) -> ShardSource:
    with ShardWriter(directory, tokenizer, shard_tokens) as writer:
        writer.add_all(found)
    return ShardSource(directory)


def some(count: int = 5) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(rng.integers(0, 280, 7 * i + 1).astype(np.int32), None, f"d{i}") for i in range(count)]


metadata = st.dictionaries(
    st.text(max_size=5), st.one_of(st.text(max_size=9), st.integers(-9, 9), st.just(0.5)), max_size=3
)


@given(
    found=st.lists(st.tuples(st.integers(0, 20), st.booleans(), metadata), max_size=8),
    shard_tokens=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_round_trip(
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    found: list[tuple[int, bool, dict[str, str | int | float]]],
    shard_tokens: int,
) -> None:
    rng = np.random.default_rng(1)
    documents = [
        Document(rng.integers(0, 280, n).astype(np.int32), rng.random(n) < 0.5 if masked else None, f"é\n{i}", more)
        for i, (n, masked, more) in enumerate(found)
    ]
    source = write(tmp_path_factory.mktemp("shards") / "s", tokenizer, documents, shard_tokens)
    source.verify()
    assert len(source) == len(documents)
    assert source.tokens == sum(len(d) for d in documents)
    assert source.lengths.tolist() == [len(d) for d in documents]
    for i, before in enumerate(documents):
        after = source[i]
        assert after.token_ids.dtype == np.int32
        assert np.array_equal(after.token_ids, before.token_ids)
        assert (after.trained is None) == (before.trained is None)
        assert before.trained is None or np.array_equal(after.trained, before.trained)  # type: ignore[arg-type]
        assert (after.id, after.metadata) == (before.id, before.metadata)
    with pytest.raises(IndexError):
        source[len(documents)]


def test_bytes_of_text_are_counted_without_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["Größe 😀", TEXT, "<|endoftext|>"]
    found = [TextDocument((Span(text), Span("x", trained=False)), str(i)) for i, text in enumerate(texts)]
    documents = [*encode_documents(found, tokenizer), Document(np.zeros(3, np.int32), None, "marks")]
    source = write(tmp_path / "s", tokenizer, documents)
    assert source.text_bytes == sum(len(text.encode()) + 1 for text in texts)


def test_large_vocabularies_are_stored_in_32_bits_and_read_without_a_copy(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer(InnerTokenizer.from_str(tokenizer.inner.to_str()), {}, {}, "copy")
    tokenizer.inner.add_tokens([f"word{i}" for i in range(1 << 16)])
    found = [Document(np.array([65_800, 3], np.int32), None, "a")]
    document = write(tmp_path / "s", tokenizer, found)[0]
    assert document.token_ids.tolist() == [65_800, 3]
    assert document.token_ids.base is not None and not document.token_ids.flags.writeable


@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.npy", "metadata.jsonl"])
def test_a_truncated_file_is_refused(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    write(tmp_path / "s", tokenizer, some())
    path = tmp_path / "s" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=f"damaged: {name} has"):
        ShardSource(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match=f"damaged: {name} is missing"):
        ShardSource(tmp_path / "s")


def test_changed_bytes_are_found_by_verify(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "s", tokenizer, some())
    path = tmp_path / "s" / "tokens-00000.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="checksum"):
        ShardSource(tmp_path / "s").verify()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 9}, "version 9"),
        ({"format": "else"}, "something else"),
        ({"tokens": 3}, "does not fit"),
        ({"documents": 2}, "does not fit"),
        ({"dtype": "uint32"}, "does not fit"),
        ({"dtype": "junk"}, "does not fit"),
        ({"shards": None}, "does not fit"),
        ({"files": {"../index.json": {"bytes": 1}}}, "missing"),
        ({"tokenizer": 1}, "does not fit"),
    ],
)
def test_a_foreign_index_is_refused(tokenizer: Tokenizer, tmp_path: Path, change: dict, match: str) -> None:
    write(tmp_path / "s", tokenizer, some())
    path = tmp_path / "s" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=match):
        ShardSource(tmp_path / "s")


def test_a_directory_without_shards_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token shards"):
        ShardSource(tmp_path)
    (tmp_path / "index.json").write_text("[1")
    with pytest.raises(DataError, match="cannot be read"):
        ShardSource(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="holds no token shards"):
        ShardWriter(tmp_path / "other", tokenizer)


def test_nothing_half_written_appears(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "s", tokenizer, some(3))
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "s", tokenizer) as writer:
        writer.add_all(some(4))
        raise KeyboardInterrupt
    assert len(ShardSource(tmp_path / "s")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert len(write(tmp_path / "s", tokenizer, some(5))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_said_and_leaves_the_old_shards(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s", tokenizer, some(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "s", tokenizer, some(4))
    assert len(ShardSource(tmp_path / "s")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_bad_documents_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two documents .* 'a'"):
        write(tmp_path / "s", tokenizer, [Document(np.zeros(1, np.int32), None, "a")] * 2)
    with pytest.raises(DataError, match="outside"):
        write(tmp_path / "s", tokenizer, [Document(np.array([280], np.int32), None, "a")])
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write(tmp_path / "s", tokenizer, some())
    source.check_tokenizer(tokenizer)
    shutil.move(tmp_path / "s", tmp_path / "t")
    with pytest.raises(DataError, match="another tokenizer"):
        ShardSource(tmp_path / "t").check_tokenizer(train_tokenizer([TEXT], 270))
