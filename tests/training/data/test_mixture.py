"""Mixing: proportions of every beginning, epochs as permutations, ends that are never silent, exact resume."""

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.training.data.errors import DataError
from headstart.training.data.mixture import Draw, Mixture, Piece, Pieces, SourceSpec
from headstart.training.documents import Document


def documents(lengths: list[int], name: str = "d") -> list[Document]:
    return [
        Document(np.arange(n, dtype=np.int32), np.arange(n) % 3 == 0 if i % 2 else None, f"{name}{i}", {"n": i})
        for i, n in enumerate(lengths)
    ]


def flat(draws: list[Draw]) -> list[tuple[str, int, str]]:
    return [(draw.source, draw.ordinal, draw.document.id) for draw in draws]


@given(
    parts=st.lists(
        st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 10.0)), min_size=1, max_size=4
    ),
    seed=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_beginning_has_the_shares_within_a_document(parts: list[tuple[list[int], float]], seed: int) -> None:
    sources = {f"s{i}": SourceSpec(documents(lengths), weight) for i, (lengths, weight) in enumerate(parts)}
    mixture = Mixture(sources, seed)
    total_weight = sum(weight for _, weight in parts)
    longest = max(max(lengths) for lengths, _ in parts)
    drawn = dict.fromkeys(sources, 0)
    for draw in islice(mixture, 200):
        drawn[draw.source] += len(draw.document)
        total = sum(drawn.values())
        for name, spec in sources.items():
            surplus = drawn[name] - spec.weight / total_weight * total
            # A source is drawn only when it lacks tokens, so it never has more than one document too many.
            assert surplus <= longest + 1e-6
            assert surplus >= -longest * (len(sources) - 1) - 1e-6
    assert mixture.tokens_drawn == drawn


def test_every_epoch_is_another_permutation() -> None:
    mixture = Mixture({"a": SourceSpec(documents([3] * 40, "a"), 1.0), "b": SourceSpec(documents([2] * 30), 0.5)}, 7)
    draws = [draw.document.id for draw in islice(mixture, 600) if draw.source == "a"]
    epochs = [draws[i : i + 40] for i in range(0, len(draws) - 39, 40)]
    assert len(epochs) >= 3
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert mixture.epochs["a"] == pytest.approx(len(draws) / 40)
    assert [d.ordinal for d in islice(mixture, 3)] == [600, 601, 602]


def test_a_source_is_shuffled_the_same_way_in_any_mixture() -> None:
    a = SourceSpec(documents([3] * 40), 1.0)
    alone = [draw.document.id for draw in islice(Mixture({"a": a}, 7), 50)]
    beside = [d.document.id for d in islice(Mixture({"a": a, "b": a}, 7), 100) if d.source == "a"]
    assert alone == beside
    assert [d.document.id for d in islice(Mixture({"a": a}, 8), 50)] != alone


def test_a_source_that_stops_ends_the_mixture_and_is_named() -> None:
    mixture = Mixture({"a": SourceSpec(documents([5] * 4), 1.0, "stop"), "b": SourceSpec(documents([5]), 1.0)}, 0)
    draws = list(mixture)
    assert sum(draw.source == "a" for draw in draws) == 4
    assert mixture.ended_by == "a"
    assert mixture.epochs == {"a": 1.0, "b": 4.0}
    assert list(mixture) == []


@given(stop=st.integers(0, 60), pieces=st.sampled_from([None, 4]))
@settings(max_examples=40, deadline=None)
def test_resume_at_any_document(stop: int, pieces: int | None) -> None:
    def build() -> Mixture:
        a = SourceSpec(documents([3, 30, 9, 1]), 1.0, piece_tokens=pieces)
        return Mixture({"a": a, "b": SourceSpec(documents([7] * 9), 2.0)}, 5)

    straight = build()
    list(islice(straight, stop))
    resumed = build()
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert flat(list(islice(straight, 40))) == flat(list(islice(resumed, 40)))
    assert straight.state_dict() == resumed.state_dict()


def test_a_following_phase_goes_on_with_unseen_documents() -> None:
    a, b = SourceSpec(documents([4] * 50, "a"), 1.0), SourceSpec(documents([4] * 50, "b"), 9.0)
    first = Mixture({"a": a, "b": b}, 0)
    seen = {draw.document.id for draw in islice(first, 40)}
    second = Mixture({"a": a, "c": SourceSpec(documents([4] * 50, "c"), 1.0)}, 0)
    second.continue_from(first.state_dict())
    draws = list(islice(second, 40))
    assert not seen & {draw.document.id for draw in draws}
    assert sum(draw.source == "a" for draw in draws) == 20
    assert draws[0].ordinal == 40


def test_pieces_put_together_are_the_documents() -> None:
    found = documents([0, 1, 10, 11, 25])
    pieces = Pieces(found, 5)
    assert len(pieces) == 1 + 1 + 2 + 3 + 5
    joined: dict[str, list[Document]] = {}
    for i in range(len(pieces)):
        assert len(pieces[i]) <= 5
        joined.setdefault(pieces[i].id.split("#")[0], []).append(pieces[i])
    for document in found:
        parts = joined[document.id]
        assert np.concatenate([part.token_ids for part in parts]).tolist() == document.token_ids.tolist()
        if document.trained is not None:
            masks = [part.trained for part in parts if part.trained is not None]
            assert np.concatenate(masks).tolist() == document.trained.tolist()
        if len(parts) > 1:
            assert all(isinstance(part, Piece) for part in parts)
            ends = [(part.begins, part.ends) for part in parts if isinstance(part, Piece)]
            assert ends == [(i == 0, i == len(parts) - 1) for i in range(len(parts))]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(part.metadata == document.metadata for part in parts)


def test_bad_mixtures_are_refused() -> None:
    good = SourceSpec(documents([3]), 1.0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="weight"):
            Mixture({"a": SourceSpec(documents([3]), weight)}, 0)
    with pytest.raises(DataError, match="no documents"):
        Mixture({"a": SourceSpec([], 1.0)}, 0)
    with pytest.raises(DataError, match="at least one"):
        Mixture({}, 0)
    with pytest.raises(DataError, match="piece_tokens"):
        Mixture({"a": SourceSpec(documents([3]), 1.0, piece_tokens=0)}, 0)
    with pytest.raises(DataError, match="no tokens"):
        list(islice(Mixture({"a": SourceSpec(documents([0, 0]), 1.0), "b": good}, 0), 9))


def test_a_cursor_of_other_data_is_refused() -> None:
    state = Mixture({"a": SourceSpec(documents([3, 4]), 1.0)}, 0).state_dict()
    with pytest.raises(DataError, match="sources a, and the mixture has b"):
        Mixture({"b": SourceSpec(documents([3, 4]), 1.0)}, 0).load_state_dict(state)
    with pytest.raises(DataError, match="holds 1"):
        Mixture({"a": SourceSpec(documents([3]), 1.0)}, 0).load_state_dict(state)
    with pytest.raises(DataError, match="seed 0, and the mixture has 1"):
        Mixture({"a": SourceSpec(documents([3, 4]), 1.0)}, 1).load_state_dict(state)
