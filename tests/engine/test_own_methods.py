"""Requests with methods of their own: each gets what an engine of these methods gives it, whoever runs beside it."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import LLM, AsyncEngine, SamplingParams
from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.process import ProcessEngine
from headstart.engine.seams import Draft, Drafter, EveryLayer, LogitRule
from headstart.engine.stacks import MOST_STACKS
from headstart.errors import HeadstartError, InvalidRequestError
from tests.conformance.good_toys import ByHand, Guess, Late, Middle, Recent, Shorten, Sinks
from tests.engine.test_engine import CHECKPOINT, TINY
from tests.engine.test_seams import as_method

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, output_kind="final")
LONG = [3 + place % 13 for place in range(40)]


class Tilt(LogitRule):
    """Likes the tokens that the output does not have yet."""

    def apply(self, logits, sequences):
        logits = logits.clone()
        for row, sequence in enumerate(sequences):
            logits[row, sequence.output_ids] -= 3.0
        return logits


class Silent(Drafter):
    """Guesses nothing."""

    def guess(self, sequences, lengths, rule):
        return [Draft([]) for _ in sequences]


class FewSinks(Sinks):
    """Keeps few enough to matter for the prompts here."""

    def __init__(self):
        super().__init__(recent=8)


class Marked(Tilt):
    """Makes one token certain."""

    def __init__(self, token: int = 5) -> None:
        self.token = token

    def apply(self, logits, sequences):
        logits = logits.clone()
        logits[:, self.token] += 1000.0
        return logits


# By name, since an instance must be new for each engine that it is compared in.
STACKS = {
    "engine's": lambda: None,
    "none": list,
    "rule": lambda: [as_method(Tilt)],
    "sinks": lambda: [as_method(FewSinks, chunking="per_chunk")],
    "recent": lambda: [as_method(Recent)],
    "late and a rule": lambda: [as_method(Late), as_method(Tilt)],
    "whole": lambda: [as_method(Middle, chunking="whole")],
    "draws": lambda: [as_method(Guess, exact=True)],
    "by hand": lambda: [as_method(ByHand, exact=True)],
    "short": lambda: [as_method(Shorten)],
    "lazy": lambda: ["lazyllm:keep=0.5,layers=1"],
    "flash": lambda: ["flashattention"],
}


def make(use=(), checkpoint=CHECKPOINT, **more) -> Engine:
    sizes = {"page_size": 4, "num_pages": 120, "max_num_batched_tokens": 512} | more
    return Engine(EngineArgs(device="cpu", skip_tokenizer_init=True, use=use, **sizes), checkpoint)


def finish(engine: Engine) -> dict:
    done = {}
    while engine.has_work:
        done |= {output.request_id: output for output in engine.step() if output.finished}
        engine.store.check()
    assert engine.store.num_leased == 0
    return done


def logprobs(output) -> list[float]:
    (one,) = output.outputs
    return [entry[token].logprob for token, entry in zip(one.token_ids, one.logprobs, strict=True)]


def ask(engine: Engine, prompt=LONG, params=GREEDY, use=None, name="r", salt=None):
    engine.submit(engine.prepare(name, prompt, params, salt, use=use))
    return finish(engine)[name]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.sampled_from([24, 120]), caching=st.booleans(), ahead=st.booleans())
def test_each_gets_what_it_gets_alone(seed, pages, caching, ahead):
    """Requests of many stacks in one engine, arriving and aborted at random, evicting and preempting each other."""
    rng = random.Random(seed)
    base = rng.choice([[], ["flashattention"], [as_method(Recent)]])
    engine = make(base, num_pages=pages, max_num_seqs=6, enable_prefix_caching=caching, async_scheduling=ahead)
    # What is preempted is read again in other pieces, which a method by the chunk may show.
    names = [name for name in STACKS if pages > 100 or name != "sinks"]
    uses = {name: STACKS[name]() for name in rng.sample(names, 5)}
    asked, done = {}, {}
    to_come = 12
    while to_come or engine.has_work:
        if to_come and rng.random() < 0.4:
            name, stack = f"r{to_come}", rng.choice(list(uses))
            prompt = LONG[: rng.choice([3, 9, 17, 31])] + [rng.randrange(3, 19) for _ in range(rng.randrange(3))]
            params = SamplingParams(
                n=rng.choice([1, 1, 2]),
                max_tokens=rng.randrange(1, 7),
                temperature=rng.choice([0, 1]),
                seed=rng.randrange(99),
                ignore_eos=True,
                output_kind="final",
            )
            engine.submit(engine.prepare(name, prompt, params, use=uses[stack]))
            asked[name] = stack, prompt, params
            to_come -= 1
        if asked and rng.random() < 0.03:
            engine.abort(rng.choice(list(asked)))
        done |= {output.request_id: output for output in engine.step() if output.finished}
        engine.store.check()
    assert engine.store.num_leased == 0 and not any(stack.holders for stack in engine.stacks._own.values())
    for name, output in done.items():
        stack, prompt, params = asked[name]
        use = STACKS[stack]()
        alone = ask(make(base if use is None else use, enable_prefix_caching=False), prompt, params)
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in alone.outputs], stack
        assert output.exact == alone.exact
        assert output.prompt_token_ids == alone.prompt_token_ids


def test_whoever_waits_for_prompts_in_one_piece_does_not_make_others_wait_for_theirs():
    """The trait `whole` is one request's own; the pieces of others are cut as before, in the same steps."""
    pieces = []

    class Seen(EveryLayer):
        def forward(self, decoder, batch, attend):
            pieces.append([allotment.num_tokens for allotment in batch.allotments])
            return super().forward(decoder, batch, attend)

    engine = make([as_method(Seen, exact=True)], max_num_batched_tokens=16)
    engine.submit(engine.prepare("cut", LONG, GREEDY))
    engine.submit(engine.prepare("whole", LONG[::-1], GREEDY, use=["lazyllm"]))
    finish(engine)
    assert pieces[:3] == [[16], [16], [8]], "who is read by its own method is not read by the engine's"


