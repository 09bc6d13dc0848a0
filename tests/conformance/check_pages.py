"""Contracts on memory: whatever ends a request, its pages and what was noted about it go; what is saved is real."""

import gc
import random
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.request import Request
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.lab import (
    GREEDY,
    MOST_STEPS,
    Answer,
    assert_conserved,
    assert_idle,
    assert_same,
    make_engine,
    serve,
)

TIGHT = {"page_size": 4, "num_pages": 22, "max_num_batched_tokens": 9, "max_num_seqs": 6}
"""Room for one long request and a bit: others wait, are preempted, and cached keys are evicted."""

STAGES: dict[str, Callable[[Request], bool]] = {
    "waiting": lambda request: request.sequences[0].num_computed == 0,
    "in the middle of its prompt": lambda r: 0 < r.sequences[0].num_computed < r.sequences[0].num_prompt,
    "after its first token": lambda request: request.sequences[0].num_output == 1,
    "in the middle of its answer": lambda request: request.sequences[0].num_output >= 3,
    "preempted": lambda request: request.metrics.preemptions > 0 and request.sequences[0].lease is None,
    "with an output that still waits": lambda r: r.prompt_done and any(s.num_computed == 0 for s in r.sequences[1:]),
}


def check_aborts(case: Case) -> None:
    """A request that is aborted at any stage leaves no page behind, and the engine as good as new."""
    want = _later_answers(case)
    for caching in (True, False):
        engine = case.engine(**TIGHT, enable_prefix_caching=caching)
        seen = [stage for stage in STAGES if _abort_at(engine, STAGES[stage])]
        assert {"waiting", "after its first token", "in the middle of its answer"} <= set(seen), f"only {seen} came up"
        assert_same(serve(engine, LATER), want, "after aborts at every stage")


LATER: list[Any] = [models.ids(17, 30), models.ids(5, 31)]


def _later_answers(case: Case) -> list[Answer]:
    """What a new engine answers to prompts that share nothing with earlier ones."""
    return serve(case.engine(**TIGHT), LATER)


def _abort_at(engine: Engine, stage: Callable[[Request], bool]) -> bool:
    """Run requests and abort each that is seen at a stage; whether one was."""
    several = SamplingParams(n=2, max_tokens=8, temperature=1.0, seed=0, ignore_eos=True)
    for name in range(4):
        engine.submit(engine.prepare(f"{name}", models.ids(20 + name, name), several))
    seen = False
    for _ in range(MOST_STEPS):
        for name in [name for name, request in engine.requests.items() if stage(request)]:
            engine.abort(name)
            assert_conserved(engine)
            seen = True
        if not engine.has_work:
            break
        engine.step()
        assert_conserved(engine)
    assert_idle(engine)
    return seen


class InjectedError(Exception):
    """What goes wrong inside a method."""


def check_errors(case: Case) -> None:
    """After an error inside the method, before or after it did its work, the requests can be ended, no page is lost,
    and the next requests are answered as ever."""
    want = _later_answers(case)
    for question in case.questions():
        for after in (False, True):
            engine = case.engine(**TIGHT)
            raised = _break(engine.stack.methods[0], question, at_call=3, after=after)
            with suppress(InjectedError):
                for name in range(3):
                    engine.submit(engine.prepare(f"{name}", models.ids(20 + name, name), GREEDY))
                for _ in range(MOST_STEPS):
                    engine.step()
                    if not engine.has_work:
                        break
            if raised:
                for name in list(engine.requests):
                    engine.abort(name)
            where = f"after an error {'behind' if after else 'in front of'} {question}"
            try:
                assert_idle(engine)
                assert_same(serve(engine, LATER), want, "the next answers")
            except Exception as error:
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error


