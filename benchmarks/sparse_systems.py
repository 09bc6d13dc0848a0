"""LServe, Qwen2.5-1M and LongGen on one layer of Llama-3.1-8B's heads, beside dense attention: what
`sparse_attention.py` runs after its own. Steps are those of the engine: 8,192 rows of a prompt, or a row of each of
eight sequences.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from headstart.evaluation.attention_bench import HEAD_DIM, HEADS, KV_HEADS
from headstart.methods.cache.lserve.pages import PageSelector
from headstart.methods.prefill.qwen1m.chunks import DualChunkAttention, Turner, default_chunks
from headstart.methods.prefill.qwen1m.lines import Estimate
from headstart.models.rope import RopeConfig
from headstart.ops.attention import KeyBlocks, RaggedLayout, paged_attention
from headstart.ops.attention.reach import Reach

PAGE = 64
SCALE = HEAD_DIM**-0.5
STREAMING = Reach(PAGE, 2, 5)
"""LServe's streaming heads: the first 128 tokens, and 256 before a query's block."""
SPARSE = Reach(PAGE, 1, 31, 64)
"""LongGen's sparse layers: about 4,096 of 131,072 tokens."""
GROUP = HEADS // KV_HEADS
Row = dict[str, Any]
Seconds = Callable[[Callable[[], Any], int], float]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: RaggedLayout, blocks: KeyBlocks | None = None) -> Tensor:
    """One call of the engine's attention."""
    return paged_attention(q, k, v, layout, scale=SCALE, selection=blocks)[0]


def bounded(layout: RaggedLayout, reach: Reach) -> RaggedLayout:
    """Where the keys lie that heads of this reach keep, all of whose pages are there."""
    from headstart.engine.ring import TwinPages

    pages = max(page for table in layout.page_tables for page in table) + 1
    twins = TwinPages(reach, pages, pages, PAGE)
    twins.take(list(range(pages)))
    return twins.within(layout)


