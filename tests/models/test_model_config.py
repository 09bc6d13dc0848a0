"""What configs of published models mean, and what is said about those that cannot be read."""

from typing import Any

import pytest

from headstart.errors import CheckpointError
from headstart.models.config import ModelConfig
from headstart.models.families import FAMILIES

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
}
REQUIRED = sorted(set(LLAMA) - {"hidden_act", "architectures"})


def llama(**changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(LLAMA | changes)


def family(architecture: str, **changes: Any) -> ModelConfig:
    return llama(architectures=[architecture], **changes)


def test_old_llama_leaves_most_fields_out() -> None:
    config = llama()
    assert (config.num_kv_heads, config.head_dim, config.tie_embeddings) == (8, 8, False)
    assert config.ropes["full_attention"].theta == 10_000.0
    assert config.windows == (None, None)
    assert config.attention_scale == 8**-0.5


def test_mistral_windows() -> None:
    assert family("MistralForCausalLM", sliding_window=4096).windows == (4096, 4096)
    assert family("MistralForCausalLM", sliding_window=None).windows == (None, None)


def test_qwen2_window_is_off_unless_switched_on() -> None:
    published = {"sliding_window": 32768, "max_window_layers": 1}
    assert family("Qwen2ForCausalLM", use_sliding_window=False, **published).windows == (None, None)
    assert family("Qwen2ForCausalLM", use_sliding_window=True, **published).windows == (None, 32768)
    assert family("Qwen2ForCausalLM").qkv_bias and not family("Qwen2ForCausalLM").output_bias


def test_gemma2_alternates() -> None:
    config = family("Gemma2ForCausalLM", num_hidden_layers=4, hidden_act=None, head_dim=32)
    assert config.windows == (4096, None, 4096, None)
    assert (config.attention_softcap, config.logits_softcap) == (50.0, 30.0)
    assert config.activation == "gelu_pytorch_tanh" and config.tie_embeddings
    assert config.attention_scale == 256**-0.5 and config.embedding_scale == 8.0


def test_gemma3_with_images_becomes_its_text_part() -> None:
    # The fields that google/gemma-3-4b-it has.
    raw = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152},
    }
    config = ModelConfig.from_hf(raw)
    assert config.architecture == "Gemma3ForCausalLM"
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262208, 8, 4, 256)
    assert config.windows[:7] == (1024, 1024, 1024, 1024, 1024, None, 1024)
    full, sliding = config.ropes["full_attention"], config.ropes["sliding_attention"]
    assert (full.kind, full.factor, full.theta) == ("linear", 8.0, 1_000_000.0)
    assert (sliding.kind, sliding.theta) == ("default", 10_000.0)
    assert config.raw["eos_token_id"] == [1, 106] and config.raw["torch_dtype"] == "bfloat16"


