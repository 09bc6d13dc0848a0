"""Speculative decoding and PEARL: the law of what is said, its cost in steps, what is refused, when it is left out."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import load_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.engine import sampler
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import DraftLength, RejectionSampling
from headstart.engine.speculation import _JUDGED, _MOST_PATIENCE, _TRIAL, Guard
from headstart.errors import MethodError
from headstart.methods.decode import draft_model
from headstart.methods.decode.pearl import Pearl
from headstart.methods.decode.speculative import Speculative
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.checks import CONTRACTS
from tests.conformance.examples import Example, shaken
from tests.conformance.lab import as_method, assert_idle, make_engine, serve

TOKENS = 20
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory):
    """Drafts by name: the model's own weights elsewhere, and weights that know nothing of it."""
    folder = tmp_path_factory.mktemp("drafts")
    target = models.shared(models.PLAIN)
    save_checkpoint(target, folder / "twin")
    save_checkpoint(shaken(target, 0.1), folder / "near")
    hostile = random_checkpoint(models._BASE | {"num_hidden_layers": 1, "initializer_range": 2.0}, "float32", seed=9)
    save_checkpoint(hostile, folder / "hostile")
    return folder


def test_rejection_sampling_draws_from_the_target():
    """Whatever the draft's law: peaked elsewhere, equal, or without a token in common."""
    generator = torch.Generator().manual_seed(0)
    count = 200_000
    p = torch.softmax(torch.randn(6, generator=generator, dtype=torch.float64), 0)
    p[5] = 0
    p /= p.sum()
    apart = torch.zeros(6, dtype=torch.float64)
    apart[5] = 1
    for q in (torch.softmax(3 * torch.randn(6, generator=generator, dtype=torch.float64), 0), p, apart):
        tokens = torch.multinomial(q, count, replacement=True, generator=generator)
        points = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        said = RejectionSampling().verify(p.expand(count, -1), q.expand(count, -1), tokens, points)
        stood = (said == tokens).double().mean()
        assert abs(stood - torch.minimum(p, q).sum()) < 0.01, "a guess stands with probability 1 - TV"
        found = torch.bincount(said, minlength=6).double()
        assert found[5] == 0
        statistic = ((found - count * p)[:5] ** 2 / (count * p)[:5]).sum()
        assert torch.special.gammaincc(torch.tensor(2.0).double(), statistic / 2) > 1e-6


METHODS = {"speculative": Speculative, "pearl": Pearl}


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("name", ["twin", "hostile"])
def test_draws_have_the_models_distribution(drafts, name, key):
    """Chi-square in batches with forks of one prompt, with a draft that is always right and one that never is."""
    case = Case(key, f"guard=false,length=3,draft={drafts / name}", example=Example(same_draws=False))
    CONTRACTS["draws"].check(case)


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("name", ["twin", "near", "hostile"])
def test_greedy_text_is_the_models(drafts, name, key):
    """Whatever the draft, in batches, in cut prompts, with penalties, a bias, stop tokens and little memory."""
    asked = [
        GREEDY,
        replace(GREEDY, repetition_penalty=1.4, frequency_penalty=0.3),
        replace(GREEDY, logit_bias={5: 2.0}, logprobs=2),
        replace(GREEDY, stop_token_ids=[7, 11], min_tokens=3),
        replace(GREEDY, max_tokens=2),
        replace(GREEDY, max_tokens=1),
    ]
    prompts = models.prompts(models.PLAIN)
    want = [answer.tokens for answer in serve(make_engine(models.PLAIN), prompts, asked)]
    for settings in ({}, {"max_num_batched_tokens": 7}, {"page_size": 2, "num_pages": 48}):
        engine = make_engine(models.PLAIN, METHODS[key](f"{drafts / name}", guard=False), **settings)
        assert [answer.tokens for answer in serve(engine, prompts, asked)] == want


@pytest.mark.parametrize("key", METHODS)
def test_guesses_count_in_the_budget_of_a_step(drafts, key):
    """No step is longer than its budget, prompts and guesses together; a lone decode still gets its drafts."""
    engine = make_engine(
        models.PLAIN, METHODS[key](f"{drafts / 'twin'}", guard=False), max_num_batched_tokens=8, max_num_seqs=6
    )
    sizes, run = [], engine.runner.run
    engine.runner.run = lambda batch: (sizes.append(len(batch.token_ids)), run(batch))[1]
    prompts = [models.ids(length, length) for length in (30, 9, 5, 2, 21, 3)]
    serve(engine, prompts, GREEDY)
    assert max(sizes) == 8
    assert engine.stats().drafts["accepted"] > TOKENS


