"""Embeddings: hidden states pooled as the decoder gives them, however a prompt is cut, cached or crowded."""

import json
import math
import random

import pytest
import torch

from headstart.engine.params import SamplingParams
from headstart.engine.pooling import recommended_pooling, unit
from headstart.errors import InvalidRequestError
from tests.engine.test_engine import CHECKPOINT, make_engine
from tests.models.naive_attention import NaiveCache

GREEDY = SamplingParams(temperature=0, max_tokens=5)


def reference(ids: list[int], pooling: str) -> torch.Tensor:
    """All tokens at once through the decoder with naive attention."""
    with torch.inference_mode():
        hidden = CHECKPOINT.decoder(torch.tensor(ids), torch.arange(len(ids)), NaiveCache().attend)
    return hidden[-1] if pooling == "last" else hidden.mean(0)


@pytest.mark.parametrize("seed", range(6))
def test_pooled_as_the_decoder_says_among_other_requests(seed: int) -> None:
    """Random chunks, repeats that hit the cache, few pages, and generating neighbours, whose tokens stay the same."""
    rng = random.Random(seed)
    engine = make_engine(
        max_num_batched_tokens=rng.randint(2, 20), page_size=rng.randint(1, 6), num_pages=90 // rng.randint(1, 2)
    )
    prompts: dict[str, tuple[list[int], str]] = {}
    for number in range(14):
        ids = [rng.randrange(3, 19) for _ in range(rng.randint(1, 40))]
        if prompts and rng.random() < 0.4:
            ids = rng.choice(list(prompts.values()))[0][: rng.randint(1, 40)] + ids[:5]
        prompts[str(number)] = (ids, rng.choice(("last", "mean", "generate")))
    for name, (ids, kind) in prompts.items():
        params = GREEDY if kind == "generate" else SamplingParams(pooling=kind, max_tokens=1)  # type: ignore[arg-type]
        engine.submit(engine.prepare(name, ids, params))
    done = {}
    while engine.has_work:
        done |= {output.request_id: output for output in engine.step() if output.finished}
    for name, (ids, kind) in prompts.items():
        output = done[name]
        if kind == "generate":
            alone = make_engine(enable_prefix_caching=False)
            alone.submit(alone.prepare("alone", ids, GREEDY))
            last = []
            while alone.has_work:
                last = alone.step() or last
            assert output.outputs[0].token_ids == last[-1].outputs[0].token_ids
            assert output.embedding is None
        else:
            torch.testing.assert_close(torch.tensor(output.embedding), reference(ids, kind), atol=1e-4, rtol=1e-4)
            assert output.outputs[0].token_ids == []
            assert kind == "last" or output.num_cached_tokens == 0
    stats = engine.stats()
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert stats.generation_tokens == sum(len(o.outputs[0].token_ids) for o in done.values())


def test_an_aborted_embedding_is_none() -> None:
    engine = make_engine(max_num_batched_tokens=2)
    engine.submit(engine.prepare("a", [5] * 20, SamplingParams(pooling="mean", max_tokens=1)))
    assert engine.step() == []
    output = engine.abort("a")
    assert output is not None
    assert output.outputs[0].finish_reason == "abort"
    assert output.embedding is None
    assert not engine.has_work


def test_what_the_checkpoint_recommends(tmp_path) -> None:
    assert recommended_pooling(None) == "last"
    for number, (modes, expected) in enumerate(
        [
            ({}, None),
            ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
            ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
            ({"pooling_mode_cls_token": True}, None),
        ]
    ):
        path = tmp_path / str(number) / "1_Pooling"
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(modes))
        if expected is not None:
            assert recommended_pooling(path.parent) == expected
        else:
            with pytest.raises(InvalidRequestError, match="1_Pooling"):
                recommended_pooling(path.parent)


def test_unit_length() -> None:
    assert math.isclose(math.hypot(*unit([3.0, -4.0])), 1)
    assert unit([0.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "wrong", [{"pooling": "max"}, {"pooling": "last", "n": 2}, {"pooling": "mean", "prompt_logprobs": 1}]
)
def test_what_cannot_be_pooled_is_refused(wrong: dict) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**wrong)
    assert caught.value.param == "pooling"
