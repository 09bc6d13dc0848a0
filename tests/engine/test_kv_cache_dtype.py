"""The dtype of cached keys and values: memory, errors, and who may be there beside."""

import pytest
import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import PagedAttention
from headstart.errors import HeadstartError, MethodError
from tests.engine.test_engine import TINY
from tests.engine.test_seams import as_method

PROMPT = [3 + i % 16 for i in range(30)]
MOST = {"float32": 1e-6, "float16": 0.01, "bfloat16": 0.05, "fp8_e4m3": 0.3}


def engine_of(dtype: str = "float32", **settings) -> Engine:
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, page_size=4, **settings)
    return Engine(args, random_checkpoint(TINY, dtype=dtype, seed=0))


def answer(engine: Engine, *prompts: list[int]) -> torch.Tensor:
    """Log-probabilities of every first and second token, each prompt twice so that cached pages are read too."""
    rows = []
    for _ in range(2):
        for number, prompt in enumerate(prompts):
            params = SamplingParams(max_tokens=2, min_tokens=2, temperature=0, logprobs=19)
            engine.submit(engine.prepare(str(number), prompt, params))
        while engine.has_work:
            for output in engine.step():
                if output.finished:
                    rows += [[row[token].logprob for token in range(19)] for row in output.outputs[0].logprobs[:1]]
    return torch.tensor(rows)


@pytest.mark.parametrize("kept", MOST)
def test_nearly_the_same_answers(kept):
    """Alone and several at once, from the cache and not."""
    prompts = PROMPT, PROMPT[:9], PROMPT[5:]
    want, engine = answer(engine_of(num_pages=60), *prompts), engine_of(num_pages=60, kv_cache_dtype=kept)
    got = answer(engine, *prompts)
    assert engine.store.layer(0)[0].dtype == engine.args.kv_dtype(torch.float32)
    assert (want.exp() - got.exp()).abs().sum(-1).max() < MOST[kept]
    assert engine.exact == (kept == "float32") and (engine.stack.fingerprint == "") == engine.exact


def test_narrow_keys_leave_room_for_more():
    pages = {kept: engine_of(kv_cache_memory=1 << 16, kv_cache_dtype=kept).store.num_pages for kept in MOST}
    assert pages["fp8_e4m3"] == 2 * pages["float16"] == 2 * pages["bfloat16"] == 4 * pages["float32"]


def test_wider_keys_are_exact():
    engine = engine_of("bfloat16", num_pages=60, kv_cache_dtype="float32")
    assert engine.exact and torch.isfinite(answer(engine, PROMPT)).all()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(HeadstartError, match=r"^kv_cache_dtype must be one of auto, float32, .*, not 'fp4'$"):
        EngineArgs(kv_cache_dtype="fp4")


def test_a_method_that_reads_keys_is_refused():
    class Own(PagedAttention):
        slots = ("attention.decode",)

    with pytest.raises(MethodError, match=r"^Own reads cached keys in the run's dtype: leave kv_cache_dtype at auto"):
        engine_of(num_pages=60, kv_cache_dtype="fp8_e4m3", use=[as_method(Own)])
    engine_of(num_pages=60, kv_cache_dtype="fp8_e4m3", use=["sarathi-serve"])
