"""Stages, near-duplicates and the held-out split."""

import random
from collections import Counter

import pytest

from headstart.training.data.bpe import SpecialSpan
from headstart.training.data.dedup import Deduplicator, Shingles
from headstart.training.data.errors import DataError
from headstart.training.data.split import HeldOutGuard, Split
from headstart.training.data.stages import Stage, apply_stages, fields, keep_where, length, normalise, tagged
from headstart.training.documents import Span, TextDocument

WORDS = [f"word{i}" for i in range(2000)]


def text(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(original: str, seed: int, share: float) -> str:
    """The text with a share of its words replaced."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in original.split())


def run(stage: Stage, *documents: TextDocument) -> tuple[list[TextDocument], Counter[str]]:
    drops: Counter[str] = Counter()
    return list(apply_stages(documents, [stage], drops)), drops


def one(stage: Stage, before: str) -> str:
    (after,), _ = run(stage, TextDocument.of(before, "d"))
    return after.text


def test_normalise() -> None:
    assert one(normalise(), "\ufeffa  \r\nb\t\r\n\r\n\r\n\n c \n") == "a\nb\n\n c"
    assert one(normalise(), "    indented = 1\n        two") == "indented = 1\n        two"
    assert one(normalise(spaces=True), "a \t b") == "a b"
    assert one(normalise(blank_lines=0), "a\n\n\nb") == "a\nb"
    assert one(normalise(blank_lines=None), "a\n\n\n\nb") == "a\n\n\n\nb"
    assert one(normalise(), "e\u0301") == "é"
    assert one(normalise(unicode=None), "e\u0301") == "e\u0301"
    marked = "# Title\n\nIt was *very* **good**, _he_ said; 2*3*4 and snake_case_name stay.\n\n* * *\n\n***both***"
    plain = "Title\n\nIt was very good, he said; 2*3*4 and snake_case_name stay.\n\nboth"
    assert one(normalise(markdown=True), marked) == plain
    found, drops = run(normalise(), TextDocument.of(" \n ", "d"))
    assert (found, drops) == ([], {"empty": 1})


def test_normalise_leaves_what_divides_spans() -> None:
    spans = (SpecialSpan("<|user|>", trained=False), Span("a \r\n "), Span("b", trained=False))
    ((document,), _) = run(normalise(), TextDocument(spans, "d"))
    assert document.spans == (spans[0], Span("a\n"), spans[2])
    assert isinstance(document.spans[0], SpecialSpan)


def test_length_fields_and_tags() -> None:
    a, b = TextDocument.of("aaaa", "a", kind="x", n=1), TextDocument.of("bb", "b", kind="y", n=2)
    assert run(length(min_characters=3), a, b) == ([a], {"too short": 1})
    assert run(length(max_characters=3), a, b) == ([b], {"too long": 1})
    assert run(keep_where("kind", values=["x"]), a, b) == ([a], {"other kind": 1})
    assert run(keep_where("kind", without=["x"]), a, b) == ([b], {"other kind": 1})
    ((after,), _) = run(fields(keep=["n"], rename={"n": "number"}), a)
    assert after.metadata == {"number": 1}
    ((after,), _) = run(tagged({"kind": "z"}), a)
    assert after.metadata == {"kind": "z", "n": 1}


def jaccard(a: str, b: str, words: int) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        found = text.lower().split()
        return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}

    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def test_shingles_are_the_runs_of_words() -> None:
    shingles = Shingles(3)
    for seed in range(20):
        a = text(seed)
        b = changed(a, seed, 0.1)
        found, other = set(shingles(a).tolist()), set(shingles(b).tolist())
        assert len(found & other) / len(found | other) == jaccard(a, b, 3)
    assert shingles("One, TWO three!").tolist() == shingles("one two three").tolist()
    assert shingles("a b").shape == (1,)
    assert shingles("a b").tolist() != shingles("b a").tolist()
    assert shingles("!?").shape == (0,)


def test_planted_near_duplicates_are_found_and_distinct_texts_kept() -> None:
    originals = [TextDocument.of(text(i), f"o{i}") for i in range(200)]
    near = [TextDocument.of(changed(d.text, i, 0.01).upper() + "!", f"n{i}") for i, d in enumerate(originals)]
    far = [TextDocument.of(changed(d.text, i, 0.15), f"f{i}") for i, d in enumerate(originals)]
    similar = {b.id for a, b in zip(originals, near, strict=True) if jaccard(a.text, b.text.rstrip("!"), 5) > 0.85}
    assert len(similar) > 150
    drops: Counter[str] = Counter()
    kept = {d.id for d in Deduplicator(0.7)([*originals, *near, *far], drops)}
    assert {d.id for d in originals} <= kept
    assert not similar & kept
    assert {d.id for d in far} <= kept
    assert drops["near-duplicate"] == 600 - len(kept)


def test_duplicates_are_found_across_sources_and_after_a_restart() -> None:
    first, short = Deduplicator(), ["", "one", "one two"]
    texts = [text(i) for i in range(20)] + short
    assert all(first.is_new(each) for each in texts)
    second = Deduplicator()
    second.restore(first.signatures())
    assert len(second) == len(texts)
    assert not any(each.is_new(again) for again in texts for each in (first, second))
    assert first.is_new("three four")
    assert first.signatures(len(texts)).shape == (1, 128)


def test_the_split_depends_on_the_id_alone() -> None:
    documents = [TextDocument.of("x", f"d{i}", author=f"a{i % 50}") for i in range(5000)]
    split = Split(0.1)
    held = {d.id for d in documents if split.is_held_out(d)}
    assert 400 < len(held) < 600
    assert held == {d.id for d in reversed(documents) if Split(0.1).is_held_out(d)}
    assert held < {d.id for d in documents if Split(0.2).is_held_out(d)}
    assert held != {d.id for d in documents if Split(0.1, seed=1).is_held_out(d)}
    assert not any(Split(0.0).is_held_out(d) for d in documents)
    assert all(Split(1.0).is_held_out(d) for d in documents)


def test_documents_of_one_author_stay_together() -> None:
    documents = [TextDocument.of("x", f"d{i}", author=f"a{i % 50}") for i in range(500)]
    split = Split(0.3, by="author")
    sides = {True: set(), False: set()}
    for document in documents:
        sides[split.is_held_out(document)].add(document.metadata["author"])
    assert sides[True] and sides[False] and not sides[True] & sides[False]
    with pytest.raises(DataError, match="no metadata field 'title'"):
        Split(0.3, by="title").is_held_out(documents[0])


def test_held_out_text_never_reaches_training() -> None:
    guard = HeldOutGuard()
    held = [text(i, 100 + i) for i in range(50)]
    for i, each in enumerate(held):
        guard.add(TextDocument.of(each, f"h{i}"))
    guard.add(TextDocument.of("?", "no words"))
    leaks = [*held, *(changed(each, 1, 0.03) for each in held)]
    leaks += [text(1000 + i, 3000) + " " + each + " " + text(2000 + i, 3000) for i, each in enumerate(held)]
    leaks += [each[len(each) // 4 : len(each) // 2] for each in held]
    clean = [text(5000 + i, 300) for i in range(100)] + ["", "one two"]
    # A short quotation is no leak.
    clean += [text(7000 + i, 300) + " " + " ".join(each.split()[:20]) for i, each in enumerate(held)]
    drops: Counter[str] = Counter()
    kept = list(guard((TextDocument.of(each, str(i)) for i, each in enumerate(leaks + clean)), drops))
    assert [d.text for d in kept] == clean
    assert drops == {"holds held-out text": len(leaks)}
    assert not HeldOutGuard().leaks(TextDocument.of(held[0], "x"))


def test_bad_settings_are_refused() -> None:
    for threshold in (0.0, 1.5):
        with pytest.raises(DataError, match="threshold"):
            Deduplicator(threshold)
        with pytest.raises(DataError, match="threshold"):
            HeldOutGuard(threshold)
    with pytest.raises(DataError, match="fraction"):
        Split(1.2)
