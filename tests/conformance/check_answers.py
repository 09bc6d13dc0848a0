"""Contracts on what is answered: the plain model's text, draws and log-probabilities, or a lossy method's own, and
neither depends on company, order, memory, or, where `chunking` says so, on how the prompt was cut.

A broken contract is an AssertionError that says what broke.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from headstart.engine.batch import TokenBatch
from headstart.engine.engine import Engine
from headstart.engine.intake import Prompt
from headstart.engine.params import SamplingParams
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.lab import (
    GREEDY,
    Answer,
    alone,
    as_method,
    assert_same,
    make_engine,
    params_of,
    plain_answers,
    serve,
)
from tests.conformance.pieces import Pieces


@dataclass(frozen=True)
class Situation:
    """A way of running the same prompts, which must not change what an exact stack answers.

    Attributes:
        name: what it is called in a complaint.
        settings: of the engine.
        kind: of the answers: greedy, scored (log-probabilities of the prompt too) or drawn (seeds).
        backwards: the prompts arrive in the opposite order.
        rounds: how often all of them are asked; the last round counts.
        one_by_one: each prompt waits for the end of the one before.
        on_all: whether the built-in model, which takes longer than all the tiny ones, is asked too.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "greedy"
    backwards: bool = False
    rounds: int = 1
    one_by_one: bool = False
    on_all: bool = True


SITUATIONS = (
    Situation("alone", {"max_num_seqs": 1}, one_by_one=True, on_all=False),
    Situation("in a batch", {"max_num_batched_tokens": 512}),
    Situation("in a batch, backwards", {"enable_prefix_caching": False}, backwards=True, on_all=False),
    Situation(
        "one token per page, five per step",
        {"page_size": 1, "num_pages": 400, "max_num_batched_tokens": 5},
        on_all=False,
    ),
    Situation("preempted", {"page_size": 2, "num_pages": 44, "enable_prefix_caching": False}),
    Situation("cached", {"page_size": 4, "num_pages": 200}, rounds=2, on_all=False),
    Situation("cached and evicted", {"page_size": 4, "num_pages": 20}, rounds=2),
    Situation("with the prompt's log-probabilities", {"max_num_batched_tokens": 9}, "scored"),
    Situation("drawn with seeds", {"max_num_batched_tokens": 9}, "drawn"),
)


def run_situation(engine: Engine, situation: Situation, prompts: list[Prompt]) -> list[Answer]:
    """The answers of the last round, in the order of the prompts."""
    each = params_of(situation.kind, len(prompts))
    turn = slice(None, None, -1) if situation.backwards else slice(None)
    answers: list[Answer] = []
    for _ in range(situation.rounds):
        ask = alone if situation.one_by_one else serve
        answers = ask(engine, prompts[turn], each[turn])[turn]
    return answers


def check_text(case: Case) -> None:
    """An exact method, or a lossy one that keeps everything, gives the plain engine's text and log-probabilities in
    every situation; where its draws are the plain ones, the same seeds draw the same tokens."""
    for situation in SITUATIONS:
        if situation.kind == "drawn" and not case.example.same_draws:
            continue
        if not (situation.on_all or case.model in models.FAMILIES):
            continue
        answers = run_situation(case.engine(**situation.settings), situation, case.prompts)
        assert_same(answers, plain_answers(case.model, situation.kind), situation.name)


def check_company(case: Case) -> None:
    """A request gets the same alone, beside others, and in another order beside one that is aborted."""
    prompts = case.prompts
    mixed = [greedy if place % 2 else drawn for place, (greedy, drawn) in enumerate(_both_kinds(len(prompts)))]
    for page_size in (1, 16):
        every = {"page_size": page_size, "num_pages": 400, "enable_prefix_caching": False}
        lonely, crowd, other = (cut_at(case, range(7, 96, 7), **every) for _ in range(3))
        want = alone(lonely, prompts, mixed)
        assert_same(serve(crowd, prompts, mixed), want, "in a batch")
        other.submit(other.prepare("stranger", models.ids(30, 5), GREEDY))

        def beside(step: int, other: Engine = other) -> None:
            if step == 5:
                other.abort("stranger")

        answers = serve(other, prompts[::-1], mixed[::-1], beside=beside)[::-1]
        assert_same(answers, want, "in a batch, backwards, beside one that is aborted")


def _both_kinds(count: int) -> Iterator[tuple[SamplingParams, SamplingParams]]:
    return zip(params_of("greedy", count), params_of("drawn", count), strict=True)


def check_cuts(case: Case) -> None:
    """`any`: however a prompt is cut, the answer is the same. `per_chunk`: the same cuts give the same. `whole`: the
    engine never cuts."""
    prompts, greedy = case.prompts, params_of("greedy", len(case.prompts))
    if case.card.chunking == "whole":
        engine = case.engine(max_num_batched_tokens=4, enable_prefix_caching=False)
        pieces = watch_pieces(engine)
        serve(engine, prompts, greedy)
        cut = [
            (start, rows, length) for start, rows, length in pieces if start < length and (start, rows) != (0, length)
        ]
        assert not cut, f"a prompt of {cut[0][2]} tokens is cut: {cut[0][1]} of them from {cut[0][0]} on"
        return
    for page_size in (1, 16):
        settings = {"page_size": page_size, "num_pages": 400, "enable_prefix_caching": False}
        if case.card.chunking == "per_chunk":
            # Twice the work, so each cut is tried with one size of pages.
            for cuts in list(_cuts())[page_size % 2 :: 2]:
                once, again = (serve(cut_at(case, cuts, **settings), prompts, greedy) for _ in range(2))
                assert_same(again, once, f"pages of {page_size}, cut at {cuts} both times")
            continue
        whole = serve(cut_at(case, (), **settings), prompts, greedy)
        for cuts in _cuts():
            once = serve(cut_at(case, cuts, **settings), prompts, greedy)
            assert_same(once, whole, f"pages of {page_size}, cut at {cuts} and not at all")


