"""Packing: every token once and in order, targets and positions against a plain loop, resume at any row."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.training.data.errors import DataError
from headstart.training.data.mixture import InOrder, Mixture, Piece, SourceSpec
from headstart.training.data.packing import FILLER, IGNORED, PackedRow, Packer, collate
from headstart.training.data.prefetch import Prefetch
from headstart.training.documents import Document

BOS, EOS = 1, 2


def documents(lengths: list[int], masked: bool = False, seed: int = 0) -> list[Document]:
    """Documents whose tokens are all different, so that places can be found again."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum([10, *lengths])
    return [
        Document(
            np.arange(starts[i], starts[i + 1], dtype=np.int32),
            rng.random(length) < 0.5 if masked else None,
            f"d{i}",
            {"number": i},
        )
        for i, length in enumerate(lengths)
    ]


def naive(found: list[Document], bos: int | None, eos: int | None) -> dict[str, tuple[list[int], list[int]]]:
    """Tokens and targets of each document, token by token."""
    result = {}
    for document in found:
        tokens = ([] if bos is None else [bos]) + document.token_ids.tolist() + ([] if eos is None else [eos])
        trained = [True] * len(document) if document.trained is None else document.trained.tolist()
        flags = ([] if bos is None else [False]) + trained + ([] if eos is None else [True])
        targets = []
        for i in range(len(tokens)):
            follows = i + 1 < len(tokens) and flags[i + 1]
            targets.append(tokens[i + 1] if follows else IGNORED)
        result[document.id] = (tokens, targets)
    return result


def segments(rows: list[PackedRow]) -> Iterator[tuple[tuple[str, str], list[int], list[int], list[int]]]:
    for row in rows:
        at = 0
        for length, document in zip(row.lengths, row.documents, strict=True):
            part = slice(at, at + length)
            yield document, row.token_ids[part].tolist(), row.targets[part].tolist(), row.positions[part].tolist()
            at += length
        assert at == len(row.token_ids) == len(row.targets) == len(row.positions)


def same(left: PackedRow, right: PackedRow) -> bool:
    return (
        all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("token_ids", "targets", "positions"))
        and left.lengths == right.lengths
        and left.documents == right.documents
    )


cases = given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=25),
    length=st.integers(2, 16),
    marks=st.sampled_from([(None, None), (BOS, None), (None, EOS), (BOS, EOS)]),
    masked=st.booleans(),
    lanes=st.integers(1, 4),
)


@cases
@settings(max_examples=150, deadline=None)
def test_every_token_of_every_document_once_and_in_order(
    lengths: list[int], length: int, marks: tuple[int | None, int | None], masked: bool, lanes: int
) -> None:
    found = documents(lengths, masked)
    packer = Packer(InOrder("s", found), length, bos=marks[0], eos=marks[1], lanes=lanes, keep_last=True)
    rows = list(packer)
    assert [len(row.token_ids) for row in rows[:-1]] == [length] * (len(rows) - 1)
    joined: dict[str, tuple[list[int], list[int]]] = {}
    for (_, name), tokens, targets, positions in segments(rows):
        assert positions == list(range(len(tokens)))
        before = joined.setdefault(name, ([], []))
        before[0].extend(tokens)
        before[1].extend(targets)
    expected = naive([d for d in found if len(d)], *marks)
    assert joined == expected
    assert packer.dropped["empty"] == lengths.count(0)


@cases
@settings(max_examples=100, deadline=None)
def test_whole_documents_are_never_cut(
    lengths: list[int], length: int, marks: tuple[int | None, int | None], masked: bool, lanes: int
) -> None:
    found = documents(lengths, masked)
    sources = {"cut": SourceSpec(found, 1.0, "stop"), "whole": SourceSpec(found, 1.0, "stop")}
    if not sum(lengths):
        return
    packer = Packer(
        Mixture(sources, 0),
        length,
        bos=marks[0],
        eos=marks[1],
        whole={"whole"},
        lanes=lanes,
        lookahead=3,
        keep_last=True,
    )
    expected = naive(found, *marks)
    filler = 0
    for document, tokens, targets, _ in segments(list(packer)):
        if document[0] == "whole":
            assert (tokens, targets) == expected[document[1]]
        if document == FILLER:
            filler += len(tokens)
            assert set(targets) == {IGNORED}
    assert filler == packer.filler_tokens


def test_a_whole_document_longer_than_a_row_is_dropped_and_counted() -> None:
    packer = Packer(InOrder("w", documents([9, 3, 5])), 8, whole={"w"}, keep_last=True)
    assert [row.documents for row in packer] == [(("w", "d1"), ("w", "d2"))]
    assert packer.dropped == {"longer than a row": 1}
    assert packer.dropped_tokens == {"longer than a row": 9}


def test_whole_documents_alone_are_packed_with_little_filler() -> None:
    rng = np.random.default_rng(0)
    found = documents(rng.integers(5, 90, 2000).tolist())
    packer = Packer(InOrder("w", found), 128, bos=BOS, eos=EOS, whole={"w"})
    rows = list(packer)
    placed = {name for row in rows for source, name in row.documents if source == "w"}
    assert len(placed) + packer.dropped["unfilled last row"] == 2000
    assert packer.filler_tokens < 0.03 * 128 * len(rows)


