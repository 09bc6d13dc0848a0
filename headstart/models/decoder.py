"""The decoder: every supported family in one file. Tokens go in as one flat list, without padding.

The network knows neither sequences nor caches. Each layer hands its queries, keys and values to an `Attend`,
which owns the KV cache and decides what each query sees.
"""

import copy
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from headstart.models.config import LayerKind, ModelConfig, MoEConfig
from headstart.models.layers import Embedding, Linear, Quantized, RMSNorm, SummedLinear, add_and_norm, parameter
from headstart.models.parallel import ALONE, Ranks
from headstart.models.rope import Rope
from headstart.ops.activation import gated
from headstart.ops.attention.reach import Reach
from headstart.ops.linear import linear
from headstart.ops.moe import empty_experts, mix_experts, route
from headstart.ops.rotary import HeadNorms, RotaryRows, apply_rotary, rotary_rows, rotate_heads

# Rows whose inner activations of a feed-forward block are there at a time: more bring a GPU nothing.
_MLP_ROWS = 16384


@dataclass(frozen=True)
class AttentionSpec:
    """What one layer's attention is.

    Attributes:
        layer: its number, from 0.
        num_heads, num_kv_heads: query heads H, and the heads Hkv of keys and values that they share.
        head_dim: size D of a head.
        scale: factor on query-key products.
        window: how many tokens a query sees, itself included; None is all before it.
        softcap: scores become `softcap * tanh(score / softcap)`; None leaves them.
        reach: which blocks a query sees by their places alone, where training is to know it; None is all.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    reach: Reach | None = None


class Attend(Protocol):
    """How the queries of a layer meet the keys."""

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend causally, keeping the new keys and values.

        Args:
            spec: the layer.
            q: `[T, H, D]`, after query norm and RoPE. Like k and v it may be a strided view.
            k: `[T, Hkv, D]`, after key norm and RoPE.
            v: `[T, Hkv, D]`.

        Returns:
            `[T, H, D]`.
        """
        ...


