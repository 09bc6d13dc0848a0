"""What the steps of a phase read: the same rows whoever reads them, unseen documents in every next phase."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import train_tokenizer
from headstart.training.data.errors import DataError
from headstart.training.data.packing import PackedBatch
from headstart.training.data.shards import ShardWriter
from headstart.training.distributed import ONE_PROCESS, World
from headstart.training.documents import Document
from headstart.training.errors import TrainingError
from headstart.training.recipe import PhaseRecipe
from headstart.training.seams import DataStage, DocumentContext
from headstart.training.stream import StepStream
from tests.training import workbench
from tests.training.workbench import LENGTH, VOCAB_SIZE, phase


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.from_directory(base / "tokenizer")


def stream(
    base: Path, tokenizer: Tokenizer, world: World = ONE_PROCESS, after: Any = None, stages: Any = (), **changes: Any
) -> StepStream:
    return StepStream(
        PhaseRecipe.model_validate(phase(**changes)),
        seed=1,
        base=base,
        tokenizer=tokenizer,
        stages=list(stages),
        world=world,
        after=after,
    )


def rank(number: int, size: int) -> World:
    return World(number, size, torch.device("cpu"), None)


def rows(batches: list[PackedBatch]) -> list[list[int]]:
    return [row.tolist() for batch in batches for row in batch.token_ids.split(LENGTH)]


def documents(batches: list[PackedBatch]) -> set[tuple[str, str]]:
    return {document for batch in batches for row in batch.documents for document in row}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_out_the_rows_of_one(base: Path, tokenizer: Tokenizer, ranks: int) -> None:
    alone = stream(base, tokenizer)
    each = [stream(base, tokenizer, rank(number, ranks)) for number in range(ranks)]
    for _ in range(3):
        expected = rows(alone.next_step())
        found = [rows(one.next_step()) for one in each]
        assert [found[row % ranks][row // ranks] for row in range(4)] == expected
    states = [one.state_dict() for one in each]
    # Any rank's place in the data is that of all, so that another number of ranks can go on from it.
    other = stream(base, tokenizer)
    other.load_state_dict(states[-1])
    assert rows(other.next_step()) == rows(alone.next_step())


def test_rows_that_do_not_divide_are_refused(base: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError, match="phase main: 4 rows of 32 tokens do not divide over 3 ranks"):
        stream(base, tokenizer, rank(0, 3))


def test_it_goes_on_after_the_last_step_that_was_taken(base: Path, tokenizer: Tokenizer) -> None:
    first = stream(base, tokenizer)
    for _ in range(3):
        first.next_step()
    state, epochs = first.state_dict(), first.epochs
    second = stream(base, tokenizer)
    second.load_state_dict(state)
    assert second.epochs == epochs
    for _ in range(40):
        assert rows(first.next_step()) == rows(second.next_step())
    assert first.epochs == second.epochs and max(first.epochs.values()) > 1


def test_the_next_phase_reads_what_none_before_it_read(base: Path, tokenizer: Tokenizer) -> None:
    def read(steps: int, after: Any, **changes: Any) -> tuple[set[tuple[str, str]], Any]:
        each = stream(base, tokenizer, after=after, **changes)
        found = set().union(*(documents(each.next_step()) for _ in range(steps)))
        return found, each.state_dict()

    prose = {"prose": {"path": "prose"}}
    first, state = read(4, None)
    second, state = read(4, state)
    assert not first & second
    # A phase without a source does not forget where that was left.
    _between, state = read(2, state, sources={"code": {"path": "code"}})
    third, state = read(4, state, sources=prose)
    assert not third & (first | second) and {source for source, _ in third} == {"prose"}
    # In pieces, the documents are others, and begin anew; whole again, they go on.
    pieces, state = read(2, state, sources={"prose": {"path": "prose", "piece_tokens": 20}})
    fourth, _ = read(4, state, sources=prose)
    assert not fourth & (first | second | third)
    assert any("#" in name for _, name in pieces)


def test_the_places_of_earlier_phases_survive_a_resume(base: Path, tokenizer: Tokenizer) -> None:
    first = stream(base, tokenizer)
    first.next_step()
    code = {"sources": {"code": {"path": "code"}}}
    straight = stream(base, tokenizer, after=first.state_dict(), **code)
    straight.next_step()
    resumed = stream(base, tokenizer, **code)
    resumed.load_state_dict(straight.state_dict())
    found = [stream(base, tokenizer, after=each.state_dict()).next_step() for each in (straight, resumed)]
    assert rows(found[0]) == rows(found[1])


def test_stages_see_every_document_once_with_randomness_of_its_own(base: Path, tokenizer: Tokenizer) -> None:
    class Noted(DataStage):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, float]] = []

        def __call__(self, document: Document, context: DocumentContext) -> list[Document]:
            self.seen.append((context.source, context.ordinal, context.rng.random()))
            return [Document(np.array(context.encode("The king"), np.int32), None, document.id), document]

    stages = [Noted(), Noted()]
    for stage in stages:
        one = stream(base, tokenizer, stages=[stage])
        batches = [one.next_step() for _ in range(3)]
    seen = stages[0].seen
    assert [ordinal for _, ordinal, _ in seen] == list(range(len(seen)))
    assert len({value for *_, value in seen}) == len(seen)
    common = min(len(stage.seen) for stage in stages)
    assert seen[:common] == stages[1].seen[:common]
    king = tokenizer.encode("The king", False)
    assert any(ids.tolist()[: len(king)] == king for ids in batches[0][0].token_ids.split(batches[0][0].lengths))


@pytest.mark.parametrize(("repeat", "steps"), [(True, 60), (False, None)])
def test_the_end_of_the_data_repeats_or_stops_as_the_recipe_says(
    base: Path, tokenizer: Tokenizer, repeat: bool, steps: int | None
) -> None:
    sources = {"prose": {"path": "prose"}, "code": {"path": "code", "repeat": repeat}}
    found = stream(base, tokenizer, sources=sources)
    if steps:
        for _ in range(steps):
            found.next_step()
        assert found.epochs["code"] > 1
        return
    with pytest.raises(TrainingError, match=r"phase main: the data of source 'code' ended.*set repeat: true"):
        for _ in count():
            found.next_step()
    # It says the same again, and so does one that resumes there.
    with pytest.raises(TrainingError, match="'code' ended"):
        found.next_step()
    again = stream(base, tokenizer, sources=sources)
    again.load_state_dict(found.state_dict())
    with pytest.raises(TrainingError, match="'code' ended"):
        again.next_step()


def test_empty_documents_are_passed_over(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    workbench.write_source(tmp_path / "gaps", tokenizer, [0, 9, 0, 0, 30, 0, 1])
    found = stream(tmp_path, tokenizer, sources={"gaps": {"path": "gaps"}})
    for _ in range(5):
        batches = found.next_step()
        assert all(length > 0 for batch in batches for length in batch.lengths)
    workbench.write_source(tmp_path / "nothing", tokenizer, [0, 0])
    with pytest.raises(DataError, match="'nothing' holds no tokens"):
        stream(tmp_path, tokenizer, sources={"nothing": {"path": "nothing"}}).next_step()
    with ShardWriter(tmp_path / "none", tokenizer):
        pass
    with pytest.raises(DataError, match="'none' holds no documents"):
        stream(tmp_path, tokenizer, sources={"none": {"path": "none"}})


def test_data_of_another_tokenizer_is_refused(base: Path, tokenizer: Tokenizer) -> None:
    text = "Entirely different words stand in this text, so that other pairs of letters are merged into tokens here.\n"
    with pytest.raises(DataError, match="prose were made with another tokenizer"):
        stream(base, train_tokenizer([text, text.upper()], VOCAB_SIZE))


def test_missing_data_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/prose holds no token shards"):
        stream(tmp_path, tokenizer)
