"""Held-out loss while training: bits per byte of token shards that no mixture reads."""

from contextlib import nullcontext
from pathlib import Path

import torch

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import token_byte_lengths
from headstart.training.data.mixture import InOrder
from headstart.training.data.packing import Packer, collate
from headstart.training.data.shards import ShardSource
from headstart.training.distributed import World
from headstart.training.errors import TrainingError
from headstart.training.language_model import LanguageModel
from headstart.training.metrics import bits_per_byte
from headstart.training.recipe import EvalRecipe
from headstart.training.seams import NextToken


class HeldOut:
    """Bits per byte of each held-out source, its documents cut into rows of the phase's length.

    Every trained token but a first one is predicted, the end of each document included; the bytes are those of the
    predicted tokens.

    Args:
        recipe: sources, and how much of each.
        base: what relative paths start from.
        sequence_length: tokens of a row.
        tokenizer: of the data.
        world: every rank computes the same.
        autocast: compute in bfloat16.

    Raises:
        DataError: a source that cannot be read, or is of another tokenizer.
        TrainingError: a source without anything to predict.
    """

    def __init__(
        self,
        recipe: EvalRecipe,
        base: Path,
        *,
        sequence_length: int,
        tokenizer: Tokenizer,
        world: World,
        autocast: bool,
    ) -> None:
        self._sources = {name: ShardSource(base / path) for name, path in recipe.sources.items()}
        for name, source in self._sources.items():
            source.check_tokenizer(tokenizer)
            if not source.text_bytes:
                raise TrainingError(f"the held-out source {name} holds no text; leave it out of the recipe's eval")
        self._length, self._bos, self._eos = sequence_length, tokenizer.bos_token_id, tokenizer.eos_token_id
        self._token_bytes = torch.from_numpy(token_byte_lengths(tokenizer)).to(world.device)
        self._budget, self._world, self._autocast = recipe.tokens, world, autocast

    @torch.no_grad()
    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """`NAME/bits_per_byte` for every source."""
        return {f"{name}/bits_per_byte": self._source(model, name, source) for name, source in self._sources.items()}

    def _source(self, model: LanguageModel, name: str, source: ShardSource) -> float:
        device = self._world.device
        objective, rows = NextToken(), max(1, self._budget // self._length)
        nats = torch.zeros((), dtype=torch.float64, device=device)
        text_bytes = torch.zeros((), dtype=torch.int64, device=device)
        # The last row is left out unless it is the only one: another shape would be compiled for it.
        packer = Packer(
            InOrder(name, source),
            self._length,
            bos=self._bos,
            eos=self._eos,
            # Exercises, whose answers mean nothing without their context, stay whole where they fit.
            whole=("held-out",) if int(source.lengths.max()) + 2 <= self._length else (),
            keep_last=source.tokens < self._length,
        )
        for _, row in zip(range(rows), packer, strict=False):
            batch = collate([row]).to(device)
            with torch.autocast(device.type, torch.bfloat16) if self._autocast else nullcontext():
                nats += model(batch, objective).total
            text_bytes += torch.where(batch.targets >= 0, self._token_bytes[batch.targets.clamp(min=0)], 0).sum()
        if not text_bytes:
            raise TrainingError(f"the held-out source {name} has no trained token; leave it out of the recipe's eval")
        return bits_per_byte(nats.item(), int(text_bytes))
