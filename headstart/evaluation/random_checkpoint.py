"""A Llama with random weights, as a Hugging Face directory and as GGUF, for all sides to load."""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from headstart.errors import HeadstartError
from headstart.evaluation.shape import LlamaShape

_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_checkpoint(directory: Path, shape: LlamaShape, *, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `config.json` and `model.safetensors` of a random Llama; matrices are normal(0, init_std), norms one.

    Args:
        directory: made if it is not there.
        shape: the sizes.
        seed: of the generator; the same seed gives the same bytes.
        dtype: of the weights in the file.
    """
    write_config(directory, shape, dtype)
    save_file(_random_weights(shape, seed, dtype), directory / "model.safetensors", {"format": "pt"})


def write_config(directory: Path, shape: LlamaShape, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write no more than the `config.json`, for weights that each side draws in memory."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _random_weights(shape: LlamaShape, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Hugging Face names to weights `[out, in]` or `[hidden]`, in `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns).normal_(0.0, shape.init_std, generator=generator).to(dtype)

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    weights = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        for name, (rows, columns) in sizes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(shape.hidden, dtype=dtype)
    weights["model.norm.weight"] = torch.ones(shape.hidden, dtype=dtype)
    if not shape.tied:
        weights["lm_head.weight"] = matrix(shape.vocab, shape.hidden)
    return weights


def write_tokenizer(directory: Path, vocab: int) -> None:
    """Write a tokenizer of as many words as the vocabulary has ids (`t0`, `t1`, ...), for servers that need one."""
    inner = Tokenizer(WordLevel({f"t{token}": token for token in range(vocab)}, unk_token="t0"))
    inner.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    inner.save(str(directory / "tokenizer.json"))


def write_gguf(path: Path, checkpoint: Path, shape: LlamaShape, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the weights of a plain Llama as a GGUF file without a vocabulary.

    Args:
        path: the file to write.
        checkpoint: the Hugging Face directory, with its weights in one file: one that `write_checkpoint` made, or a
            real one without biases and with unscaled RoPE.
        shape: its sizes.
        dtype: of the matrices in the file, bfloat16 or float32; norms are float32, as llama.cpp wants them.

    Raises:
        HeadstartError: the `gguf` package is not installed.
    """
    if find_spec("gguf") is None:
        raise HeadstartError("writing GGUF needs the gguf package; install it with: pip install gguf")
    from gguf import GGUFWriter  # pyright: ignore[reportMissingImports]

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        _add_tensor(writer, _gguf_name(name), _gguf_weight(name, weight, shape), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    """GGUF's name for a Hugging Face weight of a Llama."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{_LAYER_TENSORS[part]}.weight"


def _gguf_weight(name: str, weight: torch.Tensor, shape: LlamaShape) -> torch.Tensor:
    """The weight with the rows of q and k in GGUF's order.

    RoPE turns the pair (i, i + D/2) of a head in Hugging Face's layout and (2i, 2i + 1) in llama.cpp's Llama.
    """
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    heads = shape.heads if "q_proj" in name else shape.kv_heads
    halves = weight.view(heads, 2, shape.head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _add_tensor(writer, name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Queue a tensor: vectors and float32 as they are, bfloat16 as raw bytes since numpy has no such type."""
    from gguf import GGMLQuantizationType  # pyright: ignore[reportMissingImports]

    if weight.dim() == 1 or dtype == torch.float32:
        writer.add_tensor(name, weight.float().contiguous().numpy())
        return
    raw = weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.BF16)
