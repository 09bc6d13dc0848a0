"""Contracts on reuse: a cached key serves only who would have computed the same, and serves them the same."""

from typing import Any

import torch

from headstart.engine.cache import PagedKVStore
from headstart.engine.params import SamplingParams
from headstart.engine.seams import LayerKV
from headstart.engine.stack import Stack
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.check_answers import cut_at
from tests.conformance.lab import as_method, assert_same, make_engine, params_of, serve

PAGE = 4


def check_hit(case: Case) -> None:
    """A prompt whose beginning is found in the cache is answered as one of which nothing is found."""
    prompts = [models.ids(40), models.ids(40), models.ids(33), models.ids(23)]
    each = params_of("greedy", 1) * len(prompts)
    # The pieces end where pages do, so that a prompt found up to a page is read on in the pieces of one not found.
    settings: dict[str, Any] = {"cuts": range(PAGE, 96, PAGE), "page_size": PAGE, "num_pages": 100}
    cold, warm = cut_at(case, **settings, enable_prefix_caching=False), cut_at(case, **settings)
    found = []
    for number, (prompt, asked) in enumerate(zip(prompts, each, strict=True)):
        (miss,) = serve(cold, [prompt], asked)
        (hit,) = serve(warm, [prompt], asked)
        assert_same([hit], [miss], f"prompt {number}, of which {hit.cached} tokens are found in the cache")
        found.append(hit.cached)
    if case.card.exact:
        plain = [0, 36, 24, 20]
        less = any(mine < its for mine, its in zip(found, plain, strict=True))
        assert not less, f"{found} tokens are found, less than the plain engine's {plain}"


def check_conversation(case: Case) -> None:
    """A later turn, whose beginning was generated and is cached, is answered as if nothing were cached."""
    settings: dict[str, Any] = {"cuts": range(PAGE, 96, PAGE), "page_size": PAGE, "num_pages": 100}
    warm = cut_at(case, **settings)
    turn = [models.ids(13)]
    for place in range(3):
        (answer,) = serve(warm, turn)
        (want,) = serve(cut_at(case, **settings, enable_prefix_caching=False), turn)
        assert_same([answer], [want], f"turn {place}, of which {answer.cached} tokens are found in the cache")
        if place and case.card.exact:
            assert answer.cached > 0, f"turn {place} finds nothing of the turn before in the cache"
        turn = [[*turn[0], *answer.tokens, *models.ids(5, place + 1)]]


def check_strangers(case: Case) -> None:
    """Keys written by a lossy method never serve an exact request, nor the reverse; those of an exact method serve
    the plain engine as its own do."""
    prompt = models.ids(40)
    asked = params_of("greedy", 1)
    (plain,) = serve(make_engine(case.model, enable_prefix_caching=False), [prompt], asked)
    ours, theirs = case.engine(), make_engine(case.model)
    shared = ours.prepare("a", prompt, asked[0]).namespace == theirs.prepare("a", prompt, asked[0]).namespace
    assert shared == case.card.exact, f"the keys of {case.use} {'are' if shared else 'are not'} those of exact requests"
    if {"kv_store", "kv_layout"} & set(case.slots):
        return
    (own,) = serve(ours, [prompt], asked)
    for first in ("the method", "the plain engine"):
        store = as_method(OneForAll(), "one-for-all")
        engines = {"the method": case.engine(store), "the plain engine": make_engine(case.model, store)}
        serve(engines.pop(first), [prompt], asked)
        (second, engine), *_ = engines.items()
        (answer,) = serve(engine, [prompt], asked)
        if not case.card.exact:
            assert answer.cached == 0, f"{second} finds keys that {first} wrote"
        assert_same([answer], [own if second == "the method" else plain], f"{second} after {first}")


class OneForAll(PagedKVStore):
    """A store that several engines use as theirs."""

    def allocate(
        self, layers: list[LayerKV], num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> "OneForAll":
        return self if hasattr(self, "tree") else super().allocate(layers, num_pages, page_size, device)


def check_tenants(case: Case) -> None:
    """Requests with different salts find nothing of each other, and get the same."""
    engine = case.engine(page_size=PAGE, num_pages=100)
    prompt, asked = models.ids(40), params_of("greedy", 1)
    want = serve(case.engine(page_size=PAGE, num_pages=100), [prompt], asked)
    for salt in ("a", "b", None):
        answers = serve(engine, [prompt], asked, salt)
        assert answers[0].cached == 0, f"the tenant {salt!r} finds {answers[0].cached} tokens of another"
        assert_same(answers, want, f"the tenant {salt!r}")


def check_identity(case: Case) -> None:
    """A method says whether it is exact, in its fingerprint and in every answer; settings are told apart."""
    engine = case.engine()
    answer = serve(engine, [models.ids(9)], SamplingParams(max_tokens=1))[0]
    assert answer.exact == engine.exact == case.card.exact, "answers do not say whether the method is exact"
    others = [option for option in (*case.example.settings, case.example.dense) if option not in (None, case.options)]
    for other in others:
        mine, its = (
            Stack([Case(case.key, options, case.model, case.example).method()]) for options in (case.options, other)
        )
        if case.card.exact:
            assert mine.fingerprint == its.fingerprint == "", "an exact method has a fingerprint"
        else:
            assert mine.fingerprint != its.fingerprint, (
                f"{case.use} and {case.key}:{other} have the same fingerprint: would one serve the other's keys?"
            )
