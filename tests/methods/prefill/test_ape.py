"""APE: the rule written out row by row, its invariants, what it reuses, and what is refused."""

import itertools
import json
import math
from typing import Any

import pytest
import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.evaluation.quality_divergence import forced_logits
from headstart.methods.prefill.ape import APE
from tests.conformance import models
from tests.conformance.lab import Answer, assert_same, make_engine, serve

CHECKPOINT = random_checkpoint(models._BASE | {"num_hidden_layers": 3}, dtype="float32", seed=4)
ASKED = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)
CONTEXTS = [models.ids(length, seed=length) for length in (9, 13, 4)]


def engine_with(*use: Any, **settings: Any) -> Engine:
    given: dict[str, Any] = {"page_size": 4, "num_pages": 120} | settings
    return Engine(EngineArgs(device="cpu", skip_tokenizer_init=True, use=use, **given), CHECKPOINT)


def prompt_of(contexts: list[list[int]], before: int = 3, tail: int = 4) -> dict[str, Any]:
    ids, spans = models.ids(before, seed=60), []
    for context in contexts:
        spans.append((len(ids), len(ids) + len(context)))
        ids = ids + context
    return {"prompt_token_ids": ids + models.ids(tail, seed=70), "chunks": spans}


def logits(engine: Engine, prompt: dict[str, Any], continuation: list[int]) -> torch.Tensor:
    """Of the tokens after the prompt, each given those before it."""
    prepare = engine.prepare
    # Without the salt of its own, so that contexts are found.
    engine.prepare = lambda name, ids, params, **more: prepare(name, prompt, params)  # type: ignore[method-assign]
    try:
        return forced_logits(engine, prompt["prompt_token_ids"], continuation).log_softmax(-1)
    finally:
        engine.prepare = prepare  # type: ignore[method-assign]


@torch.inference_mode()
def by_the_rule(prompt: dict[str, Any], continuation: list[int], temperature: float, scale: float) -> torch.Tensor:
    """Every row with its own position, its own keys and the weights of the formula; in float64."""
    ids = [*prompt["prompt_token_ids"], *continuation[:-1]]
    spans = prompt["chunks"]
    first, last = spans[0][0], spans[-1][1]
    longest = max(end - start for start, end in spans)
    owner = {place: n for n, (start, end) in enumerate(spans) for place in range(start, end)}

    def position(place: int) -> int:
        if place in owner:
            return first + place - spans[owner[place]][0]
        return place if place < first else first + longest + place - last

    def attend(spec, q, k, v):
        out = torch.empty_like(q)
        group = spec.num_heads // spec.num_kv_heads
        for row, head in itertools.product(range(len(ids)), range(spec.num_heads)):
            z = (k[:, head // group].double() @ q[row, head].double()) * spec.scale
            values = v[:, head // group].double()
            if row < last:
                seen = [j for j in range(row + 1) if owner.get(j) in (None, owner.get(row))]
                out[row, head] = (torch.softmax(z[seen], 0) @ values[seen]).float()
                continue
            inside = sorted(owner)
            outside = [j for j in range(row + 1) if j not in owner]
            sharp = (z[inside] / temperature).exp()
            mass = sharp.sum() ** (scale * temperature)
            rest = z[outside].exp()
            mixed = mass * (sharp / sharp.sum()) @ values[inside] + rest @ values[outside]
            out[row, head] = (mixed / (mass + rest.sum())).float()
        return out

    positions = torch.tensor([position(place) for place in range(len(ids))])
    hidden = CHECKPOINT.decoder(torch.tensor(ids), positions, attend)
    return CHECKPOINT.decoder.logits(hidden[len(prompt["prompt_token_ids"]) - 1 :]).log_softmax(-1)


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.9, 0.9), (0.3, 0.7), (1.0, 0.0), (0.5, 0.0)])
@pytest.mark.parametrize("before", [0, 3])
def test_equals_the_rule_written_out(temperature: float, scale: float, before: int) -> None:
    """In prefill and decode; when the contexts are computed, and when they are found."""
    prompt, continuation = prompt_of(CONTEXTS, before), models.ids(5, seed=9)
    want = by_the_rule(prompt, continuation, temperature, scale)
    engine = engine_with(APE(temperature=temperature, scale=scale))
    for _ in range(2):
        torch.testing.assert_close(logits(engine, prompt, continuation), want, rtol=0, atol=1e-4)


def plain(prompt: dict[str, Any]) -> Answer:
    return serve(engine_with(enable_prefix_caching=False), [prompt["prompt_token_ids"]], ASKED)[0]