def test_what_it_costs_in_steps(drafts):
    """A draft that is always right brings length + 1 tokens per step; a bad one costs no step more than none."""
    for length in (1, 4):
        engine = make_engine(models.PLAIN, Speculative(f"{drafts / 'twin'}", length=length, guard=False))
        serve(engine, [models.ids(9)], replace(GREEDY, max_tokens=1 + 3 * (length + 1)))
        stats = engine.stats()
        assert stats.steps == 1 + 3
        assert stats.drafts == {"drafts": 3, "drafted": 3 * length, "accepted": 3 * length}
    engine = make_engine(models.PLAIN, Speculative(f"{drafts / 'hostile'}", guard=False))
    serve(engine, [models.ids(9)], GREEDY)
    stats = engine.stats()
    assert stats.steps == TOKENS - stats.drafts.get("accepted", 0)


def test_the_draft_model_reads_nothing_twice(drafts, monkeypatch):
    """Beside one row per guess it reads each token once, and of guesses that did not stand nothing remains."""
    method = Speculative(f"{drafts / 'near'}", guard=False)
    engine = make_engine(models.PLAIN, method)
    rows = []
    decoder = method._model.checkpoint.decoder
    monkeypatch.setattr(decoder, "embed", lambda ids, embed=decoder.embed: (rows.append(len(ids)), embed(ids))[1])
    serve(engine, [models.ids(40)], GREEDY)
    stats = engine.stats().drafts
    wasted = stats["drafted"] - stats["accepted"]
    assert sum(rows) <= 40 + TOKENS + wasted
    rows.clear()
    serve(engine, [models.ids(40)], GREEDY)
    assert sum(rows) <= 40 - 32 + TOKENS + wasted, "the prompt's pages are found in the draft's cache"
    assert method._model.store.num_leased == 0 and not method._model._states


@pytest.mark.parametrize("key", METHODS)
def test_no_number_decides_two_things(drafts, monkeypatch, key):
    """Every draw, acceptance, replacement and guess of a request has a number of its own."""
    used = Counter()

    def watched(seeds, positions, purpose=0, number=0):
        numbers = number if isinstance(number, list) else [number] * len(seeds)
        used.update(zip(seeds, positions, [purpose] * len(seeds), numbers, strict=True))
        return uniforms(seeds, positions, purpose, number)

    uniforms = sampler.uniforms
    monkeypatch.setattr(sampler, "uniforms", watched)
    monkeypatch.setattr(draft_model, "uniforms", watched)
    engine = make_engine(models.PLAIN, METHODS[key](f"{drafts / 'near'}", guard=False))
    serve(engine, [models.ids(9)], SamplingParams(max_tokens=40, temperature=1.0, n=3, seed=1, ignore_eos=True))
    assert set(used.values()) == {1}
    assert len({sampler.uniform(*key) for key in used}) == len(used)
    assert {purpose for _, _, purpose, _ in used} == {0, 1, 2, 3}


def test_pearl_verifies_a_block_while_it_writes_the_next(drafts):
    """With a draft that is always right a step verifies one guess, and then a block each; nothing waits for a draft."""
    engine = make_engine(models.PLAIN, Pearl(f"{drafts / 'twin'}", length=4, guard=False))
    (answer,) = serve(engine, [models.ids(9)], replace(GREEDY, max_tokens=1 + 1 + 4 * 3))
    assert engine.stats().steps == 1 + 1 + 3
    assert engine.stats().drafts["accepted"] >= 1 + 4 * 3 - 1
    plain = make_engine(models.PLAIN)
    assert answer.tokens == serve(plain, [models.ids(9)], replace(GREEDY, max_tokens=14))[0].tokens


