"""The trained tokenizer: ids equal to Transformers', digits alone, no special token out of plain text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import (
    DocumentEncoder,
    SpecialSpan,
    encode_documents,
    fingerprint,
    save_tokenizer,
    token_byte_lengths,
    train_tokenizer,
)
from headstart.training.data.errors import DataError
from headstart.training.documents import Span, TextDocument

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>")
TEXTS = [
    "The king and the queen went to the sea in 1865, and they didn't come back.\n\nThat was all.\n",
    "def add(a, b):\n    return a + b  # 12345 + 67890\n",
    "Éloïse s'en va; “naïve” – 你好, мир! 😀\r\n\tTabs\tand   spaces   \n",
] * 5
NASTY = ["", " ", "\n\n \n", "a" * 300, "1234567", "I'LL we'Re", "<|user|>", "x<|endoftext|>y", "\ufeff\u200d𐍈\x00"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 340, SPECIAL, bos_token=SPECIAL[0], eos_token=SPECIAL[0], add_bos=True)


def test_transformers_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path, max_length=2048)
    # With a model's config beside it, Transformers must not take the tokenizer for the model family's own.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_directory(tmp_path)
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos_token, ours.eos_token) == (SPECIAL[0], SPECIAL[0])
    assert theirs.model_max_length == 2048
    for text in [*TEXTS, *NASTY]:
        for special in (True, False):
            assert theirs.encode(text, add_special_tokens=special) == ours.encode(text, special)
        ids = ours.encode(text)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        assert ids[0] == ours.bos_token_id
    assert fingerprint(ours) == fingerprint(tokenizer)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_has_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    (document,) = encode_documents([TextDocument.of(text, "t")], tokenizer)
    ids = document.token_ids
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())
    assert document.token_ids.dtype == np.int32
    assert not {tokenizer.inner.token_to_id(token) for token in SPECIAL} & set(ids.tolist())


def test_special_tokens_come_first_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert [tokenizer.inner.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert tokenizer.vocab_size == 340
    digits = [token for token in tokenizer.inner.get_vocab() if any(c.isdecimal() for c in token)]
    assert sorted(digits) == list("0123456789")


def test_the_same_text_gives_the_same_tokenizer_in_another_process(tokenizer: Tokenizer) -> None:
    code = (
        "import json, sys; from headstart.training.data.bpe import *; texts, special = json.load(sys.stdin);"
        "print(fingerprint(train_tokenizer(texts, 340, special)))"
    )
    asked = json.dumps([TEXTS, SPECIAL])
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(tokenizer)
    assert fingerprint(train_tokenizer(TEXTS[:2], 300, SPECIAL)) != fingerprint(tokenizer)


def test_spans_are_encoded_one_by_one(tokenizer: Tokenizer) -> None:
    spans = (SpecialSpan("<|user|>", trained=False), Span("the kin"), Span("g <|user|>", trained=False))
    (document,) = encode_documents([TextDocument(spans, "chat", {"a": 1})], tokenizer)
    encode = DocumentEncoder(tokenizer).encode
    parts = [[1], encode("the kin"), encode("g <|user|>")]
    assert document.token_ids.tolist() == [*parts[0], *parts[1], *parts[2]]
    assert document.trained is not None
    assert document.trained.tolist() == [False] + [True] * len(parts[1]) + [False] * len(parts[2])
    assert 1 not in parts[2]
    assert document.metadata == {"a": 1}
    # The shared tokenizer still reads prompts as before.
    assert tokenizer.encode("<|user|>", add_special_tokens=False) == [1]


def test_batches_do_not_matter(tokenizer: Tokenizer) -> None:
    found = [TextDocument((Span(text), Span("ab")), str(i)) for i, text in enumerate(TEXTS + NASTY)]
    for size in (1, 100):
        ids = [d.token_ids.tolist() for d in encode_documents(found, tokenizer, batch_characters=size)]
        assert ids == [d.token_ids.tolist() for d in encode_documents(found, tokenizer)]


@pytest.mark.parametrize("text", ["<|user|> ", "user", "", "<|nobody|>"])
def test_a_special_span_of_other_text_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(DataError, match=r"document d7 .*special span"):
        list(encode_documents([TextDocument((SpecialSpan(text),), "d7")], tokenizer))


def test_half_a_surrogate_pair_is_refused_with_the_document(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="document bad"):
        list(encode_documents([TextDocument.of("fine", "good"), TextDocument.of("\ud800", "bad")], tokenizer))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="at least 257"):
        train_tokenizer(TEXTS, 256, ("<a>",))
    with pytest.raises(DataError, match="lower vocab_size"):
        train_tokenizer(["abc"], 400)
    with pytest.raises(DataError, match="not among"):
        train_tokenizer(TEXTS, 400, ("<a>",), bos_token="<b>")
    with pytest.raises(DataError, match="needs a bos_token"):
        train_tokenizer(TEXTS, 400, ("<a>",), add_bos=True)
    with pytest.raises(DataError, match="different"):
        train_tokenizer(TEXTS, 400, ("<a>", "<a>"))
