"""The engine under random arrivals, lengths, aborts and cache sizes: every request ends as asked and nothing leaks."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 19,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
CHECKPOINT = random_checkpoint(TINY, dtype="float32", seed=0)


def make_engine(**settings) -> Engine:
    return Engine(EngineArgs(device="cpu", skip_tokenizer_init=True, **settings), CHECKPOINT)


def run_alone(ids: list[int], params: SamplingParams) -> list[list[int]]:
    engine = make_engine(enable_prefix_caching=False)
    engine.submit(engine.prepare("alone", ids, params))
    outputs = []
    while engine.has_work:
        outputs = engine.step() or outputs
    return [output.token_ids for output in outputs[-1].outputs]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    page_size=st.integers(1, 8),
    pages=st.integers(2, 30),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 8),
    caching=st.booleans(),
    ahead=st.booleans(),
    use=st.sampled_from(
        [
            [],
            ["sarathi-serve:chunk=9"],
            ["sarathi-serve:tbt_ms=60000,context=32"],
            ["sarathi:chunk=8,batch=4"],
            ["fastgen:budget=7"],
            ["fastgen:budget=0,context=32"],
            ["orca"],
            ["request-batches:batch=3"],
            ["prefill-first"],
        ]
    ),
)
def test_random_traffic_leaks_nothing_and_answers_as_alone(
    seed, page_size, pages, budget, max_num_seqs, caching, ahead, use
):
    """Whatever arrives, is aborted or preempted: pages are conserved in every step, each finished request has the
    tokens that it gets alone, and at the end every page is free or cached."""
    rng = random.Random(seed)
    engine = make_engine(
        page_size=page_size,
        num_pages=pages,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=caching,
        async_scheduling=ahead,
        use=use,
    )
    # Plain requests run ahead; one that is not makes its step wait.
    plain = rng.random()
    asked, done = {}, {}
    to_come = rng.randrange(1, 12)
    steps = 0
    while to_come or engine.has_work:
        steps += 1
        assert steps < 5000, "the engine does not get done"
        if to_come and rng.random() < 0.3:
            to_come -= 1
            ids = [rng.randrange(3, 6) for _ in range(rng.randrange(1, 40))]
            params = SamplingParams(
                max_tokens=rng.randrange(1, 20),
                n=rng.choice([1, 1, 1, 3]),
                temperature=rng.choice([0.0, 1.0]),
                seed=rng.randrange(100),
                ignore_eos=rng.random() < 0.5,
                logprobs=None if rng.random() < plain else rng.choice([None, 0, 2]),
                prompt_logprobs=None if rng.random() < plain else rng.choice([None, None, 1]),
                frequency_penalty=0.0 if rng.random() < plain else rng.choice([0.0, 0.5]),
                stop_token_ids=rng.choice([None, [7]]),
                output_kind="final",
            )
            params.best_of = None if rng.random() < plain else rng.choice([None, params.n + 1])
            name = str(len(asked))
            if len(ids) >= engine.max_model_len:
                with pytest.raises(InvalidRequestError, match=f"{len(ids)} tokens.*at most {engine.max_model_len}"):
                    engine.prepare(name, ids, params)
                continue
            asked[name] = (ids, params)
            engine.submit(engine.prepare(name, ids, params, cache_salt=rng.choice([None, "salt"])))
        if engine.requests and rng.random() < 0.05:
            victim = rng.choice(list(engine.requests))
            output = engine.abort(victim)
            assert output is not None and output.finished
            hidden = len(output.outputs) < asked[victim][1].generated  # best_of shows the likeliest only
            assert hidden or any(o.finish_reason == "abort" for o in output.outputs)
        for output in engine.step():
            done[output.request_id] = output
        engine.store.check()
    stats = engine.stats()
    assert stats.pages_free + stats.pages_cached == stats.pages_total == pages
    assert engine.store.num_leased == 0
    for name, output in done.items():
        ids, params = asked[name]
        if params.max_tokens <= engine.max_model_len - len(ids):
            assert [o.token_ids for o in output.outputs] == run_alone(ids, params)
            if params.prompt_logprobs is not None and all(o.finish_reason != "abort" for o in output.outputs):
                assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(ids)
        else:
            assert all(o.finish_reason in ("length", "stop") for o in output.outputs)


def test_decodes_never_wait_and_steps_stay_within_budget():
    """The default scheduler: every running answer gets a token in every step in which it is not preempted, and a
    step has at most the budget's tokens unless decodes alone exceed it."""
    engine = make_engine(max_num_batched_tokens=8, page_size=4, num_pages=200, max_num_seqs=20)
    rng = random.Random(0)
    for name in range(30):
        ids = [rng.randrange(3, 19) for _ in range(rng.randrange(1, 60))]
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        engine.submit(engine.prepare(str(name), ids, params))
    seen = {}
    schedule = engine._scheduler.schedule

    def spy(step):
        decoding = step.decoding
        schedule(step)
        shares = {a.sequence: a.num_tokens for a in step.allotments()}
        assert all(shares.get(sequence) == 1 for sequence in decoding)
        assert sum(shares.values()) <= max(8, len(decoding))
        for sequence, share in shares.items():
            if sequence.num_computed < sequence.num_prompt:
                seen[sequence] = seen.get(sequence, 0) + share

    engine._scheduler.schedule = spy
    while engine.has_work:
        engine.step()
    assert len(seen) == 30
    assert all(read + sequence.request.num_cached == sequence.num_prompt for sequence, read in seen.items())


