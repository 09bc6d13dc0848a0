"""The same answer however it is computed: against Transformers, and against itself in every other way of running."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from headstart import LLM, SamplingParams

NUM_PROMPTS, NUM_TOKENS = 50, 200
OPENINGS = [
    "Once upon a time",
    "Lily and Tom",
    "The big dog",
    "One day, a bird",
    "Sara had a red ball. She",
    "It was",
]


def make_prompts(tokenizer) -> list[list[int]]:
    """Fifty prompts of 1 to about 60 tokens, several with common beginnings."""
    story = (
        "Once upon a time, there was a little boy named Tim. He had a toy car and a kite. One day he went to the park "
        "with his mom and his dog Spot. They saw a cat in a tree and wanted to help it come down. The cat was sad."
    )
    words = story.split()
    prompts = [tokenizer.encode(opening) for opening in OPENINGS]
    prompts += [tokenizer.encode(" ".join(words[:n])) for n in range(1, 36)]
    prompts += [tokenizer.encode(" ".join(words[n : n + 7])) for n in range(1, 9)]
    prompts.append([tokenizer.bos_token_id])
    assert len(prompts) == NUM_PROMPTS
    return prompts


@pytest.fixture(scope="module")
def prompts(stories) -> list[dict]:
    llm = LLM(stories, dtype="float32")
    return [{"prompt_token_ids": ids} for ids in make_prompts(llm.tokenizer)]


@pytest.fixture(scope="module")
def expected(stories, prompts) -> list[list[int]]:
    """Transformers' greedy continuation of each prompt, one at a time."""
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        outputs.append(out[0, ids.shape[1] :].tolist())
    return outputs


GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)


def ids_of(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def check_idle(llm: LLM) -> None:
    """After the last request every page is free or cached."""
    llm.engine.store.check()
    stats = llm.engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 64, "max_num_batched_tokens": 4096},
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 1, "max_num_seqs": 3},
        {"max_num_batched_tokens": 7, "page_size": 1},
        {"page_size": 5, "enable_prefix_caching": False},
        {"page_size": 64, "use": ["sarathi-serve:chunk=13"]},
        {"use": ["sarathi:chunk=16,batch=9"]},
        {"use": ["prefill-first"]},
        {"async_scheduling": True, "max_num_seqs": 16, "max_num_batched_tokens": 48},
        # Room for about three sequences of full length: constant preemption and eviction.
        {"num_pages": 48, "page_size": 16, "max_num_seqs": 16, "max_model_len": 384},
        {"async_scheduling": True, "num_pages": 48, "page_size": 16, "max_num_seqs": 16, "max_model_len": 384},
    ],
    ids=str,
)
def test_greedy_equals_transformers(stories, prompts, expected, settings):
    """200 tokens of 50 prompts equal Transformers' token for token, whatever the batch, chunk, page or scheduler."""
    llm = LLM(stories, dtype="float32", **settings)
    # One by one, and token by token, all of them would take half a minute each.
    chosen = slice(None, None, 4 if 1 in settings.values() and "page_size" not in settings else 1)
    assert ids_of(llm.generate(prompts[chosen], GREEDY)) == expected[chosen]
    check_idle(llm)
    if "num_pages" in settings:
        assert llm.engine.stats().preemptions > 0


def test_warm_cache_equals_cold(stories, prompts, expected):
    """The second time, prompts are found in the cache and the answers are the same."""
    llm = LLM(stories, dtype="float32", page_size=4)
    llm.generate(prompts, GREEDY)
    again = llm.generate(prompts, GREEDY)
    assert ids_of(again) == expected
    assert all(output.num_cached_tokens == (len(output.prompt_token_ids) - 1) // 4 * 4 for output in again), (
        "all whole pages short of the last token are found"
    )
    check_idle(llm)


def test_streamed_equals_whole(stories):
    """Pieces of a stream add up to the whole text and ids."""
    llm = LLM(stories, dtype="float32")
    for opening in OPENINGS:
        whole = llm.generate(opening, GREEDY)[0].outputs[0]
        pieces = [out.outputs[0] for out in llm.stream(opening, GREEDY)]
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
        assert [piece.finish_reason for piece in pieces][-1] == whole.finish_reason


def test_seeded_draws_do_not_depend_on_company(stories, prompts):
    """A seeded request draws the same tokens alone, in a crowd, in another order, in pieces and after preemption."""
    prompts = prompts[::2]
    params = [SamplingParams(max_tokens=40, temperature=1.2, top_p=0.95, seed=seed) for seed in range(len(prompts))]
    alone = LLM(stories, dtype="float32", max_num_seqs=1, enable_prefix_caching=False)
    want = ids_of(alone.generate(prompts, params))
    crowd = LLM(stories, dtype="float32", max_num_batched_tokens=33, page_size=3)
    assert ids_of(crowd.generate(prompts, params)) == want
    backwards = crowd.generate(prompts[::-1], params[::-1])
    assert ids_of(backwards)[::-1] == want
    tight = LLM(stories, dtype="float32", num_pages=20, max_num_seqs=8)
    assert ids_of(tight.generate(prompts, params)) == want
    assert len({tuple(ids) for ids in want}) > 20, "different seeds give different texts"


def test_several_outputs_are_the_same_as_several_requests(stories):
    """`n` outputs differ from each other, repeat under the same seed, and share the prompt's pages."""
    llm = LLM(stories, dtype="float32", enable_prefix_caching=False)
    params = SamplingParams(n=5, max_tokens=30, temperature=1.0, seed=7)
    first, second = (llm.generate("Once upon a time", params)[0] for _ in range(2))
    texts = [output.text for output in first.outputs]
    assert texts == [output.text for output in second.outputs]
    assert len(set(texts)) == 5 and [output.index for output in first.outputs] == [0, 1, 2, 3, 4]
    single = llm.generate("Once upon a time", SamplingParams(max_tokens=30, temperature=1.0, seed=7))[0]
    assert single.outputs[0].text == texts[0]
    check_idle(llm)
