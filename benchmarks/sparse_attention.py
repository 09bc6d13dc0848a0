"""Sparse attention on this machine's GPU: errors, then one layer of Llama-3.1-8B's heads, dense beside minference and
hip, with the share of finding what is looked at. It takes less than three minutes on an H100.

    python benchmarks/sparse_attention.py --out sparse_attention.json

Every figure is printed as it comes. Queries and keys have the structure that the methods live on: first keys and some
others that all rows look at, distances that all rows look at, and noise. How much of the pairs is looked at stands
beside each time.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sparse_systems import decodes, prompts
from torch import Tensor

from headstart.evaluation.attention_bench import HEAD_DIM, HEADS, KV_HEADS, seconds
from headstart.methods.prefill.minference.index import Estimate
from headstart.methods.prefill.minference.patterns import LayerPatterns, Pattern
from headstart.ops.attention import KeyBlocks, RaggedLayout, paged_attention, paged_attention_reference
from headstart.ops.attention.descent import Descent, descend, descend_reference
from headstart.ops.attention.estimate import line_scores, line_scores_reference
from headstart.ops.attention.lists import blocks_of_lines, lines_of, listed, stacked
from headstart.ops.attention.shape import Shape

PAGE = 64
SCALE = HEAD_DIM**-0.5
CHUNK = 65536
"""Rows that dense attention takes at a time at the longest length, as a chunked prefill does."""
PATTERNS = {
    "minference 1000/6096": Pattern("vertical-slash", 1000, 6096),
    "minference 500/700": Pattern("vertical-slash", 500, 700),
    "a-shape 100/800": Pattern("a-shape", 100, 800),
    "block-sparse 100": Pattern("block-sparse", 0, 100),
}
DESCENTS = {"hip 512, blocks of 2": Descent(), "hip 512, blocks of 16": Descent(keep=32, key_block=16)}
SHAPES = {
    "64 x 64, TMA": Shape(64, 64, 4, 3, tensor_maps=True),
    "64 x 64": Shape(64, 64, 4, 3),
    "64 x 64, TMA, 4 stages": Shape(64, 64, 4, 4, tensor_maps=True),
    "64 x 64, 4 stages": Shape(64, 64, 4, 4),
    "64 x 128, TMA": Shape(64, 128, 4, 2, tensor_maps=True),
    "64 x 128, 8 warps": Shape(64, 128, 8, 2),
}
Row = dict[str, Any]


@dataclass
class Layer:
    """One layer's tensors: `q [R, H, D]`, pages `[P, PAGE, Hkv, D]`, of the last R rows of a sequence."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: RaggedLayout

    @property
    def pairs(self) -> float:
        """Causal query-key pairs of one head."""
        rows, keys = self.layout.num_rows, self.layout.kv_lengths[0]
        return rows * (keys - rows) + rows * (rows + 1) / 2

    def attend(self, blocks: KeyBlocks | None = None, shape: Shape | None = None) -> Tensor:
        """Attention over all keys, or over some."""
        return paged_attention(self.q, self.k, self.v, self.layout, scale=SCALE, selection=blocks, shape=shape)[0]


