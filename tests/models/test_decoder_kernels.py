"""Families through the kernels, in Triton's interpreter where there is no GPU, against the plain ops."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.checkpoints.reader import load_checkpoint
from headstart.models.decoder import Decoder
from headstart.ops import kernels
from tests.models.configs import VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveBatch
from tests.ops.kernels.devices import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = [3, 1]
# One family of each kind of norm, placement, rotation and feed-forward block.
CHOSEN = ["llama_tied_bias", "qwen3", "phi3_longrope_partial", "gemma3", "olmo2", "olmoe"]


def logits(decoder: Decoder, ids: list[Tensor]) -> Tensor:
    """Of prompts and of one more token each, `[rows, vocab]`."""
    with torch.inference_mode(), torch.device(DEVICE):
        batch = NaiveBatch(decoder, LENGTHS)
        rows = list(batch.step({n: prompt[:-1] for n, prompt in enumerate(ids)}).values())
        rows += batch.step({n: prompt[-1:] for n, prompt in enumerate(ids)}).values()
    return torch.cat(rows)


@pytest.mark.parametrize("name", CHOSEN)
def test_kernels_give_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_checkpoint(make_pair(name, tmp_path)[1], skip_tokenizer_init=True).decoder.to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(VOCAB_SIZE, (length + 1,), generator=generator).to(DEVICE) for length in LENGTHS]
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: False)
    plain = logits(decoder, ids)
    asked = []
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: asked.append(tensors) or True)
    torch.testing.assert_close(logits(decoder, ids), plain, rtol=1e-4, atol=1e-4)
    assert asked


def test_a_layer_leaves_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods keep hidden states: what a layer is given stays as it was."""
    decoder = load_checkpoint(make_pair(CHOSEN[0], tmp_path)[1], skip_tokenizer_init=True).decoder.to(DEVICE)
    monkeypatch.setattr(kernels, "run_on", lambda *_: True)
    x = torch.randn(4, decoder.config.hidden_size, device=DEVICE)
    kept = x.clone()
    rows = decoder.rope_rows(torch.arange(4, device=DEVICE))[decoder.config.layer_kinds[0]]
    with torch.inference_mode():
        decoder.layers[0](x, rows, lambda spec, q, k, v: torch.zeros_like(q))
    assert torch.equal(x, kept)
