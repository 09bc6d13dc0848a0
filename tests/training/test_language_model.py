"""A packed batch through a network: as each document alone, and as Transformers has it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedModel

from headstart.checkpoints.reader import load_checkpoint
from headstart.training.data.packing import IGNORED, PackedBatch, PackedRow, collate
from headstart.training.errors import TrainingError
from headstart.training.language_model import LanguageModel
from headstart.training.seams import NextToken
from tests.models.configs import VOCAB_SIZE, make_model, make_pair

LENGTHS = (7, 1, 12, 20)


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    # Transformers gives the padding token, 0, no gradient.
    ids = rng.integers(1, VOCAB_SIZE, sum(lengths)).astype(np.int32)
    targets = np.full(len(ids), IGNORED, np.int32)
    start = 0
    for length in lengths:
        targets[start : start + length - 1] = ids[start + 1 : start + length]
        start += length
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return collate([PackedRow(ids, targets, positions, lengths, tuple(("s", str(i)) for i in range(len(lengths))))])


def loss_and_gradient(model: LanguageModel, batch: PackedBatch, embedding: Tensor) -> tuple[Tensor, Tensor]:
    loss = model(batch, NextToken())
    assert int(loss.tokens) == batch.trained_tokens == sum(LENGTHS) - len(LENGTHS)
    return loss.total.detach(), torch.autograd.grad(loss.total, embedding)[0]


def alone(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The summed loss of each document by itself, from Transformers' logits in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for ids in batch.token_ids.split(batch.lengths):
        logits = model(ids[None]).logits[0].double()
        total = total + F.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    return total


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
def test_a_packed_model_of_transformers_is_each_document_alone(family: str) -> None:
    model = make_model(family)
    batch = batch_of(LENGTHS)
    embedding = model.get_input_embeddings().weight
    loss, gradient = loss_and_gradient(LanguageModel(model), batch, embedding)
    expected = alone(model, batch)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, embedding)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", ["llama", "llama_tied_bias", "llama_longrope", "qwen3", "mistral", "gemma2", "mixtral"]
)
def test_a_packed_decoder_is_transformers_document_by_document(family: str, tmp_path: Path) -> None:
    theirs, directory = make_pair(family, tmp_path)
    decoder = load_checkpoint(str(directory), dtype="float32", skip_tokenizer_init=True).decoder.requires_grad_()
    batch = batch_of(LENGTHS)
    loss, gradient = loss_and_gradient(LanguageModel(decoder), batch, decoder.embedding.weight)
    expected = alone(theirs, batch)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    by_theirs = torch.autograd.grad(expected, theirs.get_input_embeddings().weight)[0]
    torch.testing.assert_close(gradient, by_theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_under_autocast_attention_computes_in_bfloat16(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_checkpoint(str(make_pair(family, tmp_path)[1]), dtype="float32", skip_tokenizer_init=True).decoder
    seen = set()
    real = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        seen.update((q.dtype, k.dtype, v.dtype))
        return real(q, k, v, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    batch, model = batch_of(LENGTHS), LanguageModel(decoder.requires_grad_())
    exact = model(batch, NextToken()).total
    assert seen == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, NextToken()).total
    assert seen == {torch.bfloat16}
    assert 0 < abs(rounded - exact) < 0.02 * exact
    rounded.backward()
    assert decoder.embedding.weight.grad is not None and decoder.embedding.weight.grad.dtype == torch.float32


def test_an_output_layer_that_is_more_than_a_product_is_refused() -> None:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    model = AutoModelForCausalLM.from_config(PhiConfig(vocab_size=VOCAB_SIZE, **small))
    with pytest.raises(TrainingError, match="PhiForCausalLM has a bias in its output layer"):
        LanguageModel(model)(batch_of(LENGTHS), NextToken())
