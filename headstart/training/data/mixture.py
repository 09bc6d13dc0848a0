"""Which document is read next: sources mixed by weight, each shuffled anew in every epoch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from headstart.training.data.errors import DataError
from headstart.training.data.shards import DocumentSource
from headstart.training.documents import Document
from headstart.training.random_streams import numpy_stream


class Draw(NamedTuple):
    """A document as it was drawn.

    Attributes:
        source: the name of its source.
        ordinal: how many documents were drawn before it.
        document: itself.
    """

    source: str
    ordinal: int
    document: Document


class Draws(Protocol):
    """Documents one after another, to go on exactly after a resume."""

    def __iter__(self) -> Iterator[Draw]: ...

    def __next__(self) -> Draw: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Piece(Document):
    """A part of a long document.

    Attributes:
        begins, ends: whether it is the document's first or last part, so that packing marks the beginning and end
            of the document and not of the part.
    """

    begins: bool = True
    ends: bool = True


class Pieces:
    """A source's documents, the long ones in equal parts, so that no long document fills many rows on end.

    The first token of a later part has nothing before it to be predicted from.

    Args:
        source: the documents.
        max_tokens: tokens of the longest part.
    """

    def __init__(self, source: DocumentSource, max_tokens: int) -> None:
        if max_tokens < 1:
            raise DataError(f"piece_tokens must be at least 1, not {max_tokens}")
        self._source = source
        lengths = document_lengths(source)
        self._ends = np.cumsum(np.maximum(1, -(-lengths // max_tokens)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        part, parts = index - first, int(self._ends[number]) - first
        whole = self._source[number]
        if parts == 1:
            return whole
        start, end = len(whole) * part // parts, len(whole) * (part + 1) // parts
        trained = None if whole.trained is None else whole.trained[start:end]
        ids = whole.token_ids[start:end]
        return Piece(ids, trained, f"{whole.id}#{part}", whole.metadata, part == 0, part == parts - 1)


def document_lengths(source: DocumentSource) -> np.ndarray:
    """Tokens of each document, int64 `[len(source)]`."""
    lengths = getattr(source, "lengths", None)
    return np.fromiter((len(source[i]) for i in range(len(source))), np.int64) if lengths is None else lengths


@dataclass(frozen=True)
class SourceSpec:
    """A source's part in a mixture.

    Attributes:
        source: its documents.
        weight: its share of the tokens, beside the other weights.
        repeat: at its end, `reshuffle` begins another epoch, and `stop` ends the mixture, since without the source the
            shares would silently be others.
        piece_tokens: long documents are drawn in parts of at most so many tokens, each shuffled like a document.
    """

    source: DocumentSource
    weight: float
    repeat: Literal["reshuffle", "stop"] = "reshuffle"
    piece_tokens: int | None = None


class _Reader:
    """One source of a mixture: its permutation and cursor."""

    def __init__(self, name: str, spec: SourceSpec, seed: int) -> None:
        pieces = spec.piece_tokens is not None
        self.source = Pieces(spec.source, spec.piece_tokens) if pieces else spec.source  # type: ignore[arg-type]
        self.repeat = spec.repeat
        self.epoch = self.cursor = self.tokens = self.tokens_before_epoch = 0
        self._name, self._seed = name, seed
        self._order = epoch_order(len(self.source), seed, name, 0)

    def next(self) -> Document | None:
        """The next document; None at the end of a source that stops."""
        if self.cursor == len(self._order):
            if self.repeat == "stop":
                return None
            if self.tokens == self.tokens_before_epoch:
                raise DataError(f"source {self._name!r} holds no tokens; leave it out of the mixture")
            self.seek(self.epoch + 1, 0)
            self.tokens_before_epoch = self.tokens
        document = self.source[int(self._order[self.cursor])]
        self.cursor += 1
        self.tokens += len(document)
        return document

    def seek(self, epoch: int, cursor: int) -> None:
        if epoch != self.epoch:
            self._order = epoch_order(len(self.source), self._seed, self._name, epoch)
        self.epoch, self.cursor = epoch, cursor


class Mixture:
    """Draws documents so that the tokens of every beginning of the stream have the sources' shares, within a document.

    The source that lacks most of its share comes next. Each source is read in a permutation of its own for every
    epoch, from (seed, name, epoch) alone.

    Args:
        sources: name to part.
        seed: of the permutations.

    Attributes:
        ended_by: the source whose end ended the mixture; None before.

    Raises:
        DataError: no source, an empty one, or a weight that is not positive.
    """

    def __init__(self, sources: Mapping[str, SourceSpec], seed: int) -> None:
        if not sources:
            raise DataError("a mixture needs at least one source")
        for name, spec in sources.items():
            if not (0 < spec.weight < float("inf")):
                raise DataError(f"source {name!r} has the weight {spec.weight}; weights are positive numbers")
            if not len(spec.source):
                raise DataError(f"source {name!r} holds no documents; leave it out of the mixture")
        self.seed = seed
        self.ended_by: str | None = None
        self._ordinal = 0
        self._readers = {name: _Reader(name, spec, seed) for name, spec in sources.items()}
        total = sum(spec.weight for spec in sources.values())
        self._shares = {name: spec.weight / total for name, spec in sources.items()}
        # Tokens that count towards the shares; `continue_from` begins them anew.
        self._counted = dict.fromkeys(sources, 0)
        self._counted_total = 0

    def __iter__(self) -> Iterator[Draw]:
        return self

    def __next__(self) -> Draw:
        if self.ended_by is not None:
            raise StopIteration
        total = self._counted_total
        name = max(self._shares, key=lambda each: self._shares[each] * total - self._counted[each])
        document = self._readers[name].next()
        if document is None:
            self.ended_by = name
            raise StopIteration
        self._counted[name] += len(document)
        self._counted_total += len(document)
        self._ordinal += 1
        return Draw(name, self._ordinal - 1, document)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source was read, fractions included, by documents (or pieces)."""
        return {name: r.epoch + r.cursor / len(r.source) for name, r in self._readers.items()}

    @property
    def tokens_drawn(self) -> dict[str, int]:
        """Tokens drawn from each source."""
        return {name: reader.tokens for name, reader in self._readers.items()}

    @property
    def documents_drawn(self) -> int:
        """Documents drawn in all."""
        return self._ordinal

    def state_dict(self) -> dict[str, Any]:
        """The cursor, as JSON can hold it."""
        return {
            "seed": self.seed,
            "ordinal": self._ordinal,
            "ended_by": self.ended_by,
            "sources": {
                name: {
                    "documents": len(reader.source),
                    "epoch": reader.epoch,
                    "cursor": reader.cursor,
                    "tokens": reader.tokens,
                    "tokens_before_epoch": reader.tokens_before_epoch,
                    "counted": self._counted[name],
                }
                for name, reader in self._readers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            DataError: the state is of other sources or of another seed.
        """
        if set(state["sources"]) != set(self._readers):
            raise DataError(
                f"the data cursor is of the sources {', '.join(sorted(state['sources']))}, and the mixture has "
                f"{', '.join(sorted(self._readers))}; resume with the sources of the checkpoint"
            )
        self._take_cursors(state)
        self._ordinal, self.ended_by = int(state["ordinal"]), state["ended_by"]
        for name, cursor in state["sources"].items():
            self._counted[name] = int(cursor["counted"])
        self._counted_total = sum(self._counted.values())

    def continue_from(self, state: dict[str, Any]) -> None:
        """Begin where another mixture left its sources: those that both have go on with unseen documents, and the
        shares count from here. For a phase that follows another.

        Raises:
            DataError: another seed, or a source of the same name with other documents.
        """
        self._take_cursors(state)
        self._ordinal = int(state["ordinal"])

    def _take_cursors(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise DataError(
                f"the data cursor is of seed {state['seed']}, and the mixture has {self.seed}; use the same seed"
            )
        for name, reader in self._readers.items():
            cursor = state["sources"].get(name)
            if cursor is None:
                continue
            if cursor["documents"] != len(reader.source):
                raise DataError(
                    f"the data cursor is of {cursor['documents']} documents or pieces of source {name!r}, and it holds "
                    f"{len(reader.source)}; resume with the same data"
                )
            reader.seek(int(cursor["epoch"]), int(cursor["cursor"]))
            reader.tokens, reader.tokens_before_epoch = int(cursor["tokens"]), int(cursor["tokens_before_epoch"])


class InOrder:
    """The documents of one source once, in order: for evaluation.

    Args:
        name: what the source is called.
        source: its documents.
    """

    def __init__(self, name: str, source: DocumentSource) -> None:
        self._name, self._source, self._cursor = name, source, 0

    def __iter__(self) -> Iterator[Draw]:
        return self

    def __next__(self) -> Draw:
        if self._cursor == len(self._source):
            raise StopIteration
        self._cursor += 1
        return Draw(self._name, self._cursor - 1, self._source[self._cursor - 1])

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return {"cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._cursor = int(state["cursor"])


def epoch_order(documents: int, seed: int, name: str, epoch: int) -> np.ndarray:
    """The permutation in which an epoch reads a source, `[documents]`."""
    return numpy_stream(seed, "epoch", name, epoch).permutation(documents)
