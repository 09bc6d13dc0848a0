"""Launches the Triton kernel of paged attention: its shape, its grids, its scratch memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headstart.ops.attention.kernel import attention_kernel
from headstart.ops.attention.kernel_merge import merge_kernel
from headstart.ops.attention.layout import PagedIndex
from headstart.ops.attention.reference import TREE_ROWS
from headstart.ops.attention.selection import KeyBlocks
from headstart.ops.attention.shape import Shape

SHORT = 16
"""Sequences with at most this many rows are computed as decodes are, apart from longer ones."""
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def lacks(q: Tensor, k_pages: Tensor) -> str | None:
    """What keeps the kernel from these tensors, as a phrase; None when nothing does."""
    if q.dtype not in _FLOATS:
        return f"queries in {q.dtype}"
    if k_pages.dtype not in (*_FLOATS, torch.float8_e4m3fn):
        return f"keys in {k_pages.dtype}"
    if q.shape[2] > 256:
        return f"heads of {q.shape[2]}"
    if q.stride(2) != 1 or k_pages.stride(3) != 1 or k_pages.stride(0) != k_pages.shape[1] * k_pages.stride(1):
        return "pages whose slots do not follow each other"
    return None


def attend_on_gpu(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    index: PagedIndex,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    blocks: KeyBlocks | None = None,
    tree: Tensor | None = None,
    contiguous: bool = False,
    causal: bool = True,
    into: tuple[Tensor, Tensor] | None = None,
    shapes: tuple[Shape | None, Shape | None] = (None, None),
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` by the Triton kernel; nothing here waits for the device.

    Args:
        contiguous: whether each sequence's pages follow each other.
        causal: as for `paged_attention`.
        into: contiguous `out [T, H, D]` and `lse [T, H]` to write; new ones where it is None.
        shapes: of the launches for short and for long sequences, instead of the usual ones.
        lengths: query rows of the sequences to compute, as `plan` takes them.
    """
    out, lse = into or empty_like(q)
    rule = {"scale": scale, "window": window, "softcap": softcap, "blocks": blocks, "tree": tree, "causal": causal}
    for launch in plan(q, k_pages, v_pages, index, **rule, contiguous=contiguous, shapes=shapes, lengths=lengths):
        launch.run(q, k_pages, v_pages, index, blocks, tree, out, lse)
    return out, lse


def empty_like(q: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """`out [T, H, D]`, in the queries' dtype or another, and `lse [T, H]` for queries `[T, H, D]`."""
    out = torch.empty(q.shape, dtype=dtype or q.dtype, device=q.device)
    return out, torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)


