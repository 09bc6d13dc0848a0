"""The stream of global batches: a mixture of sources through the stages, packed, split over ranks and micro-batches."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.mixture import Draws, Mixture, SourceSpec
from headstart.training.data.packing import PackedBatch, PackedRow, Packer, collate
from headstart.training.data.prefetch import Prefetch
from headstart.training.data.shards import ShardSource
from headstart.training.data.staged import Staged
from headstart.training.distributed import World
from headstart.training.errors import TrainingError
from headstart.training.random_streams import derived_seed, numpy_stream
from headstart.training.recipe import PhaseRecipe, SourceRecipe
from headstart.training.seams import DataStage, DocumentContext

_AHEAD = 2
"""Steps that are packed ahead of the one in progress."""


class StepStream:
    """What the steps of a phase read.

    Every rank goes through the same rows and computes its own share of each step, so that the numbers do not depend
    on how many ranks there are.

    Args:
        phase: the mixture, the row's length, the batch.
        seed: of the run.
        base: what relative paths of the phase start from.
        tokenizer: of the data; gives the marks around each document, and encodes for stages.
        stages: what documents go through.
        world: which share is this rank's.
        after: the state of the stream of the phase before: sources that an earlier phase read go on with unseen
            documents.

    Raises:
        TrainingError: the batch does not divide over the ranks.
        DataError: a source that cannot be read, or is of another tokenizer.
    """

    def __init__(
        self,
        phase: PhaseRecipe,
        *,
        seed: int,
        base: Path,
        tokenizer: Tokenizer,
        stages: list[DataStage],
        world: World,
        after: dict[str, Any] | None = None,
    ) -> None:
        if phase.rows % world.size:
            raise TrainingError(
                f"phase {phase.name}: {phase.rows} rows of {phase.sequence_length} tokens do not divide over "
                f"{world.size} ranks; change global_batch_tokens"
            )
        self._device = world.device
        share = phase.rows // world.size
        at_once = share if phase.micro_batch_tokens is None else phase.micro_batch_tokens // phase.sequence_length
        # The largest part that divides the share: every micro-batch has the same shape.
        self._micro_rows = next(rows for rows in range(min(at_once, share), 0, -1) if share % rows == 0)
        shards = {name: ShardSource(base / source.path) for name, source in phase.sources.items()}
        for source in shards.values():
            source.check_tokenizer(tokenizer)
        self._shards = {name: _digest(source) for name, source in shards.items()}
        specs = {name: _spec(source, shards[name]) for name, source in phase.sources.items()}
        self.mixture = Mixture(specs, derived_seed(seed, "data"))
        # Where the phases before left the documents that they read, by source and number of documents.
        self._earlier: dict[str, Any] = {}
        if after is not None:
            mixture = _mixture_state(after)
            left = {_documents(name, cursor): cursor for name, cursor in mixture["sources"].items()}
            self._earlier = after["earlier"] | left
            own = self.mixture.state_dict()["sources"]
            known = {name: self._earlier.get(_documents(name, cursor)) for name, cursor in own.items()}
            sources = {name: cursor for name, cursor in known.items() if cursor is not None}
            self.mixture.continue_from({**mixture, "sources": sources})
        draws: Draws = self.mixture
        if stages:
            draws = Staged(
                draws,
                stages,
                lambda source, ordinal, number: DocumentContext(
                    source,
                    ordinal,
                    lambda text: tokenizer.encode(text, False),
                    numpy_stream(seed, "stage", phase.name, number, ordinal),
                ),
            )
        packer = Packer(
            draws,
            phase.sequence_length,
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            whole=[name for name, source in phase.sources.items() if source.whole],
            complete=phase.packing == "complete",
            lanes=phase.rows,
        )
        select = slice(world.rank, None, world.size)
        steps = _Steps(packer, phase.rows, select, self._micro_rows, pin=world.device.type == "cuda")
        self._steps = Prefetch(steps, _AHEAD)
        self._phase = phase

    def next_step(self) -> list[PackedBatch]:
        """This rank's micro-batches of the next step, on its device.

        Raises:
            TrainingError: the data ended before the phase did.
        """
        batches = next(self._steps, None)
        if batches is None:
            raise TrainingError(
                f"phase {self._phase.name}: the data of source {self.mixture.ended_by!r} ended before the phase did; "
                "set repeat: true for it, or lower the phase's tokens"
            )
        return [batch.to(self._device) for batch in batches]

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source was read up to the last step that was taken, by documents, fractions included."""
        sources = _mixture_state(self._steps.state_dict())["sources"]
        return {name: cursor["epoch"] + cursor["cursor"] / cursor["documents"] for name, cursor in sources.items()}

    def state_dict(self) -> dict[str, Any]:
        """The place after the last step that was taken."""
        return {**self._steps.state_dict(), "earlier": self._earlier, "shards": self._shards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, digest in state["shards"].items():
            if self._shards.get(name) != digest:
                raise TrainingError(
                    f"phase {self._phase.name}: source {name!r} does not hold what it held when the checkpoint was "
                    "written; resume with the same data"
                )
        self._steps.load_state_dict(state)
        self._earlier = state["earlier"]

    def close(self) -> None:
        """Stop packing ahead."""
        self._steps.close()


class _Steps:
    """One rank's share of every global batch, in micro-batches."""

    def __init__(self, packer: Packer, rows: int, select: slice, micro_rows: int, pin: bool) -> None:
        self._packer, self._rows, self._select = packer, rows, select
        self._micro_rows, self._pin = micro_rows, pin

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        return self

    def __next__(self) -> list[PackedBatch]:
        rows: list[PackedRow] = [row for _, row in zip(range(self._rows), self._packer, strict=False)]
        if len(rows) < self._rows:
            raise StopIteration
        share = rows[self._select]
        return [
            collate(share[start : start + self._micro_rows], pin_memory=self._pin)
            for start in range(0, len(share), self._micro_rows)
        ]

    def state_dict(self) -> dict[str, Any]:
        return self._packer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._packer.load_state_dict(state)


def _digest(shards: ShardSource) -> str:
    """What tells a source's content from any other: its index holds the checksum of each of its files."""
    return hashlib.blake2b((shards.directory / "index.json").read_bytes(), digest_size=8).hexdigest()


def _spec(source: SourceRecipe, shards: ShardSource) -> SourceSpec:
    return SourceSpec(shards, source.weight, "reshuffle" if source.repeat else "stop", source.piece_tokens)


def _mixture_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mixture's part of the state of a stream."""
    while "sources" not in state:
        state = state["documents"] if "documents" in state else state["draws"]
    return state


def _documents(name: str, cursor: Mapping[str, Any]) -> str:
    """What tells the documents of a source from the pieces that another phase reads it in."""
    return f"{name}/{cursor['documents']}"
