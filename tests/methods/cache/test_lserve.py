"""LServe: bounds that bound, choices that keep what matters, streaming heads that keep little, and calibration."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.errors import MethodError
from headstart.methods.cache.lserve.heads import read_scores, streaming_heads
from headstart.methods.cache.lserve.lserve import LServe
from headstart.methods.cache.lserve.pages import PageBounds, PageSelector
from headstart.models.decoder import Attend, AttentionSpec
from headstart.ops.attention import RaggedLayout
from headstart.ops.attention.reach import Reach, seen_mask
from tests.conformance import models
from tests.conformance.examples import write_heads
from tests.conformance.lab import GREEDY, assert_same, serve

SMALL = {"sink": 16, "recent": 16, "budget": 48, "block": 16, "logical": 4, "interval": 4}


def checkpoint_of(family: str = "gqa", length: int = 256) -> Checkpoint:
    sizes = models._BASE | models._FAMILIES[family] | {"max_position_embeddings": length}
    return random_checkpoint(sizes, dtype="float32", seed=0, name=family)


def engine_on(checkpoint: Checkpoint, *use, **settings) -> Engine:
    given = {"page_size": 4, "num_pages": 200, "skip_tokenizer_init": True} | settings
    return Engine(EngineArgs(device="cpu", use=use, **given), checkpoint)


@pytest.fixture
def heads(tmp_path: Path) -> str:
    """A file of heads for the tiny model: the second of a layer's two heads loses less."""
    return write_heads(checkpoint_of(), tmp_path).removeprefix("heads=")


