"""The same network trains: gradients of every tensor equal those of Transformers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from headstart.checkpoints.names import pieces
from headstart.checkpoints.reader import load_checkpoint
from tests.models.configs import VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveCache

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["llama_tied_bias", "qwen3", "gemma3", "olmo2", "phi3_longrope_partial", "mixtral"])
def test_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    decoder = load_checkpoint(directory, skip_tokenizer_init=True).decoder
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    decoder.requires_grad_()
    length = 17
    ids = torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1)
    hidden = decoder(ids, torch.arange(length), NaiveCache().attend, torch.full((length,), length))
    F.cross_entropy(decoder.logits(hidden), targets).backward()
    F.cross_entropy(model(ids[None]).logits[0], targets).backward()

    ours = dict(decoder.named_parameters())
    compared = 0
    theirs = dict(model.named_parameters())
    for tensor, piece in pieces(decoder.config).items():
        if tensor not in theirs:
            continue  # experts, which Transformers stacks in memory
        part = ours[piece.parameter].grad[piece.start : piece.start + piece.shape[0]]
        torch.testing.assert_close(part, theirs[tensor].grad, rtol=1e-3, atol=1e-5)
        compared += 1
    assert compared >= 20
    if decoder.config.moe is not None:
        for layer in range(decoder.config.num_layers):
            for part in ("gate_up", "down"):
                expected = theirs[f"model.layers.{layer}.mlp.experts.{part}_proj"].grad
                torch.testing.assert_close(ours[f"layers.{layer}.mlp.{part}"].grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "qwen3_moe"])
def test_bfloat16_stays_as_near_as_transformers_does(name: str, tmp_path: Path) -> None:
    model, directory = make_pair(name, tmp_path)
    length = 24
    ids = torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = model(ids[None]).logits[0]
        theirs = model.bfloat16()(ids[None]).logits[0].float()
        decoder = load_checkpoint(directory, dtype="bfloat16", skip_tokenizer_init=True).decoder
        ours = decoder.logits(decoder(ids, torch.arange(length), NaiveCache().attend))
    assert ours.dtype == torch.float32
    # The median token: where two experts are nearly tied, one rounding sends a token elsewhere.
    assert (ours - exact).norm(dim=-1).median() < 1.2 * (theirs - exact).norm(dim=-1).median()