def _break(method: Any, question: str, at_call: int, after: bool) -> list[int]:
    """Let a method's answer fail once; the list returned is empty until it has."""
    answer, raised, calls = getattr(method, question), [], 0

    def broken(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == at_call
        result = answer(*args, **named) if after or not now else None
        if now:
            raised.append(calls)
            raise InjectedError(question)
        return result

    setattr(method, question, broken)
    return raised


def check_forgets(case: Case) -> None:
    """Nobody remembers a request that has ended, however it ended."""
    engine = case.engine(**TIGHT)
    for name in range(3):
        engine.submit(engine.prepare(f"{name}", models.ids(20 + name, name), GREEDY))
    known = [weakref.ref(sequence) for request in engine.requests.values() for sequence in request.sequences]
    for step in range(MOST_STEPS):
        if step == 6:
            engine.abort("2")
        if not engine.has_work:
            break
        engine.step()
    serve(engine, LATER)  # what is noted about the last step is forgotten with the next
    gc.collect()
    alive = sum(each() is not None for each in known)
    assert alive == 0, (
        f"{alive} of {len(known)} sequences are still held after their end: what a method notes about a sequence goes"
        " with it (weakref.WeakKeyDictionary)"
    )


def check_traffic(case: Case) -> None:
    """Random arrivals, lengths, seeds and aborts in little memory: all requests end, no page is lost in any step, and
    an exact method answers each as it is answered alone."""
    for seed in range(3):
        rng = random.Random(seed)
        settings = {"page_size": rng.choice([1, 4, 16]), "max_num_batched_tokens": rng.choice([3, 16, 64])}
        engine = case.engine(
            **settings, num_pages=max(2, 72 // settings["page_size"]), max_num_seqs=rng.randrange(2, 8)
        )
        asked, done, to_come = {}, {}, 10
        for _ in range(MOST_STEPS):
            for _ in range(rng.choice([0, 0, 0, min(1, to_come), min(4, to_come)])):
                to_come -= 1
                name, length = f"{to_come}", rng.randrange(1, 50)
                params = SamplingParams(max_tokens=rng.randrange(1, 12), temperature=0, output_kind="final")
                asked[name] = (length, params.max_tokens)
                engine.submit(engine.prepare(name, models.ids(length), params, rng.choice([None, "salt"])))
            if to_come and engine.requests and rng.random() < 0.1:
                victim = rng.choice(list(engine.requests))
                engine.abort(victim)
                del asked[victim]
            for output in engine.step():
                done[output.request_id] = output.outputs[0].token_ids
            assert_conserved(engine)
            if not to_come and not engine.has_work:
                break
        assert_idle(engine)
        assert set(done) == set(asked), "a request that was not aborted never ended"
        if case.card.exact:
            for name, (length, tokens) in asked.items():
                assert done[name] == _plain(case.model, length, tokens), (
                    f"seed {seed}: request {name} is answered otherwise"
                )


@cache
def _plain(model: str, length: int, tokens: int) -> list[int]:
    asked = replace(GREEDY, max_tokens=tokens, ignore_eos=False)
    return serve(make_engine(model, enable_prefix_caching=False), [models.ids(length)], asked)[0].tokens


ROOMY = {"page_size": 4, "num_pages": 40, "enable_prefix_caching": False}


def check_savings(case: Case) -> None:
    """Memory that a method says it saves is not taken: bytes of all live tensors, less those of free pages."""
    share = case.example.kv_share
    assert share is not None
    plain = _bytes_held(lambda: make_engine(case.model, **ROOMY))
    ours = _bytes_held(lambda: case.engine(**ROOMY))
    specs = models.shared(case.model).decoder.attention_specs
    for tokens, held in ours.items():
        page = plain[tokens] / -(-tokens // ROOMY["page_size"])
        most = share(case.method(), specs, tokens) * plain[tokens] + page
        assert held <= most, f"{held:,.0f} bytes are held at {tokens} tokens, and not at most {most:,.0f} as declared"


def _bytes_held(build: Callable[[], Engine]) -> dict[int, float]:
    """Bytes held for one sequence by the tokens that it has computed, from the end of its prompt on."""
    gc.collect()
    gc.freeze()  # what is alive already is not asked again
    try:
        engine = build()
        pool = _live_bytes()
        engine.submit(engine.prepare("one", models.ids(64), replace(GREEDY, max_tokens=12, logprobs=None)))
        sequence = engine.requests["one"].sequences[0]
        held = {}
        while engine.has_work:
            engine.step()
            if sequence.num_output and not sequence.finished:
                free = engine.store.num_free / engine.store.num_pages
                held[sequence.num_computed] = _live_bytes() - free * pool
        return held
    finally:
        gc.unfreeze()


def _live_bytes() -> int:
    """Of all tensors that were made since the freeze, each storage once."""
    tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if _real(each)}
    return sum(storages.values())


def _real(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"
