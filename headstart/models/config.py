"""What a network is made of, from any supported `config.json`: sizes, norms, windows, RoPE, experts."""

from dataclasses import dataclass
from typing import Any, Literal

from headstart.errors import CheckpointError
from headstart.models.families import FAMILIES, Family
from headstart.models.fields import Fields
from headstart.models.rope import RopeConfig
from headstart.ops.activation import ACTIVATIONS

LayerKind = Literal["full_attention", "sliding_attention"]
# Lists as long as this are made before any weight is seen.
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class MoEConfig:
    """The experts of a mixture-of-experts layer.

    Attributes:
        num_experts: experts per layer.
        top_k: experts that each token visits.
        intermediate_size: inner size of one expert.
        renormalise: the weights of the chosen experts are divided by their sum.
        keep_float32: expert outputs are mixed in float32.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalise: bool
    keep_float32: bool


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, told by its numbers and a few yes-or-no differences.

    Attributes:
        architecture: the Hugging Face class name, for example `LlamaForCausalLM`.
        max_position: the longest sequence that the model was made for, in tokens.
        activation: a name in `headstart.ops.activation.ACTIVATIONS`.
        tie_embeddings: the output layer is the embedding table.
        qkv_bias, output_bias, mlp_bias: which linear layers add a bias.
        qk_norm: queries and keys are normalised per head, over the whole projection, or not.
        norm_placement: norms stand before a block, after it, or both.
        norm_offset: norms scale by `1 + weight`.
        norm_late_rounding: norms round after their weight is applied.
        rope_float32: heads are rotated in float32 whatever the dtype of the model.
        layer_kinds: per layer, its kind of attention, which also picks its RoPE.
        windows: per layer, how many tokens a query sees including itself; None is all.
        ropes: RoPE per kind of layer.
        attention_scale: factor on query-key products.
        attention_softcap, logits_softcap: `cap * tanh(x / cap)`; None is without.
        embedding_scale: factor on embeddings; None is without.
        clip_qkv: bound on the absolute value of queries, keys and values; None is without.
        moe: the experts; None for a dense model.
        moe_layers: per layer, whether its feed-forward part is a mixture of experts.
        raw: the Hugging Face dict, so that it can be written back.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_eps: float
    activation: str
    tie_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: Literal["head", "projection"] | None
    norm_placement: Literal["pre", "post", "both"]
    norm_offset: bool
    norm_late_rounding: bool
    rope_float32: bool
    layer_kinds: tuple[LayerKind, ...]
    windows: tuple[int | None, ...]
    ropes: dict[LayerKind, RopeConfig]
    attention_scale: float
    attention_softcap: float | None
    logits_softcap: float | None
    embedding_scale: float | None
    clip_qkv: float | None
    moe: MoEConfig | None
    moe_layers: tuple[bool, ...]
    raw: dict[str, Any]

    @classmethod
    def from_hf(cls, raw: dict[str, Any], source: str = "config.json") -> "ModelConfig":
        """Read a Hugging Face config dict, in the form of any Transformers version up to 5.

        Args:
            raw: the parsed `config.json`.
            source: what to call it in errors.

        Raises:
            CheckpointError: a field is missing, of the wrong type, or has a value that is not supported.
        """
        architecture, raw = _text_part(raw, source)
        family = FAMILIES[architecture]
        fields = Fields(raw, source, family.defaults)
        _refuse_what_is_not_supported(fields)
        num_layers = fields.integer("num_hidden_layers", most=_MOST_LAYERS)
        hidden_size = fields.integer("hidden_size")
        num_heads, num_kv_heads, head_dim = _heads(fields, hidden_size)
        kinds = _layer_kinds(fields, family, num_layers)
        window = fields.optional_integer("sliding_window") if "sliding_attention" in kinds else None
        query_scalar = fields.number("query_pre_attn_scalar") if family.query_scalar else float(head_dim)
        moe = _moe(fields, family)
        return cls(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position=fields.integer("max_position_embeddings"),
            rms_eps=fields.number("rms_norm_eps"),
            activation=_activation(fields, family),
            tie_embeddings=fields.boolean("tie_word_embeddings", family.tie_embeddings),
            qkv_bias=fields.switch(family.qkv_bias),
            output_bias=fields.switch(family.output_bias),
            mlp_bias=fields.switch(family.mlp_bias),
            qk_norm=family.qk_norm,
            norm_placement=family.norm_placement,
            norm_offset=family.norm_offset,
            norm_late_rounding=family.norm_late_rounding,
            rope_float32=family.rope_float32,
            layer_kinds=kinds,
            windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
            ropes={
                kind: RopeConfig.from_fields(
                    fields,
                    kind,
                    head_dim,
                    default_theta=family.default_theta,
                    local_theta=family.local_theta,
                    aliases=family.rope_aliases,
                )
                for kind in sorted(set(kinds))
            },
            attention_scale=query_scalar**-0.5,
            attention_softcap=fields.optional_number("attn_logit_softcapping") if family.attention_softcap else None,
            logits_softcap=fields.optional_number("final_logit_softcapping") if family.logits_softcap else None,
            embedding_scale=hidden_size**0.5 if family.scaled_embeddings else None,
            clip_qkv=fields.optional_number("clip_qkv") if family.clip_qkv else None,
            moe=moe,
            moe_layers=_moe_layers(fields, moe, num_layers),
            raw=raw,
        )

    @property
    def num_matrix_weights(self) -> int:
        """Weights in matrices, an output layer of its own left out: at least so many are in the files."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim * self.hidden_size
        sparse = sum(self.moe_layers)
        inner = (self.num_layers - sparse) * self.intermediate_size
        if self.moe is not None:
            inner += sparse * self.moe.num_experts * self.moe.intermediate_size
        return self.hidden_size * (self.vocab_size + 3 * inner) + self.num_layers * attention

    @property
    def max_extended_position(self) -> int:
        """The longest sequence that the model can be asked for: `max_position`, or further where RoPE stretches."""
        return max([self.max_position, *(rope.reach for rope in self.ropes.values())])


