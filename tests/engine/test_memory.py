"""How large the KV cache may be: refusals with numbers, on a GPU that is only pretended."""

import pytest
import torch

from headstart.engine.args import EngineArgs
from headstart.engine.seams import LayerKV
from headstart.errors import HeadstartError
from headstart.models.config import ModelConfig

CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    },
    "test",
)
# 2 x 2 heads of 16 in two bytes: 128 bytes a token.
LAYERS = [LayerKV(2, 16, torch.bfloat16)]


@pytest.fixture
def gpu(monkeypatch):
    """Makes believe that there is a GPU with so many bytes free and in all."""

    def pretend(free: int, total: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, total))

    return pretend


def test_the_step_and_the_share_that_is_not_ours_stay_free(gpu):
    gpu(900_000, 1_000_000)
    pages, length = EngineArgs(gpu_memory_utilization=0.8, page_size=16).cache_size(LAYERS, CONFIG, 300_000)
    assert pages * 16 * 128 <= 900_000 - 200_000 - 300_000 < (pages + 1) * 16 * 128
    assert length == pages * 16


def test_a_cache_that_is_asked_for_and_does_not_fit(gpu):
    gpu(1_000_000, 1_000_000)
    with pytest.raises(HeadstartError, match=r"takes 2,048,000 bytes.*has 900,000 free.*7024 tokens; lower"):
        EngineArgs(page_size=16, num_pages=1000).cache_size(LAYERS, CONFIG, 100_000)


def test_nothing_left_beside_the_weights(gpu):
    gpu(100_000, 1_000_000)
    with pytest.raises(HeadstartError, match=r"has 0 free, enough for 0 tokens; lower max_model_len"):
        EngineArgs(page_size=16).cache_size(LAYERS, CONFIG, 200_000)
