"""Which layers of a SwiftKV network take whose keys and values, and how a checkpoint says so."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.checkpoints.files import read_json
from headstart.checkpoints.reader import METHOD_FIELD
from headstart.errors import MethodError
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder

KEY = "swiftkv"


@dataclass(frozen=True)
class Form:
    """A SwiftKV network.

    Attributes:
        depth: the first so many layers are ordinary; the later ones take keys and values from what enters them.
        group: so many neighbours of the later layers share one cache; 1 is none.
    """

    depth: int
    group: int = 1

    def check(self, config: ModelConfig) -> None:
        """Raises MethodError for what this model cannot be."""
        if not 0 <= self.depth <= config.num_layers:
            raise MethodError(
                f"{KEY}: depth must be 0 to {config.num_layers} for this model of {config.num_layers} layers, "
                f"not {self.depth}"
            )
        if self.group < 1:
            raise MethodError(f"{KEY}: group must be at least 1, not {self.group}")

    def members(self, config: ModelConfig) -> dict[int, list[int]]:
        """Each leader among the later layers → the layers that read its keys and values, itself first.

        Neighbours share only where they rotate keys alike, which layers with and without a window may not.
        """
        found: dict[int, list[int]] = {}
        for layer in range(self.depth, config.num_layers):
            leader = next(reversed(found), None)
            if (
                leader is None
                or len(found[leader]) == self.group
                or config.layer_kinds[layer] != config.layer_kinds[leader]
            ):
                leader = layer
            found.setdefault(leader, []).append(layer)
        return found

    def leaders(self, config: ModelConfig) -> dict[int, int]:
        """Each later layer → the layer whose keys and values it reads."""
        return {layer: leader for leader, layers in self.members(config).items() for layer in layers}

    def mark(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The config of a checkpoint in this form."""
        return raw | {METHOD_FIELD: f"{KEY}:depth={self.depth},group={self.group}"}

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Form | None":
        """The form that a checkpoint's config tells; None for a plain model."""
        found = re.fullmatch(rf"{KEY}:depth=(\d+),group=(\d+)", str(raw.get(METHOD_FIELD, "")))
        return None if found is None else cls(int(found[1]), int(found[2]))

    @classmethod
    def of_directory(cls, directory: Path) -> "Form":
        """The form of the checkpoint in a directory.

        Raises:
            MethodError: it is none that was distilled for this method.
            CheckpointError: its config cannot be read.
        """
        form = cls.of(read_json(directory / "config.json"))
        if form is None:
            raise MethodError(f"{KEY}: the weights in {directory} were not distilled for it; name some that were")
        return form


@dataclass(frozen=True)
class Projection:
    """What makes a later layer's queries, keys and values, one below the other as in `Attention.qkv`.

    Attributes:
        weight: `[(H + 2 Hkv) * D, hidden]`. The rows of keys and values count in a leader alone.
        bias: `[(H + 2 Hkv) * D]`, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def rows(self, part: slice) -> "Projection":
        """Some of the outputs."""
        return Projection(self.weight[part], None if self.bias is None else self.bias[part])


def projection_parameters(form: Form, config: ModelConfig) -> dict[int, list[str]]:
    """Each later layer → the decoder's names of the parameters in which it differs from the plain model's."""
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    return {
        layer: [f"layers.{layer}.attention.qkv.{kind}" for kind in kinds]
        for layer in range(form.depth, config.num_layers)
    }


@torch.no_grad()
def untrained(decoder: Decoder, form: Form) -> dict[int, Projection]:
    """The later layers' projections before any training: the model's own, those of a shared cache averaged."""
    parameters = dict(decoder.named_parameters())
    names = projection_parameters(form, decoder.config)
    queries = decoder.config.num_heads * decoder.config.head_dim
    found: dict[int, Projection] = {}
    for layers in form.members(decoder.config).values():
        mixed = [
            torch.stack([parameters[name][queries:].detach().float() for name in kind]).mean(0)
            for kind in zip(*(names[layer] for layer in layers), strict=True)
        ]
        for layer in layers:
            own = [parameters[name].detach() for name in names[layer]]
            parts = [torch.cat((p[:queries], m.to(p.dtype))) for p, m in zip(own, mixed, strict=True)]
            found[layer] = Projection(parts[0], parts[1] if len(parts) > 1 else None)
    return found