def _text_part(raw: dict[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    """The architecture and the dict that describes its text decoder."""
    architectures = raw.get("architectures")
    if architectures is None or architectures == []:
        raise CheckpointError(f"{source} has no field 'architectures', so the kind of network is unknown")
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise Fields(raw, source).bad("architectures", "a list with the name of an architecture", architectures)
    architecture = architectures[0]
    if architecture == "Gemma3ForConditionalGeneration":
        text = raw.get("text_config")
        if not isinstance(text, dict):
            raise CheckpointError(f"{source} has no field 'text_config', which holds the sizes of {architecture}")
        inherited = {key: raw[key] for key in ("dtype", "torch_dtype", "eos_token_id") if key in raw}
        raw = inherited | text | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
        architecture = "Gemma3ForCausalLM"
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"the architecture {architecture!r} in {source} is not supported; supported are {', '.join(FAMILIES)}"
        )
    return architecture, raw


def _refuse_what_is_not_supported(fields: Fields) -> None:
    quantization = fields.raw.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{fields.source} describes weights quantized with {method!r}, which is not supported; "
            "use the checkpoint in bfloat16, float16 or float32"
        )
    if fields.raw.get("use_bidirectional_attention"):
        raise CheckpointError(
            f"use_bidirectional_attention in {fields.source} makes an encoder, which cannot generate text"
        )


def _heads(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    """Query heads, heads of keys and values, and the size of a head."""
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.optional_integer("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"num_attention_heads ({num_heads}) in {fields.source} must be a multiple of num_key_value_heads "
            f"({num_kv_heads})"
        )
    head_dim = fields.optional_integer("head_dim")
    if head_dim is None:
        if hidden_size % num_heads:
            raise CheckpointError(
                f"hidden_size ({hidden_size}) in {fields.source} must be a multiple of num_attention_heads "
                f"({num_heads}), since there is no head_dim"
            )
        head_dim = hidden_size // num_heads
    return num_heads, num_kv_heads, head_dim


def _activation(fields: Fields, family: Family) -> str:
    name = fields.text("hidden_activation", "hidden_act")
    name = family.activation if name is None else name
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"the activation {name!r} in {fields.source} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    return name


def _layer_kinds(fields: Fields, family: Family, num_layers: int) -> tuple[LayerKind, ...]:
    """Which layers look at a sliding window, by the rule of the family."""
    if family.windows == "none" or (family.windows == "switched" and not fields.boolean("use_sliding_window", False)):
        sliding = [False] * num_layers
    elif fields.raw.get("layer_types") is not None and family.layer_types:
        sliding = _listed_kinds(fields, num_layers)
    elif family.window_pattern:
        pattern = fields.optional_integer("sliding_window_pattern") or family.window_pattern
        sliding = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    elif family.windows == "switched" and family.layer_types:
        first = fields.optional_integer("max_window_layers", least=0) or 0
        sliding = [layer >= first for layer in range(num_layers)]
    else:
        sliding = [True] * num_layers
    if any(sliding) and fields.optional_integer("sliding_window") is None and not family.window_pattern:
        sliding = [False] * num_layers
    return tuple("sliding_attention" if slides else "full_attention" for slides in sliding)


def _listed_kinds(fields: Fields, num_layers: int) -> list[bool]:
    """Whether each layer slides, as `layer_types` lists it."""
    kinds = fields.raw["layer_types"]
    if not isinstance(kinds, list):
        raise fields.bad("layer_types", "a list with one kind of attention per layer", kinds)
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown or len(kinds) != num_layers:
        problem = f"names {unknown[0]!r}" if unknown else f"has {len(kinds)} entries for {num_layers} layers"
        raise CheckpointError(
            f"layer_types in {fields.source} {problem}; it needs 'full_attention' or 'sliding_attention' per layer"
        )
    return [kind == "sliding_attention" for kind in kinds]


def _moe(fields: Fields, family: Family) -> MoEConfig | None:
    if family.moe is None:
        return None
    size_field = "moe_intermediate_size" if family.moe == "qwen3" else "intermediate_size"
    num_experts = fields.integer("num_experts", "num_local_experts")
    return MoEConfig(
        num_experts=num_experts,
        top_k=fields.integer("num_experts_per_tok", most=num_experts),
        intermediate_size=fields.integer(size_field),
        renormalise=family.moe == "mixtral" or fields.boolean("norm_topk_prob", False),
        keep_float32=family.moe == "mixtral",
    )


def _moe_layers(fields: Fields, moe: MoEConfig | None, num_layers: int) -> tuple[bool, ...]:
    if moe is None:
        return (False,) * num_layers
    step = fields.optional_integer("decoder_sparse_step") or 1
    dense = fields.raw.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise fields.bad("mlp_only_layers", "a list of layer numbers", dense)
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))
