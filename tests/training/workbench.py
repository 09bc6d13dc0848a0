"""A small model, a small tokenizer and small sources to train on, and recipes over them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import save_tokenizer, train_tokenizer
from headstart.training.data.shards import ShardWriter
from headstart.training.documents import Document
from headstart.training.metrics import read_metrics
from headstart.training.run import RunOptions, train

VOCAB_SIZE = 288
LENGTH = 32

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "attention_bias": False,
}


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of `VOCAB_SIZE` tokens."""
    text = "The king and the queen went over the hills and down to the sea, where the ships were waiting for them.\n"
    return train_tokenizer([text, text.lower(), text.upper()], VOCAB_SIZE)


def write_source(
    directory: Path, tokenizer: Tokenizer, lengths: Sequence[int], seed: int = 0, masked: bool = False
) -> None:
    """Documents of these lengths, of random tokens in which some follow others more often; parts untrained if asked."""
    rng = np.random.default_rng(seed)
    with ShardWriter(directory, tokenizer) as writer:
        for number, length in enumerate(lengths):
            ids = 1 + (np.cumsum(rng.integers(0, 3, length)) + number) % (VOCAB_SIZE - 1)
            trained = rng.random(length) < 0.6 if masked else None
            writer.add(Document(ids.astype(np.int32), trained, f"d{number}"))


def make_corpus(base: Path) -> Path:
    """Tokenizer, two sources and a held-out one under `base`."""
    tokenizer = small_tokenizer()
    save_tokenizer(tokenizer, base / "tokenizer")
    rng = np.random.default_rng(7)
    write_source(base / "prose", tokenizer, rng.integers(1, 90, 120).tolist(), 1)
    write_source(base / "code", tokenizer, rng.integers(1, 40, 80).tolist(), 2, masked=True)
    write_source(base / "held-out", tokenizer, rng.integers(5, 60, 10).tolist(), 3)
    return base


def phase(name: str = "main", steps: int = 6, **changes: Any) -> dict[str, Any]:
    """A phase of steps of 4 rows."""
    made: dict[str, Any] = {
        "name": name,
        "tokens": steps * 4 * LENGTH,
        "sequence_length": LENGTH,
        "global_batch_tokens": 4 * LENGTH,
        "sources": {"prose": {"path": "prose", "weight": 2}, "code": {"path": "code"}},
    }
    return made | changes


FIRST = {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "wsd", "warmup": 0.2, "decay": 0.4}}


def recipe(*phases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe in plain values; one phase by default."""
    made: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "model": {"config": CONFIG},
        "tokenizer": "tokenizer",
        "precision": "fp32",
        "checkpoint_every": 100,
        "log_every": 1,
        "phases": list(phases) or [phase(**FIRST)],
    }
    return copy.deepcopy(made | changes)


def write(base: Path, content: dict[str, Any], name: str = "recipe.yaml") -> Path:
    """The recipe as a file beside the data."""
    path = base / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(base: Path, out: Path, content: dict[str, Any], *overrides: str, device: str = "cpu") -> Path:
    """Train in this process without a word."""
    options = RunOptions(out, base, device=device, console=Console(quiet=True), export_dtype=torch.float32)
    return train(write(base, content), options, overrides)


def losses(out: Path) -> dict[int, float]:
    """Training loss by step."""
    return {record["step"]: record["loss"] for record in read_metrics(out / "metrics.jsonl") if "loss" in record}


def weights(model: Path) -> dict[str, torch.Tensor]:
    """The tensors of an exported model by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(model.glob("*.safetensors")) for name, tensor in load_file(path).items()}