def layer_of(length: int, rows: int | None = None) -> Layer:
    """A layer with the structure that the docstring above describes, its pages in order."""
    generator = torch.Generator("cuda").manual_seed(length)
    random = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    rows = length if rows is None else rows
    half = HEAD_DIM // 2
    turn = torch.exp(-torch.arange(half, device="cuda") / half * 13.1)  # Llama 3: base 500,000
    angle = torch.arange(length, device="cuda")[:, None] * turn
    local = torch.cat((angle.cos(), angle.sin()), 1).to(torch.bfloat16)[:, None] * 1.2
    common = torch.randn(KV_HEADS, HEAD_DIM, **random)
    heavy = torch.rand(length, 1, 1, device="cuda", generator=generator) < 256 / length
    heavy[:4] = True
    k = torch.randn(length, KV_HEADS, HEAD_DIM, **random).mul_(0.6).add_(local).add_(heavy * common * 0.6)
    q = torch.randn(rows, HEADS, HEAD_DIM, **random).mul_(0.6).add_(local[length - rows :])
    q.unflatten(1, (KV_HEADS, -1)).add_(common[:, None] * 0.6)
    v = torch.randn(length, KV_HEADS, HEAD_DIM, **random)
    layout = RaggedLayout([rows], [length], [range(length // PAGE)], PAGE, "cuda")
    k, v = (x.view(-1, PAGE, KV_HEADS, HEAD_DIM) for x in (k, v))
    return Layer(q, k, v, layout)


def finders() -> Iterator[tuple[str, Callable[[Layer], KeyBlocks]]]:
    """What each method does to find out what is looked at."""
    for name, pattern in PATTERNS.items():
        patterns = LayerPatterns([pattern] * HEADS, torch.device("cuda"))
        yield name, lambda layer, p=patterns: Estimate().key_blocks(p, layer.q, layer.k, layer.layout, SCALE)
    for name, descent in DESCENTS.items():
        yield name, lambda layer, d=descent: descend(layer.q, layer.k, layer.layout, d)


def once(run: Callable[[], Any]) -> float:
    """Seconds of one run, for what takes long."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def dense_seconds(layer: Layer) -> float:
    """The best exact path; the longest prompts in chunks, once."""
    length = layer.layout.num_rows
    if length <= 2 * CHUNK:
        return seconds(layer.attend, 2)
    total = 0.0
    for end in range(CHUNK, length + 1, CHUNK):
        layout = RaggedLayout([CHUNK], [end], layer.layout.page_tables, PAGE, "cuda")
        total += once(Layer(layer.q[end - CHUNK : end], layer.k, layer.v, layout).attend)
    return total


def time_layer(length: int, rows: int | None = None) -> Iterator[Row]:
    """Dense, then every method: seconds to find, seconds to attend, the share of the pairs, and the gain."""
    layer = layer_of(length, rows)
    dense = dense_seconds(layer)
    flops = 4 * HEADS * HEAD_DIM * layer.pairs
    work = {"keys": length, "rows": layer.layout.num_rows}
    yield work | {"method": "dense", "seconds": dense, "tflops": flops / dense / 1e12}
    for name, find in finders():
        if length > 2 * CHUNK and name.startswith("block-sparse"):
            continue
        try:
            blocks = find(layer)
            finding = seconds(lambda find=find: find(layer), 2)
            attending = seconds(lambda blocks=blocks: layer.attend(blocks), 2)
            share = blocks.pairs(layer.layout) / layer.pairs
        except Exception as error:
            yield work | {"method": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        whole = finding + attending
        yield work | {
            "method": name, "seconds": whole, "finding_seconds": finding, "finding_share": finding / whole,
            "pairs_share": share, "tflops": flops * share / attending / 1e12, "gain": dense / whole,
        }  # fmt: skip


def time_systems(length: int) -> Iterator[Row]:
    """Decoding with what other methods choose or keep."""
    layer = decode_layer(length)
    return decodes(layer.q, layer.k, layer.v, layer.layout, seconds)


def time_shapes() -> Iterator[Row]:
    """Tiles for the vertical-slash kernel and for lists of small blocks."""
    layer = layer_of(65536)
    wanted = dict(finders())
    for name in ("minference 1000/6096", "hip 512, blocks of 2"):
        blocks = wanted[name](layer)
        share = blocks.pairs(layer.layout)
        for shape_name, shape in SHAPES.items():
            try:
                taken = seconds(lambda blocks=blocks, shape=shape: layer.attend(blocks, shape), 2)
            except Exception as error:
                yield {"method": name, "shape": shape_name, "failed": f"{type(error).__name__}: {str(error)[:200]}"}
                continue
            rate = 4 * HEADS * HEAD_DIM * share / taken / 1e12
            yield {"method": name, "shape": shape_name, "seconds": taken, "tflops": rate}


def decode_layer(length: int, sequences: int = 8) -> Layer:
    """A row of each of several sequences."""
    generator = torch.Generator("cuda").manual_seed(0)
    pages = length // PAGE
    tables = [range(s * pages, (s + 1) * pages) for s in range(sequences)]
    layout = RaggedLayout([1] * sequences, [length] * sequences, tables, PAGE, "cuda")
    random = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    k, v = (torch.randn(sequences * pages, PAGE, KV_HEADS, HEAD_DIM, **random) for _ in range(2))
    return Layer(torch.randn(sequences, HEADS, HEAD_DIM, **random), k, v, layout)


def time_decode(length: int) -> Iterator[Row]:
    """One decode step of several sequences: dense, hip with its search, and hip with what an earlier step found."""
    layer = decode_layer(length)
    layout = layer.layout
    work = {"keys": length, "rows": f"{layout.num_rows} x 1"}
    dense = seconds(layer.attend, 5)
    yield work | {"method": "dense", "seconds": dense}
    for name, descent in DESCENTS.items():
        blocks = descend(layer.q, layer.k, layout, descent)
        finding = seconds(lambda d=descent: descend(layer.q, layer.k, layout, d), 5)
        attending = seconds(lambda blocks=blocks: layer.attend(blocks), 5)
        gains = {"gain": dense / (finding + attending), "gain_reused": dense / (finding / 8 + attending)}
        yield work | {"method": name, "finding_seconds": finding, "attending_seconds": attending} | gains


def errors(case: int) -> Row:
    """A small ragged batch: the kernel's error beside float64, and the finders beside their references."""
    generator = torch.Generator().manual_seed(case)
    lengths = torch.randint(1, 600, (2, 2), generator=generator).tolist()
    page, (kv_heads, group), head_dim = (16, 64)[case % 2], ((2, 4), (4, 1))[case % 2], (64, 128)[case // 2 % 2]
    totals = [rows + before for rows, before in lengths]
    counts = [-(-total // page) for total in totals]
    order = torch.randperm(sum(counts), generator=generator) if case % 3 else torch.arange(sum(counts))
    tables = [part.tolist() for part in order.split(counts)]
    layout = RaggedLayout([rows for rows, _ in lengths], totals, tables, page, "cuda")
    k, v = torch.randn(2, sum(counts), page, kv_heads, head_dim, generator=generator).to("cuda", torch.bfloat16)
    q = torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator).to("cuda", torch.bfloat16)
    parts = []
    for length in totals:
        distances, columns = (torch.rand(2, q.shape[1], length, generator=generator) < 0.05).cuda()
        distances[0] = columns[0] = False
        parts.append(lines_of(distances, length, *listed(columns), 64, 64))
    blocks = blocks_of_lines(stacked(parts), layout, 64, 64)
    chosen = (torch.rand(*blocks.counts.shape, -(-max(totals) // 64), generator=generator) < 0.3).cuda()
    chosen[:, 1:] = False
    blocks = KeyBlocks(*listed(chosen), 64, 64, blocks.lines)
    rule: dict[str, Any] = {"scale": head_dim**-0.5, "selection": blocks}
    out, lse = paged_attention(q, k, v, layout, **rule)
    want, want_lse = paged_attention_reference(q.double(), k.double(), v.double(), layout, **rule)
    descent = Descent(keep=24, query_block=32)
    found, known = (find(q, k, layout, descent) for find in (descend, descend_reference))
    mine = torch.stack([torch.isin(a[:c], b[:d]).float().mean() for a, c, b, d in _pairs_of_lists(found, known)])
    (keys,) = layout.gather(0, k)
    rows = q[: layout.query_lengths[0]][-64:]
    lines, wanted = (torch.cat(each(rows, keys, rule["scale"])) for each in (line_scores, line_scores_reference))
    return {
        "case": case,
        "error": float((out.double() - want).norm() / want.norm()),
        "lse_error": float((lse - want_lse).nan_to_num(0.0, 0.0, 0.0).abs().max()),
        "nothing_seen_alike": bool(torch.equal(lse.isinf(), want_lse.isinf())),
        "descent_agrees": float(mine.mean()),
        "lines_error": float((lines - wanted).norm() / wanted.norm()),
    }


def _pairs_of_lists(a: KeyBlocks, b: KeyBlocks) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Lists of the same block of queries that are not empty, with how many of them count."""
    flat = (a.blocks.flatten(0, 2), a.counts.flatten(), b.blocks.flatten(0, 2), b.counts.flatten())
    return (each for each in zip(*flat, strict=True) if each[3] > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    parser.add_argument("--seconds", type=float, default=140, help="what has not begun by then is left out")
    parser.add_argument("--longest", type=int, default=1 << 20, help="keys of the longest prompt")
    args = parser.parse_args()
    rows: list[Row] = []
    begun = time.perf_counter()

    def note(what: str, measure: Callable[[], Iterator[Row]]) -> None:
        """Measure, print and keep; what fails is said and does not end the run."""
        late = time.perf_counter() - begun > args.seconds
        found = iter([{"failed": "left out, for lack of time"}]) if late else measure()
        while True:
            try:
                row = {"what": what} | next(found)
            except StopIteration:
                break
            except Exception as error:
                row = {"what": what, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
                found = iter(())
            rows.append(row)
            print(f"[{time.perf_counter() - begun:5.1f} s] {_line(row)}", flush=True)
        torch.cuda.empty_cache()
        if args.out is not None:
            args.out.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1))

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    note("errors", lambda: (errors(case) for case in range(4)))
    for length in (8192, 32768, 131072):
        note("prefill", lambda length=length: time_layer(length))
    note("chunk", lambda: time_layer(131072, 8192))
    note("decode", lambda: time_decode(32768))
    note("decode", lambda: time_decode(131072))
    for length in (32768, 131072):
        note("systems, prompt", lambda length=length: prompts(layer_of(length, 8192), seconds))
        note("systems, decode", lambda length=length: time_systems(length))
    note("longest prefill", lambda: time_layer(args.longest))
    note("tiles", time_shapes)


def _line(row: Row) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


if __name__ == "__main__":
    main()
