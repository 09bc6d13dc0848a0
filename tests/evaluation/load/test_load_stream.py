"""Server-sent events in pieces: when tokens came, whatever the pieces and the text."""

import asyncio
import itertools
import json
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.load.stream import Answer, error_message, events, read_answer


def read(pieces: list[tuple[float, bytes]]) -> Answer:
    return asyncio.run(read_answer(pieces))


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"


def chunk(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish, **more}]}


@hypothesis.settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=20),
    st.lists(st.integers(0, 10**6), max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_the_pieces_do_not_matter(texts: list[str], cuts: list[int], windows: bool, compact: bool) -> None:
    """Each event counts at the time of the piece that brought its last byte."""
    parts = [event(chunk(text)) for text in texts]
    parts += [event(chunk("", "length")), event({"choices": [], "usage": {"completion_tokens": 3}}), event("[DONE]")]
    if compact:
        parts = [part.replace(b'": ', b'":') for part in parts]
    if windows:
        parts = [part.replace(b"\n", b"\r\n") for part in parts]
    whole = b"".join(parts)
    places = sorted({cut % len(whole) for cut in cuts} | {0, len(whole)})
    pieces = [(float(end), whole[start:end]) for start, end in itertools.pairwise(places)]
    answer = read(pieces)
    ends, position = [], 0
    for part in parts[: len(texts)]:
        position += len(part)
        ends.append(next(float(place) for place in places if place >= position))
    assert answer.times == ends
    assert (answer.finish_reason, answer.usage, answer.complete) == ("length", {"completion_tokens": 3}, True)
    assert answer.error is None


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.text(), st.sampled_from([None, "stop", "length"]))
def test_any_text_is_told_from_an_end(text: str, finish: str | None) -> None:
    """Quotes, backslashes and key names inside of the text do not deceive."""
    for nasty in (text, f'"text": "{text}', f'{text}", "finish_reason": null', f'\\"finish_reason": "stop{text}'):
        answer = read([(1.0, event(chunk(nasty, finish)))])
        assert len(answer.times) == (1 if nasty or finish is None else 0)
        assert answer.finish_reason == finish


def test_comments_and_other_fields_are_passed_over() -> None:
    data = b": keep-alive\n\nevent: message\nid: 4\n" + event(chunk("a")) + b"retry: 3\n\n"
    assert [found for _, found in events([(0.0, data)])] == [json.dumps(chunk("a")).encode()]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"error": {"message": "out of   memory\n", "type": "x"}}, "out of memory"),
        ({"error": "gone"}, "gone"),
        ("nonsense", "not a JSON object"),
        ("[1]", "not a JSON object"),
    ],
)
def test_errors_in_a_stream_are_kept(data: Any, says: str) -> None:
    answer = read([(1.0, event(chunk("a")) + event(data))])
    assert answer.times == [1.0]
    assert answer.error is not None and says in answer.error


@pytest.mark.parametrize("choices", [None, [], [None], "x", 3])
def test_events_without_a_choice_bring_no_token(choices: Any) -> None:
    assert read([(1.0, event({"choices": choices, "usage": None}))]).times == []


def test_error_bodies_of_any_shape_have_a_message() -> None:
    assert error_message({"detail": "no"}) == "{'detail': 'no'}"
    assert error_message(["x"]) == "['x']"
    assert len(error_message({"error": {"message": "x" * 5000}})) == 300
