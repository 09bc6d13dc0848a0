"""Packing: documents become rows of exactly L tokens without padding, and rows become flat batches."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.ops.cross_entropy import IGNORED
from headstart.training.data.errors import DataError
from headstart.training.data.mixture import Draw, Draws

FILLER = ("filler", "")


@dataclass(frozen=True, eq=False)
class PackedRow:
    """L tokens of one or more documents, one segment each.

    Attributes:
        token_ids: `[L]` int32.
        targets: `[L]` int32, the token that follows in the same document; `IGNORED` where nothing is predicted.
        positions: `[L]` int32, from 0 in each segment.
        lengths: tokens of each segment.
        documents: source and id of the document of each segment.
    """

    token_ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    lengths: tuple[int, ...]
    documents: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows one after another as one flat list of T tokens in D segments, which do not see each other.

    Attributes:
        token_ids: `[T]` int64.
        targets: `[T]` int64, `IGNORED` (-100) where nothing is predicted.
        positions: `[T]` int64, from 0 in each segment.
        cu_seqlens: `[D + 1]` int32, where segments start, and T; further entries repeat T.
        lengths: tokens of each segment, D numbers on the host.
        max_length: the longest segment's.
        trained_tokens: targets that count.
        documents: per row, source and id of the document of each segment.
    """

    token_ids: Tensor
    targets: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    max_length: int
    trained_tokens: int
    documents: list[list[tuple[str, str]]]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same on a device; from pinned memory without waiting."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "PackedBatch":
        """The same where a GPU copies from without waiting."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "PackedBatch":
        names = ("token_ids", "targets", "positions", "cu_seqlens")
        return replace(self, **{name: move(getattr(self, name)) for name in names})


@dataclass(eq=False)
class _Sequence:
    """A document with its marks, or what is left of it. The arrays are never written to."""

    token_ids: np.ndarray
    targets: np.ndarray
    source: str
    id: str

    def __len__(self) -> int:
        return len(self.token_ids)

    def cut(self, length: int) -> tuple["_Sequence", "_Sequence | None"]:
        """The first `length` tokens, and the rest if there is any."""
        if length >= len(self):
            return self, None
        first = _Sequence(self.token_ids[:length], self.targets[:length], self.source, self.id)
        return first, _Sequence(self.token_ids[length:], self.targets[length:], self.source, self.id)

    def state_dict(self) -> dict[str, Any]:
        return {"token_ids": self.token_ids, "targets": self.targets, "source": self.source, "id": self.id}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Sequence":
        return cls(as_array(state["token_ids"]), as_array(state["targets"]), state["source"], state["id"])


class Packer:
    """Rows of exactly L tokens from a stream of documents.

    A document is `[bos] tokens [eos]`. Every token but a first one is predicted, if its document says so; EOS always
    is, BOS never. A document that does not fit is cut at the row's end and goes on in a later row as a segment of its
    own, whose positions start at 0, without another BOS. The last token before the cut still predicts the first one
    after it, so no target is lost. Documents of `whole` sources are never cut: one that does not fit waits and opens
    the next row, and other text fills the gap.

    Args:
        documents: where documents come from; its state is part of the packer's.
        sequence_length: L.
        bos, eos: ids put before and after each document; None is none.
        whole: sources whose documents are not cut. One longer than L is dropped.
        complete: discard what hangs over the end of a row instead of going on with it in a later one, as MeCo does
            (arXiv 2501.01956), so that every segment begins its document.
        lanes: rows are filled in turn from so many documents at once, so that a long document does not fill rows that
            follow each other.
        lookahead: how many whole documents may wait. If so many wait, none fits, and nothing else can fill the gap,
            untrained filler does.
        keep_last: give the last row although it is shorter than L; otherwise it is dropped.

    Attributes:
        rows: rows given so far.
        dropped: documents left out, by reason.
        dropped_tokens: tokens left out, by reason.
        filler_tokens: tokens spent on filler.
    """

    def __init__(
        self,
        documents: Draws,
        sequence_length: int,
        *,
        bos: int | None = None,
        eos: int | None = None,
        whole: Collection[str] = (),
        complete: bool = False,
        lanes: int = 1,
        lookahead: int = 64,
        keep_last: bool = False,
    ) -> None:
        if sequence_length < 2 or lanes < 1 or lookahead < 1:
            raise DataError("packing needs a sequence_length of at least 2, and lanes and lookahead of at least 1")
        self._documents = documents
        self._length, self._bos, self._eos = sequence_length, bos, eos
        self._whole, self._complete = frozenset(whole), complete
        self._lookahead, self._keep_last = lookahead, keep_last
        self._positions = np.arange(sequence_length, dtype=np.int32)
        self._rests: list[_Sequence | None] = [None] * lanes
        self._waiting: list[_Sequence] = []
        self._exhausted = False
        self.rows = self.filler_tokens = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_tokens: Counter[str] = Counter()

    def __iter__(self) -> Iterator[PackedRow]:
        return self

    def __next__(self) -> PackedRow:
        lane, room = self.rows % len(self._rests), self._length
        segments: list[_Sequence] = []
        while room and (sequence := self._next_sequence(room, lane)) is not None:
            segment, rest = sequence.cut(room)
            if rest is not None and self._complete:
                self.dropped_tokens["overhang"] += len(rest)
            elif rest is not None:
                self._rests[lane] = rest
            segments.append(segment)
            room -= len(segment)
        if room and not (self._keep_last and segments):
            if segments:
                self.dropped["unfilled last row"] += len(segments)
                self.dropped_tokens["unfilled last row"] += self._length - room
            raise StopIteration
        self.rows += 1
        return self._row(segments, self._length - room)

    def state_dict(self) -> dict[str, Any]:
        """The cursor, and what is left of documents, in plain values and int32 arrays."""
        return {
            "sequence_length": self._length,
            "rows": self.rows,
            "exhausted": self._exhausted,
            "rests": [None if rest is None else rest.state_dict() for rest in self._rests],
            "waiting": [sequence.state_dict() for sequence in self._waiting],
            "filler_tokens": self.filler_tokens,
            "dropped": dict(self.dropped),
            "dropped_tokens": dict(self.dropped_tokens),
            "documents": self._documents.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called; arrays may have become tensors.

        Raises:
            DataError: the state is of another row length or number of lanes, or of other data.
        """
        for name, saved, own in (
            ("sequence length", state["sequence_length"], self._length),
            ("number of lanes", len(state["rests"]), len(self._rests)),
        ):
            if saved != own:
                raise DataError(f"the data cursor has the {name} {saved}, and packing has {own}; resume with {saved}")
        self._documents.load_state_dict(state["documents"])
        self._rests = [None if rest is None else _Sequence.from_state(rest) for rest in state["rests"]]
        self._waiting = [_Sequence.from_state(sequence) for sequence in state["waiting"]]
        self._exhausted = bool(state["exhausted"])
        self.rows, self.filler_tokens = int(state["rows"]), int(state["filler_tokens"])
        self.dropped, self.dropped_tokens = Counter(state["dropped"]), Counter(state["dropped_tokens"])

    def _next_sequence(self, room: int, lane: int) -> _Sequence | None:
        """What fills the row next, taken out of where it waited; None when nothing is left."""
        # Those that wait go before a rest, which can be cut anywhere: the oldest opens a row, the longest fills up.
        fitting = [i for i, sequence in enumerate(self._waiting) if len(sequence) <= room]
        if fitting:
            longest = max(fitting, key=lambda i: len(self._waiting[i]))
            return self._waiting.pop(fitting[0] if room == self._length else longest)
        rest, self._rests[lane] = self._rests[lane], None
        if rest is not None:
            return rest
        while not self._exhausted:
            if len(self._waiting) >= self._lookahead:
                return self._filler(room)
            draw = next(self._documents, None)
            if draw is None:
                self._exhausted = True
                break
            sequence = self._marked(draw)
            if sequence is None:
                continue
            if len(sequence) <= room or draw.source not in self._whole:
                return sequence
            self._waiting.append(sequence)
        for other, rest in enumerate(self._rests):
            if rest is not None:
                self._rests[other] = None
                return rest
        return self._filler(room) if self._waiting else None

    def _filler(self, room: int) -> _Sequence:
        self.filler_tokens += room
        mark = self._eos if self._eos is not None else self._bos or 0
        return _Sequence(np.full(room, mark, np.int32), np.full(room, IGNORED, np.int32), *FILLER)

    def _marked(self, draw: Draw) -> _Sequence | None:
        """The document with its marks and targets; None when it is dropped."""
        document = draw.document
        opening = [self._bos] if self._bos is not None and getattr(document, "begins", True) else []
        closing = [self._eos] if self._eos is not None and getattr(document, "ends", True) else []
        marks = len(opening) + len(closing)
        too_long = draw.source in self._whole and marks + len(document) > self._length
        if reason := "longer than a row" if too_long else "empty" if not len(document) else "":
            self.dropped[reason] += 1
            self.dropped_tokens[reason] += len(document)
            return None
        parts = (np.array(opening, np.int32), document.token_ids, np.array(closing, np.int32))
        token_ids = np.concatenate(parts, dtype=np.int32)
        targets = np.full(len(token_ids), IGNORED, np.int32)
        targets[:-1] = token_ids[1:]
        if document.trained is not None:
            predicted = np.ones(len(token_ids), bool)
            predicted[len(opening) : len(opening) + len(document)] = document.trained
            targets[:-1][~predicted[1:]] = IGNORED
        return _Sequence(token_ids, targets, draw.source, document.id)

    def _row(self, segments: list[_Sequence], length: int) -> PackedRow:
        return PackedRow(
            np.concatenate([segment.token_ids for segment in segments]),
            np.concatenate([segment.targets for segment in segments]),
            np.concatenate([self._positions[: len(segment)] for segment in segments]),
            tuple(len(segment) for segment in segments),
            tuple((segment.source, segment.id) for segment in segments),
        )


