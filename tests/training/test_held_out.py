"""Bits per byte of held-out data, against every document scored by itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.assembly import build_network
from headstart.training.data.bpe import encode_documents, train_tokenizer
from headstart.training.data.errors import DataError
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.distributed import ONE_PROCESS
from headstart.training.documents import Document, TextDocument
from headstart.training.errors import TrainingError
from headstart.training.held_out import HeldOut
from headstart.training.language_model import LanguageModel
from headstart.training.recipe import EvalRecipe, ModelRecipe
from tests.training.test_language_model import batch_of
from tests.training.workbench import CONFIG, VOCAB_SIZE, small_tokenizer, write_source

TEXTS = ["The king went down to the sea, äöü.\n" * 3, "And the queen?", "Ships.\n" * 9]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(build_network(ModelRecipe(config=CONFIG, embedding_std=0.5), 1, Path()))


def held_out(
    directory: Path, tokenizer: Tokenizer, length: int, tokens: int = 10**6, autocast: bool = False
) -> HeldOut:
    recipe = EvalRecipe(sources={"texts": str(directory / "texts")}, tokens=tokens)
    return HeldOut(recipe, directory, sequence_length=length, tokenizer=tokenizer, world=ONE_PROCESS, autocast=autocast)


def write_texts(directory: Path, tokenizer: Tokenizer) -> ShardSource:
    with ShardWriter(directory / "texts", tokenizer) as writer:
        writer.add_all(encode_documents([TextDocument.of(text, str(i)) for i, text in enumerate(TEXTS)], tokenizer))
    return ShardSource(directory / "texts")


def by_document(model: LanguageModel, tokenizer: Tokenizer) -> float:
    """From the texts themselves: everything but the first token, and the end of the document, is predicted."""
    nats, text_bytes = 0.0, 0
    for text in TEXTS:
        ids = [*tokenizer.encode(text, False), tokenizer.eos_token_id]
        batch = batch_of((len(ids),))
        batch.token_ids.copy_(torch.tensor(ids))
        logits = model.network.logits(model.hidden(batch)).double()  # type: ignore[operator]
        nats += F.cross_entropy(logits[:-1], batch.token_ids[1:], reduction="sum").item()
        text_bytes += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    return nats / math.log(2) / text_bytes


def test_one_row_that_holds_all_is_each_document_alone(
    tokenizer: Tokenizer, model: LanguageModel, tmp_path: Path
) -> None:
    source = write_texts(tmp_path, tokenizer)
    # Nothing is as long as the row: the only row is kept although it is shorter.
    (found,) = held_out(tmp_path, tokenizer, source.tokens + 50)(model).items()
    assert found == ("texts/bits_per_byte", pytest.approx(by_document(model, tokenizer), rel=1e-5))


def test_no_gradient_is_kept_and_bfloat16_is_near(tokenizer: Tokenizer, model: LanguageModel, tmp_path: Path) -> None:
    write_texts(tmp_path, tokenizer)
    exact = held_out(tmp_path, tokenizer, 16)(model)
    near = held_out(tmp_path, tokenizer, 16, autocast=True)(model)
    assert near != exact and near == pytest.approx(exact, rel=0.02)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_up_to_the_budget_are_read_from_the_beginning(
    tokenizer: Tokenizer, model: LanguageModel, tmp_path: Path
) -> None:
    lengths = [40, 23, 9, 60]
    write_source(tmp_path / "texts", tokenizer, lengths)
    short = held_out(tmp_path, tokenizer, 16, tokens=40)(model)
    write_source(tmp_path / "texts", tokenizer, lengths[:1])
    assert held_out(tmp_path, tokenizer, 16, tokens=32)(model) == short
    # A budget below one row is one row.
    assert held_out(tmp_path, tokenizer, 16, tokens=1)(model) == held_out(tmp_path, tokenizer, 16, tokens=16)(model)


def test_what_is_not_trained_does_not_count(tokenizer: Tokenizer, model: LanguageModel, tmp_path: Path) -> None:
    ids = np.array(tokenizer.encode(TEXTS[0], False), np.int32)
    trained = np.arange(len(ids)) >= 10
    found = []
    for name, document in {"cut": Document(ids, trained, "a"), "whole": Document(ids, None, "a")}.items():
        with ShardWriter(tmp_path / name / "texts", tokenizer) as writer:
            writer.add(document)
        found.append(held_out(tmp_path / name, tokenizer, 512)(model)["texts/bits_per_byte"])
    assert found[0] != found[1]
    with ShardWriter(tmp_path / "none" / "texts", tokenizer) as writer:
        writer.add(Document(ids, np.zeros(len(ids), bool), "a"))
    with pytest.raises(TrainingError, match="held-out source texts has no trained token"):
        held_out(tmp_path / "none", tokenizer, 16)(model)


def test_sources_that_cannot_be_scored_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token shards"):
        held_out(tmp_path, tokenizer, 16)
    write_source(tmp_path / "texts", tokenizer, [0])
    with pytest.raises(TrainingError, match="held-out source texts holds no text"):
        held_out(tmp_path, tokenizer, 16)
    write_texts(tmp_path, tokenizer)
    other = train_tokenizer(
        ["Quite other words, with pairs of letters that no king or queen would know."] * 2, VOCAB_SIZE - 8
    )
    with pytest.raises(DataError, match="another tokenizer"):
        held_out(tmp_path, other, 16)
