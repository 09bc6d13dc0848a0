"""How the suite builds each inference method, and what the method declares; an exact method that does something on
short prompts by default needs no entry here.

A lossy method's entry says with which options it keeps everything (`dense`), or why there are none (`no_dense`).
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headstart.checkpoints.reader import Checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.methods.cache.lserve.heads import FILE
from headstart.methods.registry import MethodCard
from headstart.models.decoder import AttentionSpec


@dataclass(frozen=True)
class Example:
    """A method at the sizes of the suite (prompts of 1 to 60 tokens, two layers), and what it says of itself.

    `min_context` needs no word: the suite lowers it to 0, but for the check that is about it.

    Attributes:
        settings: options as `--use` takes them, with which it acts at such sizes; every one is examined.
        dense: options with which it keeps everything, so that it must equal the plain model.
        no_dense: why a lossy method has no such options.
        same_draws: whether a seeded request draws the very tokens that it draws without the method. One that verifies
            guesses draws others: it is held to the plain model's distribution instead.
        kv_share: (method, layers, tokens) → at most this share of the plain cache's bytes is held for a sequence of
            so many tokens once its prompt is read. None declares nothing.
        made: makes what the method needs for a model, in a directory, and returns the options that name it.
    """

    settings: tuple[str, ...] = ("",)
    dense: str | None = None
    no_dense: str = ""
    same_draws: bool = True
    kv_share: Callable[[Any, Sequence[AttentionSpec], int], float] | None = None
    made: Callable[[Checkpoint, Path], str] | None = None


def write_draft(checkpoint: Checkpoint, directory: Path) -> str:
    """A draft that often guesses right: the model itself with its weights shaken."""
    draft = directory / "draft"
    save_checkpoint(shaken(checkpoint, 0.1), draft)
    return f"draft={draft}"


def write_heads(checkpoint: Checkpoint, directory: Path) -> str:
    """Heads that lose the less, the higher their number."""
    config = checkpoint.config
    losses = [[1.0 / (1 + head + layer) for head in range(config.num_kv_heads)] for layer in range(config.num_layers)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "heads.json").write_text(json.dumps(FILE.content(config, losses=losses)))
    return f"heads={directory / 'heads.json'}"


def shaken(checkpoint: Checkpoint, share: float, seed: int = 0) -> Checkpoint:
    """A copy with noise of so many of each weight's standard deviations added."""
    decoder = copy.deepcopy(checkpoint.decoder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.dim() > 1:
                weight += share * weight.std() * torch.randn(weight.shape, generator=generator)
    return replace(checkpoint, decoder=decoder)


EXAMPLES: dict[str, Example] = {
    "ape": Example(
        ("mark=none,chunk=6", "mark=none,chunk=9,temperature=0.4,scale=0.6"),
        dense="mark=none,temperature=1,scale=1",
    ),
    "auto-sparse": Example(
        ("options=keys=4/query_block=4/sink=2/window=4/dense_layers=0",),
        dense="options=keys=2048/dense_layers=0",
    ),
    "cacheblend": Example(("ratio=0.4,mark=none,chunk=6", "mark=none,chunk=9"), dense="ratio=1,mark=none,chunk=6"),
    "distserve": Example(("tokens=9", "role=decode,tokens=9")),
    "fastgen": Example(("budget=9",)),
    "hip": Example(
        (
            "keys=4,query_block=4,key_block=2,sink=2,window=4,dense_layers=0,refresh=3",
            "keys=3,query_block=1,key_block=1,stride=1,sink=1,window=2,dense_layers=1,refresh=1,representative=first",
        ),
        dense="keys=2048,dense_layers=0",
    ),
    "hydragen": Example(("threshold=1,part=0", "levels=1,threshold=1,part=0")),
    "lazyllm": Example(("keep=0.4,layers=1",), dense="keep=1"),
    "longgen": Example(
        ("untrained=true,block=16,sink=0,local=1,stride=0,full=1", "untrained=true,block=16,sink=1,local=1,stride=2"),
        dense="untrained=true,block=16,sink=9",
    ),
    "lserve": Example(
        (
            "sink=16,recent=16,budget=32,block=16,logical=4",
            "streaming=0.25,sink=0,recent=0,budget=32,block=16,logical=16,interval=1",
        ),
        dense="sink=96",
        made=write_heads,
    ),
    "minference": Example(
        (
            "vertical=3,slash=4,sink=1,recent=2,block=4,rows=3",
            "pattern=a-shape,vertical=2,slash=6,block=4",
            "pattern=block-sparse,blocks=2,block=4",
        ),
        dense="vertical=1000000",
    ),
    "orca": Example(("", "batch=3")),
    "pearl": Example(("guard=false", "guard=true,length=2"), same_draws=False, made=write_draft),
    "prepacking": Example(("", "rows=padded", "rows=sorted", "capacity=90")),
    "qwen2.5-1m": Example(
        (
            "chunk=40,local=8,block=16,sparse_from=0",
            "chunk=40,local=8,block=16,sparse_from=1,vertical=1,slash=1,sink=0,recent=0",
        ),
        dense="local=0,block=16,vertical=1000000",
    ),
    "request-batches": Example(("", "batch=3")),
    "sarathi": Example(("chunk=7,batch=3",)),
    "sarathi-serve": Example(("chunk=9", "chunk=9,long=20")),
    "swiftkv": Example(
        ("weights=untrained,depth=1", "weights=untrained,depth=0,group=2"),
        no_dense="what is ordinary in all layers depends on how many there are: tests/methods/distil",
    ),
    "speculative": Example(("guard=false", "guard=true,length=2"), same_draws=False, made=write_draft),
}
"""By key."""


def example_of(card: MethodCard) -> Example:
    """A method's entry, or the defaults."""
    return EXAMPLES.get(card.key, Example())


def assert_complete(card: MethodCard, example: Example) -> None:
    """An example says what only it can say."""
    where = f"{card.key}: its entry in tests/conformance/examples.py"
    if not card.exact:
        assert (example.dense is None) == bool(example.no_dense), (
            f"{where} gives either the options that keep everything (dense) or the reason why there are none (no_dense)"
        )
    if any(option.required for option in card.options):
        given = all(example.settings) or example.made is not None
        assert given, f"{where} gives the options that the method requires (settings), or makes them (made)"
