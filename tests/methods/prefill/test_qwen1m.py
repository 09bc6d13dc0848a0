"""Qwen2.5-1M: positions as the paper writes them, parts that are one softmax, a prompt beyond the trained length."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import Checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.errors import HeadstartError, MethodError
from headstart.methods.prefill.qwen1m.chunks import Chunks, DualChunkAttention, Turner, default_chunks
from headstart.methods.prefill.qwen1m.lines import Estimate
from headstart.methods.prefill.qwen1m.qwen1m import Qwen1M
from headstart.models.rope import Rope, RopeConfig
from headstart.ops.attention import KeyBlocks, RaggedLayout, paged_attention
from headstart.ops.rotary import apply_rotary_reference
from tests.conformance import models
from tests.conformance.lab import GREEDY, assert_same, serve

ROPE = RopeConfig("default", 10000.0, 16, 4096, 4096)
PAGE = 4


def checkpoint_of(length: int = 96, family: str = "gqa") -> Checkpoint:
    sizes = models._BASE | models._FAMILIES[family] | {"max_position_embeddings": length}
    return random_checkpoint(sizes, dtype="float32", seed=0, name=family)


def engine_on(checkpoint: Checkpoint, *use, **settings) -> Engine:
    given = {"page_size": 4, "num_pages": 200, "skip_tokenizer_init": True} | settings
    return Engine(EngineArgs(device="cpu", use=use, **given), checkpoint)


def rotated(x: Tensor, places: Tensor) -> Tensor:
    cos, sin = Rope(ROPE)(places)
    return apply_rotary_reference(x, cos, sin).double()


def as_written(q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, scale: float) -> Tensor:
    """Dual chunk attention by its definition: keys at their place within the chunk, three copies of the queries, one
    softmax, in float64."""
    length, size, most = len(k), chunks.size, chunks.most
    place = torch.arange(length)
    keys = rotated(k, place % size).repeat_interleave(q.shape[1] // k.shape[1], 1)
    intra = rotated(q, place % size)
    succ = rotated(q, (place % size + size).clamp(max=most))
    inter = rotated(q, torch.full_like(place, most))
    apart = (place // size)[:, None] - (place // size)[None]
    scores = torch.zeros(q.shape[1], length, length, dtype=torch.float64)
    for number, part in enumerate((intra, succ, inter)):
        mine = torch.einsum("qhd,khd->hqk", part, keys)
        scores = torch.where(apart == number if number < 2 else apart >= 2, mine, scores)
    sharp = (0.1 * ((place + 1) / chunks.trained).log() + 1).clamp(min=1).square()
    scores = (scores * scale * sharp[:, None]).masked_fill(place[:, None] < place[None], -torch.inf)
    values = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def one_sequence(seed: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(length, 4, 16), torch.randn(length, 2, 16), torch.randn(length, 2, 16)


def pages_of(x: Tensor, order: list[int]) -> Tensor:
    """`[N, h, D]` as a pool whose pages lie in this order."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, len(order) * PAGE - len(x)))
    pool = torch.zeros(len(order), PAGE, *x.shape[1:])
    pool[order] = padded.unflatten(0, (-1, PAGE))
    return pool


