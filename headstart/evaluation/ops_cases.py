"""What `headstart bench ops` measures: every op of a layer and of the draw, at the shapes of prefill and decode.

A source is a function from `OpShapes` to cases; `SOURCES` names them all. A case makes its inputs, says who computes
it, what is right, and what it costs at least.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.evaluation.ops_cases_weights import moe_cases, quantized_cases
from headstart.evaluation.ops_shapes import OURS, PLAIN, OpCase, OpShapes, Source, plain_gated
from headstart.ops import few_rows
from headstart.ops.activation import gated
from headstart.ops.linear import gated_linear, linear
from headstart.ops.norm import add_rms_norm, rms_norm
from headstart.ops.rotary import HeadNorms, RotaryRows, apply_rotary, rotary_rows, rotate_heads
from headstart.ops.sampling import draw, draw_reference
from headstart.ops.write_kv import write_kv

_EPS = 1e-5
_PAGE = 16


def linear_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """The five dense products of a model; those of a decode step and, but for the output layer, of a prefill."""
    m = shapes.model
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    sizes = {
        "qkv": (q + 2 * kv, m.hidden),
        "output": (m.hidden, q),
        "gate_up": (2 * m.ffn, m.hidden),
        "down": (m.hidden, m.ffn),
        "lm_head": (m.vocab, m.hidden),
    }
    for rows in shapes.rows:
        for name, (out, deep) in sizes.items():
            if name == "lm_head" and rows not in shapes.decode:
                continue
            yield OpCase(
                f"linear {name}",
                f"{rows} x {deep} → {out}",
                lambda rows=rows, out=out, deep=deep: (shapes.random(rows, deep), shapes.weight(out, deep)),
                {OURS: linear, PLAIN: F.linear, **_tilings(shapes, rows)},
                F.linear,
                2.0 * rows * out * deep,
                shapes.item * (out * deep + rows * (out + deep)),
            )


def _tilings(shapes: OpShapes, rows: int) -> dict[str, Callable[..., Tensor]]:
    """Every tiling of the kernels of few rows, for a sweep."""
    if not (shapes.sweep and shapes.device.type == "cuda" and rows <= few_rows.MOST_ROWS):
        return {}
    from headstart.ops.kernels import few_rows as kernel

    def side(config: kernel.Config) -> Callable[..., Tensor]:
        return lambda x, weight: kernel.product(x, weight, None, None, config)

    return {f"tiles {c.outputs}x{c.inputs} w{c.warps} s{c.stages}": side(c) for c in few_rows.candidates(rows)}


def epilogue_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """The products of the feed-forward block with what follows them: the gate, and the residual sum."""
    m = shapes.model
    for rows in shapes.rows:
        yield OpCase(
            "gate_up and gate",
            f"{rows} x {m.hidden} → {m.ffn}",
            lambda rows=rows: (shapes.random(rows, m.hidden), shapes.weight(2 * m.ffn, m.hidden)),
            {OURS: lambda x, w: gated_linear(x, w, None, "silu"), PLAIN: lambda x, w: plain_gated(F.linear(x, w))},
            lambda x, w: plain_gated(F.linear(x, w)),
            4.0 * rows * m.ffn * m.hidden,
            shapes.item * (2 * m.ffn * m.hidden + rows * (m.hidden + m.ffn)),
        )
        yield OpCase(
            "down and sum",
            f"{rows} x {m.ffn} → {m.hidden}",
            lambda rows=rows: (
                shapes.random(rows, m.ffn),
                shapes.weight(m.hidden, m.ffn),
                shapes.random(rows, m.hidden),
            ),
            {OURS: lambda x, w, onto: linear(x, w, None, onto), PLAIN: lambda x, w, onto: onto + F.linear(x, w)},
            lambda x, w, onto: onto + F.linear(x, w),
            2.0 * rows * m.ffn * m.hidden,
            shapes.item * (m.ffn * m.hidden + rows * (m.ffn + 2 * m.hidden)),
        )


def activation_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """SwiGLU by itself."""
    size = shapes.model.ffn
    for rows in shapes.rows:
        yield OpCase(
            "gate",
            f"{rows} x {2 * size}",
            lambda rows=rows: (shapes.random(rows, 2 * size),),
            {OURS: lambda x: gated(x, "silu"), PLAIN: plain_gated},
            plain_gated,
            0.0,
            shapes.item * rows * 3 * size,
        )


def norm_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """The norm by itself, and with the residual sum before it."""
    size = shapes.model.hidden
    for rows in shapes.rows:
        yield OpCase(
            "norm",
            f"{rows} x {size}",
            lambda rows=rows: (shapes.random(rows, size), shapes.random(size)),
            {OURS: lambda x, w: rms_norm(x, w, _EPS), PLAIN: lambda x, w: F.rms_norm(x, (size,), w, _EPS)},
            lambda x, w: F.rms_norm(x, (size,), w, _EPS),
            0.0,
            shapes.item * rows * 2 * size,
        )
        yield OpCase(
            "sum and norm",
            f"{rows} x {size}",
            lambda rows=rows: (shapes.random(rows, size), shapes.random(rows, size), shapes.random(size)),
            {
                OURS: lambda x, b, w: add_rms_norm(x, b, after=None, before=w, eps=_EPS)[1],
                PLAIN: lambda x, b, w: F.rms_norm(x + b, (size,), w, _EPS),
            },
            lambda x, b, w: F.rms_norm(x + b, (size,), w, _EPS),
            0.0,
            shapes.item * rows * 4 * size,
        )


def rotary_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """The rotation of queries and keys, without and with norms of their heads."""
    m = shapes.model
    heads, size = m.heads + m.kv_heads, m.head_dim

    def inputs(rows: int) -> tuple[Tensor, ...]:
        angles = torch.randn(rows, size // 2, device=shapes.device) * 10
        # Queries and keys lie before the values of the fused projection.
        qkv = shapes.random(rows, heads + m.kv_heads, size)
        return qkv, shapes.random(size), shapes.random(size), *rotary_rows(angles.cos(), angles.sin(), shapes.dtype)

    def plain(qkv: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, normed: bool) -> Tensor:
        qk = qkv[:, :heads]
        if normed:
            parts = zip(qk.split((m.heads, m.kv_heads), 1), (q, k), strict=True)
            qk = torch.cat([F.rms_norm(part, (size,), scale, _EPS) for part, scale in parts], 1)
        return apply_rotary(qk, RotaryRows(cos, sin))

    def ours(qkv: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, normed: bool) -> Tensor:
        norms = HeadNorms(q, k, _EPS, False, False) if normed else None
        return rotate_heads(qkv[:, :heads], m.heads, RotaryRows(cos, sin), norms)

    for rows in shapes.rows:
        for normed in (False, True):
            yield OpCase(
                "head norms and rotation" if normed else "rotation",
                f"{rows} x {heads} x {size}",
                partial(inputs, rows),
                {OURS: partial(ours, normed=normed), PLAIN: partial(plain, normed=normed)},
                partial(plain, normed=normed),
                0.0,
                shapes.item * rows * size * 2 * (heads + 1),
            )


def write_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """New keys and values into their pages."""
    m = shapes.model

    def inputs(rows: int) -> tuple[Tensor, ...]:
        pages = torch.zeros(2, -(-rows // _PAGE), _PAGE, m.kv_heads, m.head_dim, dtype=shapes.dtype)
        heads = shapes.random(rows, m.heads + 2 * m.kv_heads, m.head_dim)
        k, v = heads[:, m.heads :].split(m.kv_heads, 1)
        return pages.to(shapes.device), k, v, torch.randperm(rows, device=shapes.device)

    def plain(pages: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
        pages[0].flatten(0, 1).index_copy_(0, slots, k)
        pages[1].flatten(0, 1).index_copy_(0, slots, v)
        return pages

    def ours(pages: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
        write_kv(pages[0], pages[1], k, v, slots)
        return pages

    for rows in shapes.rows:
        yield OpCase(
            "cache write",
            f"{rows} x {m.kv_heads} x {m.head_dim}",
            partial(inputs, rows),
            {OURS: ours, PLAIN: plain},
            plain,
            0.0,
            shapes.item * rows * 4 * m.kv_heads * m.head_dim,
        )


# Temperature, top-k, top-p, and by how much the logits spread: little leaves more tokens than candidates are put aside.
_DRAWS = {
    "greedy": (0.0, 0, 1.0, 4.0),
    "all": (1.0, 0, 1.0, 4.0),
    "top-p 0.9": (1.0, 0, 0.9, 4.0),
    "top-k 50, top-p 0.9": (1.0, 50, 0.9, 4.0),
    "top-p 0.9, flat": (1.0, 0, 0.9, 1.0),
}


def draw_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """One token per row; beside it the plain way, which sorts the vocabulary where top-k or top-p wants it."""
    size = shapes.model.vocab

    def inputs(rows: int, temperature: float, top_k: int, top_p: float, spread: float) -> tuple[Tensor, ...]:
        settings = [
            torch.full((rows,), value, dtype=torch.float64, device=shapes.device)
            for value in (temperature, top_k, top_p, 0.0)
        ]
        points = torch.rand(rows, dtype=torch.float64, device=shapes.device)
        return torch.randn(rows, size, device=shapes.device) * spread, *settings, points

    for rows in shapes.decode:
        for name, settings in _DRAWS.items():
            yield OpCase(
                "draw",
                f"{rows} x {size}, {name}",
                partial(inputs, rows, *settings),
                {OURS: draw, PLAIN: _plain_draw(*settings[:3])},
                draw_reference,
                0.0,
                4.0 * rows * size,
                frozenset() if shapes.device.type == "cuda" else frozenset((OURS,)),
            )


def _plain_draw(temperature: float, top_k: int, top_p: float) -> Callable[..., Tensor]:
    """What plain PyTorch would do for such settings."""
    if temperature == 0:
        return lambda logits, *_: logits.argmax(-1)
    return _draw_by_sorting if top_k or top_p < 1 else _draw_in_order


def _draw_in_order(logits: Tensor, temperature: Tensor, *others: Tensor) -> Tensor:
    cumulative = torch.softmax(logits / temperature.float().clamp(min=1e-5)[:, None], -1).double().cumsum(-1)
    points = others[-1][:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).clamp(max=logits.shape[1] - 1)[:, 0]


def _draw_by_sorting(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, points: Tensor
) -> Tensor:
    values, order = torch.softmax(logits / temperature.float().clamp(min=1e-5)[:, None], -1).sort(descending=True)
    rank = torch.arange(values.shape[1], device=values.device)
    values = values.masked_fill((rank >= top_k[:, None]) & (top_k[:, None] > 0), 0.0)
    before = values.cumsum(-1) - values
    values = values.masked_fill(before >= top_p[:, None] * values.sum(-1, keepdim=True), 0.0).double().cumsum(-1)
    index = torch.searchsorted(values, points[:, None] * values[:, -1:], right=True)
    return order.gather(1, index.clamp(max=values.shape[1] - 1))[:, 0]


SOURCES: dict[str, Source] = {
    "linear": linear_cases,
    "epilogue": epilogue_cases,
    "quantized": quantized_cases,
    "moe": moe_cases,
    "activation": activation_cases,
    "norm": norm_cases,
    "rotary": rotary_cases,
    "write": write_cases,
    "draw": draw_cases,
}
"""Every source of cases by the name that `--op` takes."""