def as_array(saved: np.ndarray | Tensor) -> np.ndarray:
    """An array out of a state, which a checkpoint may have made a tensor."""
    return saved.numpy() if isinstance(saved, Tensor) else saved


def collate(rows: list[PackedRow], *, cu_seqlens_multiple: int | None = None, pin_memory: bool = False) -> PackedBatch:
    """Rows as one flat batch.

    Args:
        rows: one or more.
        cu_seqlens_multiple: `cu_seqlens` is filled up with T to a multiple of so many entries, so that compiled code
            sees the same shape whatever the number of segments.
        pin_memory: put the tensors where a GPU copies from without waiting.
    """

    def flat(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]).astype(np.int64))

    lengths = tuple(length for row in rows for length in row.lengths)
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    if cu_seqlens_multiple:
        starts = np.pad(starts, (0, -len(starts) % cu_seqlens_multiple), mode="edge")
    targets = flat("targets")
    batch = PackedBatch(
        token_ids=flat("token_ids"),
        targets=targets,
        positions=flat("positions"),
        cu_seqlens=torch.from_numpy(starts),
        lengths=lengths,
        max_length=max(lengths),
        trained_tokens=int((targets != IGNORED).sum()),
        documents=[list(row.documents) for row in rows],
    )
    return batch.pinned() if pin_memory else batch
