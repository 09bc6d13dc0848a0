"""The pattern of each head, and the file that keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from headstart.methods.model_file import ModelFile
from headstart.models.config import ModelConfig

Kind = Literal["a-shape", "vertical-slash", "block-sparse"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FILE = ModelFile("minference", "patterns")


@dataclass(frozen=True)
class Pattern:
    """What a head looks at.

    Attributes:
        kind: a-shape: the first and the most recent keys; vertical-slash: single keys and diagonals;
            block-sparse: blocks of keys, for each block of queries its own.
        columns: first keys, or single keys; for blocks nothing.
        distances: recent keys, or diagonals; for blocks, how many of them.
    """

    kind: Kind
    columns: int
    distances: int


class LayerPatterns:
    """The patterns of a layer's heads, as tensors.

    Args:
        patterns: of each of the H heads.
        device: where the tensors are wanted.
    """

    def __init__(self, patterns: Sequence[Pattern], device: torch.device) -> None:
        self.patterns, self.device = patterns, device

    @cached_property
    def kinds(self) -> set[Kind]:
        """The kinds that there are."""
        return {pattern.kind for pattern in self.patterns}

    @cached_property
    def block_heads(self) -> Tensor:
        """int64, the heads with blocks."""
        heads = [head for head, pattern in enumerate(self.patterns) if pattern.kind == "block-sparse"]
        return torch.tensor(heads, dtype=torch.int64, device=self.device)

    @cached_property
    def most(self) -> tuple[int, int, int]:
        """The largest budgets: single keys, diagonals, blocks."""
        lines = [p for p in self.patterns if p.kind != "block-sparse"]
        blocks = [p.distances for p in self.patterns if p.kind == "block-sparse"]
        columns = max((p.columns for p in lines), default=0)
        return columns, max((p.distances for p in lines), default=0), max(blocks, default=0)

    @cached_property
    def is_kind(self) -> dict[Kind, Tensor]:
        """bool `[H, 1]` for each kind."""
        return {kind: torch.tensor([[p.kind == kind] for p in self.patterns], device=self.device) for kind in KINDS}

    @cached_property
    def budgets(self) -> tuple[Tensor, Tensor]:
        """int64 `[H]` each: single keys, and diagonals or blocks."""
        numbers = torch.tensor([(p.columns, p.distances) for p in self.patterns], device=self.device)
        return numbers[:, 0].contiguous(), numbers[:, 1].contiguous()

    def keeps_all(self, length: int, block: int) -> bool:
        """Whether every head looks at every key of so many."""
        return all(
            p.distances * (block if p.kind == "block-sparse" else 1) >= length or p.columns >= length
            for p in self.patterns
        )


def as_json(config: ModelConfig, layers: Sequence[Sequence[Pattern]], **about: Any) -> dict[str, Any]:
    """The content of a file."""
    patterns = [[[p.kind, p.columns, p.distances] for p in layer] for layer in layers]
    return _FILE.content(config, **about, patterns=patterns)


def read_patterns(path: Path, config: ModelConfig) -> list[list[Pattern]]:
    """The patterns of a file, layer by layer.

    Raises:
        MethodError: the file cannot be read, or is of another model.
    """
    content = _FILE.read(path, config)
    try:
        layers = [
            [Pattern(kind, int(first), int(second)) for kind, first, second in heads] for heads in content["patterns"]
        ]
    except (KeyError, TypeError, ValueError):
        raise _FILE.damaged(path) from None
    whole = [len(heads) for heads in layers] == [config.num_heads] * config.num_layers
    good = all(p.kind in KINDS and p.columns >= 0 and p.distances >= 1 for heads in layers for p in heads)
    if not whole or not good:
        raise _FILE.damaged(path)
    return layers