@pytest.mark.parametrize("seed", range(8))
def test_turned_queries_attend_as_the_paper_writes_it(seed: int) -> None:
    """Keys that keep their own places, queries turned towards each chunk: the definition's result, however the rows are
    cut into steps, dense or over lists that name everything."""
    rng = random.Random(seed)
    length = rng.randrange(20, 150)
    size = PAGE * rng.randrange(2, 9)
    chunks = Chunks(size, size + rng.randrange(0, size + 1), rng.choice([10, 50, 1000]))
    q, k, v = one_sequence(seed, length)
    want = as_written(q, k, v, chunks, 0.3)
    places = torch.arange(length)
    turned_q, turned_k = rotated(q, places).float(), rotated(k, places).float()
    order = list(range(-(-length // PAGE)))
    rng.shuffle(order)
    keys, values = pages_of(turned_k, order), pages_of(v, order)
    attention = DualChunkAttention(chunks, Turner(ROPE), 0.3)
    start = 0
    while start < length:
        end = min(length, start + rng.choice([1, 7, 33, length]))
        layout = RaggedLayout([end - start], [end], [order], PAGE)
        total, blocks = -(-end // PAGE), -(-(end - start) // PAGE)
        lists = torch.arange(total, dtype=torch.int32).expand(1, 4, blocks, total).contiguous()
        every = KeyBlocks(lists, torch.full((1, 4, blocks), total, dtype=torch.int32), PAGE, PAGE)
        for selection in (None, every):
            out, lse = attention.attend(turned_q[start:end], keys, values, layout, selection)
            torch.testing.assert_close(out.double(), want[start:end], atol=2e-5, rtol=1e-4)
            assert lse.shape == (end - start, 4)
        start = end


@pytest.mark.parametrize("seed", range(5))
def test_lists_are_kept_to_in_every_part(seed: int) -> None:
    """A selection over the parts is the definition's softmax over the keys that it names."""
    rng = random.Random(seed)
    length, chunks = 90, Chunks(24, 30, 1000)
    q, k, v = one_sequence(seed, length)
    places = torch.arange(length)
    looks = torch.rand(4, -(-length // 8), -(-length // 8)) < 0.5
    looks |= torch.eye(len(looks[0]), dtype=torch.bool)
    from headstart.ops.attention.lists import listed

    lists, counts = listed(looks)
    order = list(range(-(-length // PAGE)))
    rng.shuffle(order)
    attention = DualChunkAttention(chunks, Turner(ROPE), 0.3)
    out, _ = attention.attend(
        rotated(q, places).float(),
        pages_of(rotated(k, places).float(), order),
        pages_of(v, order),
        RaggedLayout([length], [length], [order], PAGE),
        KeyBlocks(lists[None], counts[None], 8, 8),
    )
    seen = looks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :length, :length]
    want = masked_as_written(q, k, v, chunks, seen)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=1e-4)


def masked_as_written(q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, seen: Tensor) -> Tensor:
    """The definition over chosen keys, a head at a time: what is not seen is far below everything."""
    outs = []
    for head in range(q.shape[1]):
        far = torch.where(seen[head], 0.0, -1e9)
        group = head // (q.shape[1] // k.shape[1])
        mine = as_biased(q[:, head], k[:, group], v[:, group], chunks, far)
        outs.append(mine)
    return torch.stack(outs, 1)


def as_biased(q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, bias: Tensor) -> Tensor:
    place = torch.arange(len(k))
    size, most = chunks.size, chunks.most
    keys = rotated(k[:, None], place % size)[:, 0]
    scores = torch.zeros(len(k), len(k), dtype=torch.float64)
    apart = (place // size)[:, None] - (place // size)[None]
    for number, at in enumerate((place % size, (place % size + size).clamp(max=most), torch.full_like(place, most))):
        mine = rotated(q[:, None], at)[:, 0] @ keys.T
        scores = torch.where(apart == number if number < 2 else apart >= 2, mine, scores)
    scores = (scores * 0.3 + bias).masked_fill(place[:, None] < place[None], -torch.inf)
    return scores.softmax(-1) @ v.double()


@pytest.mark.parametrize(("size", "most"), [(24, 32), (8, 8), (16, 31)])
def test_no_distance_is_beyond_the_trained_ones(size: int, most: int) -> None:
    """Distances are at most c; those of the first queries of a chunk to the chunk before are true, and so are all
    within a chunk."""
    chunks = Chunks(size, most, 100)
    places = torch.arange(200)
    for chunk in range(200 // size):
        here = places[places // size >= chunk]
        keys = torch.arange(chunk * size, min((chunk + 1) * size, 200))
        distance = (here + chunks.turn(here, chunk))[:, None] - keys[None]
        distance = distance[here[:, None] >= keys[None]]
        assert distance.min() >= 0 and distance.max() <= most
        near = here[(here // size == chunk) | ((here // size == chunk + 1) & (here % size <= most - size))]
        assert (chunks.turn(near, chunk) == 0).all()


def test_short_prompts_are_left_alone() -> None:
    """Up to a chunk nothing is changed, to the bit."""
    q, k, v = one_sequence(0, 40)
    method = Qwen1M(chunk=64, local=16, block=8)
    checkpoint = checkpoint_of()
    method.start(checkpoint)
    layout = RaggedLayout([40], [40], [range(10)], PAGE)
    spec = replace(checkpoint.decoder.attention_specs[0], head_dim=16)
    keys, values = pages_of(k, list(range(10))), pages_of(v, list(range(10)))
    out, lse = method.attend(spec, q, keys, values, layout, None)
    want, want_lse = paged_attention(q, keys, values, layout, scale=spec.scale)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)
    assert (Chunks(32, 40, 96).sharpness(torch.arange(96)) == 1).all()
    assert Chunks(32, 40, 96).sharpness(torch.tensor([191])).item() == pytest.approx((0.1 * math.log(2) + 1) ** 2)


def test_a_prompt_beyond_the_trained_length() -> None:
    """It is refused by the plain engine, and read by the method alike in pieces, at once, and from the cache; decoding
    goes on as a longer prompt would."""
    plain = engine_on(checkpoint_of())
    with pytest.raises(HeadstartError, match="at most 96 tokens"):
        plain.prepare("one", models.ids(200), GREEDY)
    use = {"chunk": 64, "local": 16, "block": 8, "sparse_from": 0}
    want = None
    for settings in ({}, {"max_num_batched_tokens": 13}, {"page_size": 8, "max_num_batched_tokens": 50}):
        engine = engine_on(checkpoint_of(), Qwen1M(**use), max_model_len=384, **settings)
        for _ in range(2):
            answers = serve(engine, [models.ids(300), models.ids(20)], GREEDY)
            if want is not None:
                assert_same(answers, want, str(settings))
            want = want or answers
    (first, _) = want or []
    longer = [*models.ids(300), *first.tokens[:3]]
    (rest,) = serve(engine_on(checkpoint_of(), Qwen1M(**use), max_model_len=384), [longer], GREEDY)
    assert rest.tokens[: len(first.tokens) - 3] == first.tokens[3:]


def test_the_most_that_can_be_asked_for() -> None:
    with pytest.raises(HeadstartError, match="beyond the 384 positions"):
        engine_on(checkpoint_of(), Qwen1M(chunk=64, block=8), max_model_len=385)
    engine = engine_on(checkpoint_of(), Qwen1M(chunk=64, block=8, stretch=5), max_model_len=480)
    assert engine.max_model_len == 480


def test_lines_of_a_planted_prompt_are_found() -> None:
    """A key that all look at, and a diagonal that all follow, are within few blocks."""
    length, block = 256, 16
    torch.manual_seed(0)
    k = torch.randn(length, 1, 64)
    q = torch.randn(length, 2, 64) * 0.1
    q[:, 0] += 3 * k[77, 0]
    q[100:, 1] += 3 * k[: length - 100, 0]
    pad = list(range(length // PAGE))
    layout = RaggedLayout([length], [length], [pad], PAGE)
    estimate = Estimate(block, 1, 0)
    budgets = torch.tensor([[2, 1], [1, 3]])
    chosen = estimate.choose(q, pages_of(k, pad), layout, 0.125, budgets, lambda keys, _: keys)
    rows = torch.arange(160, 256)
    looks = chosen.looks(0, rows, torch.arange(length), layout)
    assert looks[:, 0, 77].all()
    assert looks[torch.arange(96), 1, rows - 100].all()
    assert looks[:, 0].float().mean() < 0.35 and looks[:, 1].float().mean() < 0.5
    assert chosen.counts.max() <= chosen.blocks.shape[-1]


def test_refined_budgets_keep_the_wanted_recall(tmp_path: Path) -> None:
    """The file's budgets reach it, more of it costs more, and an engine with it serves."""
    checkpoint = checkpoint_of(512)
    tokens = models.ids(400, 5)
    found = {}
    for recall in (0.5, 0.95):
        found[recall] = Qwen1M(vertical=16, slash=16, recall=recall, block=16, sink=1, recent=0).calibrate(
            checkpoint, tokens
        )
        heads = [value for layer in found[recall]["recall"] for value in layer]  # type: ignore[union-attr,attr-defined]
        assert min(heads) >= recall
    cost = {recall: torch.tensor(content["budgets"]).sum() for recall, content in found.items()}
    assert cost[0.95] > cost[0.5]
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps(found[0.5]))
    method = Qwen1M(budgets=str(path), block=16, sparse_from=1)
    serve(engine_on(checkpoint, method), [models.ids(300)], GREEDY)
    assert method.counters()["estimates"] > 0
    twice = engine_on(checkpoint, Qwen1M(budgets=str(path), block=16, sparse_from=1))
    path.write_text(json.dumps(found[0.95]))
    other = engine_on(checkpoint, Qwen1M(budgets=str(path), block=16, sparse_from=1))
    names = [engine.prepare("a", models.ids(9), GREEDY).namespace for engine in (twice, other)]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vertical": 0}, "vertical must be 1 to .*, since 0 keeps nothing, not 0"),
        ({"recall": 0.0}, "recall must be a share above 0"),
        ({"chunk": 97}, "chunk must be at most the 96 positions"),
        ({"chunk": 60}, "holds no block of 64: raise chunk or lower local"),
        ({"budgets": "/nowhere"}, "cannot be read .*headstart calibrate qwen2.5-1m"),
        ({"block": 6, "local": 0}, "chunks of 96 tokens|chunks of .* are not made of whole pages of 4"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(MethodError, match=sentence) as refusal:
        serve(engine_on(checkpoint_of(), Qwen1M(**options)), [models.ids(70)], GREEDY)
        pytest.skip("it works")
    assert "\n" not in str(refusal.value)


def test_files_and_texts_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="a calibration text of 50 tokens is too short for budgets of 1000 and 6096"):
        Qwen1M().calibrate(checkpoint_of(), models.ids(50))
    with pytest.raises(MethodError, match="longer than the model's 96 positions"):
        Qwen1M(vertical=1, slash=1).calibrate(checkpoint_of(), models.ids(100))
    content = Qwen1M(vertical=8, slash=8, block=16).calibrate(checkpoint_of(), models.ids(90))
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MethodError, match="is of another model: its num_kv_heads is 2, and this model's is 4"):
        engine_on(checkpoint_of(family="mha"), Qwen1M(budgets=str(path), block=16))
    with pytest.raises(MethodError, match="sliding windows"):
        engine_on(checkpoint_of(family="window"), Qwen1M(block=16))


def test_the_published_sizes() -> None:
    assert default_chunks(262144, 64) == Chunks(262144 - 8192, 262144, 262144)
