"""The shape of a Llama, and what one prefill or one decode step of it costs in FLOPs and bytes."""

from dataclasses import dataclass
from typing import Self

from headstart.models.config import ModelConfig


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama without biases.

    `max_positions` is the longest context its config allows, `init_std` the spread of its random matrices, `tied` says
    that the output layer is the embedding itself.
    Costs count one multiply-add as two FLOPs and leave out norms, RoPE and activations, under one per cent.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int = 32_768
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    tied: bool = True

    @classmethod
    def of(cls, config: ModelConfig) -> Self | None:
        """The sizes that a dense model's costs follow from; None for experts and sliding windows, which cost less.

        An output layer of its own costs what the tied one does: it is read in full, the embedding row by row.
        """
        if config.moe is not None or any(config.windows):
            return None
        return cls(
            hidden=config.hidden_size,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            ffn=config.intermediate_size,
            vocab=config.vocab_size,
            max_positions=config.max_extended_position,
            rope_theta=config.ropes["full_attention"].theta,
            norm_eps=config.rms_eps,
            tied=config.tie_embeddings,
        )

    @property
    def layer_matmul_params(self) -> int:
        """Weights of one layer that enter a matrix product: q, k, v, o and the three of the SwiGLU block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * queries + 2 * keys) + 3 * self.hidden * self.ffn

    @property
    def matmul_params(self) -> int:
        """Weights of all layers that enter a matrix product, without embedding and head."""
        return self.layers * self.layer_matmul_params

    @property
    def norm_params(self) -> int:
        """Weights of the RMS norms."""
        return (2 * self.layers + 1) * self.hidden

    @property
    def params(self) -> int:
        """All weights."""
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.matmul_params + self.norm_params + tables

    def prefill_flops(self, tokens: int, *, causal: bool = True) -> int:
        """FLOPs from `tokens` prompt tokens to the logits of the last one.

        Args:
            tokens: prompt length T.
            causal: count the T(T+1)/2 pairs that causal attention needs; False counts all T² pairs.
        """
        pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
        attention = 4 * self.heads * self.head_dim * pairs * self.layers
        return 2 * self.matmul_params * tokens + attention + 2 * self.hidden * self.vocab

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values that one token adds to the cache, at `itemsize` bytes per number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    def decode_bytes(self, context: float, itemsize: int, sequences: int = 1) -> float:
        """Bytes to decode one token of each sequence: all weights and their caches read once, one KV each written.

        Args:
            context: tokens whose keys are read, the new one included (the mean over several steps).
            itemsize: bytes per number of weights and cache.
            sequences: how many decode together.
        """
        weights = self.matmul_params + self.norm_params + self.vocab * self.hidden + sequences * self.hidden
        return weights * itemsize + sequences * (context + 1) * self.kv_bytes_per_token(itemsize)


SHAPES = {
    "qwen2.5-0.5b": LlamaShape(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, ffn=4864, vocab=151_936),
    "llama-3.1-8b": LlamaShape(
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=128_256,
        max_positions=1_048_576,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        tied=False,
    ),
    "tiny": LlamaShape(
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        ffn=256,
        vocab=512,
        max_positions=2_048,
        # So small a model with a spread of 0.02 only repeats its input, whatever attention does.
        init_std=0.2,
    ),
}
