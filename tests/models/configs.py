"""Small random models of every supported family, as Transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 97
MAX_POSITION = 256

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_POSITION,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _small(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type} | _SMALL | changes


def _rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0} | parameters}


_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.4 * i for i in range(8)],
}

# Prompts in tests have 20 to 40 tokens, so that windows and original lengths of 8 to 32 lie on both sides.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _small("llama"),
    "llama_tied_bias": _small(
        "llama", num_key_value_heads=3, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama_wide_heads": _small("llama", num_attention_heads=6, num_key_value_heads=2, head_dim=24),
    "llama_linear": _small("llama", **_rope(rope_type="linear", factor=3.0)),
    "llama_dynamic": _small("llama", **_rope(rope_type="dynamic", factor=4.0) | {"max_position_embeddings": 32}),
    "llama_llama3": _small(
        "llama",
        **_rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_yarn": _small("llama", **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_yarn_mscale": _small(
        "llama",
        **_rope(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            mscale=0.9,
            mscale_all_dim=0.5,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        ),
    ),
    "llama_longrope": _small("llama", **_rope(**_LONGROPE, factor=4.0, original_max_position_embeddings=32)),
    "mistral": _small("mistral", num_attention_heads=5, head_dim=16, sliding_window=8),
    "mistral_full": _small("mistral", num_key_value_heads=3, sliding_window=None),
    "qwen2": _small("qwen2", num_key_value_heads=3),
    "qwen2_window": _small(
        "qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": _small("qwen3", num_attention_heads=6, num_key_value_heads=2, head_dim=16),
    "qwen3_window_bias": _small(
        "qwen3",
        head_dim=32,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": _small("phi3", sliding_window=None),
    "phi3_window": _small("phi3", num_key_value_heads=3, sliding_window=11),
    "phi3_longrope_partial": _small(
        "phi3",
        num_attention_heads=3,
        hidden_size=96,
        original_max_position_embeddings=32,
        **_rope(**_LONGROPE, partial_rotary_factor=0.5),
    ),
    "gemma2": _small(
        "gemma2",
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": _small(
        "gemma3_text",
        num_hidden_layers=4,
        head_dim=24,
        sliding_window=8,
        sliding_window_pattern=3,
        query_pre_attn_scalar=16,
    ),
    "gemma3_scaled": _small(
        "gemma3_text",
        head_dim=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        },
        attn_logit_softcapping=4.0,
        final_logit_softcapping=2.0,
        tie_word_embeddings=False,
    ),
    "olmo2": _small("olmo2"),
    "olmo2_bias": _small("olmo2", num_key_value_heads=3, attention_bias=True, tie_word_embeddings=True),
    "mixtral": _small("mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
    "mixtral_window": _small("mixtral", num_local_experts=3, num_experts_per_tok=1, sliding_window=8),
    "qwen3_moe": _small("qwen3_moe", head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24),
    "qwen3_moe_mixed": _small(
        "qwen3_moe",
        num_hidden_layers=4,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        use_sliding_window=True,
        sliding_window=9,
    ),
    "olmoe": _small("olmoe", num_experts=6, num_experts_per_tok=2, clip_qkv=0.8),
    "olmoe_normalised": _small(
        "olmoe", num_key_value_heads=3, num_experts=4, num_experts_per_tok=3, norm_topk_prob=True
    ),
}


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The Transformers model of a family in float32, every weight of it random."""
    kwargs = dict(FAMILIES[name])
    config = AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                # Norms stay near their neutral value, one or zero, and biases get a value.
                parameter.add_(0.3 * noise)
    return model


def make_pair(name: str, directory: Path, seed: int = 0) -> tuple[PreTrainedModel, Path]:
    """The same model in memory and saved under `directory / name`."""
    model = make_model(name, seed)
    model.save_pretrained(directory / name)
    return model, directory / name
