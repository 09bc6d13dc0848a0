"""Hydragen: shared and own parts, merged, are attention; what is shared follows from the page tables."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.methods.decode.hydragen.hydragen import Hydragen
from headstart.methods.decode.hydragen.sharing import Costs, shared_segments
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import PagedIndex, RaggedLayout, paged_attention_reference, shared
from headstart.ops.attention.shared import merge_parts
from tests.ops.conftest import a_better_interpreter as a_better_interpreter

PART = 16


def spec(kv_heads, group, head_dim=16, softcap=None, window=None):
    heads = kv_heads * group
    return AttentionSpec(0, heads, kv_heads, head_dim, 0.3, window, softcap)


def trees(random, sequences, page_size, levels=3, most=3):
    """Page tables whose beginnings are shared: each sequence goes down a random tree, then on alone."""
    names: dict[tuple[int, ...], list[int]] = {}
    free = iter(random.permutation(10_000).tolist())
    tables, lengths = [], []
    for _ in range(sequences):
        path: tuple[int, ...] = ()
        table: list[int] = []
        for _ in range(random.integers(0, levels + 1)):
            path = (*path, int(random.integers(0, 2)))
            if path not in names:
                names[path] = [next(free) for _ in range(random.integers(0, most + 1))]
            table += names[path]
        before = len(table) * page_size
        queries, own = int(random.choice([1, 1, 1, 3])), int(random.integers(0, 2 * page_size + 1))
        length = before + own + queries
        table += [next(free) for _ in range(-(-length // page_size) - len(table))]
        tables.append(table)
        lengths.append((queries, length))
    return tables, lengths


def step(seed, sequences, page_size, kv_heads, group, head_dim=16, one_row=False):
    """Random tensors over such tables, in pages with small numbers; the tables as they are on the host."""
    random = np.random.default_rng(seed)
    tables, lengths = trees(random, sequences, page_size)
    used = {page: place for place, page in enumerate(dict.fromkeys(page for table in tables for page in table))}
    tables = [[used[page] for page in table] for table in tables]
    if one_row:
        lengths = [(1, length) for _, length in lengths]
    layout = RaggedLayout([q for q, _ in lengths], [n for _, n in lengths], tables, page_size)
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, len(used), page_size, kv_heads, head_dim, generator=generator)
    q = torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator)
    return q, k, v, layout


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sequences=st.integers(1, 9),
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (2, 3)]),
    levels=st.integers(1, 3),
    softcap=st.none() | st.just(5.0),
)
def test_parts_merged_are_attention(seed, sequences, page_size, heads, levels, softcap):
    """Any tree of shared pages, several rows to a sequence, grouped heads: the whole attention, in float32."""
    q, k, v, layout = step(seed, sequences, page_size, *heads)
    hydragen = Hydragen(levels=levels, threshold=1, part=0)
    out, lse = hydragen.attend(spec(*heads, softcap=softcap), q, k, v, layout, None)
    want, want_lse = paged_attention_reference(q.double(), k.double(), v.double(), layout, scale=0.3, softcap=softcap)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)


def spared(segments, page_size):
    return sum((len(each.sequences) - 1) * (each.last - each.first) * page_size for each in segments)


def gain(segments, page_size):
    return spared(segments, page_size) - PART * sum(len(each.sequences) for each in segments)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sequences=st.integers(1, 7),
    page_size=st.sampled_from([4, 16, 64]),
    levels=st.integers(1, 3),
)
def test_the_best_segments_of_the_prefix_tree(seed, sequences, page_size, levels):
    """Segments are truly shared and lie behind one another, and no other choice of ends spares more."""
    tables, lengths = trees(np.random.default_rng(seed), sequences, page_size)
    layout = RaggedLayout([q for q, _ in lengths], [n for _, n in lengths], tables, page_size)
    usable = np.array([(n - q) // page_size for q, n in lengths])
    segments = shared_segments(layout.table, usable, Costs(page_size, levels, 1, PART))
    for s in range(sequences):
        mine = [each for each in segments if s in each.sequences]
        assert [each.level for each in mine] == list(range(len(mine))) and len(mine) <= levels
        assert all(a.last == b.first for a, b in pairwise(mine)) and (not mine or mine[0].first == 0)
        assert not mine or mine[-1].last <= usable[s]
    for each in segments:
        shared_pages = {tuple(tables[s][each.first : each.last]) for s in each.sequences}
        assert len(shared_pages) == 1 and each.first < each.last
    assert max(gain(segments, page_size), 0) == _most(tables, usable, page_size, levels)


def _most(tables, usable, page_size, levels):
    """The largest gain, by trying every set of inner nodes of the tree as ends of segments."""
    nodes = {}
    for a, b in product(range(len(tables)), repeat=2):
        if a != b:
            depth = 0
            while depth < min(usable[a], usable[b]) and tables[a][depth] == tables[b][depth]:
                depth += 1
            if depth:
                name = tuple(tables[a][:depth])
                nodes.setdefault(name, set()).update((a, b))
    names, best = list(nodes), 0
    for chosen in product((False, True), repeat=len(names)):
        open_nodes = [name for name, taken in zip(names, chosen, strict=True) if taken]
        total = 0
        for name in open_nodes:
            above = [other for other in open_nodes if len(other) < len(name) and name[: len(other)] == other]
            if len(above) >= levels:
                break
            start = max(map(len, above), default=0)
            total += (len(nodes[name]) - 1) * (len(name) - start) * page_size - PART * len(nodes[name])
        else:
            best = max(best, total)
    return best


def test_a_plan_stands_while_the_same_sequences_decode():
    """It is made once for many steps and layers, and anew when somebody comes, goes or moves."""
    prefix, page_size = list(range(8)), 16
    hydragen = Hydragen(threshold=1)

    def decode(lengths, tables):
        layout = RaggedLayout([1] * len(lengths), lengths, tables, page_size)
        k, v = torch.randn(2, 64, page_size, 1, 16)
        q = torch.randn(len(lengths), 2, 16)
        for _ in range(3):
            out, _ = hydragen.attend(spec(1, 2), q, k, v, layout, None)
            want, _ = paged_attention_reference(q, k, v, layout, scale=0.3)
            torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
        return hydragen.counters()["plans"]

    three = [[*prefix, 10], [*prefix, 11], [*prefix, 12]]
    assert decode([130, 131, 140], three) == 1
    assert decode([131, 132, 141], three) == 1
    assert decode([144, 145, 154], [[*table, 20 + s] for s, table in enumerate(three)]) == 1
    assert decode([131, 132], three[:2]) == 2
    assert decode([131, 132], [[*prefix[:4], 30, 31, 32, 33, 11], three[1]]) == 3
    counts = hydragen.counters()
    assert (counts["steps"], counts["shared_steps"]) == (5, 5)
    assert counts["spared_keys"] == 3 * 2 * 128 + 128 + 64


def test_little_sharing_is_left_alone():
    """Below the threshold, and where each part costs more than it spares, everything is read as ever."""
    layout = RaggedLayout([1, 1], [40, 40], [[0, 1, 2], [0, 1, 3]], 16)
    assert Hydragen().form_of(layout) == 0
    assert Hydragen(threshold=32).form_of(layout) == 0
    layout = RaggedLayout([1] * 9, [40] * 9, [[0, 1, 2 + s] for s in range(9)], 16)
    assert Hydragen(threshold=8 * 32 - PART * 9).form_of(layout) == 1
    assert Hydragen(threshold=8 * 32 - PART * 9 + 1).form_of(layout) == 0


def test_windows_and_selections_are_the_plain_engines():
    """A layer with a window that hides keys is computed as the plain engine does."""
    q, k, v, layout = step(3, 8, 4, 1, 2)
    out, _ = Hydragen(threshold=1).attend(spec(1, 2, window=5), q, k, v, layout, None)
    want, _ = paged_attention_reference(q, k, v, layout, scale=0.3, window=5)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


def test_merging_parts_of_any_size():
    """Scores far apart, empty parts and rows without any: finite, and as in float64, in whatever order."""
    generator = torch.Generator().manual_seed(0)
    own, common = torch.randn(5, 2, 8, generator=generator), torch.randn(4, 2, 8, generator=generator)
    own_lse = torch.tensor([1e4, -1e4, 0.0, -torch.inf, -torch.inf])[:, None].repeat(1, 2)
    common_lse = torch.tensor([-1e4, 1e4, 0.5, -torch.inf])[:, None].repeat(1, 2)
    places = torch.tensor([[0, 1, 2, 3, -1], [-1, 0, 2, 2, -1]], dtype=torch.int32)
    own[3:], common[3] = 0.0, 0.0
    out, lse = merge_parts(own, own_lse, common, common_lse, places, torch.float32)
    assert out.isfinite().all()
    for t in range(5):
        parts = [(own[t, 0], own_lse[t, 0])]
        parts += [(common[p, 0], common_lse[p, 0]) for p in places[:, t].tolist() if p >= 0]
        logs = torch.stack([log.double() for _, log in parts])
        whole = logs.logsumexp(0)
        weights = (logs - whole).exp() if whole > -torch.inf else torch.zeros(len(parts), dtype=torch.float64)
        want = sum(weight * part.double() for weight, (part, _) in zip(weights, parts, strict=True))
        torch.testing.assert_close(out[t, 0].double(), torch.as_tensor(want), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(lse[t, 0].double(), whole, atol=1e-6, rtol=1e-6)
    backwards, _ = merge_parts(own, own_lse, common, common_lse, places.flip(0), torch.float32)
    torch.testing.assert_close(out, backwards, atol=1e-6, rtol=1e-6)


@pytest.fixture
def through_the_kernel(monkeypatch):
    """The parts are computed and merged by Triton's kernels, in the interpreter where there is no GPU."""
    pytest.importorskip("triton")
    from headstart.ops.attention.cuda import attend_over_pages
    from headstart.ops.kernels import merge_parts as fused

    def attend(q, k, v, layout, *, scale, softcap, dtype, causal=True):
        rule = {"window": None, "blocks": None, "tree": None, "path": "triton"}
        return attend_over_pages(q, k, v, layout, scale=scale, softcap=softcap, dtype=dtype, causal=causal, **rule)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(shared, "paged_attention", attend)
    monkeypatch.setattr(shared, "merge_parts", fused.merge_parts)


