"""Measures the attention kernels of a GPU: errors against float64, times beside the library's, and sweeps of shapes."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops.attention import RaggedLayout, paged_attention_reference
from headstart.ops.attention.cuda import attend_over_pages
from headstart.ops.attention.launch import attend_on_gpu
from headstart.ops.attention.library import DENSE
from headstart.ops.attention.shape import Shape
from headstart.ops.packed_flash import Tiles, bounds, flash_attention, usual_tiles

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
_PLAIN: dict[str, Any] = {"window": None, "softcap": None, "blocks": None, "tree": None}
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One step: S sequences with so many query rows and keys each."""

    sequences: int
    rows: int
    keys: int
    page_size: int = 16
    scattered: bool = False

    def __str__(self) -> str:
        pages = f"pages of {self.page_size}" + (", scattered" if self.scattered else "")
        return f"{self.sequences} x {self.rows} rows, {self.keys} keys, {pages}"

    @property
    def flops(self) -> float:
        """Of the two products, where causality lets them matter."""
        seen = self.rows * (self.keys - self.rows) + self.rows * (self.rows + 1) / 2
        return 4.0 * self.sequences * seen * HEADS * HEAD_DIM

    @property
    def bytes(self) -> float:
        """Of keys and values, read once."""
        return 2.0 * 2 * self.sequences * self.keys * KV_HEADS * HEAD_DIM


@dataclass
class Inputs:
    """A step's tensors; `pools` holds several layers' keys and values, so that none is found in the GPU's cache."""

    q: Tensor
    pools: list[tuple[Tensor, Tensor]]
    layout: RaggedLayout


