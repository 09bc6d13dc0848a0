"""What holds for every kind of document."""

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from reading import documents, prose, turns

from headstart.errors import HeadstartError
from headstart.training.data.bpe import DocumentEncoder, SpecialSpan, train_tokenizer
from headstart.training.documents import TextDocument
from headstart.training.retrieval import DEFAULT_WEIGHTS, KINDS, Haystack, TokenEstimate, describe, make

HAYSTACK = prose()
estimate_tokens = TokenEstimate(HAYSTACK.common_words)
OWN = tuple(DEFAULT_WEIGHTS)


def as_tuple(document: TextDocument) -> tuple:
    return document.id, dict(document.metadata), [(type(s), s.text, s.trained) for s in document.spans]


@pytest.mark.parametrize("kind", OWN)
def test_a_document_depends_on_seed_and_index_alone(kind: str) -> None:
    options = {"length": (300, 1500), "haystack": HAYSTACK, "kinds": {kind: 1}, "train_context": 0.5}
    forward = [as_tuple(make(index, 3, chat=index % 2 == 0, **options)) for index in range(6)]
    backward = [as_tuple(make(index, 3, chat=index % 2 == 0, **options)) for index in reversed(range(6))][::-1]
    assert forward == backward
    assert as_tuple(make(0, 4, **options)) != forward[0]
    assert len({str(each) for each in forward}) == 6


def test_every_process_makes_the_same_documents(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(HAYSTACK.excerpt(random.Random(0), 30_000), encoding="utf-8")
    code = (
        "from headstart.training.retrieval import make\n"
        f"for i in range(30): print(repr(make(i, 5, length=[250, 900], haystack={str(book)!r}).text))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].splitlines()[7] == repr(make(7, 5, length=[250, 900], haystack=str(book)).text)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("length", [1000, 2000, 9000])
def test_lengths_are_within_five_percent(kind: str, length: int, chat: bool) -> None:
    for index in range(8 if length < 9000 else 2):
        document = make(index, 11, length=length, haystack=HAYSTACK, kinds={kind: 1}, chat=chat)
        special = [span for span in document.spans if isinstance(span, SpecialSpan)]
        plain = "".join(span.text for span in document.spans if not isinstance(span, SpecialSpan))
        assert 0.95 <= (estimate_tokens(plain) + len(special)) / length <= 1.05


def test_a_tokenizer_measures_the_length() -> None:
    tokenizer = train_tokenizer((make(i, 1, length=800, haystack=HAYSTACK).text for i in range(60)), 1200)
    encoder = DocumentEncoder(tokenizer)
    made = [
        make(index, 2, length=2000, haystack=HAYSTACK, kinds={kind: 1}, tokenizer=tokenizer)
        for kind in OWN
        for index in range(3)
    ]
    for document in encoder.encode_documents(made):
        assert 0.95 <= len(document) / 2000 <= 1.05, document.metadata


@pytest.mark.parametrize("kind", OWN)
def test_only_answers_are_trained(kind: str) -> None:
    for document in documents(kind, 24, HAYSTACK):
        spans = document.spans
        assert spans[-1].trained
        assert not spans[0].trained
        chat = isinstance(spans[0], SpecialSpan)
        for before, span in pairwise(spans):
            if span.trained and not isinstance(span, SpecialSpan):
                assert not before.trained
                assert chat == (before.text == "<|assistant|>")
                assert chat or span.text.endswith(("\n", "</answer>\n"))
                # The prompt ends and the answer begins as at generation: the space belongs to the answer.
                assert not before.text.endswith(" ")
        if chat:
            assert [s.text for s in spans if s.trained and isinstance(s, SpecialSpan)] == ["<|end|>"] * len(
                turns(document)
            )
            assert Counter(s.text for s in spans if isinstance(s, SpecialSpan)) == {
                "<|user|>": len(turns(document)),
                "<|assistant|>": len(turns(document)),
                "<|end|>": 2 * len(turns(document)),
            }


def test_the_number_of_questions_is_as_asked() -> None:
    for kind in ("questions", "needles_only", "key_value", "mapping"):
        assert {len(turns(document)) for document in documents(kind, 40, HAYSTACK, length=1200)} == set(range(3, 9))
        assert {len(turns(d)) for d in documents(kind, 10, HAYSTACK, length=9000, questions=20)} == {20}


def test_prose_is_trained_only_where_it_is_wanted() -> None:
    shares = []
    for index in range(60):
        each = make(index, 1, length=1500, haystack=HAYSTACK, kinds={"questions": 1}, train_context=0.5)
        shares.append(sum(len(s.text) for s in each.spans if s.trained) / len(each.text))
    assert 10 < sum(share > 0.3 for share in shares) < 45


def test_kinds_come_by_weight_and_lengths_by_their_logarithm() -> None:
    made = [
        make(index, 1, length=(250, 4000), haystack=HAYSTACK, kinds={"single": 3, "passkey": 1, "mixed": 0})
        for index in range(200)
    ]
    kinds = Counter(document.metadata["kind"] for document in made)
    assert kinds["mixed"] == 0
    assert 110 < kinds["single"] < 185
    assert 70 < sum(estimate_tokens(document.text) < 1000 for document in made) < 130


def test_wordings_are_many() -> None:
    for chat in (False, True):
        some = [make(i, 1, length=300, haystack=HAYSTACK, kinds={"single": 1}, chat=chat) for i in range(150)]
        assert len({document.text[:12] for document in some}) > 25


def test_describe_shows_what_is_trained() -> None:
    document = make(3, 1, length=3000, haystack=HAYSTACK, kinds={"questions": 1})
    shown = describe(document, width=300)
    assert "questions" in shown
    assert "characters ..." in shown
    for asked in turns(document):
        assert asked.answer.strip('"}') in shown
    assert shown.count("⟦") == sum(span.trained for span in document.spans)


def test_bad_input_gets_one_sentence(tmp_path: Path) -> None:
    good = {"length": 500, "haystack": HAYSTACK}
    for options, sentence in (
        ({"kinds": {"singel": 1}}, "did you mean 'single'"),
        ({"kinds": {}}, "positive weight"),
        ({"kinds": {"single": -1.0}}, "weight of 'single'"),
        ({"length": 10}, "length must be a number from 200 on"),
        ({"length": (900, 300)}, "length must be"),
        ({"questions": 0}, "questions must be"),
        ({"haystack": str(tmp_path / "absent.txt")}, r"absent\.txt"),
        ({"tokenizer": str(tmp_path)}, "tokenizer"),
    ):
        with pytest.raises(HeadstartError, match=sentence):
            make(0, 1, **(good | options))
    with pytest.raises(HeadstartError, match="no text of at least"):
        Haystack(["short"])


def test_all_kinds_are_known() -> None:
    assert set(KINDS) == {*OWN, "fairytaleqa", "factbook", "dialog"}


@pytest.mark.parametrize("chat", [False, True])
def test_a_solved_task_may_come_first(chat: bool) -> None:
    for kind in ("single", "variables", "common_words", "key_value", "mapping"):
        options = {"length": 1500, "haystack": HAYSTACK, "kinds": {kind: 1}, "chat": chat, "questions": 1}
        for index in range(5):
            without, with_one = (make(index, 3, solved=share, **options) for share in (0.0, 1.0))
            assert len(turns(with_one)) > len(turns(without))
            assert 0.9 < estimate_tokens(with_one.text) / estimate_tokens(without.text) < 1.1
            first = turns(with_one)[0]
            assert estimate_tokens(first.context) < 650
            if chat:
                assert with_one.text.count("<|user|>") == len(turns(with_one))
