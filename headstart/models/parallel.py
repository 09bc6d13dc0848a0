"""Tensor parallelism: which part of every weight a rank holds, and the sums and gathers that make the parts one model.

A rank holds whole heads: the rows of its queries, keys and values, and the columns of the output product that read
them; of a feed-forward block the same inner units of gate, up and down; of the output layer some rows. What is left,
norms, embedding and routers, every rank holds. So a layer needs one sum over the ranks after attention and one after
the feed-forward block, and the residual stream is the same on all of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import HeadstartError
from headstart.models.config import ModelConfig

# Renamed in PyTorch 2.13.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Share:
    """What of a parameter `[..., rows, columns]`, or `[rows]`, a rank holds.

    Attributes:
        rows: `(start, stop)` of the whole's rows, one part below the other; None is all.
        columns: `(start, stop)`; None is all.
    """

    rows: tuple[tuple[int, int], ...] | None = None
    columns: tuple[int, int] | None = None

    def spans(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Of a tensor that fills `count` rows of the whole from `start` on: the rows that the rank keeps.

        Yields:
            First row and end, counted in the tensor, and where they go, counted in the rank's part.
        """
        at = 0
        for first, stop in self.rows or ((start, start + count),):
            low, high = max(first, start), min(stop, start + count)
            if low < high:
                yield low - start, high - start, (start if self.rows is None else at + low - first)
            at += stop - first


WHOLE = Share()
"""All of a parameter."""


@dataclass(frozen=True)
class Ranks:
    """The processes that hold one model together, on PyTorch's default process group; one alone calls nothing.

    Attributes:
        rank: this process's number.
        size: how many there are.
        chunks: parts along the tokens in which a product is summed, each while the next is computed.
    """

    rank: int = 0
    size: int = 1
    chunks: int = 1

    def sum_(self, x: Tensor) -> Tensor:
        """`x` summed over the ranks, in its place: the same bits on each of them."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def sum_parts_(self, parts: Iterable[Tensor]) -> None:
        """`sum_` of each part, on its way while the next one is computed by the iteration."""
        works = [dist.all_reduce(part, async_op=True) for part in parts]
        for work in works:
            if work is not None:
                work.wait()

    def first_(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, in the place of this rank's."""
        if self.size > 1:
            dist.broadcast(x, src=0)
        return x

    def least(self, *values: int, device: torch.device) -> tuple[int, ...]:
        """The least of each value over the ranks."""
        if self.size == 1:
            return values
        found = torch.tensor(values, device=device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return tuple(found.tolist())

    def gather(self, x: Tensor, columns: int) -> Tensor:
        """Every rank's part `[N, own]` → all of it `[N, columns]`, cut as `vocabulary` cuts."""
        if self.size == 1:
            return x
        width = -(-columns // self.size)
        own = F.pad(x, (0, width - x.shape[1])).contiguous()
        found = own.new_empty(self.size * own.shape[0], width)
        _gather_into(found, own)
        return found.view(self.size, -1, width).transpose(0, 1).flatten(1)[:, :columns].contiguous()

    def own(self, config: ModelConfig) -> ModelConfig:
        """The config with the sizes that are left for one rank.

        Raises:
            HeadstartError: heads or inner sizes do not divide among so many ranks.
        """
        if self.size == 1:
            return config
        self.check(config)
        moe = config.moe
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=max(1, config.num_kv_heads // self.size),
            intermediate_size=config.intermediate_size // self.size,
            moe=None if moe is None else replace(moe, intermediate_size=moe.intermediate_size // self.size),
        )

    def check(self, config: ModelConfig) -> None:
        """Refuse a model that cannot be cut in so many parts.

        Raises:
            HeadstartError: the sentence names what does not divide, and how many ranks would do.
        """
        problem = _problem(config, self.size)
        if problem:
            fitting = [str(size) for size in range(1, config.num_heads + 1) if not _problem(config, size)]
            raise HeadstartError(f"{problem}: use a tensor_parallel_size of {' or '.join(fitting)}")

    def vocabulary(self, size: int) -> tuple[int, int]:
        """Which rows of the output layer are this rank's; the last ranks may have fewer."""
        width = -(-size // self.size)
        return min(size, self.rank * width), min(size, (self.rank + 1) * width)

    def share(self, config: ModelConfig, parameter: str) -> Share:
        """What this rank holds of a parameter of the whole model, by its name in the decoder."""
        if self.size == 1 or parameter.endswith(("output.bias", "down.bias")):
            return WHOLE
        block, _, name = parameter.removesuffix(".weight").removesuffix(".bias").rpartition(".")
        if name == "lm_head":
            return Share(rows=(self.vocabulary(config.vocab_size),))
        if block.endswith(".attention"):
            return self._share_of_attention(config, name)
        if block.endswith(".mlp") and name in ("gate_up", "down"):
            is_moe = config.moe_layers[int(block.split(".")[1])]
            inner = config.moe.intermediate_size if config.moe is not None and is_moe else config.intermediate_size
            first, stop = self._part(inner)
            if name == "down":
                return Share(columns=(first, stop))
            return Share(rows=((first, stop), (inner + first, inner + stop)))
        return WHOLE

    def _share_of_attention(self, config: ModelConfig, name: str) -> Share:
        size = config.head_dim
        queries = tuple(size * head for head in self._part(config.num_heads))
        # With fewer heads of keys and values than ranks, several ranks hold the same one.
        kept = max(1, config.num_kv_heads // self.size)
        first = self.rank * config.num_kv_heads // self.size
        keys = first * size, (first + kept) * size
        if name == "output":
            return Share(columns=(queries[0], queries[1]))
        if name == "qkv":
            below = config.num_heads * size
            beyond = below + config.num_kv_heads * size
            shifted = ((below + keys[0], below + keys[1]), (beyond + keys[0], beyond + keys[1]))
            return Share(rows=((queries[0], queries[1]), *shifted))
        if config.qk_norm == "projection":
            return Share(rows=((queries[0], queries[1]) if name == "q_norm" else keys,))
        return WHOLE

    def _part(self, size: int) -> tuple[int, int]:
        return self.rank * size // self.size, (self.rank + 1) * size // self.size


ALONE = Ranks()
"""One process with the whole model."""


def _problem(config: ModelConfig, size: int) -> str:
    """What keeps a model from being cut in `size` parts; empty where nothing does."""
    inner = [] if all(config.moe_layers) else [(config.intermediate_size, "units of its feed-forward blocks")]
    if config.moe is not None and any(config.moe_layers):
        inner.append((config.moe.intermediate_size, "units of its experts"))
    for count, what in ((config.num_heads, "attention heads"), *inner):
        if count % size:
            return f"the model's {count} {what} do not divide among {size} ranks"
    if config.num_kv_heads % size and size % config.num_kv_heads:
        return f"the model's {config.num_kv_heads} heads of keys and values do not divide among {size} ranks"
    return ""
