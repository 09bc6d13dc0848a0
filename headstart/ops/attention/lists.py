"""From scores to lists of what is looked at: on the device, in a few operations, without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.selection import KeyBlocks, Lines


def listed(chosen: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Where bools are true: `[..., N]` → int32 `[..., K]` in ascending order, and int32 `[...]`, how many count.

    Args:
        chosen: what is listed.
        most: K, the capacity of a list, which no list may exceed; None is N.
    """
    number, most = chosen.shape[-1], chosen.shape[-1] if most is None else most
    # What is not chosen goes to a place behind the lists.
    places = torch.where(chosen, running_sum(chosen) - 1, most)
    lists = torch.zeros(*chosen.shape[:-1], most + 1, dtype=torch.int32, device=chosen.device)
    lists.scatter_(-1, places, torch.arange(number, dtype=torch.int32, device=chosen.device).expand(chosen.shape))
    return lists[..., :most], chosen.sum(-1, dtype=torch.int32)


def running_sum(marks: Tensor) -> Tensor:
    """int64, the sums of bool `[..., N]` up to each place, in parts, since a GPU is slow with single long rows."""
    parts = _in_parts(marks)
    sums = parts.cumsum(-1)
    whole = sums[..., -1].cumsum(-1) - sums[..., -1]
    return (sums + whole[..., None]).flatten(-2)[..., : marks.shape[-1]]


def running_max(x: Tensor) -> Tensor:
    """The largest of `[..., N]`, at least 0, up to each place; in parts as `running_sum`."""
    most = _in_parts(x).cummax(-1).values
    before = torch.nn.functional.pad(most[..., :-1, -1].cummax(-1).values, (1, 0))
    return torch.maximum(most, before[..., None]).flatten(-2)[..., : x.shape[-1]]


def _in_parts(x: Tensor) -> Tensor:
    """`[..., N]` → `[..., B, _PART]`, zeros behind the last."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % _PART)).unflatten(-1, (-1, _PART))


_PART = 1024


def top(scores: Tensor, keep: int, budgets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The places of the largest scores: `[..., N]` → int32 `[..., K]` in ascending order, and int32 `[...]`, how many
    count.

    Args:
        scores: -inf is never among them.
        keep: how many at most.
        budgets: int `[...]`, how many of each list, where they differ.
    """
    best, places = scores.topk(min(keep, scores.shape[-1]), -1)
    there = best > -torch.inf
    if budgets is not None:
        there &= torch.arange(best.shape[-1], device=scores.device) < budgets[..., None]
    places = torch.where(there, places, scores.shape[-1]).sort(-1).values
    return places.int(), there.sum(-1, dtype=torch.int32)


def bands_of(distances: Tensor, query_block: int, key_block: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The bands that hold all pairs at the chosen distances, as `Lines` has them.

    Args:
        distances: bool `[..., N]`, which distances between query and key are wanted.
        query_block: query rows per block.
        key_block: keys of a band.
        most: of the chosen distances.

    Returns:
        Bands int32 `[..., K]`, their counts int32 `[...]`, and what they cover, uint8 `[..., N + query_block +
        2 key_block]`.

    A distance t wants the keys p - t to p - t + query_block - 1 of the block at p. Where such ranges touch, overlap
    or nearly do, they become one that is cut into bands from its near end on.
    """
    size = distances.shape[-1] + query_block + 2 * key_block
    # The place x stands for the key at p + query_block - x.
    wanted = torch.zeros(*distances.shape[:-1], size, dtype=torch.bool, device=distances.device)
    wanted[..., 1 : distances.shape[-1] + 1] = distances
    near = _widened(wanted, query_block)
    run = _widened(near, key_block)
    x = torch.arange(size, dtype=torch.int32, device=distances.device)
    opens = run.clone()
    opens[..., 1:] &= ~run[..., :-1]
    begun = running_max(torch.where(opens, x, 0))
    # Behind a run's last wanted key no further band begins.
    starts = _narrowed(run, key_block) & ((x - begun) % key_block == 0)
    capacity = min(most * (-(-query_block // key_block) + 1), -(-size // key_block)) + 1
    lists, counts = listed(starts.flip(-1), capacity)
    # The last key of the flipped place f stands at x = size - 1 - f: the band's first key is key_block - 1 before it.
    bands = size - 1 - lists + key_block - 1 - query_block
    return bands, counts, _widened(starts, key_block).to(torch.uint8)


def _widened(marks: Tensor, width: int) -> Tensor:
    """Bool `[..., N]`: whether one of the last `width` marks is set, the own one among them."""
    done = 1
    while done < width:
        step = min(done, width - done)
        wider = marks.clone()
        wider[..., step:] |= marks[..., :-step]
        marks, done = wider, done + step
    return marks


def _narrowed(marks: Tensor, width: int) -> Tensor:
    """Bool `[..., N]`: whether the next `width` marks are all set, the own one among them."""
    return ~_widened(~marks.flip(-1), width).flip(-1)


def lines_of(
    distances: Tensor, most_distances: int, columns: Tensor, column_counts: Tensor, query_block: int, key_block: int
) -> Lines:
    """The lines of one sequence.

    Args:
        distances: bool `[Hb, N]`, the chosen distances between query and key.
        most_distances: no head has more.
        columns: int32 `[Hb, C]`, the chosen keys in ascending order.
        column_counts: int32 `[Hb]`, how many of them count.
        query_block, key_block: of the `KeyBlocks` that they will be a part of.
    """
    bands, counts, covered = bands_of(distances, query_block, key_block, most_distances)
    return Lines(*(each[None] for each in (bands, counts, columns, column_counts, covered)))


def stacked(each: Sequence[Lines]) -> Lines:
    """The lines of several sequences as one, shorter lists padded."""
    if len(each) == 1:
        return each[0]
    parts = []
    for name in ("bands", "band_counts", "columns", "column_counts", "covered"):
        tensors = [getattr(lines, name) for lines in each]
        longest = max(tensor.shape[-1] for tensor in tensors)
        short = tensors[0].dim() == 2
        parts.append(
            torch.cat([t if short else torch.nn.functional.pad(t, (0, longest - t.shape[-1])) for t in tensors])
        )
    return Lines(*parts)


def blocks_of_lines(lines: Lines, layout: RaggedLayout, query_block: int, key_block: int) -> KeyBlocks:
    """Lines for every head and lists for none."""
    sequences, heads = lines.band_counts.shape
    blocks = -(-max(layout.query_lengths) // query_block)
    device = lines.bands.device
    return KeyBlocks(
        torch.empty(sequences, heads, blocks, 0, dtype=torch.int32, device=device),
        torch.zeros(sequences, heads, blocks, dtype=torch.int32, device=device),
        query_block,
        key_block,
        lines,
    )


def streaming(
    layout: RaggedLayout, heads: int, sink: int, recent: int, query_block: int = 64, key_block: int = 64
) -> KeyBlocks:
    """An A-shape for every head: the first `sink` keys, and the `recent` ones up to each row, rounded up to bands."""
    parts = []
    for length in layout.kv_lengths:
        distances = torch.zeros(heads, length, dtype=torch.bool, device=layout.device)
        distances[:, :recent] = True
        columns = torch.arange(min(sink, length), dtype=torch.int32, device=layout.device).expand(heads, -1)
        counts = torch.full((heads,), columns.shape[1], dtype=torch.int32, device=layout.device)
        parts.append(lines_of(distances, min(recent, length), columns, counts, query_block, key_block))
    return blocks_of_lines(stacked(parts), layout, query_block, key_block)