def random_pages(seed: int, page: int) -> tuple[Tensor, RaggedLayout, Tensor]:
    """Keys `[P, page, 2, 8]` full of what was there before, sequences in random pages, and queries of a row each."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    lengths = [rng.randrange(1, 150) for _ in range(3)]
    counts = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(counts)).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    keys = torch.randn(sum(counts), page, 2, 8)
    return keys, RaggedLayout([1] * 3, lengths, tables, page), torch.randn(3, 4, 8)


@pytest.mark.parametrize("page", [2, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_bound_every_score(seed: int, page: int) -> None:
    """However keys came, one by one or many at once, no key of a block scores more than its bound, and with one key in
    a run the bound is the score."""
    keys, layout, q = random_pages(seed, page)
    whole = RaggedLayout(layout.kv_lengths, layout.kv_lengths, layout.page_tables, page)
    for logical in (1, 4, 16):
        bounds, grown = PageBounds(logical), PageBounds(logical)
        bounds.update(keys, whole, torch.float32)
        # In pieces: what lies behind the keys that are there is noise of an earlier use.
        for end in range(1, max(layout.kv_lengths) + 1):
            ends = [min(end, length) for length in layout.kv_lengths]
            tables = [table[: -(-some // page)] for table, some in zip(layout.page_tables, ends, strict=True)]
            grown.update(keys, RaggedLayout([1] * 3, ends, tables, page), torch.float32)
        assert grown.bounds is not None and bounds.bounds is not None
        assert torch.equal(grown.bounds, bounds.bounds)
        scores = bounds.scores(q, layout.index.page_table.long(), 16, page)
        for s, length in enumerate(layout.kv_lengths):
            (k,) = layout.gather(s, keys)
            exact = torch.einsum("hd,nhd->hn", q[s], k.repeat_interleave(2, 1))
            for block in range(length // 16):
                most = exact[:, block * 16 : block * 16 + 16].amax(1)
                assert (scores[s, :, block] >= most - 1e-5).all()
                if logical == 1:
                    torch.testing.assert_close(scores[s, :, block], most)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_blocks_and_the_newest_are_read(seed: int) -> None:
    keys, layout, q = random_pages(seed, 4)
    selector = PageSelector(4, 16, 48, 1)
    whole = RaggedLayout(layout.kv_lengths, layout.kv_lengths, layout.page_tables, 4)
    selector.bounds.update(keys, whole, torch.float32)
    found = selector.decode(q, layout)
    if max(layout.kv_lengths) <= 48:
        assert found is None
        return
    assert found is not None
    scores = selector.bounds.scores(q, layout.index.page_table.long(), 16, 4)
    for s, length in enumerate(layout.kv_lengths):
        newest = (length - 1) // 16
        for head in range(4):
            chosen = found.blocks[s, head, 0, : found.counts[s, head, 0]].tolist()
            best = scores[s, head, :newest].topk(min(2, newest)).indices.tolist()
            assert chosen == sorted([*best, newest])


class Owner:
    """Stands for a sequence."""


def test_a_choice_serves_a_few_steps_and_never_misses_the_newest() -> None:
    """Between refreshes the lists stay, and at the first key of a block there is a new one, whatever others do."""
    torch.manual_seed(0)
    keys, owners = torch.randn(60, 4, 2, 8), [Owner(), Owner()]
    together, alone = PageSelector(4, 16, 48, 4), PageSelector(4, 16, 48, 4)
    tables = [list(range(30)), list(range(30, 60))]
    q = torch.randn(60, 2, 4, 8)
    lists = {}
    for step in range(40):
        lengths = [60 + step, 51 + step]
        layout = RaggedLayout([1, 1], lengths, tables, 4, owners=owners)
        whole = RaggedLayout(lengths, lengths, tables, 4)
        together.bounds.update(keys, whole, torch.float32)
        alone.bounds.update(keys, whole, torch.float32)
        found = together.decode(q[step], layout)
        own = alone.decode(q[step, 1:], RaggedLayout([1], lengths[1:], tables[1:], 4, owners=owners[1:]))
        assert found is not None and own is not None
        for s, length in enumerate(lengths):
            chosen = [found.blocks[s, head, 0, : found.counts[s, head, 0]].tolist() for head in range(4)]
            assert all((length - 1) // 16 in each for each in chosen)
            if (length - 1) % 4 and (length - 1) % 16 and step:
                assert chosen == lists[s], "a choice was not kept"
            lists[s] = chosen
        assert torch.equal(own.blocks[0], found.blocks[1]) and torch.equal(own.counts[0], found.counts[1])
    assert together.reused > together.chosen


def test_streaming_heads_see_and_keep_their_reach_alone(heads: str) -> None:
    """The engine's log-probabilities are those of dense attention under a mask per head, long after the ring has
    wrapped, and the memory of the heads that stream does not grow."""
    checkpoint = checkpoint_of()
    method = LServe(heads=heads, **SMALL | {"budget": 4096})
    engine = engine_on(checkpoint, method, max_num_batched_tokens=16)
    prompt = models.ids(150)
    engine.submit(engine.prepare("one", prompt, GREEDY))
    held = []
    while engine.has_work:
        (output, *_) = engine.step() or [None]
        held.append(engine.store.twins.num_held)  # type: ignore[attr-defined]
    assert output is not None
    tokens = output.outputs[0].token_ids
    ids = torch.tensor([*prompt, *tokens])
    places = torch.arange(len(ids) - 1)
    attend = Masked(streaming_heads(read_scores(Path(heads), checkpoint.config), 0.5), method.reach)
    with torch.inference_mode():
        hidden = checkpoint.decoder(ids[:-1], places, attend)
        want = checkpoint.decoder.logits(hidden).log_softmax(-1).gather(1, ids[1:, None])[len(prompt) - 1 :, 0]
    got = [entry[token].logprob for token, entry in zip(tokens, output.outputs[0].logprobs or (), strict=True)]
    assert got == pytest.approx(want.tolist(), abs=1e-4)
    most = method.reach.most_pages(256, 4)
    assert max(held) <= most + 16 // 4 + 1 < 150 // 4


class Masked(Attend):
    """Dense attention in which some KV heads of each layer see their reach alone."""

    def __init__(self, streams: list[tuple[int, ...]], reach: Reach) -> None:
        self.streams, self.reach = streams, reach

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = spec.num_heads // spec.num_kv_heads
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * spec.scale
        seen = torch.ones(len(q), len(q), dtype=torch.bool).tril().repeat(spec.num_heads, 1, 1)
        for head in self.streams[spec.layer]:
            seen[head * group : (head + 1) * group] = seen_mask(self.reach, len(q))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))


def test_no_streaming_and_a_large_budget_change_nothing() -> None:
    prompts = [models.ids(length, length) for length in (5, 90, 180)]
    want = serve(engine_on(checkpoint_of()), prompts, GREEDY)
    for interval in (1, 4):
        method = LServe(streaming=0, **SMALL | {"budget": 256, "interval": interval})
        assert_same(serve(engine_on(checkpoint_of(), method), prompts, GREEDY), want, "all is read")
    small = LServe(streaming=0, **SMALL | {"budget": 32})
    serve(engine_on(checkpoint_of(), small), prompts, GREEDY)
    assert small.counters()["choices"] > 0 and small.counters()["choices_reused"] > 0


def test_the_cache_serves_later_prompts(heads: str) -> None:
    """What is found is what is computed, and file and options are part of the keys' name."""
    engine = engine_on(checkpoint_of(), LServe(heads=heads, **SMALL), max_num_batched_tokens=20)
    first = serve(engine, [models.ids(140)], GREEDY)
    again = serve(engine, [models.ids(140)], GREEDY)
    assert again[0].cached > 100
    assert_same(again, first, "from the cache")
    other = Path(heads).with_name("other.json")
    other.write_text(Path(heads).read_text() + " ")
    names = [
        engine_on(checkpoint_of(), LServe(heads=file, **SMALL)).prepare("a", models.ids(9), GREEDY).namespace
        for file in (heads, str(other))
    ]
    assert names[0] != names[1]


