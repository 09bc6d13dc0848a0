"""Every family through the kernels, in Triton's interpreter where there is no GPU, against the plain ops."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.checkpoints.reader import load_checkpoint
from headstart.models.decoder import Decoder
from headstart.ops import kernels
from tests.models.configs import FAMILIES, VOCAB_SIZE, make_pair
from tests.models.naive_attention import NaiveBatch

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = [3, 1, 12]


def logits(decoder: Decoder, ids: list[Tensor]) -> Tensor:
    """Of prompts and of one more token each, `[rows, vocab]`."""
    with torch.inference_mode():
        batch = NaiveBatch(decoder, LENGTHS)
        rows = list(batch.step({n: prompt[:-1] for n, prompt in enumerate(ids)}).values())
        rows += batch.step({n: prompt[-1:] for n, prompt in enumerate(ids)}).values()
    return torch.cat(rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_give_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_checkpoint(make_pair(name, tmp_path)[1], skip_tokenizer_init=True).decoder
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(VOCAB_SIZE, (length + 1,), generator=generator) for length in LENGTHS]
    plain = logits(decoder, ids)
    asked = []
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: asked.append(tensors) or True)
    torch.testing.assert_close(logits(decoder, ids), plain, rtol=1e-4, atol=1e-4)
    assert asked


def test_a_layer_leaves_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods keep hidden states: what a layer is given stays as it was."""
    decoder = load_checkpoint(make_pair(next(iter(FAMILIES)), tmp_path)[1], skip_tokenizer_init=True).decoder
    monkeypatch.setattr(kernels, "run_on", lambda *_: True)
    x = torch.randn(4, decoder.config.hidden_size)
    kept = x.clone()
    rows = decoder.rope_rows(torch.arange(4))[decoder.config.layer_kinds[0]]
    with torch.inference_mode():
        decoder.layers[0](x, rows, lambda spec, q, k, v: torch.zeros_like(q))
    assert torch.equal(x, kept)