@dataclass(frozen=True)
class Launch:
    """A launch of the kernel, all but its tensors: made once a step and run in every layer.

    Args:
        grid: of the attention kernel.
        merge_grid: of the kernel that merges parts; None where the work is not cut.
        parts: rows of scratch memory.
        mapped: keys of a tile that a tensor map loads; 0 where there are none.
        shared: arguments of both kernels.
        own: further arguments of the attention kernel.
    """

    grid: tuple[int, int]
    merge_grid: tuple[int, int, int] | None
    parts: int
    mapped: int
    shared: dict[str, Any]
    own: dict[str, Any]

    def run(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        index: PagedIndex,
        blocks: KeyBlocks | None,
        tree: Tensor | None,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """Compute one layer's attention of the planned sequences into `out [T, H, D]` and `lse [T, H]`."""
        part_out, part_lse = out, lse
        if self.merge_grid is not None:
            part_out = torch.empty(self.parts, q.shape[2], dtype=torch.float32, device=q.device)
            part_lse = torch.empty(self.parts, dtype=torch.float32, device=q.device)
        k_maps, v_maps = (_tiles(k_pages, self.mapped), _tiles(v_pages, self.mapped)) if self.mapped else (None, None)
        lists, counts = (blocks.blocks, blocks.counts) if blocks is not None else (None, None)
        lines = (None,) * 5 if blocks is None or blocks.lines is None else tuple(vars(blocks.lines).values())
        starts, lengths, table = index[:3]
        kernel: Any = attention_kernel
        kernel[self.grid](
            q, k_pages, v_pages, k_maps, v_maps, out, lse, part_out, part_lse, starts, lengths, table, lists, counts,
            *lines, tree, **self.shared, **self.own,
        )  # fmt: skip
        if self.merge_grid is not None:
            kernel = merge_kernel
            kernel[self.merge_grid](
                out, lse, part_out, part_lse, starts, lengths, counts, BLOCK_P=32, num_warps=4, **self.shared
            )  # fmt: skip


def plan(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    index: PagedIndex,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    blocks: KeyBlocks | None,
    tree: Tensor | None,
    contiguous: bool,
    causal: bool = True,
    shapes: tuple[Shape | None, Shape | None] = (None, None),
    lengths: Sequence[int] | None = None,
) -> list[Launch]:
    """The launches that a step's attention takes; good for all tensors of the same shapes, strides and alignment.

    Args:
        contiguous: whether each sequence's pages follow each other.
        causal: as for `paged_attention`; without it short and long sequences share a launch.
        shapes: of the launches for short and for long sequences, instead of the usual ones.
        lengths: query rows of the sequences to compute, the longer ones left out; None says that the host does not
            know them, and computes all.
    """
    short = TREE_ROWS if tree is not None else SHORT
    if not causal or (blocks is not None and blocks.counts.shape[2] > 1):
        short = 0
    if lengths is None:
        most = min(short, index.max_query), index.max_query if index.max_query > short else 0
    else:
        most = tuple(
            max(those, default=0) for those in ([n for n in lengths if n <= short], [n for n in lengths if n > short])
        )
    step = _Step(q, k_pages, v_pages, index, scale, window, softcap, blocks, tree, contiguous, causal)
    ranges = zip((1, short + 1), most, shapes, strict=True)
    return [step.launch(least, longest, shape) for least, longest, shape in ranges if longest]


@dataclass
class _Step:
    """What the launches of one step share."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    index: PagedIndex
    scale: float
    window: int | None
    softcap: float | None
    blocks: KeyBlocks | None
    tree: Tensor | None
    contiguous: bool
    causal: bool

    def launch(self, least: int, most: int, shape: Shape | None) -> Launch:
        """Of the sequences with `least` to `most` query rows."""
        q, k, v, index, blocks = self.q, self.k_pages, self.v_pages, self.index, self.blocks
        rows, heads, head_dim = q.shape
        page_size, kv_heads = k.shape[1:3]
        sequences = index.kv_lengths.shape[0]
        group = heads // kv_heads
        list_group = group if blocks is None else heads // blocks.counts.shape[1]
        several_blocks = blocks is not None and blocks.counts.shape[2] > 1
        key_block = blocks.key_block if blocks is not None else 0
        lines = blocks.lines if blocks is not None else None
        if shape is None:
            mappable = (
                (self.contiguous or (page_size % 64 == 0 and lines is None)) and key_block % 64 == 0 and _mappable(k, v)
            )
            # A tile has the rows of one list.
            rows_of_tile = most if blocks is None else min(most, blocks.query_block)
            shape = usual_shape(rows_of_tile * list_group, head_dim, q.dtype, sequences, mappable)
            if several_blocks and shape.rows == 64:
                shape = replace(shape, tensor_maps=mappable)
        fold = max(n for n in range(1, list_group + 1) if list_group % n == 0 and n <= shape.rows)
        queries = shape.rows // fold
        if blocks is not None and (several_blocks or lines is not None):
            # A tile reads one list: its queries lie within one block.
            queries = max(n for n in range(1, queries + 1) if blocks.query_block % n == 0)
        row_tiles = min(sequences * _cdiv(most, queries), rows // queries + sequences)
        grid_heads = heads // fold
        workers = _cdiv(shape.waves * _multiprocessors(q.device), grid_heads)
        # Long tiles that fill the GPU as they are gain nothing from being cut. Where not causal, a captured launch has
        # room for many more tiles than there are.
        whole = not several_blocks and lines is None
        split = whole and (most <= SHORT or row_tiles <= workers or not self.causal)
        part_rows = min(most, queries) * fold
        windowed = self.window is not None and self.window < index.max_kv
        together = self.contiguous or (page_size % shape.keys == 0 and lines is None)
        maps = shape.tensor_maps and together and key_block % shape.keys == 0 and _mappable(k, v)
        shared: dict[str, Any] = {
            "num_sequences": sequences,
            "workers": workers,
            "min_query": least,
            "max_query": most,
            "window": self.window if windowed else 0,
            "counts_sequence": blocks.counts.stride(0) if blocks is not None else 0,
            "counts_head": blocks.counts.stride(1) if blocks is not None else 0,
            "part_rows": part_rows,
            "HEADS": heads,
            "QUERIES": queries,
            "FOLD": fold,
            "LIST_GROUP": list_group,
            "KEY_BLOCK": key_block,
            "HEAD_DIM": head_dim,
            "BLOCK_D": max(power_of_2(head_dim), 16),
            "BLOCK_N": shape.keys,
            "BLOCK_S": _bucket(sequences),
            "WINDOWED": windowed,
        }
        own: dict[str, Any] = {
            "scale": self.scale,
            "softcap": self.softcap or 1.0,
            "q_row": q.stride(0),
            "q_head": q.stride(1),
            "k_row": k.stride(1),
            "k_head": k.stride(2),
            "v_row": v.stride(1),
            "v_head": v.stride(2),
            "table_row": index.page_table.stride(0),
            "blocks_sequence": blocks.blocks.stride(0) if blocks is not None else 0,
            "blocks_head": blocks.blocks.stride(1) if blocks is not None else 0,
            "blocks_row": blocks.blocks.stride(2) if blocks is not None else 0,
            "bands_sequence": lines.bands.stride(0) if lines is not None else 0,
            "bands_head": lines.bands.stride(1) if lines is not None else 0,
            "singles_sequence": lines.columns.stride(0) if lines is not None else 0,
            "singles_head": lines.columns.stride(1) if lines is not None else 0,
            "covered_sequence": lines.covered.stride(0) if lines is not None else 0,
            "covered_head": lines.covered.stride(1) if lines is not None else 0,
            "GROUP": group,
            "PAGE": page_size,
            "CONTIGUOUS": self.contiguous,
            "QUERY_BLOCK": blocks.query_block if blocks is not None else 1,
            "LINES": lines is not None,
            "BLOCK_M": shape.rows,
            "CAUSAL": self.causal,
            "SOFTCAP": self.softcap is not None,
            "TREE": self.tree is not None and most <= TREE_ROWS,
            "SPLIT": split,
            "PHASES": shape.rows > 32,
            "TMA": maps,
            "BEHIND": shape.behind and q.dtype.itemsize == 2,
            "STAGES": shape.stages,
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
            "num_warps": shape.warps,
            "num_stages": shape.stages,
            "maxnreg": shape.registers,
        }
        return Launch(
            grid=(row_tiles + (workers if split else 0), grid_heads),
            merge_grid=(row_tiles, grid_heads, part_rows) if split else None,
            parts=(row_tiles + workers) * grid_heads * part_rows,
            mapped=shape.keys if maps else 0,
            shared=shared,
            own=own,
        )


def usual_shape(rows: int, head_dim: int, dtype: torch.dtype, sequences: int = 1, mappable: bool = True) -> Shape:
    """For tiles of so many rows at most, as measured on an H100.

    Args:
        sequences: how many there are: many are cut finer, so that the end of the work is even.
        mappable: whether tensor maps can load 64 keys.
    """
    least = max(power_of_2(rows), 16)
    if dtype == torch.float32:
        return Shape(min(least, 64), 32, 4, 2)
    if rows <= 64:
        return Shape(least, 64, 4, 3, waves=8 if sequences >= 32 else 2) if head_dim <= 128 else Shape(least, 32, 4, 5)
    if head_dim <= 128:
        return Shape(64, 64, 4, 3, tensor_maps=True) if mappable else Shape(128, 128, 8, 2)
    return Shape(128, 32, 8, 3, tensor_maps=True)


def _mappable(*pools: Tensor) -> bool:
    """Whether the pages can be described by tensor maps of `[slots, Hkv x D]` that are read a head at a time."""
    return all(
        (head_dim := pages.shape[3]) & (head_dim - 1) == 0
        and head_dim * (size := pages.element_size()) >= 16
        and pages.stride(2) == head_dim
        and pages.stride(1) * size % 16 == 0
        and pages.data_ptr() % 16 == 0
        for pages in pools
    )


def _tiles(pages: Tensor, keys: int) -> TensorDescriptor:
    """A tensor map that loads `keys` slots of one head."""
    count, page_size, kv_heads, head_dim = pages.shape
    return TensorDescriptor(pages, [count * page_size, kv_heads * head_dim], [pages.stride(1), 1], [keys, head_dim])


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least that is at least n."""
    return 1 << (n - 1).bit_length()


def _bucket(sequences: int) -> int:
    """A power of four that holds them: few, so that few kernels are compiled."""
    size = 64
    while size < sequences:
        size *= 4
    return size


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    # On a CPU, Triton's interpreter is at work.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
