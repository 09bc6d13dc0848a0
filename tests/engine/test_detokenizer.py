"""Streaming text: never half a character, never part of a stop string, and in sum what the tokenizer says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.detokenizer import Detokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer of single bytes: every character beyond ASCII takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, {}, {}, "bytes")


def run(tokenizer, text, prompt="", **rules) -> tuple[list[str], Detokenizer]:
    """The pieces that a stream of this text's tokens hands out."""
    machine = Detokenizer(tokenizer, tokenizer.encode(prompt), rules.pop("stop", []), **rules)
    pieces, sent = [], 0
    for token in tokenizer.encode(text):
        machine.add(token)
        ready = machine.ready(machine.stopped_by is not None)
        pieces.append(machine.text[sent:ready])
        sent = max(sent, ready)
    machine.finish()
    pieces.append(machine.text[sent : machine.ready(True)])
    return pieces, machine


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=10), text=st.text(max_size=30))
def test_pieces_add_up_and_never_hold_half_a_character(tokenizer, prompt, text):
    """The sum of the pieces is the text, and no piece contains a replacement character that the text has not."""
    pieces, _ = run(tokenizer, text, prompt)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abé🎈", max_size=30),
    stop=st.lists(st.text(alphabet="abé🎈", min_size=1, max_size=4), min_size=1, max_size=3),
    keep=st.booleans(),
)
def test_stop_strings_end_the_text_and_are_never_streamed_in_part(tokenizer, text, stop, keep):
    """The text ends at the first stop string that is complete; streamed pieces never go beyond it."""
    pieces, machine = run(tokenizer, text, stop=stop, keep_stop=keep)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert machine.stopped_by is None and "".join(pieces) == text
        return
    assert machine.stopped_by in stop
    whole = "".join(pieces)
    start = text.find(machine.stopped_by)
    assert whole == text[: start + len(machine.stopped_by) if keep else start]
    assert start + len(machine.stopped_by) == min(ends), "the stop string that is complete first decides"


def test_unfinished_bytes_come_out_at_the_end(tokenizer):
    """An output that ends within a character shows the replacement character, once, at its end."""
    machine = Detokenizer(tokenizer, [], [])
    for token in tokenizer.encode("a🎈")[:-1]:
        machine.add(token)
    assert machine.text == "a"
    machine.finish()
    assert machine.text.startswith("a") and set(machine.text[1:]) == {"\ufffd"}


def test_stop_strings_are_not_looked_for_within_min_tokens(tokenizer):
    """A stop string that the first tokens write does not end the output; a later one does."""
    _, machine = run(tokenizer, "xxaxxb", stop=["x"], min_tokens=3)
    assert machine.text == "xxa" and machine.stopped_by == "x"


def test_sentencepiece_keeps_the_space_before_the_first_word(stories):
    """Text after a prompt begins with its space, as it reads in the whole."""
    from pathlib import Path

    tokenizer = Tokenizer.from_directory(Path(stories))
    whole = "Once upon a time there was a café"
    ids = tokenizer.encode(whole)
    machine = Detokenizer(tokenizer, ids[:5], [])
    for token in ids[5:]:
        machine.add(token)
    machine.finish()
    assert tokenizer.decode(ids[:5]) + machine.text == whole


def test_work_stays_bounded_without_text(tokenizer):
    """Tokens that give no text, and bytes that never become a character, do not pile up."""
    machine = Detokenizer(tokenizer, [], [])
    broken = tokenizer.encode("é")[0]
    for _ in range(500):
        machine.add(broken)
        assert len(machine._ids) - machine._context < 40
    assert "\ufffd" in machine.text
