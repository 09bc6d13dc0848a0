"""The rig's network and its tuned baseline."""

from collections.abc import Mapping
from typing import Any

from headstart.evaluation.rig.corpus import RigCorpus, RigError
from headstart.evaluation.rig.spec import RigArm
from headstart.training.recipe import Recipe, recipe_of

SEQUENCE_LENGTH = 512
BATCH_TOKENS = 512
STEPS = 1400

MODEL: dict[str, Any] = {
    "config": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 258,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": SEQUENCE_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "embedding_std": 0.2,
}
OPTIMIZER: dict[str, Any] = {
    "name": "adamw",
    "lr": 1.4e-3,
    "embedding_lr": 1.6e-2,
    "vector_lr": 8e-3,
    "betas": [0.9, 0.99],
    "weight_decay": 0.1,
}
SCHEDULE: dict[str, Any] = {"name": "wsd", "warmup": 0.1, "decay": 0.4}


def arm_recipe(
    arm: RigArm, corpus: RigCorpus, seed: int, *, steps: int = STEPS, phase: Mapping[str, Any] | None = None
) -> Recipe:
    """An arm as a recipe over the baseline's.

    Args:
        arm: what differs.
        corpus: its sources are mixed in equal shares.
        seed: of weights, data order and the methods' own randomness: equal for all arms, so that they are pairs.
        steps: of the baseline; the arm's own `tokens` scales them.
        phase: keys of every phase.

    Raises:
        RigError: shares that do not sum up to one, or too few steps for the phases.
        TrainingError: a key that recipes do not know.
    """
    shares = [each.share for each in arm.phases]
    if abs(sum(shares) - 1) > 1e-9:
        raise RigError(f"the shares of an arm's phases sum up to {sum(shares):g}; they must be parts of one")
    total = round(arm.tokens * steps)
    ends = [round(total * sum(shares[: i + 1])) for i in range(len(shares))]
    sources = {name: {"path": f"train/{name}"} for name in corpus.names}
    phases = []
    for number, (each, start, end) in enumerate(zip(arm.phases, [0, *ends], ends, strict=False)):
        if end <= start:
            raise RigError(f"phase {number + 1} of an arm has no step of {total}; give the bench more steps")
        own: dict[str, Any] = {"sequence_length": SEQUENCE_LENGTH, "global_batch_tokens": BATCH_TOKENS}
        own |= {"sources": sources} | ({} if number else {"optimizer": OPTIMIZER, "schedule": SCHEDULE})
        own |= {**(phase or {}), **each.changes}
        own |= {"name": f"phase-{number + 1}", "use": each.use}
        phases.append(own | {"tokens": (end - start) * own["global_batch_tokens"]})
    changes = dict(arm.changes)
    model = MODEL | dict(changes.pop("model", {}))
    content: dict[str, Any] = {"name": "rig", "seed": seed, "tokenizer": "tokenizer", "precision": "fp32"}
    content |= {"compile": False, "checkpoint_every": 10**9, "keep": 1, "log_every": 10}
    return recipe_of(content | {"model": model, "phases": phases} | changes, "an arm of the bench")
