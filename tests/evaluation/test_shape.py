"""The cost formulas against counts on a real model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.files import read_json
from headstart.checkpoints.reader import load_checkpoint
from headstart.evaluation.shape import SHAPES, LlamaShape
from headstart.models.config import ModelConfig

transformers = pytest.importorskip("transformers")

CASES = [
    LlamaShape(hidden=48, layers=1, heads=3, kv_heads=1, head_dim=16, ffn=80, vocab=97),
    LlamaShape(hidden=64, layers=3, heads=4, kv_heads=4, head_dim=8, ffn=96, vocab=130),
    LlamaShape(hidden=60, layers=2, heads=6, kv_heads=2, head_dim=32, ffn=40, vocab=64),
]


def _model(shape: LlamaShape) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
        # Eager attention runs as plain matrix products, which the counter sees.
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_prefill_flops_equal_the_counted(shape: LlamaShape, tokens: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _model(shape)(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=1)
    assert shape.prefill_flops(tokens, causal=False) == counter.get_total_flops()


@pytest.mark.parametrize("shape", CASES)
def test_causal_attention_needs_the_lower_triangle(shape: LlamaShape) -> None:
    tokens = 33
    pairs = int(torch.ones(tokens, tokens).tril().sum())
    per_pair = 4 * shape.heads * shape.head_dim * shape.layers
    saved = shape.prefill_flops(tokens, causal=False) - shape.prefill_flops(tokens)
    assert saved == per_pair * (tokens**2 - pairs)


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_bytes_equal_weights_plus_cache(shape: LlamaShape, dtype: torch.dtype) -> None:
    context = 19
    model = _model(shape).to(dtype)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(1, context, dtype=torch.long), past_key_values=cache)
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    weights = sum(p.nbytes for p in model.parameters())
    embedded = model.get_input_embeddings().weight[0].nbytes
    written = held // context
    assert shape.decode_bytes(context, dtype.itemsize) == weights + embedded + held + written
    assert shape.params == sum(p.numel() for p in model.parameters())


def test_default_shape_is_half_a_billion() -> None:
    # The published model has 494,032,768, of which the biases of q, k and v are 24 layers of 1,152.
    assert SHAPES["qwen2.5-0.5b"].params == 494_032_768 - 24 * 1_152


def test_shape_of_a_checkpoint_counts_its_weights() -> None:
    checkpoint = load_checkpoint(None, skip_tokenizer_init=True)
    shape = LlamaShape.of(checkpoint.config)
    assert shape is not None
    weights = checkpoint.decoder.named_parameters()
    # Norms of heads cost next to nothing, and no shape has them.
    assert shape.params == sum(p.numel() for name, p in weights if "q_norm" not in name and "k_norm" not in name)


def test_experts_and_windows_have_no_shape() -> None:
    raw = read_json(default_checkpoint_path() / "config.json")
    moe = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
    moe |= {"num_experts_per_tok": 2}
    windowed = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    for change in (moe, windowed):
        assert LlamaShape.of(ModelConfig.from_hf(raw | change)) is None
