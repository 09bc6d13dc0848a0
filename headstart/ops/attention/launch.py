"""Launches the Triton kernel of paged attention: its shape, its grids, its scratch memory."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headstart.ops.attention.kernel import attention_kernel, merge_kernel
from headstart.ops.attention.layout import KeyBlocks, PagedIndex
from headstart.ops.attention.reference import TREE_ROWS

SHORT = 16
"""Sequences with at most this many rows are computed as decodes are, apart from longer ones."""
_LONGEST = 1 << 30
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Shape:
    """What a launch is tuned by.

    Args:
        rows: of a tile: queries times the heads that share their keys.
        keys: of a tile.
        warps: per program.
        stages: tiles of keys that are under way at once.
        tensor_maps: load whole tiles by TMA where their keys lie together.
        behind: multiply a tile's values while the next one's scores are made weights.
        registers: most of a thread; None leaves it to the compiler.
        waves: parts into which the work is cut, in multiples of the GPU's multiprocessors.
    """

    rows: int
    keys: int
    warps: int = 4
    stages: int = 3
    tensor_maps: bool = False
    behind: bool = False
    registers: int | None = None
    waves: int = 2


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
    into: tuple[Tensor, Tensor] | None = None,
    shapes: tuple[Shape | None, Shape | None] = (None, None),
    longest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` by the Triton kernel; nothing here waits for the device.

    Args:
        contiguous: whether each sequence's pages follow each other.
        into: contiguous `out [T, H, D]` and `lse [T, H]` to write; new ones where it is None.
        shapes: of the launches for short and for long sequences, instead of the usual ones.
        longest: leave out sequences with more rows, whose outputs stay unwritten.
    """
    out, lse = into or (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(q.shape[:2], dtype=torch.float32, device=q.device),
    )
    call = _Call(q, k_pages, v_pages, index, scale, window, softcap, blocks, tree, contiguous, out, lse)
    short = TREE_ROWS if tree is not None else SHORT
    if blocks is not None and blocks.counts.shape[2] > 1:
        short = 0
    most = index.max_query if longest is None else min(index.max_query, longest)
    if short:
        call.launch(1, min(short, most), shapes[0])
    if most > short:
        call.launch(short + 1, most, shapes[1])
    return out, lse


@dataclass
class _Call:
    """What the launches of one call share."""

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
    out: Tensor
    lse: Tensor

    def launch(self, least: int, most: int, shape: Shape | None) -> None:
        """Compute the sequences with `least` to `most` query rows."""
        q, k, v, index, blocks = self.q, self.k_pages, self.v_pages, self.index, self.blocks
        rows, heads, head_dim = q.shape
        page_size, kv_heads = k.shape[1:3]
        group = heads // kv_heads
        list_group = group if blocks is None else heads // blocks.counts.shape[1]
        several_blocks = blocks is not None and blocks.counts.shape[2] > 1
        shape = shape or usual_shape(most * list_group, head_dim, q.dtype)
        fold = max(n for n in range(1, list_group + 1) if list_group % n == 0 and n <= shape.rows)
        queries = shape.rows // fold
        if blocks is not None and several_blocks:
            # A tile reads one list: its queries lie within one block.
            queries = max(n for n in range(1, queries + 1) if blocks.query_block % n == 0)
        sequences = index.kv_lengths.shape[0]
        row_tiles = min(sequences * _cdiv(most, queries), rows // queries + sequences)
        grid_heads = heads // fold
        workers = _cdiv(shape.waves * _multiprocessors(q.device), grid_heads)
        # Long tiles that fill the GPU as they are gain nothing from being cut.
        split = not several_blocks and (most <= SHORT or row_tiles <= workers)
        part_rows = min(most, queries) * fold
        parts = (row_tiles + workers) * grid_heads * part_rows if split else 0
        part_out = torch.empty(parts, head_dim, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(parts, dtype=torch.float32, device=q.device)
        windowed = self.window is not None and self.window < index.max_kv
        key_block = blocks.key_block if blocks is not None else 0
        together = self.contiguous or page_size % shape.keys == 0
        maps = shape.tensor_maps and together and key_block % shape.keys == 0 and _mappable(k) and _mappable(v)
        which: dict[str, Any] = {
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
        counts = blocks.counts if blocks is not None else None
        kernel: Any = attention_kernel
        kernel[(row_tiles + (workers if split else 0), grid_heads)](
            q, k, v, _tiles(k, shape.keys) if maps else None, _tiles(v, shape.keys) if maps else None,
            self.out, self.lse, part_out, part_lse, index.query_starts, index.kv_lengths, index.page_table,
            blocks.blocks if blocks is not None else None, counts, self.tree,
            scale=self.scale, softcap=self.softcap or 1.0,
            q_row=q.stride(0), q_head=q.stride(1), k_row=k.stride(1), k_head=k.stride(2), v_row=v.stride(1),
            v_head=v.stride(2), table_row=index.page_table.stride(0),
            blocks_sequence=blocks.blocks.stride(0) if blocks is not None else 0,
            blocks_head=blocks.blocks.stride(1) if blocks is not None else 0,
            blocks_row=blocks.blocks.stride(2) if blocks is not None else 0,
            GROUP=group, PAGE=page_size, CONTIGUOUS=self.contiguous,
            QUERY_BLOCK=blocks.query_block if blocks is not None else 1,
            BLOCK_M=shape.rows, SOFTCAP=self.softcap is not None,
            TREE=self.tree is not None and most <= TREE_ROWS, SPLIT=split, PHASES=shape.rows > 32,
            TMA=maps, BEHIND=shape.behind and q.dtype.itemsize == 2, STAGES=shape.stages,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers, **which,
        )  # fmt: skip
        if split:
            kernel = merge_kernel
            kernel[(row_tiles, grid_heads, part_rows)](
                self.out, self.lse, part_out, part_lse, index.query_starts, index.kv_lengths, counts,
                BLOCK_P=32, num_warps=4, **which,
            )  # fmt: skip


def usual_shape(rows: int, head_dim: int, dtype: torch.dtype) -> Shape:
    """For tiles of so many rows at most, as measured on an H100."""
    least = max(power_of_2(rows), 16)
    if dtype == torch.float32:
        return Shape(min(least, 64), 32, 4, 2)
    if rows <= 64:
        return Shape(least, 64 if head_dim <= 128 else 32, 4, 5)
    if head_dim <= 128:
        return Shape(128, 64, 8, 3, tensor_maps=True, behind=True)
    return Shape(128, 32, 8, 3, tensor_maps=True)


def _mappable(pages: Tensor) -> bool:
    """Whether the pages can be described by a tensor map of `[slots, Hkv x D]` that is read a head at a time."""
    head_dim, size = pages.shape[3], pages.element_size()
    return (
        head_dim & (head_dim - 1) == 0
        and head_dim * size >= 16
        and pages.stride(2) == head_dim
        and pages.stride(1) * size % 16 == 0
        and pages.data_ptr() % 16 == 0
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