@lru_cache(maxsize=1)
def inputs_of(work: Work, layers: int = 1, device: str = "cuda") -> Inputs:
    """Random bfloat16 inputs of Llama-3.1-8B's heads."""
    generator = torch.Generator().manual_seed(0)
    pages = -(-work.keys // work.page_size)
    total = work.sequences * pages
    order = torch.randperm(total, generator=generator) if work.scattered else torch.arange(total)
    layout = RaggedLayout(
        [work.rows] * work.sequences,
        [work.keys] * work.sequences,
        order.view(work.sequences, pages).tolist(),
        work.page_size,
        device,
    )

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    pool = (total, work.page_size, KV_HEADS, HEAD_DIM)
    pools = [(random(*pool), random(*pool)) for _ in range(layers)]
    return Inputs(random(layout.num_rows, HEADS, HEAD_DIM), pools, layout)


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of a few runs after one that warms up, by the GPU's clock."""
    run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return min(a.elapsed_time(b) for a, b in pairwise(events)) / 1e3


def captured_seconds(runs: list[Callable[[], Any]], repeats: int = 5) -> float:
    """Of one of the runs, which are replayed as one graph, so that the host's part is left out."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return seconds(graph.replay, repeats) / len(runs)


def time_shape(work: Work, shape: Shape | None) -> Row:
    """How long the Triton kernel takes for some work in some shape (None: the usual one)."""
    layers = max(1, min(8, int(4e8 / work.bytes))) if work.rows <= 16 else 1
    given = inputs_of(work, layers)
    layout = given.layout

    def attend(pool: tuple[Tensor, Tensor]) -> None:
        attend_on_gpu(
            given.q,
            *pool,
            layout.index,
            scale=HEAD_DIM**-0.5,
            shapes=(shape, shape),
            contiguous=layout.index.max_query > 16 and layout.is_contiguous,
            lengths=layout.query_lengths,
        )

    if work.rows <= 16:
        taken = captured_seconds([lambda pool=pool: attend(pool) for pool in given.pools])
    else:
        taken = seconds(lambda: attend(given.pools[0]))
    return _row(work, "triton", taken, None if shape is None else _short(shape))


def time_path(work: Work, path: str) -> Row:
    """How long `paged_attention` takes by one of its paths."""
    given = inputs_of(work)
    rule = _PLAIN | {"scale": HEAD_DIM**-0.5, "path": path}
    return _row(work, path, seconds(lambda: attend_over_pages(given.q, *given.pools[0], given.layout, **rule)))


def time_bare(work: Work, name: str) -> Row:
    """How long a library kernel takes alone, for whole causal sequences without pages."""
    q, k, v = (
        torch.randn(1, heads, work.rows, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    taken = seconds(lambda: DENSE[name](q, k, v, HEAD_DIM**-0.5, True))
    return _row(work, f"{name} alone", taken)


def _row(work: Work, path: str, taken: float, shape: str | None = None) -> Row:
    return {
        "work": str(work),
        "path": path,
        "shape": shape,
        "ms": taken * 1e3,
        "tflops": work.flops / taken / 1e12,
        "tb_per_s": work.bytes / taken / 1e12,
    }


def _short(shape: Shape) -> str:
    flags = [name for name in ("tensor_maps", "behind") if getattr(shape, name)]
    flags += [f"registers={shape.registers}"] if shape.registers else []
    return f"{shape.rows}x{shape.keys} w{shape.warps} s{shape.stages} v{shape.waves} {' '.join(flags)}".strip()


PREFILL_SHAPES = (
    Shape(64, 64, 4, 3, tensor_maps=True, behind=True),
    Shape(128, 64, 8, 3, tensor_maps=True, behind=True),
    Shape(128, 128, 8, 2, tensor_maps=True, behind=True),
)
"""What is tried for prefill chunks beside the usual shape."""
_DEFAULT = usual_tiles(HEAD_DIM, torch.bfloat16)
BACKWARD_TILES = (
    _DEFAULT,
    (_DEFAULT[0], Tiles(64, 64, 4, 3), _DEFAULT[2]),
    (_DEFAULT[0], _DEFAULT[1], Tiles(64, 64, 4, 2)),
    (_DEFAULT[0], _DEFAULT[1], Tiles(32, 128, 8, 3)),
)
"""What is tried for the backward pass."""


def prepare(works: list[tuple[Work, Shape | None]], cases: int, processes: int = 14) -> list[Row]:
    """Fill Triton's cache with what the measurements need, several kernels at a time.

    Returns:
        the error rows of so many cases, whose kernels are as many again.
    """
    jobs = {
        (replace(work, rows=min(work.rows, 2048), keys=min(work.keys, 2048 if work.rows > 16 else 64)), shape)
        for work, shape in works
    }
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        errors = [pool.submit(error_rows, case) for case in range(cases)]
        errors += [pool.submit(gradient_errors, case) for case in range(2 if cases else 0)]
        compiled = [pool.submit(_compile, *job) for job in jobs]
        compiled += [pool.submit(_compile_backward, tiles) for tiles in BACKWARD_TILES]
        failed = [row for job in compiled if (row := job.result()) is not None]
        return [row for rows in errors for row in rows.result()] + failed


def _compile(work: Work, shape: Shape | None) -> Row | None:
    try:
        time_shape(work, shape)
    except Exception as error:
        name = None if shape is None else _short(shape)
        return {"work": str(work), "shape": name, "failed": f"{type(error).__name__}: {str(error)[:200]}"}


def _compile_backward(tiles: tuple[Tiles, ...]) -> Row | None:
    try:
        time_backward(256, tiles)
    except Exception as error:
        return {"work": "backward", "shape": str(tiles[1:]), "failed": f"{type(error).__name__}: {str(error)[:200]}"}


def time_backward(length: int, tiles: tuple[Tiles, ...] | None) -> Row:
    """How long a causal backward pass over one document takes by our kernels, or by cuDNN where there are no tiles."""
    q, k, v, grad = (
        torch.randn(length, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    if tiles is None:
        path = "cudnn"
        queries, keys, values = (x.transpose(0, 1)[None] for x in inputs)
        out = DENSE["cudnn"](queries, keys, values, HEAD_DIM**-0.5, True)[0]
        grad = grad.transpose(0, 1)[None]
    else:
        path = "triton"
        rule = bounds(torch.zeros(length, dtype=torch.int32, device="cuda"))
        out = flash_attention(*inputs, rule, scale=HEAD_DIM**-0.5, tiles=tiles)[0]  # pyright: ignore[reportCallIssue]
    taken = seconds(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))
    flops = 2.5 * Work(1, length, length).flops
    shape = None if tiles is None else f"{_tile_name(tiles[1])}, {_tile_name(tiles[2])}"
    row = {"work": f"backward, {length} rows", "path": path, "shape": shape, "ms": taken * 1e3}
    return row | {"tflops": flops / taken / 1e12, "tb_per_s": 0.0}


def _tile_name(tiles: Tiles) -> str:
    return f"{tiles.queries}x{tiles.keys} w{tiles.warps} s{tiles.stages}"


def gradient_errors(case: int, device: str = "cuda", longest: int = 300) -> list[Row]:
    """Relative errors of the gradients within random documents in bfloat16, and how they compare with SDPA's own."""
    generator = torch.Generator().manual_seed(case)
    lengths = torch.randint(1, longest, (4,), generator=generator).tolist()
    head_dim = (128, 64)[case % 2]
    start = torch.tensor([0, *lengths]).cumsum(0)[:-1].repeat_interleave(torch.tensor(lengths)).int().to(device)
    given = [
        torch.randn(sum(lengths), heads, head_dim, generator=generator).to(device, torch.bfloat16)
        for heads in (8, 2, 2, 8)
    ]

    def gradients(attend: Callable[..., Tensor], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in given[:3]]
        return list(torch.autograd.grad(attend(*inputs), inputs, given[3].to(dtype)))

    def library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)), strict=True)
        outs = [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
        return torch.cat(outs, 2)[0].transpose(0, 1)

    scale = head_dim**-0.5
    ours = gradients(lambda q, k, v: flash_attention(q, k, v, bounds(start), scale=scale)[0])
    want, theirs = gradients(library, torch.float64), gradients(library)
    return [
        {
            "work": f"d{name}, D {head_dim}, documents of {lengths}",
            "path": "triton backward",
            "error": _relative(mine, exact),
            "over_sdpa": _relative(mine, exact) / _relative(other, exact),
            "lse_error": 0.0,
            "finite": bool(mine.isfinite().all()),
        }
        for name, mine, other, exact in zip("qkv", ours, theirs, want, strict=True)
    ]


def time_flex(length: int) -> Row:
    """How long compiled FlexAttention takes for one causal sequence, without its compilation."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key <= row

    q, k, v = (
        torch.randn(1, heads, length, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    mask = create_block_mask(causal, None, None, length, length, device="cuda")
    attend: Any = torch.compile(flex_attention, dynamic=False)
    return _row(
        Work(1, length, length), "flex alone", seconds(lambda: attend(q, k, v, block_mask=mask, enable_gqa=True))
    )


CASES = 12
"""Cases of `error_rows`."""


def error_rows(case: int, device: str = "cuda", longest: int = 3000) -> list[Row]:
    """Relative errors of each path for a random ragged batch in bfloat16, and how they compare with SDPA's own."""
    generator = torch.Generator().manual_seed(case)
    head_dim = (64, 80, 96, 128, 256, 128)[case % 6]
    page_size, kv_heads, group = ((16, 4, 4), (128, 2, 8), (64, 3, 1), (16, 2, 7))[case % 4]
    rule: dict[str, Any] = {
        "scale": head_dim**-0.5,
        "window": (None, None, 300)[case % 3],
        "softcap": 20.0 if case == 4 else None,
    }
    lengths = torch.randint(1, longest, (6, 2), generator=generator)
    lengths[::2, 0] = torch.randint(1, 5, (3,), generator=generator)
    q, k, v, layout = _ragged(lengths.tolist(), page_size, kv_heads, group, head_dim, case, device)
    want, want_lse = paged_attention_reference(q.double(), k.double(), v.double(), layout, **rule)
    theirs = None if rule["softcap"] else _relative(_sdpa(q, k, v, layout, rule["scale"], rule["window"]), want)
    name = f"D {head_dim}, {kv_heads} x {group} heads, pages of {page_size}, window {rule['window']}"
    into = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=device)
    rows = []
    for path in ("triton", *DENSE):
        try:
            if path == "triton":
                out, lse = attend_on_gpu(q, k, v, layout.index, into=into, contiguous=layout.is_contiguous, **rule)
            elif rule["window"] or rule["softcap"]:
                continue
            else:
                out, lse = attend_over_pages(q, k, v, layout, blocks=None, tree=None, path=path, **rule)
        except Exception as error:
            rows.append({"work": name, "path": path, "failed": f"{type(error).__name__}: {str(error)[:200]}"})
            continue
        rows.append(
            {
                "work": name,
                "path": path,
                "error": _relative(out, want),
                "over_sdpa": None if theirs is None else _relative(out, want) / theirs,
                "lse_error": float((lse - want_lse).abs().max()),
                "finite": bool(out.isfinite().all()),
            }
        )
    return rows