def test_eight_bits_halve_what_is_kept_again(heads: str) -> None:
    plain, narrow = (engine_on(checkpoint_of(), LServe(heads=heads, **SMALL, kv=kv)) for kv in ("auto", "fp8_e4m3"))
    assert narrow.store.bytes_per_page * 4 == plain.store.bytes_per_page  # type: ignore[attr-defined]
    for engine in (plain, narrow):
        assert len(serve(engine, [models.ids(150)], GREEDY)[0].tokens) > 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_exactly_the_share_streams(share: float) -> None:
    """Of the whole model and not of each layer; ties are broken."""
    torch.manual_seed(0)
    scores = (torch.rand(7, 5) * 4).round().tolist()
    chosen = streaming_heads(scores, share)
    assert sum(map(len, chosen)) == round(share * 35)
    inside = [scores[layer][head] for layer, heads in enumerate(chosen) for head in heads]
    outside = [scores[layer][head] for layer in range(7) for head in range(5) if head not in chosen[layer]]
    assert not inside or not outside or max(inside) <= min(outside)


def test_calibration_finds_the_heads_that_carry_over() -> None:
    """Of a model whose second KV head of layer 0 looks at equal tokens wherever they are, and whose first looks at its
    neighbours, the second loses more."""
    checkpoint = checkpoint_of(length=1024)
    attention = checkpoint.decoder.layers[0].attention
    watched: list[list[float]] = LServe(**SMALL).calibrate(checkpoint, models.ids(400))["losses"]  # type: ignore[assignment]
    assert [len(layer) for layer in watched] == [2, 2]
    with torch.no_grad():
        # Flat scores: the first KV head and its queries are nothing, so that it spreads its attention evenly.
        attention.qkv.weight[:8] *= 0  # type: ignore[union-attr,operator]
    flat: list[list[float]] = LServe(**SMALL).calibrate(checkpoint, models.ids(400))["losses"]  # type: ignore[assignment]
    assert flat[0][0] != watched[0][0] and flat[0][1] == watched[0][1]
    assert all(value >= 0 for layer in watched for value in layer)


def test_the_built_in_model_has_its_heads() -> None:
    """Its file is read without being named, and a needle far back is found with half of the heads streaming."""
    checkpoint = load_checkpoint(None, "float32")
    method = LServe(budget=512)
    Engine(EngineArgs(device="cpu", use=[method], num_pages=40), checkpoint)
    assert sum(map(len, method._streams)) == 16
    assert checkpoint.path == default_checkpoint_path()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 127}, "budget must be at least 128, since the newest block of 64 tokens alone keeps nothing"),
        ({"streaming": 1.5}, "streaming must be a share from 0 to 1"),
        ({"logical": 5}, "must be made of whole runs of 5"),
        ({"interval": 65}, "interval must be 1 to 64"),
        ({"sink": -1}, "sink must be 0 to"),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(MethodError, match=sentence):
        LServe(**options)


def test_what_does_not_fit_is_refused(heads: str, tmp_path: Path) -> None:
    from headstart.methods.prefill.lazyllm import LazyLLM
    from headstart.methods.prefill.minference.minference import MInference

    content = json.loads(Path(heads).read_text())
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(content | {"losses": [[1.0]]}))
    for use, sentence in (
        (LServe(), "which heads of gqa may stream is not known: `headstart calibrate lserve"),
        (LServe(heads="/nowhere"), "cannot be read .*calibrate lserve"),
        (LServe(heads=str(damaged)), "are damaged"),
    ):
        with pytest.raises(MethodError, match=sentence):
            engine_on(checkpoint_of(), use)
    with pytest.raises(MethodError, match="is of another model: its num_kv_heads is 2, and this model's is 4"):
        engine_on(checkpoint_of("mha"), LServe(heads=heads))
    with pytest.raises(MethodError, match=r"both fill the selector.prefill slot|minference and lserve both"):
        engine_on(checkpoint_of(), MInference(), LServe(heads=heads, **SMALL))
    with pytest.raises(MethodError, match="lserve drops keys by a rule of its own, and lazyllm counts on all of them"):
        engine_on(checkpoint_of(), LServe(heads=heads, **SMALL), LazyLLM())
    with pytest.raises(MethodError, match="which no --kv-tier can hold"):
        engine_on(checkpoint_of(), LServe(streaming=0, **SMALL), kv_tier="cpu=1MB")
    with pytest.raises(MethodError, match="are not made of whole pages of 32: set page_size"):
        engine_on(checkpoint_of(), LServe(heads=heads, **SMALL), page_size=32)
    with pytest.raises(MethodError, match="a calibration text of 90 tokens is too short"):
        LServe(**SMALL).calibrate(checkpoint_of(), models.ids(90))
    with pytest.raises(MethodError, match="is longer than the model's 256 positions"):
        LServe(**SMALL).calibrate(checkpoint_of(), models.ids(220))


def test_options_make_the_reach() -> None:
    assert LServe().reach == Reach(64, 2, 5)
    assert replace(LServe().reach, local=1) == LServe(recent=0).reach
