"""Texts and bytes of single tokens, over the two families of byte-complete tokenizers."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as InnerTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from headstart.checkpoints.token_texts import TokenTexts
from headstart.checkpoints.tokenizer import Tokenizer


def byte_level() -> Tokenizer:
    inner = InnerTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the cat and the dog saw a ☃ and a ☃"] * 3, trainer)
    return Tokenizer(inner, {}, {}, "a test")


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback"])
def tokenizer(request: pytest.FixtureRequest, stories: str) -> Tokenizer:
    return byte_level() if request.param == "byte-level" else Tokenizer.from_directory(Path(stories))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=30))
def test_tokens_put_together_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    texts = TokenTexts(tokenizer)
    # Behind a word, so that no tokenizer adds a space of its own.
    before = tokenizer.encode("the", add_special_tokens=False)
    ids = tokenizer.encode("the" + text, add_special_tokens=False)
    if ids[: len(before)] != before:
        return
    assert b"".join(texts.data(token) for token in ids[len(before) :]) == text.encode()
    if all("\ufffd" not in texts.text(token) for token in ids):
        assert "".join(texts.text(token) for token in ids[len(before) :]) == text