def test_one_context_equals_full_prefill() -> None:
    engine = engine_with(APE(temperature=1, scale=1))
    for context, before in itertools.product(CONTEXTS, (0, 1, 5)):
        prompt = prompt_of([context], before)
        assert_same(serve(engine, [prompt], ASKED), [plain(prompt)], f"{before} tokens before")


def test_the_order_of_contexts_does_not_matter() -> None:
    engine, answers = engine_with(APE()), []
    for order in itertools.permutations(CONTEXTS):
        answers += serve(engine, [prompt_of(list(order))], ASKED)
    assert_same(answers, answers[:1] * 6, "permuted")
    assert engine.stats().methods["ape"] == {
        "chunks computed": 3,
        "chunks reused": 15,
        "chunks loaded": 0,
        "chunks not kept": 0,
    }


def test_uneven_contexts_leave_a_gap_that_does_no_harm() -> None:
    """The position behind the contexts is that of the longest, wherever it stands."""
    short, long = models.ids(2, seed=1), models.ids(20, seed=2)
    one, other = (serve(engine_with(APE()), [prompt_of(c)], ASKED)[0] for c in ([short, long], [long, short]))
    assert_same([one], [other], "uneven")


def test_another_beginning_is_another_key() -> None:
    engine = engine_with(APE())
    for before in (2, 3, 2):
        serve(engine, [prompt_of(CONTEXTS, before)], ASKED)
    counted = engine.stats().methods["ape"]
    assert (counted["chunks computed"], counted["chunks reused"]) == (6, 3)


def test_stored_contexts_come_back_bit_by_bit(tmp_path: Any) -> None:
    tier, prompt, continuation = f"disk={tmp_path}:10MB", prompt_of(CONTEXTS), models.ids(4, seed=9)
    first = engine_with(APE(), kv_tier=tier)
    want = logits(first, prompt, continuation)
    first.store.flush()
    second = engine_with(APE(), kv_tier=tier)
    assert torch.equal(logits(second, prompt, continuation), want)
    assert second.stats().methods["ape"]["chunks loaded"] == 3


def test_stays_apart_from_whoever_runs_beside_it() -> None:
    asked = [prompt_of(CONTEXTS), models.ids(21), prompt_of(CONTEXTS[::-1], 1), models.ids(5), prompt_of(CONTEXTS[:2])]
    want = [serve(engine_with(APE()), [prompt], ASKED)[0] for prompt in asked]
    assert_same(serve(engine_with(APE(), max_num_batched_tokens=64), asked, ASKED), want, "together")


def test_a_context_that_takes_the_whole_prompt_leaves_its_last_token() -> None:
    ids = models.ids(12)
    for spans in ([(0, 12)], [(0, 6), (6, 12)], [(0, 11), (11, 12)]):
        (answer,) = serve(engine_with(APE(temperature=1, scale=1)), [{"prompt_token_ids": ids, "chunks": spans}], ASKED)
        assert all(map(math.isfinite, answer.logprobs))
    assert_same([answer], [plain({"prompt_token_ids": ids})], "one context and a token")


def test_calibration_finds_numbers_that_are_no_worse(tmp_path: Any) -> None:
    """The untuned pair is in the grid, and the file is what the option reads."""
    found = APE().calibrate(CHECKPOINT, models.ids(600))
    assert found["loss"] <= found["loss_untuned"]
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(found))
    prompt, continuation = prompt_of(CONTEXTS), models.ids(3, seed=9)
    want = by_the_rule(prompt, continuation, found["temperature"], found["scale"])
    got = logits(engine_with(APE(numbers=str(path))), prompt, continuation)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    path.write_text("{}")
    for wrong, said in ((path, "it holds no temperature and scale"), (tmp_path / "none", "No such file")):
        with pytest.raises(MethodError, match=f"{said}.*; `headstart calibrate ape MODEL"):
            APE(numbers=str(wrong))
    with pytest.raises(MethodError, match="a calibration text of 9 tokens is too short"):
        APE().calibrate(CHECKPOINT, models.ids(9))


def test_models_with_windows_are_refused() -> None:
    with pytest.raises(MethodError, match="sliding windows or capped scores"):
        make_engine("window", APE())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": 1.1}, "at most 1"),
        ({"scale": -0.1}, "scale must be from 0 to 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"mark": "["}, "mark is no regular expression"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MethodError, match=complaint):
        APE(**options)