def _cuts() -> Iterator[list[int]]:
    """One token at a time, pages, around pages, and anywhere."""
    yield list(range(1, 96))
    yield [16, 32]
    yield [15, 17, 31, 33]
    rng = random.Random(0)
    for _ in range(2):
        yield sorted(rng.sample(range(1, 40), 5))


def cut_at(case: Case, cuts: Iterable[int], min_context: int = 0, **settings: Any) -> Engine:
    """An engine that cuts prompts there; a scheduler cuts as it does, under several budgets."""
    if case.schedules:
        first = next(iter(cuts), 512)
        return make_engine(case.model, case.method(), max_num_batched_tokens=first, **settings)
    pieces = as_method(Pieces(cuts), "pieces")
    return make_engine(case.model, case.method(min_context), pieces, max_num_batched_tokens=10_000, **settings)


def watch_pieces(engine: Engine) -> list[tuple[int, int, int]]:
    """A list that fills with (first token, tokens, tokens of the prompt) of everything that runs from now on."""
    seen: list[tuple[int, int, int]] = []
    run = engine.runner.run

    def watched(batch: TokenBatch) -> torch.Tensor:
        for allotment in batch.allotments:
            sequence = allotment.sequence
            seen.append((sequence.num_computed, allotment.num_tokens, sequence.num_prompt))
        return run(batch)

    engine.runner.run = watched
    return seen


def check_repeat(case: Case) -> None:
    """The same seed draws the same tokens from the same stack."""
    each = params_of("drawn", len(case.prompts))
    first, second = (serve(case.engine(enable_prefix_caching=False), case.prompts, each) for _ in range(2))
    assert_same(second, first, "drawn again")


DRAWS, DRAWN_TOKENS = 1024, 3
RISK = 1e-6
"""Probability with which `check_draws` accuses a sound method; its seeds are fixed, so it does so always or never."""


def check_draws(case: Case) -> None:
    """A method with draws of its own draws from the plain model's distribution: chi-square over each token given those
    before it, where enough draws begin alike."""
    engine = case.engine(num_pages=512, max_num_seqs=48)
    seeds = range(DRAWS // 128)
    params = [SamplingParams(n=128, max_tokens=DRAWN_TOKENS, temperature=1.0, seed=s, ignore_eos=True) for s in seeds]
    for seed, asked in zip(seeds, params, strict=True):
        engine.submit(engine.prepare(str(seed), models.ids(17), replace(asked, output_kind="final")))
    drawn: list[tuple[int, ...]] = []
    while engine.has_work:
        drawn += [tuple(one.token_ids) for output in engine.step() for one in output.outputs]
    assert len(drawn) == DRAWS
    statistic, freedom = 0.0, 0
    for place in range(DRAWN_TOKENS):
        after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for tokens in drawn:
            after[tokens[:place]][tokens[place]] += 1
        for before, counts in after.items():
            if counts.total() >= 50:
                part, cells = _chi_square(counts, plain_distribution(case.model, before))
                statistic, freedom = statistic + part, freedom + cells - 1
    tail = torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()).item()
    assert tail >= RISK, f"{DRAWS} draws are not the plain model's: chi-square {statistic:.0f} of {freedom} cells"


def _chi_square(counts: Counter[int], probabilities: torch.Tensor) -> tuple[float, int]:
    """The statistic and its cells; the rarest tokens share the first, so that no cell expects fewer than five."""
    expected, order = (probabilities.double() * counts.total()).sort()
    found = torch.tensor([counts[token] for token in order.tolist()]).double()
    rare = max(int((expected < 5).sum()), int((expected.cumsum(0) < 5).sum()) + 1)
    expected = torch.cat((expected[:rare].sum()[None], expected[rare:]))
    found = torch.cat((found[:rare].sum()[None], found[rare:]))
    return ((found - expected) ** 2 / expected).sum().item(), len(expected)


@cache
def plain_distribution(model: str, after: tuple[int, ...]) -> torch.Tensor:
    """`[V]`: the plain model's probabilities of the token after the prompt of `check_draws` and these tokens."""
    engine = make_engine(model)
    asked = SamplingParams(max_tokens=1, temperature=0, logprobs=models.VOCAB_SIZE, ignore_eos=True)
    engine.submit(engine.prepare("one", [*models.ids(17), *after], asked))
    logprobs = engine.step()[0].outputs[0].logprobs
    assert logprobs is not None
    (entry,) = logprobs
    return torch.tensor([entry[token].logprob for token in range(models.VOCAB_SIZE)]).exp()
