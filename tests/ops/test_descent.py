"""The descent to the highest scoring blocks of keys: what is found, and the kernel beside the reference."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.attention.descent import Descent, descend_reference
from tests.ops.test_attention_sparse import case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def lists_of(blocks, s, head):
    """The lists of one head, block of queries by block."""
    pairs = zip(blocks.blocks[s, head], blocks.counts[s, head], strict=True)
    return [row[:count].tolist() for row, count in pairs]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=3),
    keep=st.sampled_from([1, 3, 8]),
    query_block=st.sampled_from([1, 8]),
    key_block=st.sampled_from([1, 2, 4]),
    sink=st.sampled_from([0, 3]),
    window=st.sampled_from([1, 10]),
    representative=st.sampled_from(["first", "center"]),
    seed=st.integers(0, 2**31),
)
def test_lists_are_sink_winners_and_window(lengths, keep, query_block, key_block, sink, window, representative, seed):
    """Ascending, causal, no block twice; sink and window whole; `keep` blocks between, or all where there are fewer."""
    q, k, _, layout = case(lengths, 16, 2, 2, 8, seed)
    descent = Descent(keep, query_block, key_block, 2, sink, window, representative)
    blocks = descend_reference(q, k, layout, descent)
    for s, (queries, before) in enumerate(lengths):
        for head in range(4):
            rows = lists_of(blocks, s, head)
            assert all(not row for row in rows[-(-queries // query_block) :])
            for number, row in enumerate(rows[: -(-queries // query_block)]):
                first = before + number * query_block
                last = min(first + query_block, before + queries) - 1
                assert row == sorted(set(row)) and row[-1] == last // key_block
                sinks = range(min(-(-sink // key_block), last // key_block + 1))
                recent = range(max(max(first - window + 1, 0) // key_block, len(sinks)), last // key_block + 1)
                assert set(sinks) | set(recent) <= set(row)
                assert len(row) == len(sinks) + len(recent) + min(keep, recent.start - len(sinks))


def test_an_oracle_finds_the_best_blocks():
    """Where a region is scored by its best block, what is left are the best blocks of all, exactly."""
    generator = torch.Generator().manual_seed(0)
    q, k, _, layout = case([(1, 700)], 16, 1, 2, 8, 0)
    worth = torch.randn(2, 701, generator=generator)

    def oracle(start, size):
        best = torch.full(start.shape, -torch.inf)
        for at in torch.cartesian_prod(*(torch.arange(n) for n in start.shape)).tolist():
            begin, count = start[tuple(at)], size[tuple(at)]
            if count:
                best[tuple(at)] = worth[at[0], begin : begin + count].max()
        return best

    blocks = descend_reference(q, k, layout, Descent(16, 1, 1, 1, 0, 1), oracle)
    for head in range(2):
        want = set(worth[head, :700].topk(16).indices.tolist()) | {700}
        assert set(lists_of(blocks, 0, head)[0]) == want


def test_a_needle_in_a_smooth_field_is_found_and_one_in_noise_sometimes():
    """Neighbouring keys that score alike lead the way; among white noise nothing does."""
    found = {"smooth": 0, "noise": 0}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for field in found:
            q, k, _, layout = case([(1, 1023)], 16, 1, 1, 16, seed)
            keys = k.flatten(0, 1)[:, 0]
            order = [page * 16 + at for page in layout.page_tables[0] for at in range(16)]
            needle = int(torch.randint(100, 900, (), generator=generator))
            apart = (torch.arange(1024) - needle).abs()
            if field == "smooth":
                keys[order] = q[0, 0] * torch.exp(-apart / 60)[:, None]
            else:
                keys[order[needle]] = q[0, 0] * 5
            (row,) = lists_of(descend_reference(q, k, layout, Descent(32, 1, 2, 1, 16, 64)), 0, 0)
            found[field] += needle // 2 in row
    assert found["smooth"] == 20
    assert found["noise"] < 20


def test_the_work_grows_as_n_log_n():
    """Scored pairs per row grow by a step with each doubling, while dense attention's double."""
    descent = Descent(64, 64, 2, 2)
    per_row = [descent.scored(length, length) / length for length in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in pairwise(per_row)]
    assert steps[0] > 0 and max(steps) == pytest.approx(min(steps))


@settings(max_examples=30 if DEVICE == "cuda" else 5, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 200)), min_size=1, max_size=2),
    keep=st.sampled_from([3, 16, 20]),
    key_block=st.sampled_from([1, 2, 4]),
    representative=st.sampled_from(["first", "center"]),
    seed=st.integers(0, 2**31),
)
def test_the_kernel_equals_the_reference(lengths, keep, key_block, representative, seed):
    """The same lists, for sequences of any length."""
    pytest.importorskip("triton")
    from headstart.ops.kernels.descent import descend_on_gpu

    q, k, _, layout = case(lengths, 16, 2, 2, 16, seed)
    descent = Descent(keep, 8, key_block, 2, 3, 10, representative)
    want = descend_reference(q, k, layout, descent)
    layout.index  # noqa: B018
    got = descend_on_gpu(q, k, layout, descent)
    for s in range(len(lengths)):
        for head in range(4):
            assert lists_of(got, s, head) == lists_of(want, s, head)
