"""APE's two numbers: how rows attend with them, the search that finds them for a model, and their file."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.chunk_library import LayerKeys
from headstart.engine.chunk_prefill import read_alone
from headstart.errors import MethodError
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import attention_among, attention_to_all, merge_attention

GRID = tuple(step / 10 for step in range(10, 0, -1))
"""What the paper tries for either number, one after the other."""
_CONTEXTS, _TAILS = 4, 8
_TAIL, _GIVEN = 48, 16


def attend_weighed(
    spec: AttentionSpec,
    q: Tensor,
    contexts: LayerKeys,
    others: LayerKeys,
    rows: Tensor,
    places: Tensor,
    temperature: float,
    scale: float,
) -> Tensor:
    """Rows `q [R, H, D]` over the contexts' keys, weighed, and over the others, causally: `[R, H, D]`.

    Args:
        contexts, others: keys and values, each `[N, Hkv, D]`.
        rows, places: int64 `[R]` and `[N]`, where the rows and the others stand.
        temperature: of the contexts' scores.
        scale: of the logarithm of their total weight, at that temperature.
    """
    out, lse = attention_to_all(q, *contexts, spec.scale / temperature)
    rest = attention_among(q, *others, rows, places, scale=spec.scale)
    return merge_attention(out, lse * (scale * temperature), *rest)[0].to(q.dtype)


def search(checkpoint: Checkpoint, tokens: list[int]) -> dict[str, float]:
    """The numbers with which a model best goes on with a stretch of one of several contexts.

    A text is cut into contexts behind its first token. Stretches of them are given again, and the loss of what follows
    is compared over the grid: first the temperature, then the scale.

    Raises:
        MethodError: the text is too short.
    """
    size = (len(tokens) - 1) // _CONTEXTS
    if size < 2 * _TAIL:
        raise MethodError(
            f"ape: a calibration text of {len(tokens)} tokens is too short for {_CONTEXTS} contexts: give at least "
            f"{2 * _TAIL * _CONTEXTS + 1}"
        )
    contexts = [tokens[1 + at * size : 1 + (at + 1) * size] for at in range(_CONTEXTS)]
    trial = _Trial(checkpoint, tokens[:1], contexts)
    rng = random.Random("ape")
    tails = []
    for number in range(_TAILS):
        start = rng.randrange(size - _TAIL)
        tails.append(contexts[number % _CONTEXTS][start : start + _TAIL])
    losses = {(each, 1.0): trial.loss(tails, each, 1.0) for each in GRID}
    temperature = min(losses, key=lambda pair: losses[pair])[0]
    losses |= {(temperature, each): trial.loss(tails, temperature, each) for each in GRID}
    best = min(losses, key=lambda pair: losses[pair])
    return {"temperature": best[0], "scale": best[1], "loss": losses[best], "loss_untuned": losses[1.0, 1.0]}


class _Trial:
    """A model with contexts in memory, whose keys do not depend on the numbers."""

    def __init__(self, checkpoint: Checkpoint, prefix: list[int], contexts: Sequence[list[int]]) -> None:
        self._decoder = checkpoint.decoder
        self._device = checkpoint.decoder.embedding.weight.device
        self._prefix = read_alone(self._decoder, [prefix])[0]
        parts = zip(*read_alone(self._decoder, contexts, self._prefix), strict=True)
        self._contexts = [tuple(torch.cat(each) for each in zip(*layer, strict=True)) for layer in parts]
        self._first = len(prefix) + max(map(len, contexts))

    def loss(self, tails: Sequence[list[int]], temperature: float, scale: float) -> float:
        """Nats per token of the tails, after those that are given."""
        return sum(self._loss(tail, temperature, scale) for tail in tails) / len(tails)

    def _loss(self, tail: list[int], temperature: float, scale: float) -> float:
        before = len(self._prefix[0][0])
        places = torch.arange(before + len(tail), device=self._device)

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._prefix[spec.layer]
            others = torch.cat((keys, k)), torch.cat((values, v))
            keys, values = self._contexts[spec.layer]
            return attend_weighed(spec, q, (keys, values), others, places[before:], places, temperature, scale)

        ids = torch.tensor(tail, device=self._device)
        positions = self._first + torch.arange(len(tail), device=self._device)
        hidden = self._decoder(ids, positions, attend, positions + 1)
        logprobs = self._decoder.logits(hidden[_GIVEN - 1 : -1]).log_softmax(-1)
        return -float(logprobs.gather(1, ids[_GIVEN:, None]).mean())


def read_numbers(path: Path) -> tuple[float, float]:
    """Temperature and scale from a file that `headstart calibrate ape` wrote.

    Raises:
        MethodError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        return float(found["temperature"]), float(found["scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no temperature and scale"
        raise MethodError(
            f"ape: {path} cannot be read: {reason}; `headstart calibrate ape MODEL {path}` makes it"
        ) from None