def kept_share(reach: Reach, length: int) -> float:
    """The share of a sequence's pages that heads of this reach keep."""
    return len(reach.pages(length, length, PAGE)) / (length // PAGE)


def prompts(layer: Any, seconds: Seconds) -> Iterator[Row]:
    """A chunk of a prompt: half of the heads streaming, a sparse layer, and lines over dual chunks.

    Args:
        layer: with `q [R, H, D]`, `k, v [P, 64, Hkv, D]` and `layout`, of one sequence.
        seconds: times a function, so many times.
    """
    layout, length = layer.layout, layer.layout.kv_lengths[0]
    work = {"keys": length, "rows": layout.num_rows}
    dense = seconds(lambda: attend(layer.q, layer.k, layer.v, layout), 2)
    yield work | {"method": "dense", "seconds": dense}
    half = KV_HEADS // 2
    within = bounded(layout, STREAMING)
    q, k, v = layer.q, layer.k, layer.v
    first = q[:, : half * GROUP].contiguous(), k[:, :, :half].contiguous(), v[:, :, :half].contiguous()
    second = q[:, half * GROUP :].contiguous(), k[:, :, half:].contiguous(), v[:, :, half:].contiguous()
    retrieving = seconds(lambda: attend(*first, layout), 2)
    streaming = seconds(lambda within=within: attend(*second, within), 2)
    whole = {"retrieving_seconds": retrieving, "streaming_seconds": streaming}
    yield (
        work
        | {"method": "lserve", "seconds": retrieving + streaming}
        | whole
        | {"gain": dense / (retrieving + streaming)}
    )
    within = bounded(layout, SPARSE)
    sparse = seconds(lambda: attend(layer.q, layer.k, layer.v, within), 2)
    yield work | {"method": "longgen", "sparse_seconds": sparse, "gain": 3 * dense / (dense + 2 * sparse)}
    yield from _dual_chunks(layer, dense, work, seconds)


def _dual_chunks(layer: Any, dense: float, work: Row, seconds: Seconds) -> Iterator[Row]:
    """Qwen2.5-1M, as for a model that was trained on a quarter of the length."""
    layout, length = layer.layout, layer.layout.kv_lengths[0]
    chunks = default_chunks(length // 4, PAGE)
    rope = RopeConfig("default", 500000.0, HEAD_DIM, length, length)
    attention = DualChunkAttention(chunks, Turner(rope), SCALE)
    taken = seconds(lambda: attention.attend(layer.q, layer.k, layer.v, layout, None), 2)
    yield work | {"method": "dual chunks, dense", "seconds": taken, "gain": dense / taken}
    estimate = Estimate(PAGE, 30, 100)
    for budget in ((1000, 6096), (4096, 16384)):
        budgets = estimate.in_blocks(torch.tensor([budget] * HEADS))

        def find(budgets: Tensor = budgets) -> KeyBlocks:
            return estimate.choose(layer.q, layer.k, layout, SCALE, budgets, lambda keys, _: keys)

        blocks = find()
        finding = seconds(find, 2)
        attending = seconds(lambda blocks=blocks: attention.attend(layer.q, layer.k, layer.v, layout, blocks), 2)
        yield work | {
            "method": f"qwen2.5-1m {budget[0]}/{budget[1]}",
            "seconds": finding + attending,
            "finding_seconds": finding,
            "pairs": blocks.pairs(layout),
            "gain": dense / (finding + attending),
        }


def decodes(q: Tensor, k: Tensor, v: Tensor, layout: RaggedLayout, seconds: Seconds) -> Iterator[Row]:
    """One decode step: LServe with its choice fresh and reused, LongGen's three layers with the bytes that they keep.

    Args:
        q: `[S, H, D]`.
        k, v: `[P, 64, Hkv, D]`.
        layout: a row each.
        seconds: as for `prompts`.
    """
    length, half = layout.kv_lengths[0], KV_HEADS // 2
    work = {"keys": length, "rows": f"{len(layout.query_lengths)} x 1"}
    dense = seconds(lambda: attend(q, k, v, layout), 5)
    yield work | {"method": "dense", "seconds": dense}
    mine = q[:, : half * GROUP].contiguous(), k[:, :, :half].contiguous(), v[:, :, :half].contiguous()
    other = q[:, half * GROUP :].contiguous(), k[:, :, half:].contiguous(), v[:, :, half:].contiguous()
    selector = PageSelector(16, PAGE, 4096, 4)
    every = RaggedLayout(layout.kv_lengths, layout.kv_lengths, layout.page_tables, PAGE, layout.device)
    selector.bounds.update(mine[1], every, q.dtype)
    blocks = selector.decode(mine[0], layout)
    times = {
        "updating": seconds(lambda: selector.bounds.update(mine[1], layout, q.dtype), 5),
        "finding": seconds(lambda: selector.decode(mine[0], layout), 5),
        "attending": seconds(lambda: attend(*mine, layout, blocks), 5),
    }
    within = bounded(layout, STREAMING)
    times["streaming"] = seconds(lambda: attend(*other, within), 5)
    always = times["updating"] + times["attending"] + times["streaming"]
    share = (1 + kept_share(STREAMING, length)) / 2
    yield (
        work
        | {"method": "lserve", "kept_share": share}
        | {f"{name}_seconds": t for name, t in times.items()}
        | {
            "gain": dense / (always + times["finding"]),
            "gain_every_4": dense / (always + times["finding"] / 4),
        }
    )
    within = bounded(layout, SPARSE)
    sparse = seconds(lambda: attend(q, k, v, within), 5)
    token = 2 * KV_HEADS * HEAD_DIM * k.element_size()
    kept = [3 * length * token, int((1 + 2 * kept_share(SPARSE, length)) * length * token)]
    yield work | {
        "method": "longgen", "sparse_seconds": sparse, "gain": 3 * dense / (dense + 2 * sparse),
        "kv_bytes_of_3_layers": kept[1], "dense_kv_bytes": kept[0], "saved": 1 - kept[1] / kept[0],
    }  # fmt: skip