def test_lossy_keys_serve_nobody_else_and_exact_ones_everybody():
    """A request finds keys of those alone that would have computed the same."""
    engine = make(["flashattention"])
    recent, again, other = (as_method(Recent) for _ in range(3))
    other.card = recent.card
    found = [
        ("the engine's", None, 0),
        ("none at all: exact as well", [], 36),
        ("lossy", [recent], 0),
        ("lossy again", [recent], 36),
        ("the same method once more", [other], 36),
        ("another lossy one", [as_method(Late)], 0),
        ("exact, of its own", ["flashattention:rows=16"], 36),
        ("a prompt that must be whole", ["lazyllm"], 0),
        ("and again", ["lazyllm"], 0),
        ("exact after all of them", None, 36),
    ]
    for what, use, cached in found:
        output = ask(engine, use=use)
        assert (what, output.num_cached_tokens) == (what, cached)
        assert output.exact == (use is None or use == [] or use == ["flashattention:rows=16"])
    assert ask(engine, use=[again], salt="another tenant").num_cached_tokens == 0


def test_an_engine_with_a_lossy_method_serves_the_plain_model_to_who_asks_for_it():
    """`use: []` is exact there, and shares nothing with the rest; what is the whole engine's stays."""
    lossy, plain = make([as_method(Recent)]), make()
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=0)
    want, own, other = ask(plain, params=params), ask(lossy, params=params), ask(lossy, params=params, use=[])
    assert other.exact and not own.exact and other.num_cached_tokens == 0
    assert logprobs(other) == pytest.approx(logprobs(want), abs=1e-5) != logprobs(own)
    shared = make(["swiftkv:weights=untrained,depth=1", as_method(Tilt)])
    assert not ask(shared, use=[]).exact, "the cache keeps its form"
    assert [item.card.key for item in shared.stacks.of([]).methods] == ["swiftkv"]


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (["sarathi-serve:chunk=9"], "sarathi-serve cannot be one request's own, since one plan serves all requests"),
        (["swiftkv:weights=untrained,depth=1"], "swiftkv cannot be one request's own, since all requests share one KV"),
        (
            ["speculative:draft=headstart-draft"],
            "speculative cannot be one request's own, since drafts are made for all requests alike",
        ),
        (["flashattention", "fastattention"], "flashattention and fastattention both fill the attention.prefill slot"),
        (["flashatention"], "did you mean 'flashattention'"),
        (["flashattention:rows=0"], "rows and keys must be from 1 to 1024"),
        (["lazyllm:layers=7,keep=0.5"], "layers must be 1 to 1 for this model of 2 layers"),
        (["galore"], "galore .*not in the engine|galore is planned"),
        ([7], "7 is no method of the engine"),
        (7, "7 is no method of the engine"),
        ([["flashattention"]], "is no method of the engine"),
    ],
    ids=str,
)
def test_what_cannot_be_one_requests_own_is_refused(use, sentence):
    """In one sentence that names the method and why, and the engine goes on."""
    engine = make()
    with pytest.raises(InvalidRequestError, match=sentence) as refusal:
        engine.prepare("r", LONG, GREEDY, use=use)
    assert refusal.value.param == "use"
    assert ask(engine).outputs[0].token_ids == ask(make()).outputs[0].token_ids


