"""The models that methods are examined on, tiny and random but for the embedded default, and what they are asked."""

import random
from functools import cache
from typing import Any

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.engine.intake import Prompt

VOCAB_SIZE = 19
LENGTHS = (1, 15, 16, 17, 33, 40)
"""Of prompts: one token, a page of 16 and its neighbours, more than two pages, and one between."""

STORY = """One day, a girl saw a big red ball in the park. She ran to it and said, with a smile: "Is it yours?" The boy
looked up. He did not know what to say, for the ball was not his, and he liked it. "I found it here", he said at last,
"under the old tree, and I thought that nobody wanted it." She laughed and sat down in the grass beside him."""

_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    # Ten times wider than usual, so that attention is far from even and a key that is missed is seen.
    "initializer_range": 0.5,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True},
    "window": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10000.0,
    },
    "moe": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}

PLAIN = "gqa"
"""The model on which everything but the text itself is examined."""
FAMILIES = tuple(_FAMILIES)
EVERY = (*FAMILIES, "default")


def load(model: str) -> Checkpoint:
    """A model that nobody else has, since a method may change weights; `shared` is for those that do not."""
    if model == "default":
        return load_checkpoint(None, "float32", "cpu")
    return random_checkpoint(_BASE | _FAMILIES[model], dtype="float32", seed=0, name=model)


@cache
def shared(model: str) -> Checkpoint:
    """A model that several engines read."""
    return load(model)


def prompts(model: str) -> list[Prompt]:
    """Ragged prompts, of which the last two begin alike: token ids, and texts where the model has a tokenizer."""
    if model == "default":
        return ["A", "Once upon a time", STORY[:60], STORY[:170], STORY[:171], STORY[70:220]]
    *others, one, longer = LENGTHS
    return [*(ids(length, seed=length) for length in others), ids(one), ids(longer)]


def ids(length: int, seed: int = 0) -> list[int]:
    """Token ids; of one seed, the shorter are the beginning of the longer up to the 24th, and differ after it."""
    common = random.Random(seed)
    own = random.Random(1000 * (seed + 1) + length)
    return [(common if place < 24 else own).randrange(3, VOCAB_SIZE) for place in range(length)]