def test_phi3_old_spellings() -> None:
    factors = {"short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    for kind in ("su", "longrope", "yarn"):
        config = family(
            "Phi3ForCausalLM",
            partial_rotary_factor=0.75,
            original_max_position_embeddings=512,
            rope_scaling={"type": kind} | factors,
        )
        rope = config.ropes["full_attention"]
        assert (rope.kind, rope.dim, rope.original_max_position, rope.factor) == ("longrope", 6, 512, 4.0)


def test_qwen3_moe_field_names_of_both_ages() -> None:
    sizes = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    for name in ("num_experts", "num_local_experts"):
        config = family("Qwen3MoeForCausalLM", **sizes, **{name: 16})
        assert config.moe is not None
        assert (config.moe.num_experts, config.moe_layers) == (16, (True, True))


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field_is_named(field: str) -> None:
    raw = {key: value for key, value in LLAMA.items() if key != field}
    with pytest.raises(CheckpointError, match=f"^/models/x/config.json has no field '{field}'"):
        ModelConfig.from_hf(raw, "/models/x/config.json")


def test_unknown_architecture_lists_those_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"'MambaForCausalLM' in config.json is not supported") as caught:
        family("MambaForCausalLM")
    assert all(name in str(caught.value) for name in FAMILIES)
    with pytest.raises(CheckpointError, match="no field 'architectures'"):
        ModelConfig.from_hf({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size in config.json must be a whole number, not '64'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers in config.json must be a whole number from 1 to 10000, not -1"),
        ({"hidden_size": 0}, "hidden_size in config.json must be a whole number from 1 to 2147483647, not 0"),
        ({"head_dim": 0}, "head_dim in config.json must be a whole number from 1 to 2147483647, not 0"),
        ({"vocab_size": 10**30}, "vocab_size in config.json must be a whole number from 1 to 2147483647"),
        (
            {"hidden_size": 60},
            r"hidden_size \(60\) .* multiple of num_attention_heads \(8\), since there is no head_dim",
        ),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps in config.json must be a number from 1e-30 to 1e[+]30, not -1e-05"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps in config.json must be a number from .*, not nan"),
        ({"architectures": 5}, "architectures in config.json must be a list with the name of an architecture, not 5"),
        ({"architectures": "LlamaForCausalLM"}, "architectures in config.json must be a list .*, not 'Llama"),
        ({"architectures": ["two\nlines"]}, r"the architecture 'two\\nlines' in config.json is not supported"),
        ({"hidden_act": []}, r"hidden_act in config.json must be a string, not \[\]"),
        ({"hidden_act": ["silu"]}, r"hidden_act in config.json must be a string, not \['silu'\]"),
        ({"quantization_config": "int8"}, "quantized with 'int8', which is not supported"),
        ({"rope_scaling": {"rope_type": []}}, r"rope_type in rope_scaling of config.json must be a string, not \[\]"),
        ({"num_hidden_layers": True}, "num_hidden_layers in config.json must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps in config.json must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings in config.json must be true or false"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(8\) .* multiple of num_key_value_heads \(3\)"),
        ({"hidden_act": "gelu_10"}, "activation 'gelu_10' in config.json is not supported; supported are silu"),
        ({"rope_scaling": "linear"}, "rope_scaling in config.json must be an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized with 'gptq', which is not supported"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama(**changes)


def test_bad_layer_types() -> None:
    with pytest.raises(CheckpointError, match=r"layer_types in config.json names 'chunked_attention'"):
        family("Gemma2ForCausalLM", layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(CheckpointError, match=r"layer_types in config.json has 1 entries for 2 layers"):
        family("Gemma2ForCausalLM", layer_types=["full_attention"])


@pytest.mark.parametrize("junk", [5, "full_attention", {"0": "full_attention"}])
def test_layer_types_that_are_no_list(junk: Any) -> None:
    with pytest.raises(CheckpointError, match=r"layer_types in config.json must be a list with one kind .*, not"):
        family("Gemma2ForCausalLM", layer_types=junk)


@pytest.mark.parametrize("junk", [3, "3", [[3]], ["3"], [True], {"3": 3}])
def test_dense_layers_that_are_no_list_of_numbers(junk: Any) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with pytest.raises(CheckpointError, match=r"mlp_only_layers in config.json must be a list of layer numbers, not"):
        family("Qwen3MoeForCausalLM", **sizes, mlp_only_layers=junk)


def test_more_experts_per_token_than_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"num_experts_per_tok in config.json must be .* from 1 to 4, not 5"):
        family("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=5)


def test_a_window_of_no_tokens() -> None:
    with pytest.raises(CheckpointError, match=r"sliding_window in config.json must be a whole number from 1"):
        family("MistralForCausalLM", sliding_window=0)
    # Switched off, it does not matter.
    assert family("Qwen2ForCausalLM", sliding_window=0, use_sliding_window=False).windows == (None, None)


def test_encoders_are_refused() -> None:
    with pytest.raises(CheckpointError, match="use_bidirectional_attention"):
        family("Gemma3ForCausalLM", use_bidirectional_attention=True)