def test_what_does_not_go_with_the_engine_is_refused():
    """Neither a window under a method that drops keys, nor keys in eight bits under one that reads them, nor guesses
    under one that cannot verify them."""
    window = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8}
    windowed = make(checkpoint=random_checkpoint(TINY | window, dtype="float32"))
    with pytest.raises(InvalidRequestError, match="a method that drops keys cannot run on a model with sliding"):
        windowed.prepare("r", LONG, GREEDY, use=[as_method(Sinks)])
    with pytest.raises(InvalidRequestError, match="flashattention reads cached keys in the run's dtype"):
        make(kv_cache_dtype="bfloat16").prepare("r", LONG, GREEDY, use=["flashattention"])
    with pytest.raises(InvalidRequestError, match="lazyllm makes what a token gives depend on those that run beside"):
        make([as_method(Silent, exact=True)]).prepare("r", LONG, GREEDY, use=["lazyllm"])


def test_so_many_stacks_are_held_and_no_more():
    """Those of requests that run are not given up for another; those of requests that have ended are."""
    engine = make(max_num_seqs=2)
    long = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, output_kind="final")
    for token in range(MOST_STACKS):
        engine.submit(engine.prepare(f"r{token}", LONG[:3], long, use=[as_method(Marked)]))
    with pytest.raises(HeadstartError, match="try again when one has ended") as refusal:
        engine.prepare("more", LONG, GREEDY, use=["flashattention"])
    assert not isinstance(refusal.value, InvalidRequestError)
    engine.abort("r3")
    assert ask(engine, use=["flashattention"]).outputs[0].token_ids
    for keys in range(16, 16 + 3 * MOST_STACKS):
        assert ask(engine, use=[f"flashattention:keys={keys}"]).exact
    assert len(engine.stacks._own) == MOST_STACKS


def test_counters_are_those_of_all():
    """What a request's own method counts stands beside what the engine's counts, under its key."""
    engine = make(["swiftkv:weights=untrained,depth=1"])
    assert set(engine.stats().methods) <= {"swiftkv"}
    ask(engine)
    rows = engine.stats().methods["swiftkv"]["tokens of layer 0"]
    plain = make()
    ask(plain, use=["lazyllm:keep=0.5,layers=1"])
    counted = plain.stats().methods["lazyllm"]
    assert rows == len(LONG) + 5 and counted["tokens of layer 0"] == len(LONG) + 5 > counted["tokens of layer 1"]


def test_offline(stories):
    """`use` of the offline API: for these prompts alone."""
    llm = LLM(stories, dtype="float32", num_pages=64)
    plain = [output.outputs[0].token_ids for output in llm.generate(["Once", "A dog"], GREEDY)]
    assert [o.outputs[0].token_ids for o in llm.generate(["Once", "A dog"], GREEDY, use=["flashattention"])] == plain
    marked = llm.generate("Once", GREEDY, use=[as_method(Marked)])[0]
    assert marked.outputs[0].token_ids == [5] * 6 and not marked.exact
    streamed = [
        token for part in llm.stream("Once", GREEDY, use=[as_method(Marked)]) for token in part.outputs[0].token_ids
    ]
    assert streamed == [5] * 6
    assert [output.outputs[0].token_ids for output in llm.generate(["Once", "A dog"], GREEDY)] == plain
    with pytest.raises(InvalidRequestError, match="cannot be one request's own"):
        llm.generate("Once", GREEDY, use=["orca"])


@pytest.mark.parametrize("kind", [AsyncEngine, ProcessEngine])
def test_clients(stories, kind):
    """Also behind asyncio, and in a process of its own; a refusal comes back to who asked."""

    async def work():
        engine = kind.from_model(stories, dtype="float32", num_pages=64)
        try:

            async def answer(use):
                async for output in engine.generate("Once upon a time", GREEDY, use=use):
                    last = output
                return last

            plain, lazy, empty = await asyncio.gather(answer(None), answer(["lazyllm"]), answer([]))
            assert plain.exact and empty.exact and not lazy.exact
            assert plain.outputs[0].token_ids == empty.outputs[0].token_ids
            with pytest.raises(InvalidRequestError, match="cannot be one request's own") as refusal:
                await answer(["orca"])
            assert refusal.value.param == "use"
        finally:
            await engine.shutdown()

    asyncio.run(work())
