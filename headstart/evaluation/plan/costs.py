"""What a model costs by its config alone: weights, FLOPs of prefill, bytes of decode, bytes of keys and values."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.files import read_json
from headstart.checkpoints.hub import resolve
from headstart.checkpoints.reader import run_dtype
from headstart.engine.seams import FullLayout, LayerKV
from headstart.models.config import ModelConfig
from headstart.models.decoder import AttentionSpec, Decoder


@dataclass(frozen=True)
class Layer:
    """One layer as far as its costs go.

    Attributes:
        heads: query heads H.
        head_dim: size D of a head.
        window: keys that a query sees at most; None is all.
        weights: bytes of what a decode step of one sequence reads: attention, and the dense block or the experts
            that one token visits.
        macs: multiply-adds per token in matrix products.
        expert_bytes: bytes of one expert; 0 for a dense layer.
        experts: how many experts there are, and how many a token visits.
        read: bytes of keys and values that attending to one token reads.
    """

    heads: int
    head_dim: int
    window: int | None
    weights: int
    macs: int
    read: int
    expert_bytes: int = 0
    experts: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class ModelCosts:
    """A model's costs. One multiply-add is two FLOPs; norms, RoPE and activations, under one per cent, are left out.

    Attributes:
        name: what users call it.
        parameters: all of them.
        weight_bytes: all of them, in the run's dtype.
        layers: one by one.
        head_macs: multiply-adds of the output layer, per row of logits.
        head_bytes: bytes of the output layer.
        kv_token_bytes: what one token adds to the cache. Layers with a sliding window keep all tokens here.
        dtype: name of the run's dtype.
        max_length: tokens that the model can tell apart.
    """

    name: str
    parameters: int
    weight_bytes: int
    layers: tuple[Layer, ...]
    head_macs: int
    head_bytes: int
    kv_token_bytes: int
    dtype: str
    max_length: int

    @classmethod
    def of(
        cls, config: ModelConfig, name: str, dtype: str = "auto", kv_layers: Sequence[LayerKV] | None = None
    ) -> Self:
        """The costs of a model.

        Args:
            config: its config.
            name: what to call it.
            dtype: as for `load_checkpoint`.
            kv_layers: what each layer keeps per token (default: its keys and values in the run's dtype).

        Raises:
            CheckpointError: a dtype that models cannot run in.
        """
        run = run_dtype(dtype, config)
        # Without memory: the network itself says what it holds.
        decoder = Decoder(config, run, "meta")
        kept = list(kv_layers or FullLayout().layers(decoder.attention_specs, run))
        size = run.itemsize
        layers = []
        for spec, module, kv in zip(decoder.attention_specs, decoder.layers, kept, strict=True):
            held = sum(weight.numel() for weight in module.parameters())
            matrices = sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
            stacked = sum(weight.numel() for weight in module.parameters() if weight.dim() == 3)
            count, visited = (config.moe.num_experts, config.moe.top_k) if stacked and config.moe else (0, 0)
            share = stacked // count * visited if count else 0
            layers.append(
                Layer(
                    heads=spec.num_heads,
                    head_dim=spec.head_dim,
                    window=spec.window,
                    weights=(held - stacked + share) * size,
                    macs=matrices + share,
                    read=_bytes(kv),
                    expert_bytes=stacked // count * size if count else 0,
                    experts=(count, visited),
                )
            )
        parameters = sum(weight.numel() for weight in decoder.parameters())
        head = config.vocab_size * config.hidden_size
        return cls(
            name=name,
            parameters=parameters,
            weight_bytes=parameters * size,
            layers=tuple(layers),
            head_macs=head,
            head_bytes=head * size,
            kv_token_bytes=sum(_bytes(kv) for kv in kept if kv.alias_of is None),
            dtype=str(run).removeprefix("torch."),
            max_length=config.max_extended_position,
        )

    @property
    def itemsize(self) -> int:
        """Bytes per number of weights."""
        return getattr(torch, self.dtype).itemsize

    def linear_flops(self, tokens: int) -> float:
        """FLOPs of matrix products with weights over a prompt, with the logits of its last token."""
        return 2.0 * sum(layer.macs for layer in self.layers) * tokens + 2.0 * self.head_macs

    def attention_flops(self, tokens: int) -> float:
        """FLOPs of queries with keys and of scores with values: each query sees the keys up to its own."""
        return float(sum(4 * layer.heads * layer.head_dim * _pairs(tokens, layer.window) for layer in self.layers))

    def prefill_flops(self, tokens: int) -> float:
        """FLOPs from a prompt to the logits of its last token."""
        return self.linear_flops(tokens) + self.attention_flops(tokens)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes that a sequence holds."""
        return self.kv_token_bytes * tokens

    def kv_read_bytes(self, tokens: int) -> float:
        """Bytes of keys and values that one decode step of one sequence reads."""
        return float(sum(layer.read * min(tokens, layer.window or tokens) for layer in self.layers))

    def decode_weight_bytes(self, batch: int = 1) -> float:
        """Bytes of weights that a decode step of so many sequences reads: of the experts, those that at least one is
        expected to visit if they choose evenly."""
        total = float(self.head_bytes)
        for layer in self.layers:
            count, visited = layer.experts
            reached = count * (1 - (1 - visited / count) ** batch) - visited if count else 0.0
            total += layer.weights + reached * layer.expert_bytes
        return total

    def decode_flops(self, tokens: int, batch: int = 1) -> float:
        """FLOPs of a decode step of so many sequences of this length."""
        linear = 2.0 * (sum(layer.macs for layer in self.layers) + self.head_macs)
        attention = sum(4 * layer.heads * layer.head_dim * min(tokens, layer.window or tokens) for layer in self.layers)
        return batch * (linear + attention)

    @property
    def crossover(self) -> float:
        """The prompt length at which attention costs as many FLOPs as the weights do, windows left aside."""
        linear = 2.0 * sum(layer.macs for layer in self.layers)
        return linear / max(1, sum(2 * layer.heads * layer.head_dim for layer in self.layers))


def read_config(model: str | Path | None) -> tuple[ModelConfig, str]:
    """A model's config and name, without its weights.

    Args:
        model: a checkpoint directory, a `config.json` or other JSON file of that form, an id on the Hugging Face hub,
            or None for the checkpoint that comes with the package.

    Raises:
        CheckpointError: there is none, or it is not supported.
    """
    if model is None:
        path = default_checkpoint_path()
        return ModelConfig.from_hf(read_json(path / "config.json"), str(path / "config.json")), "headstart-base"
    path = Path(os.path.expanduser(model))
    if path.is_file():
        name = path.parent.absolute().name if path.name == "config.json" else path.stem
        return ModelConfig.from_hf(read_json(path), str(path)), name
    directory = resolve(model)
    name = directory.absolute().name if path.is_dir() else str(model)
    return ModelConfig.from_hf(read_json(directory / "config.json"), str(directory / "config.json")), name


def specs_of(config: ModelConfig) -> list[AttentionSpec]:
    """What each layer's attention is."""
    return Decoder(config, device="meta").attention_specs


def _bytes(kv: LayerKV) -> int:
    return 2 * kv.num_kv_heads * kv.head_dim * kv.dtype.itemsize


def _pairs(tokens: int, window: int | None) -> int:
    """Query-key pairs of causal attention, at most `window` keys for each query."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window
