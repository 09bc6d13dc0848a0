"""Rows of logits with settings of every kind, and what it means that two draws are the same."""

import torch
from hypothesis import strategies as st
from torch import Tensor

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def rows_to_draw(data: st.DataObject, size: int) -> Rows:
    """What `headstart.ops.sampling.draw` takes: some rows, with ties, forbidden tokens and settings at their ends."""
    count = data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    logits = torch.randn(count, size, generator=generator) * data.draw(st.sampled_from([0.1, 1.0, 8.0]))
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()
    if data.draw(st.booleans()):
        forbidden = torch.rand(logits.shape, generator=generator) < 0.3
        logits = logits.masked_fill(forbidden & (logits < logits.amax(-1, keepdim=True)), -torch.inf)

    def column(*choices: float) -> Tensor:
        return torch.tensor(data.draw(st.lists(st.sampled_from(choices), min_size=count, max_size=count)))

    points = torch.rand(count, dtype=torch.float64, generator=generator)
    return (
        logits,
        column(0.0, 1e-9, 0.5, 1.0, 2.0, 1e35),
        column(0, 1, 3, 17, size - 1, size, size + 5).long(),
        column(1.0, 0.999, 0.9, 0.4, 1e-6),
        column(0.0, 0.0, 0.1, 0.9),
        points,
    )


def assert_drawn_alike(got: Tensor, expected: Tensor, rows: Rows) -> None:
    """The same tokens, or equally likely ones, or ones whose border in the mass the point lies upon."""
    logits, temperature, *_ = rows
    assert got.dtype == torch.int64 and got.shape == expected.shape
    for row, (ours, theirs) in enumerate(zip(got.tolist(), expected.tolist(), strict=True)):
        if ours != theirs:
            gap = (logits[row, ours] - logits[row, theirs]).abs() / temperature[row].clamp(1e-5)
            assert gap < 1e-5, f"row {row}: {ours} and not {theirs}"