def test_refusals_name_their_numbers():
    """What can never be served is refused at once, in one sentence with the numbers."""
    engine = make_engine(page_size=4, num_pages=6)
    assert engine.max_model_len == 24, "the cache bounds the length"
    greedy = SamplingParams(temperature=0)
    for ids, sentence in [
        ([3] * 24, "24 tokens.*at most 24"),
        ([], "empty"),
        ([3, 19], "token id 19.*ends at 18"),
        ([-1], "token id -1"),
        ("text", "tokenizer"),
        ({"ids": [1]}, "prompt_token_ids"),
        (3.5, "float"),
    ]:
        with pytest.raises(InvalidRequestError, match=sentence):
            engine.prepare("x", ids, greedy)
    with pytest.raises(InvalidRequestError, match="logit_bias names token 99"):
        engine.prepare("x", [3], SamplingParams(logit_bias={99: 1.0}))
    with pytest.raises(HeadstartError, match=r"holds 24 tokens.*max_model_len"):
        make_engine(page_size=4, num_pages=6, max_model_len=30)
    with pytest.raises(HeadstartError, match=r"97.*96 positions"):
        make_engine(max_model_len=97)
    for fields, sentence in [
        ({"seed": -1}, "seed"),
        ({"page_size": 10**12}, "page_size"),
        ({"num_pages": 10**15}, "more than this machine"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
    ]:
        with pytest.raises(HeadstartError, match=sentence):
            make_engine(**fields)
    for device in ("banana", "meta", "cuda:99"):
        with pytest.raises(HeadstartError, match=f"'{device}'.*here are 'cpu'"):
            EngineArgs(device=device)
    engine.submit(engine.prepare("twice", [3], greedy))
    with pytest.raises(InvalidRequestError, match="twice"):
        engine.submit(engine.prepare("twice", [3], greedy))


def test_salt_keeps_caches_apart():
    """The same prompt under another salt finds nothing; under the same salt it does."""
    engine = make_engine(page_size=2)

    def cached(name, salt):
        engine.submit(engine.prepare(name, [5] * 11, SamplingParams(max_tokens=1, temperature=0), salt))
        return engine.step()[0].num_cached_tokens

    assert [cached("a", None), cached("b", None), cached("c", "x"), cached("d", "x"), cached("e", "y")] == [
        0,
        10,
        0,
        10,
        0,
    ]


def test_preempted_requests_go_first_and_finish():
    """With room for little, requests are preempted, and all finish with the tokens they get alone."""
    engine = make_engine(page_size=2, num_pages=12, max_num_seqs=4, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True, output_kind="final")
    prompts = {str(i): [3 + i, 4, 5] for i in range(5)}
    for name, ids in prompts.items():
        engine.submit(engine.prepare(name, ids, params))
    done = {}
    while engine.has_work:
        done |= {output.request_id: output for output in engine.step()}
    assert engine.stats().preemptions > 0
    assert {name: done[name].outputs[0].token_ids for name in prompts} == {
        name: run_alone(ids, params)[0] for name, ids in prompts.items()
    }
