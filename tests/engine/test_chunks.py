"""Chunks of prompts: how they are named, found behind marks, and refused."""

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import LLM, SamplingParams
from headstart.engine.chunk_marks import MARK, marked, no_longer_than
from headstart.engine.intake import encode_parts
from headstart.errors import InvalidRequestError

PIECES = ["The first says this.", "And the second:\n that.", "A third, é.", "x"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", num_pages=400)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_a_chunk_has_the_same_ids_wherever_it_stands(llm: LLM, order: list[int], seed: int) -> None:
    rng = random.Random(seed)
    gaps = [rng.choice(["", "\n\n", " then ", "y?"]) for _ in range(5)]
    text = gaps[0] + "".join(PIECES[n] + gap for n, gap in zip(order, gaps[1:], strict=True))
    ids, spans = encode_parts(text, PIECES[:3], llm.encode)
    assert [ids[a:b] for a, b in spans] == [llm.encode(PIECES[n], False) for n in order if n < 3]
    assert llm.tokenizer.decode(ids) == text
    assert ids[0] == llm.tokenizer.bos_token_id and ids.count(ids[0]) == 1


def test_the_same_chunk_twice_is_found_twice(llm: LLM) -> None:
    ids, spans = encode_parts("ab cd ab", ["ab", "ab"], llm.encode)
    assert len(spans) == 2 and ids[slice(*spans[0])] == ids[slice(*spans[1])]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"prompt": "one two", "chunks": ["three"]}, r"chunks\[0\] does not stand in the prompt"),
        ({"prompt": "one two", "chunks": ["one", "one"]}, r"chunks\[1\] does not stand"),
        ({"prompt": "one two", "chunks": ["one t", "two"]}, r"chunks\[1\] does not stand"),
        ({"prompt": "one two", "chunks": [""]}, r"chunks\[0\] does not stand"),
        ({"prompt": "one two", "chunks": "one"}, "chunks is a list of texts"),
        ({"prompt": "one two", "chunks": [(0, 1)]}, "chunks is a list of texts"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": ["one"]}, "pairs of start and end within the 3"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": [(1, 4)]}, "pairs of start and end"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": [(2, 2)]}, "pairs of start and end"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": [(0, 2), (1, 3)]}, "ascending and apart"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": [(-1, 2)]}, "pairs of start and end"),
        ({"prompt_token_ids": [1, 5, 6], "chunks": 3}, "pairs of start and end"),
    ],
)
def test_chunks_that_are_not_there_are_refused(llm: LLM, prompt: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        llm.generate(prompt, SamplingParams(max_tokens=1))


def test_an_engine_without_a_method_answers_as_if_no_chunks_were_named(llm: LLM) -> None:
    asked = SamplingParams(max_tokens=5, temperature=0)
    ids, spans = encode_parts("one two three", ["two"], llm.encode)
    named, bare = llm.generate([{"prompt_token_ids": ids, "chunks": spans}, {"prompt_token_ids": ids}], asked)
    assert named.outputs[0].token_ids == bare.outputs[0].token_ids


TEXTS = ["Foxes are red.\nThey run.", "Bears sleep.", "Owls\n\nsee at night."]


@pytest.mark.parametrize(
    "form",
    [
        "Document {n}:\n{text}\n\n",
        "[Passage {n}]\n{text}\n\n",
        "## Source #{n}\n{text}\n\n",
        '<document id="{n}">\n{text}\n</document>\n',
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_documents_behind_marks_are_found(llm: LLM, form: str, order: tuple[int, ...]) -> None:
    """The last one, where nothing closes it, ends at an empty line, in the middle of the third text."""
    documents = "".join(form.format(n=at + 1, text=TEXTS[n]) for at, n in enumerate(order))
    text = f"Read these.\n\n{documents.rstrip()}\n\nQuestion: who runs?"
    ids = llm.encode(text)
    found = [llm.tokenizer.decode(ids[a:b]) for a, b in marked(ids, llm.tokenizer, re.compile(MARK, re.MULTILINE))]
    closed = "</" in form
    want = [TEXTS[n] if closed or at < 2 else TEXTS[n].split("\n\n")[0] for at, n in enumerate(order)]
    # A token that reaches over an end is left out.
    assert all(text.startswith(got) and len(got) > 0.5 * len(text) for got, text in zip(found, want, strict=True))


def test_prose_has_no_marks(llm: LLM) -> None:
    for text in ("The document 3 says so.", "Documents:\n1. one", "", "source of it all\n"):
        assert marked(llm.encode(text), llm.tokenizer, re.compile(MARK, re.MULTILINE)) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), max_size=5), st.integers(1, 5))
def test_long_parts_are_cut(lengths: list[tuple[int, int]], most: int) -> None:
    spans, at = [], 0
    for length, gap in lengths:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    cut = no_longer_than(spans, most)
    assert [n for a, b in cut for n in range(a, b)] == [n for a, b in spans for n in range(a, b)]
    assert all(0 < b - a <= most for a, b in cut)