class Attention(nn.Module):
    """Projections, query and key norms and RoPE around an `Attend`; of several ranks' heads, this rank's."""

    def __init__(
        self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        config = ranks.own(config)
        self.ranks = ranks
        self.spec = AttentionSpec(
            layer=layer,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            window=config.windows[layer],
            softcap=config.attention_softcap,
        )
        self.clip = config.clip_qkv
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        # Queries, keys and values are one weight, in this order along the output.
        self.qkv = Linear(config.hidden_size, q_size + 2 * kv_size, config.qkv_bias, dtype, device)
        self.output = SummedLinear(q_size, config.hidden_size, config.output_bias, dtype, device, ranks)
        self.norm_heads = config.qk_norm == "head"
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = _norm(config, config.head_dim if self.norm_heads else q_size, dtype, device)
            self.k_norm = _norm(config, config.head_dim if self.norm_heads else kv_size, dtype, device)

    def forward(self, x: Tensor, rows: RotaryRows, attend: Attend) -> Tensor:
        """`[T, hidden]` → `[T, hidden]`."""
        spec = self.spec
        heads = self.qkv(x).view(x.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        qk, v = heads[:, : -spec.num_kv_heads], heads[:, -spec.num_kv_heads :]
        norms = self._head_norms()
        if norms is None and self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((spec.num_heads, spec.num_kv_heads), 1)
            qk = torch.cat((self._normalise(q, self.q_norm), self._normalise(k, self.k_norm)), 1)
        if self.clip is not None:
            qk, v = qk.clamp(-self.clip, self.clip), v.clamp(-self.clip, self.clip)
        q, k = rotate_heads(qk, spec.num_heads, rows, norms).split((spec.num_heads, spec.num_kv_heads), 1)
        return self.output(attend(spec, q, k, v).reshape(x.shape[0], -1))

    def queries(self, projected: Tensor, rows: RotaryRows) -> Tensor:
        """Projected queries `[T, H * D]` → `[T, H, D]` as they meet the keys: normalised, clipped, rotated."""
        return self._rotated(projected, self.q_norm, rows)

    def keys_values(self, projected: Tensor, rows: RotaryRows) -> tuple[Tensor, Tensor]:
        """Projected keys and values `[T, 2 * Hkv * D]` → both `[T, Hkv, D]` as they are kept."""
        k, v = projected.chunk(2, -1)
        v = v.view(len(v), -1, self.spec.head_dim)
        return self._rotated(k, self.k_norm, rows), v if self.clip is None else v.clamp(-self.clip, self.clip)

    def _rotated(self, projected: Tensor, norm: RMSNorm | None, rows: RotaryRows) -> Tensor:
        x = projected.view(len(projected), -1, self.spec.head_dim)
        x = x if norm is None else self._normalise(x, norm)
        return apply_rotary(x if self.clip is None else x.clamp(-self.clip, self.clip), rows)

    def _head_norms(self) -> HeadNorms | None:
        """The norms that can be computed with the rotation; None where there are none, or other ones."""
        q, k = self.q_norm, self.k_norm
        if not isinstance(q, RMSNorm) or not isinstance(k, RMSNorm) or not self.norm_heads or self.clip is not None:
            return None
        return HeadNorms(q.weight, k.weight, q.eps, q.offset, q.late_rounding)

    def _normalise(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """`[T, H, D]` → `[T, H, D]`, each head by itself or all heads as one row."""
        return norm(x) if self.norm_heads else norm(x.flatten(1), self.ranks).view_as(x)


class MLP(nn.Module):
    """The gated feed-forward block; of several ranks' inner units, this rank's."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE) -> None:
        super().__init__()
        size = ranks.own(config).intermediate_size
        self.gate_up = Linear(config.hidden_size, 2 * size, config.mlp_bias, dtype, device)
        self.down = SummedLinear(size, config.hidden_size, config.mlp_bias, dtype, device, ranks)
        self.activation = config.activation

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `onto [T, hidden]` if given, whose place it may take."""
        if len(x) > _MLP_ROWS and not torch.is_grad_enabled():
            # A long chunk's inner activations would take more memory than anything else (Qwen2.5-1M, arXiv 2501.15383).
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            for first in range(0, len(x), _MLP_ROWS):
                rows = slice(first, first + _MLP_ROWS)
                out[rows] = self._of_rows(x[rows], None if onto is None else onto[rows])
            return out
        return self._of_rows(x, onto)

    def _of_rows(self, x: Tensor, onto: Tensor | None) -> Tensor:
        if isinstance(self.gate_up, Linear):
            inner = self.gate_up.gated(x, self.activation)
        else:
            inner = gated(self.gate_up(x), self.activation)
        if onto is not None and isinstance(self.down, Linear):
            return self.down(inner, onto)
        return self.down(inner) if onto is None else onto + self.down(inner)


class MoE(nn.Module):
    """A mixture of gated feed-forward blocks, of which each token visits a few; every rank has a part of each."""

    def __init__(
        self, config: ModelConfig, moe: MoEConfig, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        experts, hidden, inner = moe.num_experts, config.hidden_size, moe.intermediate_size
        self.router = Linear(hidden, experts, False, dtype, device)
        self.gate_up: nn.Parameter | Quantized = parameter(empty_experts(experts, 2 * inner, hidden, dtype, device))
        self.down: nn.Parameter | Quantized = parameter(empty_experts(experts, hidden, inner, dtype, device))
        self.moe = moe
        self.ranks = ranks
        self.activation = config.activation

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`[T, hidden]` → `[T, hidden]`, added to `onto [T, hidden]` if given."""
        weights, experts = route(
            self.router(x),
            self.moe.top_k,
            renormalise=self.moe.renormalise,
            keep_float32=self.moe.keep_float32,
        )
        gate_up, down = (part.weight if isinstance(part, Quantized) else part for part in (self.gate_up, self.down))
        if self.ranks.size == 1:
            return mix_experts(x, weights, experts, gate_up, down, self.activation, onto)
        mixed = self.ranks.sum_(mix_experts(x, weights, experts, gate_up, down, self.activation))
        return mixed if onto is None else onto + mixed

    def quantize(self, kind: str) -> None:
        """Keep the experts in eight bits only (a name in `headstart.ops.quantized.QUANTIZATIONS`)."""
        for name in ("gate_up", "down"):
            quantized = Quantized(getattr(self, name), kind)
            delattr(self, name)
            setattr(self, name, quantized)


class Layer(nn.Module):
    """One block of the decoder: attention, then feed-forward, each added to the residual stream."""

    def __init__(
        self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self.attention = Attention(config, layer, dtype, device, ranks)
        self.mlp: MLP | MoE
        moe = ranks.own(config).moe
        if moe is not None and config.moe_layers[layer]:
            self.mlp = MoE(config, moe, dtype, device, ranks)
        else:
            self.mlp = MLP(config, dtype, device, ranks)
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        size = config.hidden_size
        self.attention_norm = _norm(config, size, dtype, device) if before else nn.Identity()
        self.mlp_norm = _norm(config, size, dtype, device) if before else nn.Identity()
        self.attention_post_norm = _norm(config, size, dtype, device) if after else nn.Identity()
        self.mlp_post_norm = _norm(config, size, dtype, device) if after else nn.Identity()

    def forward(self, x: Tensor, rows: RotaryRows, attend: Attend) -> Tensor:
        """`[T, hidden]` → `[T, hidden]`; `rows` are those of this layer's kind."""
        branch = self.attention(self.attention_norm(x), rows, attend)
        x, normed = add_and_norm(x, branch, self.attention_post_norm, self.mlp_norm)
        if isinstance(self.mlp_post_norm, nn.Identity) and isinstance(self.mlp, MLP | MoE):
            return self.mlp(normed, x)
        return add_and_norm(x, self.mlp(normed), self.mlp_post_norm, nn.Identity())[0]


class Decoder(nn.Module):
    """Token ids in, hidden states and logits out.

    Made with uninitialised weights; `headstart.checkpoints` fills them. Weights are not trained until
    `requires_grad_()` is called.

    Args:
        config: the whole model.
        dtype: of the weights.
        device: where they lie.
        ranks: the processes that hold a part each; they then have to call what computes all together.

    Attributes:
        attention_specs: what each layer's attention is.
        ropes: the RoPE of each kind of layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config = config
        self.ranks = ranks
        self.embedding = Embedding(
            config.vocab_size,
            config.hidden_size,
            scale=config.embedding_scale,
            tied=config.tie_embeddings,
            dtype=dtype,
            device=device,
        )
        layers = [Layer(config, layer, dtype, device, ranks) for layer in range(config.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = _norm(config, config.hidden_size, dtype, device)
        self.lm_head: Linear | None = None
        if not config.tie_embeddings:
            first, stop = ranks.vocabulary(config.vocab_size)
            self.lm_head = Linear(config.hidden_size, stop - first, False, dtype, device)
        self.ropes: dict[LayerKind, Rope] = {kind: Rope(rope) for kind, rope in config.ropes.items()}
        self.attention_specs = [layer.attention.spec for layer in layers]

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend, lengths: Tensor | None = None) -> Tensor:
        """Run rows of any number of sequences through all layers.

        Args:
            token_ids: `[T]`.
            positions: `[T]`, each row's place in its own sequence.
            attend: what attends, and keeps keys and values.
            lengths: `[T]`, needed where a RoPE is `length_dependent`: see `Rope`.

        Returns:
            `[T, hidden]` after the final norm; `logits` turns wanted rows of it into scores.
        """
        x = self.embed(token_ids)
        rows = self.rope_rows(positions, lengths)
        for kind, layer in zip(self.config.layer_kinds, self.layers, strict=True):
            x = layer(x, rows[kind], attend)
        return self.norm(x)

    def embed(self, token_ids: Tensor) -> Tensor:
        """`[T]` → `[T, hidden]`."""
        return self.embedding(token_ids)

    def rope_rows(self, positions: Tensor, lengths: Tensor | None = None) -> dict[LayerKind, RotaryRows]:
        """What rotates the rows at these positions `[T]`, for each kind of layer; made once per step."""
        dtype = torch.float32 if self.config.rope_float32 else self.dtype
        return {kind: rotary_rows(*rope(positions, lengths), dtype) for kind, rope in self.ropes.items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, hidden]` after the final norm → scores `[N, vocab]` in float32."""
        vocabulary = self.config.vocab_size
        if self.lm_head is not None:
            own = self.lm_head(hidden)
        else:
            own = linear(hidden, self.embedding.weight[slice(*self.ranks.vocabulary(vocabulary))])
        # Each score is computed by one rank and copied to the others, so that all draw from the same bits.
        scores = self.ranks.gather(own, vocabulary).float()
        cap = self.config.logits_softcap
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def quantize(self, kind: str) -> None:
        """Keep the weights of the layers in eight bits only; embedding, output layer and routers stay as they are.

        Args:
            kind: a name in `headstart.ops.quantized.QUANTIZATIONS`.
        """
        for layer in self.layers:
            for module in list(layer.modules()):
                if isinstance(module, MoE):
                    module.quantize(kind)
                elif isinstance(module, MLP | Attention):
                    for part in module.children():
                        if isinstance(part, Linear):
                            part.quantize(kind)

    def with_same_weights(self) -> Self:
        """Another decoder of the same tensors, whose modules may be changed without changing this one's."""
        return copy.deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the residual stream."""
        return self.embedding.weight.dtype

    def reuse_salt(self, prompt_length: int) -> str:
        """What sets this prompt's cached keys apart from equal tokens in prompts of other lengths."""
        return "/".join(filter(None, (rope.reuse_salt(prompt_length) for rope in self.ropes.values())))


def _norm(config: ModelConfig, size: int, dtype: torch.dtype, device: torch.device) -> RMSNorm:
    return RMSNorm(
        size,
        config.rms_eps,
        offset=config.norm_offset,
        late_rounding=config.norm_late_rounding,
        dtype=dtype,
        device=device,
    )