def test_pearl_says_the_same_with_and_without_overlap(drafts):
    """When the blocks are written in turns instead, seeds draw the same tokens."""

    class InTurns(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **named):
            done = super().submit(fn, *args, **named)
            wait([done])
            return done

    prompts = models.prompts(models.PLAIN)
    asked = [SamplingParams(max_tokens=30, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(len(prompts))]
    answers = []
    for overlap in (True, False):
        method = Pearl(f"{drafts / 'near'}", guard=False)
        if not overlap:
            method._writer = InTurns(1)
        engine = make_engine(models.PLAIN, method)
        answers.append([answer.tokens for answer in serve(engine, prompts, asked)])
        assert engine.stats().drafts["accepted"] > 0 and method._model.store.num_leased == 0
    assert answers[0] == answers[1]


def test_the_draft_length_is_a_seam(drafts):
    """A rule sees each guess's distribution and ends drafts; greedy text stays."""
    seen = []

    class Two(DraftLength):
        def go_on(self, sequences, lengths, hidden, probabilities):
            seen.append((len(sequences), hidden.shape, probabilities.shape))
            return [length < 2 for length in lengths]

    engine = make_engine(models.PLAIN, Speculative(f"{drafts / 'twin'}", guard=False), as_method(Two(), "two"))
    (answer,) = serve(engine, [models.ids(9)], GREEDY)
    assert answer.tokens == serve(make_engine(models.PLAIN), [models.ids(9)], GREEDY)[0].tokens
    stats = engine.stats().drafts
    assert stats["drafted"] <= 2 * stats["drafts"]
    assert set(seen) == {(1, (1, 16), (1, models.VOCAB_SIZE))}
    with pytest.raises(MethodError, match="two needs drafts: add a method that drafts"):
        make_engine(models.PLAIN, as_method(Two(), "two"))


def test_what_cannot_draft_is_refused(drafts, tmp_path):
    """Another vocabulary, a shorter context, the model itself, and what is no checkpoint, in one sentence each."""
    save_checkpoint(random_checkpoint(models._BASE | {"vocab_size": 23}, "float32"), tmp_path / "wide")
    save_checkpoint(random_checkpoint(models._BASE | {"max_position_embeddings": 64}, "float32"), tmp_path / "short")
    for name, sentence in {
        "wide": "has a vocabulary of 23 tokens and the model one of 19",
        "short": "reads at most 64 tokens, fewer than the 96 served; set max_model_len to 64",
    }.items():
        with pytest.raises(MethodError, match=sentence):
            make_engine(models.PLAIN, Speculative(f"{tmp_path / name}"))
    make_engine(models.PLAIN, Speculative(f"{tmp_path / 'short'}"), max_model_len=64)
    with pytest.raises(MethodError, match="draft is the model itself"):
        Engine(EngineArgs(device="cpu", use=[Speculative(f"{default_checkpoint_path()}")], num_pages=64))
    target = load_checkpoint(drafts / "twin", "float32", skip_tokenizer_init=True)
    args = EngineArgs(device="cpu", use=[Speculative(f"{drafts / 'twin'}")], skip_tokenizer_init=True, num_pages=64)
    with pytest.raises(MethodError, match="draft is the model itself"):
        Engine(args, target)


def test_an_abort_leaves_no_page_in_either_cache(drafts):
    """Neither the model's cache nor the draft's holds anything for a request that is gone."""
    method = Speculative(f"{drafts / 'near'}", guard=False)
    engine = make_engine(models.PLAIN, method)
    for name in "abc":
        engine.submit(engine.prepare(name, models.ids(20, ord(name)), GREEDY))
    for _ in range(3):
        engine.step()
    for name in "abc":
        engine.abort(name)
    assert_idle(engine)
    method._model.store.check()
    assert method._model.store.num_leased == 0


def spend(guard, steps, cost, accepted):
    """Run so many steps of one sequence, in which drafting costs `cost` plain steps; how many of them drafted."""
    drafting = 0
    for _ in range(steps):
        wanted = guard.load_wants(1)
        drafting += wanted
        guard.note_step(cost if wanted else 1.0, 1, 1 + accepted if wanted else 1)
    return drafting


def test_the_guard_follows_what_is_cheaper_per_token():
    """Where drafts lose, ever fewer steps try them; where they win, ever fewer go without."""
    steps = 4 * _MOST_PATIENCE
    assert spend(Guard(), steps, cost=2.0, accepted=0.5) < 0.01 * steps
    assert spend(Guard(), steps, cost=2.0, accepted=1.5) > 0.99 * steps
    turning = Guard()
    spend(turning, 300, cost=2.0, accepted=0.0)
    assert not turning.load_wants(1) and turning.load_wants(64), "another load is judged by itself"
    spend(turning, _MOST_PATIENCE, cost=2.0, accepted=4.0)
    assert turning.load_wants(1), "what loses once may win later"


def test_the_guard_leaves_out_single_requests():
    """A request whose guesses do not pay for the longer step pauses, and longer each time."""
    engine = make_engine(models.PLAIN)
    engine.submit(engine.prepare("poor", models.ids(5), GREEDY))
    poor = engine.requests["poor"].sequences[0]
    guard = Guard()
    spend(guard, 2 * _TRIAL + 2, cost=2.0, accepted=2.0)
    for accepted, wanted in ((2, True), (0, False)):
        for _ in range(_JUDGED):
            guard.note_draft(poor, accepted, 1)
        assert guard.request_wants(poor) == wanted


def test_the_guard_is_counted_and_leaves_seeded_draws_alone(drafts):
    """What it leaves out is in the counters; text is the model's all the same, and a seed draws the same again."""
    prompt, long = models.ids(9), replace(GREEDY, max_tokens=80)
    method = Speculative(f"{drafts / 'hostile'}")
    engine = make_engine(models.PLAIN, method)
    ticks = iter(range(10**6))
    # The clock runs faster while drafts are made: each of them is dear.
    speculation = engine._speculation
    assert speculation is not None
    speculation._clock = lambda: next(ticks) + 10.0 * speculation.counts["drafts"]
    (answer,) = serve(engine, [prompt], long)
    assert answer.tokens == serve(make_engine(models.PLAIN), [prompt], long)[0].tokens
    drafted = engine.stats().drafts
    assert drafted["left out for the load"] > drafted["drafts"]
    seeded = SamplingParams(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)
    (first,) = serve(engine, [prompt], seeded)
    assert engine.stats().drafts["drafts"] > drafted["drafts"]
    assert engine.stats().drafts["left out for the load"] == drafted["left out for the load"]
    fresh = make_engine(models.PLAIN, Speculative(f"{drafts / 'hostile'}", guard=False))
    assert serve(fresh, [prompt], seeded)[0].tokens == first.tokens
