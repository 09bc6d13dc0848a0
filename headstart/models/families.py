"""The small differences between published architectures, as one table. There is no class per vendor."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama.

    Attributes:
        qkv_bias, output_bias, mlp_bias: fixed, or the name of the config field that says it.
        qk_norm, norm_placement, norm_offset, norm_late_rounding, rope_float32: see `ModelConfig`.
        windows: no layer slides, those told by `sliding_window` do, or only if `use_sliding_window` is set.
        layer_types: the family has layers of different kinds, which `layer_types` may list.
        window_pattern: every so many layers one sees everything, when `layer_types` is absent.
        query_scalar: scores are divided by the root of `query_pre_attn_scalar` rather than of the head size.
        attention_softcap, logits_softcap, scaled_embeddings, clip_qkv: whether the family has them.
        tie_embeddings: what an absent `tie_word_embeddings` means.
        activation: what an absent `hidden_act` means.
        default_theta, local_theta: RoPE bases when the file names none, of all layers and of sliding ones.
        rope_aliases: names of RoPE kinds that mean another one in this family.
        fused: queries, keys and values, and gate and up, are one tensor each in the files.
        moe: whose mixture of experts.
        expert_names: in the files, the block of experts and its gate, up and down matrices.
        defaults: fields that published files leave out.
    """

    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    qk_norm: Literal["head", "projection"] | None = None
    norm_placement: Literal["pre", "post", "both"] = "pre"
    norm_offset: bool = False
    norm_late_rounding: bool = False
    rope_float32: bool = False
    windows: Literal["none", "always", "switched"] = "none"
    layer_types: bool = False
    window_pattern: int | None = None
    query_scalar: bool = False
    attention_softcap: bool = False
    logits_softcap: bool = False
    scaled_embeddings: bool = False
    clip_qkv: bool = False
    tie_embeddings: bool = False
    activation: str = "silu"
    default_theta: float = 10_000.0
    local_theta: float | None = None
    rope_aliases: dict[str, str] = field(default_factory=dict)
    fused: bool = False
    moe: Literal["mixtral", "qwen3", "olmoe"] | None = None
    expert_names: tuple[str, str, str, str] = ("mlp", "gate_proj", "up_proj", "down_proj")
    defaults: dict[str, Any] = field(default_factory=dict)


_GEMMA: dict[str, Any] = {
    "norm_placement": "both",
    "norm_offset": True,
    "windows": "always",
    "layer_types": True,
    "query_scalar": True,
    "logits_softcap": True,
    "scaled_embeddings": True,
    "tie_embeddings": True,
    "activation": "gelu_pytorch_tanh",
}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(mlp_bias="mlp_bias"),
    "MistralForCausalLM": Family(qkv_bias=False, output_bias=False, windows="always"),
    "Qwen2ForCausalLM": Family(qkv_bias=True, output_bias=False, windows="switched", layer_types=True),
    "Qwen3ForCausalLM": Family(qk_norm="head", windows="switched", layer_types=True, defaults={"head_dim": 128}),
    "Phi3ForCausalLM": Family(
        qkv_bias=False,
        output_bias=False,
        windows="always",
        rope_aliases={"yarn": "longrope"},
        fused=True,
        defaults={"original_max_position_embeddings": 4096},
    ),
    "Gemma2ForCausalLM": Family(
        **_GEMMA,
        attention_softcap=True,
        window_pattern=2,
        defaults={
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": Family(
        **_GEMMA,
        qk_norm="head",
        window_pattern=6,
        default_theta=1_000_000.0,
        local_theta=10_000.0,
        # The files of the larger Gemma 3 models leave out every field that equals these.
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
    ),
    "Olmo2ForCausalLM": Family(qk_norm="projection", norm_placement="post", norm_late_rounding=True, rope_float32=True),
    "MixtralForCausalLM": Family(
        qkv_bias=False,
        output_bias=False,
        windows="always",
        default_theta=1_000_000.0,
        moe="mixtral",
        expert_names=("block_sparse_moe", "w1", "w3", "w2"),
    ),
    "Qwen3MoeForCausalLM": Family(qk_norm="head", windows="switched", moe="qwen3"),
    "OlmoeForCausalLM": Family(qk_norm="projection", clip_qkv=True, moe="olmoe"),
}
