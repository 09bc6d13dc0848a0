"""CacheBlend: the rule written out token by token, its invariants, what it reuses, and what is refused."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.methods.cache.cacheblend import CacheBlend, affordable
from tests.conformance import models
from tests.conformance.lab import Answer, assert_conserved, assert_idle, assert_same, serve

LAYERS = 4
CHECKPOINT = random_checkpoint(models._BASE | {"num_hidden_layers": LAYERS}, dtype="float32", seed=3)
ASKED = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)


def engine_with(*use: Any, **settings: Any) -> Engine:
    given: dict[str, Any] = {"page_size": 4, "num_pages": 120} | settings
    return Engine(EngineArgs(device="cpu", skip_tokenizer_init=True, use=use, **given), CHECKPOINT)


def prompt_of(chunks: list[list[int]], between: int = 1, tail: int = 3) -> dict[str, Any]:
    """A prompt in which so many own tokens stand before each chunk, and some at the end."""
    ids: list[int] = []
    spans = []
    for number, chunk in enumerate(chunks):
        ids += models.ids(between, seed=50 + number)
        spans.append((len(ids), len(ids) + len(chunk)))
        ids += chunk
    return {"prompt_token_ids": ids + models.ids(tail, seed=70), "chunks": spans}


CHUNKS = [models.ids(length, seed=length) for length in (9, 13, 6)]
PROMPT = prompt_of(CHUNKS)


def plain(prompt: dict[str, Any]) -> Answer:
    (answer,) = serve(engine_with(enable_prefix_caching=False), [prompt["prompt_token_ids"]], ASKED)
    return answer


def keys_and_values(ids: list[int], start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of a text that is read alone, at positions from `start` on."""
    kept = []

    def attend(spec, q, k, v):
        kept.append((k.clone(), v.clone()))
        return masked(spec, q, k, v, torch.arange(len(q)))

    CHECKPOINT.decoder(torch.tensor(ids), torch.arange(start, start + len(ids)), attend)
    return kept


