"""What a method looks at while it reads a prompt: counted beside the run, in a pass that is not timed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import Selector
from headstart.ops.attention import AnySelection, RaggedLayout, Selection


@dataclass
class _Skipped:
    """Causal query-key pairs that a selector left out, summed over layers; a mean over KV heads."""

    pairs: float = 0.0


def attended_share(engine: Engine, prompt: list[int]) -> float | None:
    """Share of a prompt's causal query-key pairs, over all layers, that the selector of prompts looks at.

    Args:
        engine: an engine without work and without a prefix cache.
        prompt: token ids.

    Returns:
        None without a selector; 1 where the context is too short for it.
    """
    selector = engine.stack.optional("selector.prefill", Selector)
    if selector is None:
        return None
    with _counted(selector) as skipped:
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        engine.submit(engine.prepare("attended", prompt, params))
        while engine.has_work:
            engine.step()
    pairs = len(prompt) * (len(prompt) + 1) / 2
    return 1.0 - skipped.pairs / (pairs * engine.checkpoint.config.num_layers)


@contextmanager
def _counted(selector: Selector) -> Iterator[_Skipped]:
    """Within the block, the selector's answers are counted on their way to the engine."""
    skipped = _Skipped()
    select = selector.select

    def counted(spec: Any, q: torch.Tensor, keys: torch.Tensor, layout: RaggedLayout) -> AnySelection | None:
        found = select(spec, q, keys, layout)
        if found is not None:
            skipped.pairs += skipped_pairs(found, layout)
        return found

    selector.select = counted
    try:
        yield skipped
    finally:
        del selector.select


def skipped_pairs(selection: AnySelection, layout: RaggedLayout) -> float:
    """Causal query-key pairs that a selection leaves out in one layer, as a mean over its heads."""
    if not isinstance(selection, Selection):
        shapes = zip(layout.query_lengths, layout.kv_lengths, strict=True)
        return sum(queries * (2 * keys - queries + 1) / 2 for queries, keys in shapes) - selection.pairs(layout)
    total = 0.0
    for s, (queries, keys) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
        start = torch.arange(0, keys, layout.page_size, device=selection.pages.device)
        for top in range(0, queries, selection.query_block):
            row = torch.arange(top, min(top + selection.query_block, queries), device=start.device)
            # Row r sees the keys up to keys - queries + r; of a page, those from its start on.
            visible = (keys - queries + row[:, None] + 1 - start).clamp(0, layout.page_size).sum(0)
            left_out = ~selection.pages[s, top // selection.query_block, :, : len(start)]
            total += float((visible * left_out.float().mean(0)).sum())
    return total
