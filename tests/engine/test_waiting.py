"""Waiting lines: their order, that nobody starves in them, and that tenants get equal shares."""

import random
from collections import Counter

import numpy as np
import pytest

from headstart.engine.cache import PagedKVStore
from headstart.engine.outputs import RequestMetrics
from headstart.engine.params import SamplingParams
from headstart.engine.request import Request, Sequence
from headstart.engine.waiting import POLICIES, ByCache, ByPriority, ByTenant, line_of
from headstart.errors import HeadstartError
from tests.conformance.lab import assert_conserved, assert_idle
from tests.engine.test_engine import make_engine


def _sequence(arrival: float, *, priority: int = 0, tenant: str = "", tokens: list[int] | None = None) -> Sequence:
    params = SamplingParams(priority=priority)
    request = Request("r", None, [], params, 8, "n", False, RequestMetrics(arrival), tenant)
    return Sequence(request, 0, tokens or [1, 2, 3], len(tokens or [1, 2, 3]), seed=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_line_holds_what_was_put_in(policy: str) -> None:
    """Random arrivals, returns and leavings: the line has exactly those who wait, and its head is one of them."""
    rng, line, inside = random.Random(0), line_of(policy), set()
    store = PagedKVStore().allocate([], 8, 4)
    for step in range(2000):
        line.begin(store)
        if inside and rng.random() < 0.5:
            gone = line[0] if rng.random() < 0.7 else rng.choice(list(inside))
            line.remove(gone)
            line.served(gone, rng.randrange(1, 50))
            inside.remove(gone)
        else:
            new = _sequence(step, priority=rng.randrange(3), tenant=rng.choice("abc"))
            (line.append if rng.random() < 0.8 else line.appendleft)(new)
            inside.add(new)
        assert len(line) == len(inside) and set(line) == inside and bool(line) == bool(inside)
        assert not inside or line[0] is next(iter(line))
    again = line.fresh(iter(line))
    assert set(again) == inside and type(again) is type(line)
    with pytest.raises(ValueError):
        line.remove(_sequence(0, tenant="nobody"))


def test_waiting_makes_up_for_priority() -> None:
    """A level is worth `aging` seconds of waiting, no less and no more, however late one looks."""
    line = ByPriority(aging=10)
    unimportant, early, late = (
        _sequence(0, priority=1),
        _sequence(9, priority=0),
        _sequence(11, priority=0),
    )
    line.extend([late, unimportant, early])
    assert list(line) == [early, unimportant, late]
    line.remove(early)
    line.appendleft(early)
    assert line[0] is early


def test_tenants_share_evenly() -> None:
    """One tenant floods the line, one asks steadily, one comes late: whoever wants service gets the same of it."""
    line, served = ByTenant(), Counter()
    for number in range(500):
        line.append(_sequence(number, tenant="flood"))
    for step in range(300):
        line.append(_sequence(step, tenant="steady"))
        if step >= 150:
            line.append(_sequence(step, tenant="late"))
        head = line[0]
        line.remove(head)
        line.served(head, 10)
        served[head.request.tenant, step >= 150] += 10
    assert served["flood", False] == served["steady", False]
    late = [served[tenant, True] for tenant in ("flood", "steady", "late")]
    assert max(late) - min(late) <= 10, "who comes late neither catches up nor falls behind"


def test_what_is_cached_goes_first_but_not_for_ever() -> None:
    store = PagedKVStore().allocate([], 64, 4)
    known = list(range(40))
    with store.open("n", known) as lease:
        assert lease.reserve(40)
        lease.commit(known, 40)
    line, first = ByCache(), _sequence(0, tokens=[99] * 40)
    line.append(first)
    for number in range(8):
        line.append(_sequence(number, tokens=[*known[: 4 * number + 4], *([98] * 8)]))
    line.begin(store)
    found = [store.num_found("n", np.asarray(s.tokens, dtype=np.int32)) for s in line]
    assert found == sorted(found, reverse=True) and found[0] == 32 and line[-1] is first
    before = store.tree.num_pages
    for number in range(300):
        line.append(_sequence(number, tokens=[*known, number]))
        line.begin(store)
        if line[0] is first:
            break
        line.remove(line[0])
    assert line[0] is first and store.tree.num_pages == before


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("use", ["sarathi-serve:chunk=9", "fastgen:budget=12", "orca", "request-batches:batch=3"])
def test_every_policy_serves_everybody_with_every_scheduler(policy: str, use: str) -> None:
    """Crowds, tight memory and aborts: all that stay are served, and no page is lost."""
    rng = random.Random(1)
    engine = make_engine(scheduling_policy=policy, use=[use], num_pages=24, max_num_seqs=5)
    ended = 0
    for number in range(40):
        params = SamplingParams(
            temperature=0, max_tokens=rng.randrange(1, 9), priority=rng.randrange(3) if policy == "priority" else 0
        )
        ids = [rng.randrange(3, 19) for _ in range(rng.randrange(1, 60))]
        engine.submit(engine.prepare(str(number), ids, params, cache_salt=rng.choice([None, "a", "b"])))
        if rng.random() < 0.1:
            ended += engine.abort(rng.choice(list(engine.requests))) is not None
        for _ in range(rng.randrange(4)):
            ended += sum(output.finished for output in engine.step())
            assert_conserved(engine)
    for _ in range(2000):
        if not engine.has_work:
            break
        ended += sum(output.finished for output in engine.step())
    assert_idle(engine)
    assert ended == 40


def test_a_quiet_tenant_is_not_behind_a_crowd() -> None:
    """Fifty requests of one tenant wait; the one of another that comes last is among the first to be served."""
    for policy, early in (("fcfs", False), ("fair", True)):
        engine = make_engine(scheduling_policy=policy, max_num_seqs=2)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        for number in range(50):
            engine.submit(engine.prepare(f"crowd-{number}", [5] * 20, params, cache_salt="crowd"))
        for _ in range(4):
            engine.step()
        engine.submit(engine.prepare("quiet", [6] * 20, params, cache_salt="quiet"))
        order = []
        while engine.has_work:
            order += [output.request_id for output in engine.step() if output.finished]
        assert (order.index("quiet") < 8) == early


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("fair-share", "must be one of fcfs, priority, fair, cache-aware, not 'fair-share'; did you mean 'fair'"),
        ("priority:aging=0", "takes no options but priority:aging=SECONDS, above 0, unlike 'priority:aging=0'"),
        ("fcfs:aging=3", "takes no options but priority:aging=SECONDS"),
    ],
)
def test_policies_that_are_none(policy: str, sentence: str) -> None:
    with pytest.raises(HeadstartError, match=sentence):
        line_of(policy)
    assert isinstance(line_of("priority:aging=5"), ByPriority)