def masked(spec, q, k, v, rows) -> torch.Tensor:
    """Attention of the tokens at `rows` over all keys up to their own, head by head."""
    out = torch.empty_like(q)
    group = spec.num_heads // spec.num_kv_heads
    for at, row in enumerate(rows.tolist()):
        for head in range(spec.num_heads):
            seen = k[: row + 1, head // group]
            out[at, head] = torch.softmax(seen @ q[at, head] * spec.scale, 0) @ v[: row + 1, head // group]
    return out


@torch.inference_mode()
def by_the_rule(prompt: dict[str, Any], ratio: float, gradual: float) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities after the prompt, and how many tokens went through each layer."""
    decoder, ids, spans = CHECKPOINT.decoder, prompt["prompt_token_ids"], prompt["chunks"]
    inside = [place for start, end in spans for place in range(start, end)]
    stored = {}
    for start, end in spans:
        for layer, (k, v) in enumerate(keys_and_values(ids[start:end], start)):
            stored |= {(layer, start + at): (k[at], v[at]) for at in range(end - start)}
    rows = list(range(len(ids)))
    x = {place: decoder.embed(torch.tensor([ids[place]]))[0] for place in rows}
    counts = []
    for index, (kind, layer) in enumerate(zip(decoder.config.layer_kinds, decoder.layers, strict=True)):
        chosen: list[int] = []

        def attend(spec, q, k, v, index=index, rows=rows, chosen=chosen):
            fresh = {place: (k[at], v[at]) for at, place in enumerate(rows)}
            both = [fresh.get(place) or stored[index, place] for place in range(len(ids))]
            if index:
                share = ratio ** (1 + gradual * (2 * (index - 1) / (LAYERS - 2) - 1))
                apart = {p: (fresh[p][1] - stored[index, p][1]).square().sum() for p in rows if p in inside}
                best = sorted(apart, key=lambda p: -apart[p])[: int(share * len(inside))]
                chosen += sorted({*best, *(p for p in rows if p not in inside)})
            keys, values = (torch.stack(part) for part in zip(*both, strict=True))
            return masked(spec, q, keys, values, torch.tensor(rows))

        places = torch.tensor(rows)
        out = layer(torch.stack([x[place] for place in rows]), decoder.rope_rows(places)[kind], attend)
        x = dict(zip(rows, out, strict=True))
        rows = chosen or rows
        counts.append(len(rows))
    return torch.log_softmax(decoder.logits(decoder.norm(x[len(ids) - 1][None]))[0], -1), counts


@pytest.mark.parametrize(("ratio", "gradual"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.2), (0.5, 0.7), (0.9, 0.2)])
def test_equals_the_rule_written_out(ratio: float, gradual: float) -> None:
    """Twice: when the chunks are computed, and when they are found."""
    want, counts = by_the_rule(PROMPT, ratio, gradual)
    engine = engine_with(CacheBlend(ratio=ratio, gradual=gradual))
    for _ in range(2):
        (answer,) = serve(engine, [PROMPT], ASKED)
        assert answer.tokens[0] == int(want.argmax())
        assert abs(answer.logprobs[0] - float(want.max())) < 1e-4
    counted = engine.stats().methods["cacheblend"]
    assert (counted["chunks computed"], counted["chunks reused"]) == (3, 3)
    # Layer by layer those run that the layer before has left.
    assert counted["tokens recomputed"] == 2 * sum([len(PROMPT["prompt_token_ids"]), *counts[1:-1]])


@pytest.mark.parametrize("between", [0, 2])
def test_ratio_1_equals_full_prefill_in_any_order(between: int) -> None:
    engine = engine_with(CacheBlend(ratio=1))
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        prompt = prompt_of([CHUNKS[at] for at in order], between)
        assert_same(serve(engine, [prompt], ASKED), [plain(prompt)], f"{order}")


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.6])
def test_a_single_chunk_at_the_beginning_deviates_from_nothing(ratio: float) -> None:
    prompt = prompt_of(CHUNKS[:1], between=0)
    engine = engine_with(CacheBlend(ratio=ratio))
    for _ in range(2):
        assert_same(serve(engine, [prompt], ASKED), [plain(prompt)], "one chunk")


def test_answers_come_nearer_to_full_prefill_as_the_ratio_grows() -> None:
    """Distance of the first token's distribution, over several prompts."""
    rng = random.Random(0)
    apart = []
    for ratio in (0.0, 0.3, 0.7, 1.0):
        total = 0.0
        for seed in range(6):
            prompt = prompt_of([models.ids(rng.randrange(5, 14), seed=seed + 10 * n) for n in range(3)])
            want, _ = by_the_rule(prompt, 1.0, 0.0)
            got, _ = by_the_rule(prompt, ratio, 0.0)
            total += float((want.exp() * (want - got)).sum())
        apart.append(total)
        rng.seed(0)
    assert apart[-1] < 1e-4 < apart[2] < apart[0]


def test_stays_apart_from_whoever_decodes_beside_it() -> None:
    """A batch of blended and plain prompts answers each as it is answered alone."""
    asked = [PROMPT, models.ids(21), prompt_of(CHUNKS[::-1]), models.ids(5)]
    want = [serve(engine_with(CacheBlend(ratio=0.3)), [prompt], ASKED)[0] for prompt in asked]
    assert_same(serve(engine_with(CacheBlend(ratio=0.3), max_num_batched_tokens=64), asked, ASKED), want, "together")


def test_chunks_of_others_are_computed_and_counted() -> None:
    """Another tenant's, another lossy stack's, another text's: nothing is found."""
    engine = engine_with(CacheBlend(ratio=0.3))
    for salt in ("a", "b", None, "a"):
        serve(engine, [PROMPT], ASKED, salt)
    counted = engine.stats().methods["cacheblend"]
    assert (counted["chunks computed"], counted["chunks reused"]) == (9, 3)
    plain_stack, other = engine_with(CacheBlend()), engine_with(CacheBlend(), quantization="int8")
    names = {each.prepare("x", PROMPT, ASKED).chunk_namespace for each in (plain_stack, other, engine)}
    assert len(names) == 2, "the ratio changes no chunk's keys, and eight bits do"


def test_without_room_every_chunk_is_computed_and_answers_stand() -> None:
    full = engine_with(CacheBlend(ratio=0.3))
    tight = engine_with(CacheBlend(ratio=0.3), num_pages=13)
    for _ in range(2):
        assert_same(serve(tight, [PROMPT], ASKED), serve(full, [PROMPT], ASKED), "tight")
    assert tight.stats().methods["cacheblend"]["chunks not kept"] > 0


def workload(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    pool = [models.ids(rng.randrange(6, 14), seed=100 + n) for n in range(8)]
    return [prompt_of(rng.sample(pool, 3)) for _ in range(count)]


@pytest.mark.parametrize("tier", ["cpu=10MB", "disk={}:10MB", "cpu=20KB,disk={}:10MB"])
def test_the_gain_does_not_decay_over_eviction_and_restart(tmp_path: Path, tier: str) -> None:
    """Of a hundred prompts over eight chunks with room for three, each chunk is computed once, before a restart that
    keeps a disk and after it; answers are those of an engine with all the room."""
    asked, short = workload(100), SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, logprobs=2)
    want = engine_with(CacheBlend(ratio=0.3), num_pages=400)
    computed = []
    for part in (asked[:60], asked[60:]):
        engine = engine_with(CacheBlend(ratio=0.3), num_pages=30, kv_tier=tier.format(tmp_path))
        for prompt in part:
            assert_same(serve(engine, [prompt], short), serve(want, [prompt], short), "with tiers")
        counted = engine.stats().methods["cacheblend"]
        computed.append(counted.get("chunks computed", 0))
        assert counted["chunks loaded"] > 10
        assert counted["chunks reused"] + counted["chunks loaded"] == 3 * len(part) - computed[-1]
        assert_conserved(engine)
        engine.store.flush()
    assert computed == ([8, 0] if "disk" in tier else [8, 8])


@pytest.mark.parametrize("damage", ["flip", "truncate", "gone"])
def test_damaged_chunk_files_are_ignored_with_a_warning(tmp_path: Path, damage: str, caplog: Any) -> None:
    want, rng = engine_with(CacheBlend(ratio=0.3)), random.Random(damage)
    first = engine_with(CacheBlend(ratio=0.3), kv_tier=f"disk={tmp_path}:10MB")
    serve(first, [PROMPT], ASKED)
    first.store.flush()
    second = engine_with(CacheBlend(ratio=0.3), kv_tier=f"disk={tmp_path}:10MB")
    files = sorted(tmp_path.rglob("*.kv"))
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[rng.randrange(len(data))] ^= 1
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    if damage == "gone":
        shutil.rmtree(tmp_path)
    assert_same(serve(second, [PROMPT], ASKED), serve(want, [PROMPT], ASKED), damage)
    assert second.stats().methods["cacheblend"]["chunks damaged"] == 3
    assert_same(serve(second, [PROMPT], ASKED), serve(want, [PROMPT], ASKED), f"{damage}, again")
    assert second.stats().methods["cacheblend"]["chunks reused"] == 3
    assert any("corrupt" in record.message or "cannot be read" in record.message for record in caplog.records)
    assert_idle(second)


def test_a_full_disk_tier_goes_on() -> None:
    """Room for two pages of keys below: what is not there is computed again, and nothing fails."""
    engine = engine_with(CacheBlend(ratio=0.3), num_pages=30, kv_tier="cpu=6KB")
    for prompt in workload(20):
        serve(engine, [prompt], ASKED)
    assert engine.stats().methods["cacheblend"]["chunks computed"] > 8


def test_the_controller_takes_what_loading_leaves_time_for() -> None:
    assert affordable(0.0, 1.0) == affordable(0.1, 1.0) == 0.15
    assert affordable(0.4, 1.0) == 0.4
    assert affordable(5.0, 1.0) == 1.0


def test_slow_storage_buys_a_higher_ratio(tmp_path: Path) -> None:
    """With loads as slow as whole layers everything is computed anew: the answer is the full prefill's."""
    first = engine_with(CacheBlend(), kv_tier=f"disk={tmp_path}:10MB")
    serve(first, [PROMPT], ASKED)
    first.store.flush()
    method = CacheBlend()
    second = engine_with(method, kv_tier=f"disk={tmp_path}:10MB")

    class Slow(type(method.library)):
        layer_seconds = property(lambda self: 1e9, lambda self, value: None)

    method.library.__class__ = Slow
    assert_same(serve(second, [PROMPT], ASKED), [plain(PROMPT)], "slow storage")
    assert second.stats().methods["cacheblend"]["chunks loaded"] == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ratio": 1.5}, "ratio must be from 0 to 1"),
        ({"gradual": 1.0}, "gradual must be at least 0 and below 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"mark": "("}, "mark is no regular expression"),
        ({"mark": "x*"}, "mark must not match an empty text"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MethodError, match=complaint):
        CacheBlend(**options)