def _relative(out: Tensor, want: Tensor) -> float:
    return float((out.double() - want).norm() / want.norm())


def _ragged(
    lengths: list[list[int]], page_size: int, kv_heads: int, group: int, head_dim: int, seed: int, device: str
) -> tuple[Tensor, Tensor, Tensor, RaggedLayout]:
    """Sequences of (rows, keys before them); every other case has its pages in order. Free slots hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    totals = [rows + before for rows, before in lengths]
    counts = [-(-total // page_size) for total in totals]
    order = torch.randperm(sum(counts), generator=generator) if seed % 2 else torch.arange(sum(counts))
    tables = [part.tolist() for part in order.split(counts)]
    layout = RaggedLayout([rows for rows, _ in lengths], totals, tables, page_size, device)
    pools = torch.full((2, sum(counts) * page_size, kv_heads, head_dim), torch.nan)
    slots = RaggedLayout(totals, totals, tables, page_size).slots
    pools[:, slots] = torch.randn(2, len(slots), kv_heads, head_dim, generator=generator)
    k, v = pools.view(2, -1, page_size, kv_heads, head_dim).to(device, torch.bfloat16)
    q = torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator).to(device, torch.bfloat16)
    return q, k, v, layout


def _sdpa(q: Tensor, k: Tensor, v: Tensor, layout: RaggedLayout, scale: float, window: int | None) -> Tensor:
    """The same by PyTorch's `scaled_dot_product_attention`, sequence by sequence."""
    parts = []
    for s, rows in enumerate(q.split(layout.query_lengths)):
        keys, values = (x.transpose(0, 1)[None] for x in layout.gather(s, k, v))
        last = torch.arange(keys.shape[2] - len(rows), keys.shape[2], device=q.device)[:, None]
        key = torch.arange(keys.shape[2], device=q.device)
        mask = (key <= last) & (key > last - (window or keys.shape[2]))
        out = F.scaled_dot_product_attention(
            rows.transpose(0, 1)[None], keys, values, mask, scale=scale, enable_gqa=True
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)
