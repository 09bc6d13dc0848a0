"""The rig's text: the same each time, cut at natural places, and nothing held out is trained on."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.rig.corpus import (
    EXCERPT_BYTES,
    SOURCES,
    STANDARD,
    RigCorpus,
    RigError,
    build_corpus,
    byte_tokenizer,
    cut,
)
from headstart.training.documents import Document
from tests.conftest import data_directory

SMALL: dict[str, Any] = {"train_bytes": 20_000, "held_out_bytes": 4_000}


def texts(corpus: RigCorpus, documents: list[Document]) -> list[str]:
    return [corpus.tokenizer.decode(document.token_ids.tolist()) for document in documents]


def work(document: Document) -> str:
    return document.id.rpartition(":")[0]


def test_without_data_the_package_has_text_of_its_own(tmp_path: Path) -> None:
    """Three sources, in the order asked for; what is held out is of other works."""
    corpus = build_corpus(tmp_path, tuple(SOURCES), None, **SMALL)
    assert corpus.names == ("novels", "noisy-novels", "code")
    for name in corpus.names:
        train, held_out = corpus.train(name), corpus.held_out(name)
        assert 15_000 < sum(map(len, train)) < 21_000 and sum(map(len, held_out)) < 5_000
        assert max(map(len, train + held_out)) <= EXCERPT_BYTES
        assert not {work(d) for d in train} & {work(d) for d in held_out}
        assert all(document.metadata == {"source": name} for document in train)
    assert "Mole" in " ".join(texts(corpus, corpus.train("novels")))
    assert "def " in " ".join(texts(corpus, corpus.train("code")))


def test_the_noisy_copy_is_of_the_same_works(tmp_path: Path) -> None:
    """Excerpt for excerpt, with a tenth of the letters replaced and all else in its place."""
    corpus = build_corpus(tmp_path, ("novels", "noisy-novels"), None, **SMALL)
    for part in (corpus.train, corpus.held_out):
        clean, noisy = part("novels"), part("noisy-novels")
        pairs = [
            (a, b) for c, n in zip(clean, noisy, strict=True) for a, b in zip(c.token_ids, n.token_ids, strict=True)
        ]
        assert 0.04 < sum(a != b for a, b in pairs) / len(pairs) < 0.11


def test_the_same_text_gives_the_same_corpus(tmp_path: Path) -> None:
    """And other text another fingerprint."""
    one = build_corpus(tmp_path / "1", ("novels",), None, **SMALL)
    two = build_corpus(tmp_path / "2", ("novels",), None, **SMALL)
    more = build_corpus(tmp_path / "3", ("novels",), None, train_bytes=22_000, held_out_bytes=4_000)
    assert one.fingerprint == two.fingerprint != more.fingerprint


def test_real_sources(tmp_path: Path) -> None:
    """Every source that the data directory is said to hold is there and has text enough."""
    data = data_directory()
    if not data.is_dir():
        pytest.skip(f"needs the data at {data}; set HEADSTART_DATA")
    corpus = build_corpus(tmp_path, STANDARD, data, **SMALL)
    assert corpus.names == STANDARD
    for name in STANDARD:
        assert sum(map(len, corpus.train(name))) > 18_000 and len(corpus.held_out(name)) > 3


def test_unknown_and_absent_sources_get_a_sentence(tmp_path: Path) -> None:
    """The nearest name; the data directory that is missing."""
    with pytest.raises(RigError, match="no source 'novel'; did you mean 'novels'"):
        build_corpus(tmp_path, ("novel",), None)
    with pytest.raises(RigError, match="the sources plays need the data directory: set HEADSTART_DATA"):
        build_corpus(tmp_path, ("plays",), None)


def test_bytes_are_tokens() -> None:
    """258 ids: what is not a mark is a byte."""
    tokenizer = byte_tokenizer()
    text = "Añ\n\tß 1"
    assert tokenizer.vocab_size == 258
    assert len(tokenizer.encode(text, False)) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text, False)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


@given(st.text(alphabet="ab \n", max_size=300), st.integers(8, 64))
def test_excerpts_keep_the_text(text: str, size: int) -> None:
    """Every word in its order, and no excerpt beyond the size."""
    found = list(cut(text, size))
    assert all(len(piece.encode()) <= size and piece.strip() for piece in found)
    words = [word for word in text.split() if len(word) <= size // 4]
    if len(words) == len(text.split()):
        assert " ".join(found).split() == words