def test_a_waiting_document_opens_the_next_row() -> None:
    stream = [("cut", [5]), ("whole", [6]), ("cut", [20])]

    class Fixed(InOrder):
        def __next__(self) -> Any:
            draw = super().__next__()
            return draw._replace(source=stream[draw.ordinal][0])

    found = documents([lengths[0] for _, lengths in stream])
    rows = list(Packer(Fixed("x", found), 8, whole={"whole"}, keep_last=True))
    assert rows[0].documents == (("cut", "d0"), ("cut", "d2"))
    assert rows[1].documents == (("whole", "d1"), ("cut", "d2"))


def test_complete_packing_discards_the_overhang() -> None:
    packer = Packer(InOrder("s", documents([5, 9, 4, 30])), 8, complete=True, keep_last=True)
    rows = list(packer)
    assert [row.lengths for row in rows] == [(5, 3), (4, 4)]
    assert packer.dropped_tokens == {"overhang": 6 + 26}
    assert all(positions[0] == 0 for *_, positions in segments(rows))


def test_parts_of_a_document_are_marked_at_its_ends_only() -> None:
    ids = np.arange(10, 16, dtype=np.int32)
    parts: list[Document] = [Piece(ids[:3], None, "a#0", {}, True, False), Piece(ids[3:], None, "a#1", {}, False, True)]
    (row,) = Packer(InOrder("s", parts), 8, bos=BOS, eos=EOS)
    assert row.token_ids.tolist() == [BOS, 10, 11, 12, 13, 14, 15, EOS]
    assert row.lengths == (4, 4)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    stop=st.integers(0, 30),
    lanes=st.integers(1, 3),
    complete=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_resume_at_any_row_gives_the_same_remaining_rows(
    lengths: list[int], stop: int, lanes: int, complete: bool
) -> None:
    def build() -> Packer:
        sources = {
            "a": SourceSpec(documents(lengths, masked=True), 2.0, piece_tokens=7),
            "b": SourceSpec(documents([n % 11 + 1 for n in lengths]), 1.0),
        }
        return Packer(
            Mixture(sources, 3), 12, bos=BOS, eos=EOS, whole={"b"}, lanes=lanes, complete=complete, lookahead=2
        )

    straight = build()
    for _ in range(stop):
        next(straight)
    state = _through_tensors(straight.state_dict())
    resumed = build()
    resumed.load_state_dict(state)
    assert all(same(next(straight), next(resumed)) for _ in range(40))
    assert straight.dropped_tokens == resumed.dropped_tokens


def _through_tensors(state: Any) -> Any:
    """The state as a checkpoint gives it back: arrays as tensors."""
    if isinstance(state, dict):
        return {key: _through_tensors(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_through_tensors(value) for value in state]
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_prefetch_resumes_after_the_last_row_taken(taken: int) -> None:
    def build() -> Packer:
        return Packer(Mixture({"a": SourceSpec(documents([5, 17, 40, 3]), 1.0)}, 0), 8, bos=BOS)

    plain = build()
    expected = [next(plain) for _ in range(40)]
    with Prefetch(build(), depth=3) as ahead:
        given_rows = [next(ahead) for _ in range(taken)]
        state = ahead.state_dict()
    with Prefetch(build(), depth=3) as resumed:
        next(resumed)
        resumed.load_state_dict(state)
        given_rows += [next(resumed) for _ in range(10)]
    assert len(given_rows) == taken + 10
    assert all(same(a, b) for a, b in zip(given_rows, expected, strict=False))


def test_prefetch_ends_and_raises_like_the_iterator() -> None:
    with Prefetch(Packer(InOrder("s", documents([8, 8, 8])), 8)) as ahead:
        assert len(list(ahead)) == 3
        with pytest.raises(StopIteration):
            next(ahead)

    class Broken(InOrder):
        def __next__(self) -> Any:
            raise DataError("no more disk")

    with Prefetch(Packer(Broken("s", documents([8])), 8)) as ahead, pytest.raises(DataError, match="no more disk"):
        next(ahead)


def test_a_batch_is_the_rows_in_one_list() -> None:
    rows = list(Packer(InOrder("s", documents([5, 9, 4, 30], masked=True)), 8, bos=BOS, eos=EOS))
    batch = collate(rows, cu_seqlens_multiple=16)
    assert batch.token_ids.tolist() == [token for row in rows for token in row.token_ids.tolist()]
    assert batch.targets.dtype == batch.token_ids.dtype == batch.positions.dtype == torch.int64
    count = len(batch.lengths)
    ends = batch.cu_seqlens.tolist()
    assert np.diff(ends)[:count].tolist() == list(batch.lengths)
    assert len(ends) == 16 and set(ends[count:]) == {8 * len(rows)}
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_length == max(batch.lengths)
    assert batch.trained_tokens == int((batch.targets >= 0).sum())
    assert [len(each) for each in batch.documents] == [len(row.lengths) for row in rows]
    starts = [at for at, position in enumerate(batch.positions.tolist()) if position == 0]
    assert starts == ends[:count]


def test_a_cursor_of_another_packing_is_refused() -> None:
    state = Packer(InOrder("s", documents([5])), 8).state_dict()
    with pytest.raises(DataError, match="sequence length 8"):
        Packer(InOrder("s", documents([5])), 16).load_state_dict(state)
    with pytest.raises(DataError, match="number of lanes 1"):
        Packer(InOrder("s", documents([5])), 8, lanes=2).load_state_dict(state)
