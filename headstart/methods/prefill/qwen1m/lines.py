"""Vertical and slash lines of a prompt in whole blocks: the estimate, the budgets of each head, their refinement."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.errors import MethodError
from headstart.methods.model_file import ModelFile
from headstart.models.config import ModelConfig
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import KeyBlocks, RaggedLayout, paged_attention
from headstart.ops.attention.estimate import line_scores
from headstart.ops.attention.lists import listed

KEY = "qwen2.5-1m"
Turned = Callable[[Tensor, int], Tensor]
"""Keys `[N, Hkv, D]` of a sequence and their number → the keys as the estimate from its last rows is to meet them."""
Budgets = list[list[tuple[int, int]]]
"""Per layer and query head: keys of vertical lines, and distances of slashes."""
_FILE = ModelFile(KEY, "budgets")
_PAGE = 64
_ROWS = 64
# Pairs of blocks that are looked at together.
_PAIRS = 1 << 26


@dataclass(frozen=True)
class Estimate:
    """How lines are found.

    Attributes:
        block: queries and keys of a block: lines are as wide.
        sink: first keys that are kept whatever the estimate says.
        recent: nearest distances that are kept whatever it says.
    """

    block: int
    sink: int
    recent: int

    def in_blocks(self, budgets: Tensor) -> Tensor:
        """Budgets `[H, 2]` in tokens as blocks, rounded up, with room for what is kept in any case."""
        sure = torch.tensor([-(-self.sink // self.block), -(-self.recent // self.block) + 1])
        return torch.maximum(-(-budgets // self.block), sure)

    def choose(
        self,
        q: Tensor,
        keys: Tensor,
        layout: RaggedLayout,
        scale: float,
        budgets: Tensor,
        turned: Turned,
        dense: Collection[int] = (),
    ) -> KeyBlocks:
        """What each head of a step's rows looks at, by the attention of the last 64 rows of each sequence.

        Args:
            q: `[T, H, D]`.
            keys: `[P, page_size, Hkv, D]`.
            layout: the step.
            scale: factor on the scores.
            budgets: int64 `[H, 2]` in blocks, on the host.
            turned: makes the keys as the estimate is to meet them.
            dense: sequences that look at everything.
        """
        found = []
        own = layout.upload(budgets.numpy())
        for s, (count, length) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
            start, total = layout.query_starts[s], -(-length // self.block)
            if s in dense:
                verticals = torch.ones(q.shape[1], total, dtype=torch.bool, device=q.device)
                found.append(self._lists(verticals, torch.zeros_like(verticals), count, length, total))
                continue
            rows = q[start + max(0, count - _ROWS) : start + count]
            (k,) = layout.gather(s, keys)
            columns, distances = line_scores(rows, turned(k.to(q.dtype), length), scale)
            verticals = _best(self._sums(columns), own[:, 0], -(-self.sink // self.block))
            near = self._sums(distances)
            # A distance within a block of them touches two diagonals of blocks.
            near = near + torch.nn.functional.pad(near[:, :-1], (1, 0))
            slashes = _best(near, own[:, 1], -(-self.recent // self.block) + 1)
            most = int((budgets[:, 0] + 2 * budgets[:, 1]).max())
            found.append(self._lists(verticals, slashes, count, length, min(total, most)))
        return self._stacked(found)

    def _sums(self, scores: Tensor) -> Tensor:
        """`[H, N]` → its sums over blocks."""
        return torch.nn.functional.pad(scores, (0, -scores.shape[1] % self.block)).unflatten(1, (-1, self.block)).sum(2)

    def _lists(self, verticals: Tensor, slashes: Tensor, count: int, length: int, most: int) -> tuple[Tensor, Tensor]:
        """The lists of one sequence's blocks of rows, of at most so many each: int32 `[H, B, K]` and `[H, B]`."""
        heads, total = verticals.shape
        place = length - count + torch.arange(0, count, self.block, device=verticals.device)
        last = (place + self.block - 1).clamp(max=length - 1) // self.block
        block = torch.arange(total, device=verticals.device)
        lists, counts = [], []
        step = max(1, _PAIRS // (total * len(place)))
        for head in range(0, heads, step):
            own = slashes[head : head + step]
            seen = verticals[head : head + step, None]
            # Rows that do not begin with a block of keys touch two.
            for base in (place // self.block, last):
                apart = base[:, None] - block
                seen = seen | (own[:, apart.clamp(min=0)] & (apart >= 0))
            found = listed(seen & (block <= last[:, None]), most)
            lists.append(found[0])
            counts.append(found[1])
        return torch.cat(lists), torch.cat(counts)

    def _stacked(self, found: list[tuple[Tensor, Tensor]]) -> KeyBlocks:
        """Sequences' lists as one, padded."""
        rows, most = (max(lists.shape[dim] for lists, _ in found) for dim in (1, 2))
        lists, counts = [], []
        for each, count in found:
            pad = rows - each.shape[1]
            lists.append(torch.nn.functional.pad(each, (0, most - each.shape[2], 0, pad)))
            counts.append(torch.nn.functional.pad(count, (0, pad)))
        return KeyBlocks(torch.stack(lists), torch.stack(counts), self.block, self.block)


def _best(scores: Tensor, budgets: Tensor, sure: int) -> Tensor:
    """bool `[H, B]`: each head's best so many, the first `sure` among them."""
    scores[:, :sure] = torch.inf
    order = scores.argsort(-1, descending=True)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    kept = torch.arange(scores.shape[1], device=scores.device) < budgets[:, None]
    return chosen.scatter_(1, order, kept)


def read_budgets(path: Path, config: ModelConfig) -> Budgets:
    """Of a file that `headstart calibrate` wrote.

    Raises:
        MethodError: the file cannot be read, or is of another model.
    """
    content = _FILE.read(path, config)
    try:
        budgets = [[(int(vertical), int(slash)) for vertical, slash in heads] for heads in content["budgets"]]
    except (KeyError, TypeError, ValueError):
        budgets = []
    if [len(heads) for heads in budgets] != [config.num_heads] * config.num_layers:
        raise _FILE.damaged(path)
    return budgets


@torch.inference_mode()
def refine(
    checkpoint: Checkpoint, tokens: list[int], estimate: Estimate, vertical: int, slash: int, recall: float
) -> dict[str, object]:
    """Raise each head's budget on a text until the attention that it keeps is good enough.

    Args:
        checkpoint: the model, in one piece.
        tokens: the text; budgets hold for prompts as long.
        estimate: how lines are found.
        vertical, slash: where each head begins.
        recall: the share of each query's attention that is wanted, as a mean over the queries: that of
            exp(lse of what is looked at - lse of all).

    Returns:
        The content of a file of budgets.

    Raises:
        MethodError: the text is so short that the first budget keeps all of it, or too long for the model.
    """
    length, most = len(tokens), checkpoint.config.max_position
    least = 2 * (vertical + slash)
    if length < least:
        raise MethodError(
            f"{KEY}: a calibration text of {length} tokens is too short for budgets of {vertical} and {slash} to leave "
            f"anything out; give one of at least {least} tokens"
        )
    if length > most:
        raise MethodError(f"{KEY}: a calibration text of {length} tokens is longer than the model's {most} positions")
    device = checkpoint.decoder.embedding.weight.device
    watcher = _Watcher(length, estimate, (vertical, slash), recall, device)
    places = torch.arange(length, device=device)
    checkpoint.decoder(torch.tensor(tokens, device=device), places, watcher, torch.full_like(places, length))
    found = {"text_tokens": length, "recall": watcher.recalls, "budgets": watcher.budgets}
    return _FILE.content(checkpoint.config, **found)


class _Watcher:
    """Exact attention that tries larger budgets on the way until they suffice: an `Attend`."""

    def __init__(
        self, length: int, estimate: Estimate, first: tuple[int, int], wanted: float, device: torch.device
    ) -> None:
        self.layout = RaggedLayout([length], [length], [range(-(-length // _PAGE))], _PAGE, device)
        self._estimate = estimate
        self.budgets: list[list[tuple[int, int]]] = []
        self.recalls: list[list[float]] = []
        self._first, self._wanted = first, wanted

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pad = (0, 0, 0, 0, 0, -k.shape[0] % _PAGE)
        keys, values = (torch.nn.functional.pad(x, pad).unflatten(0, (-1, _PAGE)) for x in (k, v))
        rule: dict[str, Any] = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
        exact, whole = paged_attention(q, keys, values, self.layout, **rule)
        budgets = torch.tensor([self._first] * spec.num_heads)
        reached = torch.zeros(spec.num_heads)
        while True:
            blocks = self._estimate.in_blocks(budgets)
            chosen = self._estimate.choose(q, keys, self.layout, spec.scale, blocks, lambda k, _: k)
            _, lse = paged_attention(q, keys, values, self.layout, **rule, selection=chosen)
            reached = torch.exp(lse - whole).mean(0).cpu()
            short = (reached < self._wanted) & (budgets.amax(1) < len(q))
            if not short.any():
                break
            # In steps of the first budget, as the official file has them.
            budgets[short] += torch.tensor(self._first)
        self.budgets.append([(vertical, slash) for vertical, slash in budgets.tolist()])
        self.recalls.append([round(value, 4) for value in reached.tolist()])
        return exact
