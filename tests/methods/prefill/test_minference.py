"""MInference: what a head keeps, the estimate, the search, files of patterns, and prompts too short for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.errors import MethodError
from headstart.methods.prefill.minference.index import Estimate
from headstart.methods.prefill.minference.minference import MInference
from headstart.methods.prefill.minference.patterns import KINDS, LayerPatterns, Pattern, read_patterns
from headstart.methods.prefill.minference.search import scaled, search
from headstart.methods.registry import build
from headstart.ops.attention import paged_attention
from headstart.ops.attention.estimate import line_scores_reference
from tests.conformance import models
from tests.conformance.lab import make_engine, serve
from tests.ops.test_attention_sparse import case

DEVICE = torch.device("cpu")


def written_out(q, k, scale):
    """The last rows' attention `[H, R, N]`, and the distance `[R, N]` of each pair."""
    rows, length = len(q), len(k)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    apart = torch.arange(length - rows, length)[:, None] - torch.arange(length)
    scores = torch.einsum("rhd,nhd->hrn", q, k) * scale
    return scores.masked_fill(apart < 0, -torch.inf).softmax(-1), apart


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20), before=st.integers(0, 60), part=st.sampled_from([40, 1000, 10**6]), seed=st.integers(0, 99)
)
def test_the_estimate_sums_by_key_and_by_distance(rows, before, part, seed):
    """However many keys are taken at a time; the kernel says the same."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(rows, 4, 16, generator=generator), torch.randn(rows + before, 2, 16, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.ops.attention.estimate._SCORES", part)
        columns, distances = line_scores_reference(q, k, 0.3)
    weights, apart = written_out(q, k, 0.3)
    want = torch.stack([weights.masked_fill(apart != t, 0.0).sum((1, 2)) for t in range(len(k))], -1)
    torch.testing.assert_close(columns, weights.sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distances, want, atol=1e-5, rtol=1e-5)


def test_the_estimate_kernel():
    """Equal to the reference, for rows and keys that fill no tile, in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    from headstart.ops.kernels.line_scores import line_scores_on_gpu

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    for rows, length in ((5, 40), (64, 200), (1, 1)):
        q = torch.randn(rows, 4, 16, generator=generator).to(device)
        k = torch.randn(length, 2, 16, generator=generator).to(device)
        for mine, want in zip(line_scores_on_gpu(q, k, 0.3), line_scores_reference(q, k, 0.3), strict=True):
            torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=2),
    block=st.sampled_from([4, 16]),
    seed=st.integers(0, 2**31),
)
def test_budgets_are_kept_by_every_kind(lengths, block, seed):
    """Lines hold the best columns and diagonals and what is sure, an A-shape its ends, and blocks are the best ones;
    every row sees itself, whichever mixture of kinds the heads have."""
    q, k, _, layout = case(lengths, 16, 2, 2, 16, seed)
    estimate = Estimate(rows=8, sink=2, recent=3, block=block)
    kinds = [Pattern("a-shape", 3, 5), Pattern("vertical-slash", 6, 7), Pattern("block-sparse", 0, 2)]
    heads = [*kinds, Pattern("vertical-slash", 4, 3)]
    found = estimate.key_blocks(LayerPatterns(heads, DEVICE), q, k, layout, 0.3)
    for s, (queries, before) in enumerate(lengths):
        length = queries + before
        key, row = torch.arange(length), torch.arange(queries)
        looks = found.looks(s, row, key, layout).transpose(0, 1)
        apart = before + row[:, None] - key
        assert looks[:, apart == 0].all()
        assert looks[0][(apart >= 0) & ((key < 3) | (apart < 5))].all()
        (mine,) = layout.gather(s, k)
        rows = q[layout.query_starts[s] : layout.query_starts[s + 1]][-8:]
        columns, distances = line_scores_reference(rows, mine, 0.3)
        for head, (vertical, slash) in ((1, (6, 7)), (3, (4, 3))):
            sure = torch.cat((torch.arange(min(2, length)), 2 + columns[head, 2:].argsort(descending=True)))
            near = torch.cat((torch.arange(min(3, length)), 3 + distances[head, 3:].argsort(descending=True)))
            wanted = torch.isin(key.expand(apart.shape), sure[:vertical]) | torch.isin(apart, near[:slash])
            assert looks[head][wanted & (apart >= 0)].all()
        blocks = -(-queries // block)
        assert (found.counts[s, 2, :blocks] >= 1).all() and (found.counts[s, [0, 1, 3]] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_of_everything_is_dense(kind):
    """As many keys, distances or blocks as there are: the lists themselves give dense attention."""
    q, k, v, layout = case([(70, 30), (9, 0)], 16, 2, 2, 16, 0)
    patterns = LayerPatterns([Pattern(kind, 1000, 1000)] * 4, DEVICE)
    assert patterns.keeps_all(100, 16)
    blocks = Estimate(block=16).key_blocks(patterns, q, k, layout, 0.3)
    for mine, want in zip(
        paged_attention(q, k, v, layout, scale=0.3, selection=blocks),
        paged_attention(q, k, v, layout, scale=0.3),
        strict=True,
    ):
        torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-5)


def searched(checkpoint, length=300):
    """A pattern file's content for a small model."""
    tokens = torch.randint(0, checkpoint.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    return search(checkpoint, tokens, Estimate(rows=16, sink=2, recent=4, block=8))


@pytest.fixture(scope="module")
def roomy():
    """A small model with room for a calibration text."""
    checkpoint = models.load(models.PLAIN)
    return replace(checkpoint, config=replace(checkpoint.config, max_position=4096))


def test_the_search_writes_what_the_method_reads(roomy, tmp_path: Path):
    """A pattern for each head, of the candidates; and the engine takes the file."""
    content = searched(roomy)
    path = tmp_path / "patterns.json"
    path.write_text(json.dumps(content))
    layers = read_patterns(path, roomy.config)
    assert {pattern for heads in layers for pattern in heads} <= set(scaled(300))
    small = [[[pattern.kind, 2, 3] for pattern in heads] for heads in layers]
    path.write_text(json.dumps(content | {"patterns": small}))
    method = MInference(pattern=str(path), sink=1, recent=1, block=4, min_context=0)
    engine = make_engine(models.PLAIN, method)
    serve(engine, models.prompts(models.PLAIN))
    assert method.counters()["estimates"] > 0 and method.identity()


def test_the_search_takes_the_cheapest_of_the_best(roomy):
    """No candidate has a much smaller error than the one taken."""
    from headstart.methods.prefill.minference import search as module

    watcher = module._Watcher(64, Estimate(), DEVICE)
    errors = torch.tensor([[0.5, 0.2], [0.2, 0.2], [0.205, 0.9], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])
    costs = torch.tensor([[1, 9], [5, 3], [4, 1], [1, 1], [1, 1], [1, 1]])
    best = watcher._best(errors, costs)
    assert [pattern for pattern, _ in best] == [watcher._candidates[2], watcher._candidates[1]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": {"num_layers": 99}}, "num_layers"),
        ({"format": "another"}, "no file of patterns"),
        ({"patterns": [[["spiral", 1, 1]]]}, "damaged"),
        ({"patterns": 7}, "damaged"),
    ],
)
def test_files_of_others_are_refused(roomy, tmp_path: Path, change, word):
    """One sentence says which field differs."""
    content: dict[str, Any] = searched(roomy)
    content |= {name: content[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    path = tmp_path / "patterns.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MethodError, match=word) as refusal:
        read_patterns(path, roomy.config)
    assert "\n" not in str(refusal.value)


def test_a_short_text_and_an_empty_budget_are_refused(roomy):
    """A text that cannot tell patterns apart; a budget that keeps nothing."""
    with pytest.raises(MethodError, match="too short"):
        searched(roomy, 100)
    for option in ("vertical", "slash", "blocks", "recent"):
        with pytest.raises(MethodError, match="keeps nothing"):
            build(f"minference:{option}=0")
    with pytest.raises(MethodError, match="cannot be read"):
        make_engine(models.PLAIN, MInference(pattern="/nowhere.json"))


def test_short_prompts_are_dense_and_counted():
    """Below `min_context` nothing is estimated, and the engine's statistics count the prompt."""
    method = MInference(vertical=1, slash=1, sink=0, recent=1, block=1, min_context=40)
    engine = make_engine(models.PLAIN, method)
    serve(engine, [models.ids(30), models.ids(20), models.ids(50)])
    assert engine.stats().methods["minference"]["short_prompts"] == 2
    assert method.counters()["estimates"] == engine.checkpoint.config.num_layers
