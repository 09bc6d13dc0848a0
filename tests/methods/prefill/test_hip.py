"""HiP: where it is dense, its searches and their reuse while decoding, and what it refuses."""

import pytest
import torch

from headstart.errors import MethodError
from headstart.methods.prefill.hip import HiP
from headstart.methods.registry import build
from headstart.ops.attention import paged_attention
from headstart.ops.attention.descent import descend_reference
from tests.conformance import models
from tests.conformance.lab import alone, make_engine, params_of, serve
from tests.ops.test_attention_sparse import case

SMALL = "hip:min_context=0,dense_layers=0,keys=4,query_block=4,key_block=2,sink=2,window=4"


class _Owner:
    """A sequence as a selector knows it."""

    decoding = True


class _Spec:
    layer, window, num_heads, num_kv_heads = 0, None, 4, 2


def test_short_contexts_first_layers_and_windows_are_dense():
    """What the kept keys, the window and the sink hold anyway is not searched, nor are layers that are to be dense."""
    q, k, _, layout = case([(8, 40)], 16, 2, 2, 16, 0)
    asked = {"keys=32,window=12,sink=4": True, "keys=30,window=12,sink=4": False, "keys=4,dense_layers=1": True}
    for options, dense in asked.items():
        method = build(f"hip:dense_layers=0,{options}" if "dense" not in options else f"hip:window=4,{options}")
        assert (method.select(_Spec, q, k, layout) is None) == dense, options
    windowed = type("Windowed", (_Spec,), {"window": 10})
    assert build(SMALL).select(windowed, q, k, layout) is None


def test_keeping_everything_between_sink_and_window_is_dense():
    """Lists of all candidates give dense attention."""
    q, k, v, layout = case([(30, 90), (1, 0)], 16, 2, 2, 16, 0)
    method = HiP(keys=110, query_block=8, window=4, sink=2, dense_layers=0)
    blocks = method.select(_Spec, q, k, layout)  # type: ignore[arg-type]
    for mine, want in zip(
        paged_attention(q, k, v, layout, scale=0.3, selection=blocks),
        paged_attention(q, k, v, layout, scale=0.3),
        strict=True,
    ):
        torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-5)


def test_a_decode_without_reuse_is_the_last_row_of_a_prefill():
    """The same list, whether a row comes alone or ends a chunk, where each row has a search of its own."""
    q, k, _, layout = case([(9, 60)], 16, 2, 2, 16, 0)
    method = build("hip:min_context=0,dense_layers=0,keys=4,query_block=1,stride=1,sink=2,window=4,refresh=1")
    chunk = method.select(_Spec, q, k, layout)
    last = descend_reference(q[-1:], k, _of_rows(layout, 1, 69), method.descent)
    count = int(last.counts[0, 0, 0])
    assert torch.equal(chunk.blocks[0, :, -1, :count], last.blocks[0, :, 0, :count])


def _of_rows(layout, rows, length):
    """The same sequences with other numbers of rows and keys."""
    return type(layout)([rows], [length], layout.page_tables, layout.page_size)


def test_what_a_search_found_is_reused_until_the_next_turn():
    """Between turns the list stays and the newest keys join it; at a turn it is searched anew; others do not matter."""
    method = build(SMALL + ",refresh=4")
    q, k, _, whole = case([(1, 79), (1, 79)], 16, 2, 2, 16, 0)
    owners = [_Owner(), _Owner()]
    lists = {}
    for length in range(60, 76):
        layout = type(whole)([1, 1], [length, length - 7], whole.page_tables, 16, owners=owners)
        blocks = method.select(_Spec, q, k, layout)
        for s, place in enumerate((length - 1, length - 8)):
            fresh = descend_reference(q[s : s + 1], k, _alone(whole, s, place + 1), method.descent)
            mine = set(blocks.blocks[s, 0, 0, : blocks.counts[s, 0, 0]].tolist())
            if place % 4 == 0:
                assert mine == set(fresh.blocks[0, 0, 0, : fresh.counts[0, 0, 0]].tolist())
            elif (s, place - 1) in lists:
                assert mine == lists[s, place - 1] | {place // 2}
            lists[s, place] = mine
    assert method.counters()["reused"] == 2 * 16 - 2 - 2 * 4 + sum(place % 4 == 0 for place in (59, 52))


def _alone(whole, s, length):
    return type(whole)([1], [length], [whole.page_tables[s]], 16)


def test_searches_and_reuse_are_counted():
    """Prompts search in each layer; decodes search at their turns only."""
    counts = {}
    for refresh in (1, 8):
        method = build(f"{SMALL},refresh={refresh}")
        engine = make_engine(models.PLAIN, method)
        serve(engine, [models.ids(50)])
        counts[refresh] = engine.stats().methods["hip"]
    assert counts[8]["searches"] < counts[1]["searches"]
    assert counts[8]["reused"] > 0 and counts[1]["scored_pairs"] > counts[8]["scored_pairs"]


def test_prompts_and_decodes_of_one_step_are_asked_apart():
    """A long chunk beside a decode does not lengthen its lists, and nobody's answer changes."""
    prompts, params = [models.ids(50), models.ids(40, 3)], params_of("greedy", 2)
    want = alone(make_engine(models.PLAIN, build(SMALL)), prompts, params)
    method = build(SMALL)
    engine = make_engine(models.PLAIN, method, max_num_batched_tokens=512, enable_prefix_caching=False)
    shapes = []
    select = method.select

    def noted(spec, q, keys, layout):
        shapes.append({owner.decoding for owner in layout.owners})
        return select(spec, q, keys, layout)

    method.select = noted

    def late(step):
        if step == 2:
            engine.submit(engine.prepare("late", prompts[1], params[1]))

    got = serve(engine, prompts[:1], params[:1], beside=late)
    assert got[0].tokens == want[0].tokens
    assert all(len(each) == 1 for each in shapes) and {True} in shapes and {False} in shapes


@pytest.mark.parametrize(
    "options", ["keys=0", "key_block=3", "keys=3,key_block=2", "window=0", "refresh=0", "query_block=999"]
)
def test_settings_that_make_no_sense_are_refused(options):
    """In one sentence that names the option."""
    with pytest.raises(MethodError, match=options.split(",")[0].split("=")[0]) as refusal:
        build(f"hip:{options}")
    assert "\n" not in str(refusal.value)
