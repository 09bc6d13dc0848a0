"""Engines small enough to examine, what they answer, and where their pages are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.intake import Prompt
from headstart.engine.outputs import Logprob, RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.seams import Seam
from headstart.methods.registry import MethodCard
from tests.conformance import models

ANSWER = 5
"""Tokens of most answers."""
GREEDY = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True, logprobs=2)
DRAWN = SamplingParams(max_tokens=ANSWER, temperature=1.0, ignore_eos=True)
TOLERANCE = 1e-4
"""Of log-probabilities in float32; greedy texts may part where the first choice leads by less than twice this."""
MOST_STEPS = 2000
"""No traffic of the suite takes a tenth of it."""


@dataclass(frozen=True)
class Answer:
    """What one request got. Log-probabilities are of the tokens themselves; `lead` is the first choice's over the
    second's."""

    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    lead: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    exact: bool = True


def make_engine(model: str, *use: Seam, **settings: Any) -> Engine:
    """An engine on a tiny model; methods that bind weights get a model of their own."""
    binds = any("linear" in item.slots for item in use)
    checkpoint = models.load(model) if binds else models.shared(model)
    given = {"page_size": 16, "num_pages": 64, "skip_tokenizer_init": model != "default"} | settings
    return Engine(EngineArgs(device="cpu", use=use, **given), checkpoint)


def serve(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] = GREEDY,
    salt: str | None = None,
    beside: Callable[[int], None] | None = None,
    uses: Sequence[Any] | None = None,
) -> list[Answer]:
    """The answers to prompts that arrive at once, in their order; pages are counted after every step.

    `beside` is called before each step with its number; `uses` are the requests' own methods.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    names = [f"served-{place}" for place in range(len(prompts))]
    for name, prompt, asked, use in zip(names, prompts, each, uses or [None] * len(prompts), strict=True):
        engine.submit(engine.prepare(name, prompt, replace(asked, output_kind="final"), salt, use=use))
    done: dict[str, RequestOutput] = {}
    for step in range(MOST_STEPS):
        if beside is not None:
            beside(step)
        if not engine.has_work:
            break
        for output in engine.step():
            done[output.request_id] = output
        assert_conserved(engine)
    assert_idle(engine)
    return [_answer(done[name]) for name in names]


def assert_conserved(engine: Engine) -> None:
    """No page is lost or held twice, as far as the store can tell."""
    store: Any = engine.store
    if hasattr(store, "check"):
        store.check()
    assert 0 <= store.num_free + store.num_cached <= store.num_pages, "more pages are free and cached than there are"


def assert_idle(engine: Engine) -> None:
    """Every request has ended, and every page is free or cached."""
    assert not engine.has_work, "the engine does not get done"
    assert not engine.planner.running and not engine.planner.waiting, "a sequence stands in a queue and has ended"
    assert_conserved(engine)
    kept = engine.store.num_pages - engine.store.num_free - engine.store.num_cached
    assert kept == 0, f"{kept} pages are leased although no request runs"


def assert_same(got: Sequence[Answer], want: Sequence[Answer], where: str) -> None:
    """Equal tokens up to a tie, and log-probabilities within the tolerance."""
    for number, (mine, its) in enumerate(zip(got, want, strict=True)):
        what = f"{where}: answer {number}"
        _assert_close(mine.prompt_logprobs, its.prompt_logprobs, f"{what}: log-probabilities of the prompt")
        until = len(its.tokens)
        for place, (token, other) in enumerate(zip(mine.tokens, its.tokens, strict=False)):
            if token != other and its.lead and its.lead[place] < 2 * TOLERANCE:
                until = place
                break
            assert token == other, f"{what}: token {place} is {token} and not {other}"
        else:
            assert len(mine.tokens) == until, f"{what}: {len(mine.tokens)} tokens and not {until}"
        _assert_close(mine.logprobs[:until], its.logprobs[:until], f"{what}: log-probabilities")


def _assert_close(got: Sequence[float], want: Sequence[float], what: str) -> None:
    assert len(got) == len(want), f"{what}: {len(got)} and not {len(want)}"
    gap = max((abs(mine - its) for mine, its in zip(got, want, strict=True)), default=0.0)
    assert gap <= TOLERANCE, f"{what} differ by {gap:.2g}"


def _answer(output: RequestOutput) -> Answer:
    first = output.outputs[0]
    noted = first.logprobs or []
    return Answer(
        tokens=first.token_ids,
        logprobs=[entry[token].logprob for token, entry in zip(first.token_ids, noted, strict=False)],
        lead=[_lead(entry) for entry in noted],
        prompt_logprobs=[
            entry[token].logprob
            for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=False)
            if entry is not None
        ],
        cached=output.num_cached_tokens,
        exact=output.exact,
    )


def _lead(entry: dict[int, Logprob]) -> float:
    best = sorted((each.logprob for each in entry.values()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else float("inf")


def alone(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]) -> list[Answer]:
    """The answers to prompts that arrive one by one, each when the one before has ended."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    return [serve(engine, [prompt], asked)[0] for prompt, asked in zip(prompts, each, strict=True)]


@cache
def plain_answers(model: str, kind: str) -> list[Answer]:
    """What the engine without methods answers to the model's prompts, each alone: the reference for all that is exact.

    `kind` is "greedy", "scored" (greedy, with the prompt's log-probabilities) or "drawn" (each with a seed).
    """
    engine = make_engine(model, enable_prefix_caching=False)
    return alone(engine, models.prompts(model), params_of(kind, len(models.prompts(model))))


def params_of(kind: str, count: int) -> list[SamplingParams]:
    """The parameters of `plain_answers` for so many prompts."""
    made = {"greedy": GREEDY, "scored": replace(GREEDY, prompt_logprobs=0), "drawn": DRAWN}[kind]
    return [replace(made, seed=seed) for seed in range(count)]


def as_method(seam: Seam, key: str, **traits: Any) -> Seam:
    """An instance with the card that the decorator would give it, for parts of the suite's own."""
    card = MethodCard(key, "test", None, implementation=type(seam), slots=seam.slots, **traits)
    seam.card = card  # type: ignore[attr-defined]
    return seam