@pytest.mark.parametrize(("seed", "page_size", "heads"), [(0, 4, (1, 1)), (1, 16, (2, 2)), (5, 16, (1, 3))])
def test_the_kernels(through_the_kernel, seed, page_size, heads):
    """The same through Triton, at several levels, with more rows than keys in some segments."""
    q, k, v, layout = step(seed, 12, page_size, *heads)
    out, lse = Hydragen(threshold=1, part=0).attend(spec(*heads), q, k, v, layout, None)
    want, want_lse = paged_attention_reference(q, k, v, layout, scale=0.3)
    torch.testing.assert_close(out, want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-5, rtol=2e-5)


def test_captured_steps(through_the_kernel, monkeypatch):
    """What is captured reads buffers alone: filled for one step after another, it computes each of them, padding
    included, whatever the steps before have left there."""
    monkeypatch.setattr("headstart.methods.decode.hydragen.buffers.MOST_SEGMENTS", 6)
    page_size, size, pages = 4, 8, 30
    hydragen = Hydragen(levels=2, threshold=1, part=0)
    lengths, table = torch.zeros(size, dtype=torch.int32), torch.zeros(size, pages, dtype=torch.int32)
    starts = torch.arange(size + 1, dtype=torch.int32)
    index = PagedIndex(starts, lengths, table, 1, pages * page_size)
    captured = RaggedLayout.of_index(index, torch.zeros(size, dtype=torch.int64), page_size)
    hydragen.hold(captured, 1)
    shared_steps = 0
    for seed in range(4):
        q, k, v, layout = step(seed, 8 - seed, page_size, 1, 2, one_row=True)
        if not hydragen.form_of(layout):
            continue
        shared_steps += 1
        hydragen.refill(captured, layout)
        padded = torch.zeros(size, 2, 16)
        padded[: len(q)] = q
        out, lse = hydragen.attend(spec(1, 2), padded, k, v, captured, None)
        want, want_lse = paged_attention_reference(q, k, v, layout, scale=0.3)
        torch.testing.assert_close(out[: len(q)], want, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(lse[: len(q)], want_lse, atol=2e-5, rtol=2e-5)
        assert (out[len(q) :] == 0).all()
    assert shared_steps == 4


def test_many_questions_on_one_text():
    """The engine's answers are the plain engine's, and the shared text is read once a step."""
    text = "Once upon a time there was a small fox who lived beside the river and knew every stone of it. " * 4
    prompts = [f"{text} Question {number}:" for number in range(6)]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)

    def answers(use):
        engine = Engine(EngineArgs(device="cpu", use=use, num_pages=400))
        for number, prompt in enumerate([prompts[0], *prompts]):
            engine.submit(engine.prepare(f"{number}", prompt, params))
            if number == 0:
                while engine.has_work:
                    engine.step()
        done = {}
        while engine.has_work:
            for output in engine.step():
                done[output.request_id] = output.outputs[0].token_ids
        return done, engine.stats().methods

    want, _ = answers([])
    got, counts = answers([Hydragen(threshold=64)])
    assert got == want
    assert counts["hydragen"]["shared_steps"] >= 6 and counts["hydragen"]["plans"] <= 4


@pytest.mark.parametrize("options", [{"levels": 0}, {"levels": 9}, {"threshold": -1}])
def test_options_out_of_range(options):
    """They are refused in a sentence."""
    with pytest.raises(MethodError, match=r"^hydragen: "):
        Hydragen(**options)
