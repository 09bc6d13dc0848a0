"""Which part of which parameter each tensor of a Hugging Face file is: one table for reading and writing."""

from collections.abc import Iterator
from dataclasses import dataclass

from headstart.models.config import ModelConfig
from headstart.models.families import FAMILIES

# Tensors that old files hold although they can be computed or belong to parts that are not text.
_IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".self_attn.masked_bias")
_IGNORED_PARTS = ("vision_tower.", "multi_modal_projector.", "vision_model.")


@dataclass(frozen=True)
class Piece:
    """A tensor's place: rows `start:stop` of a parameter, or of one expert of it.

    Attributes:
        parameter: the name in `Decoder.named_parameters()`.
        shape: the tensor's shape in the file.
        start: first row that it fills.
        expert: which expert of a stacked parameter; None for the whole first dimension.
    """

    parameter: str
    shape: tuple[int, ...]
    start: int = 0
    expert: int | None = None

    @property
    def stacked(self) -> bool:
        """Whether the tensor holds all experts, one behind the other."""
        return len(self.shape) == 3


def pieces(config: ModelConfig) -> dict[str, Piece]:
    """Every tensor of the architecture's files, in file order: name → place."""
    found = {
        "model.embed_tokens.weight": Piece("embedding.weight", (config.vocab_size, config.hidden_size)),
    }
    for layer in range(config.num_layers):
        found.update(_layer(config, layer))
    found["model.norm.weight"] = Piece("norm.weight", (config.hidden_size,))
    if not config.tie_embeddings:
        found["lm_head.weight"] = Piece("lm_head.weight", (config.vocab_size, config.hidden_size))
    return found


def stacked_pieces(config: ModelConfig) -> dict[str, Piece]:
    """Other names under which newer files may hold all experts of a layer as one tensor."""
    found: dict[str, Piece] = {}
    if config.moe is not None:
        inner, count = config.moe.intermediate_size, config.moe.num_experts
        for layer in (number for number, is_moe in enumerate(config.moe_layers) if is_moe):
            theirs, ours = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
            found[f"{theirs}.experts.gate_up_proj"] = Piece(f"{ours}.gate_up", (count, 2 * inner, config.hidden_size))
            found[f"{theirs}.experts.down_proj"] = Piece(f"{ours}.down", (count, config.hidden_size, inner))
            found[f"{theirs}.gate.weight"] = Piece(f"{ours}.router.weight", (count, config.hidden_size))
    return found


def canonical(name: str) -> str | None:
    """A tensor's name in files of the text model alone; None for tensors that are not needed."""
    if name.startswith(_IGNORED_PARTS) or name.removeprefix("model.").startswith(_IGNORED_PARTS):
        return None
    if name.endswith(_IGNORED_ENDINGS):
        return None
    for prefix, plain in (
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.", ""),
    ):
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _layer(config: ModelConfig, layer: int) -> Iterator[tuple[str, Piece]]:
    family = FAMILIES[config.architecture]
    theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
    for their_norm, our_norm in _norms(config).items():
        yield f"{theirs}.{their_norm}.weight", Piece(f"{ours}.{our_norm}.weight", (config.hidden_size,))
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention, our_attention = f"{theirs}.self_attn", f"{ours}.attention"
    parts = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    if family.fused:
        parts = {"qkv_proj": q_size + 2 * kv_size}
    yield from _dense(attention, parts, f"{our_attention}.qkv", config.hidden_size, config.qkv_bias)
    yield from _dense(attention, {"o_proj": config.hidden_size}, f"{our_attention}.output", q_size, config.output_bias)
    if config.qk_norm:
        per_head = config.qk_norm == "head"
        yield (
            f"{attention}.q_norm.weight",
            Piece(f"{our_attention}.q_norm.weight", (config.head_dim if per_head else q_size,)),
        )
        yield (
            f"{attention}.k_norm.weight",
            Piece(f"{our_attention}.k_norm.weight", (config.head_dim if per_head else kv_size,)),
        )
    if config.moe_layers[layer]:
        yield from _experts(config, theirs, ours)
        return
    size = config.intermediate_size
    parts = {"gate_up_proj": 2 * size} if family.fused else {"gate_proj": size, "up_proj": size}
    yield from _dense(f"{theirs}.mlp", parts, f"{ours}.mlp.gate_up", config.hidden_size, config.mlp_bias)
    yield from _dense(f"{theirs}.mlp", {"down_proj": config.hidden_size}, f"{ours}.mlp.down", size, config.mlp_bias)


def _norms(config: ModelConfig) -> dict[str, str]:
    """Their norms → ours: one name means different places in different families."""
    match config.norm_placement:
        case "pre":
            return {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
        case "post":
            return {
                "post_attention_layernorm": "attention_post_norm",
                "post_feedforward_layernorm": "mlp_post_norm",
            }
        case "both":
            return {
                "input_layernorm": "attention_norm",
                "post_attention_layernorm": "attention_post_norm",
                "pre_feedforward_layernorm": "mlp_norm",
                "post_feedforward_layernorm": "mlp_post_norm",
            }


def _dense(
    block: str, parts: dict[str, int], parameter: str, in_features: int, bias: bool
) -> Iterator[tuple[str, Piece]]:
    """Several linear layers of theirs that are one of ours, one below the other."""
    start = 0
    for name, rows in parts.items():
        yield f"{block}.{name}.weight", Piece(f"{parameter}.weight", (rows, in_features), start)
        if bias:
            yield f"{block}.{name}.bias", Piece(f"{parameter}.bias", (rows,), start)
        start += rows


def _experts(config: ModelConfig, theirs: str, ours: str) -> Iterator[tuple[str, Piece]]:
    assert config.moe is not None
    block, gate, up, down = FAMILIES[config.architecture].expert_names
    inner, hidden = config.moe.intermediate_size, config.hidden_size
    yield (
        f"{theirs}.{block}.gate.weight",
        Piece(f"{ours}.mlp.router.weight", (config.moe.num_experts, hidden)),
    )
    for expert in range(config.moe.num_experts):
        name = f"{theirs}.{block}.experts.{expert}"
        yield f"{name}.{gate}.weight", Piece(f"{ours}.mlp.gate_up", (inner, hidden), 0, expert)
        yield f"{name}.{up}.weight", Piece(f"{ours}.mlp.gate_up", (inner, hidden), inner, expert)
        yield f"{name}.{down}.weight", Piece(f"{ours}.mlp.down", (hidden, inner), 0, expert)
