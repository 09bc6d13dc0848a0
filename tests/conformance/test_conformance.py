"""Every registered inference method keeps the contracts: it is here by being registered.

What is demanded stands in `checks.py`, one line for each contract. What a method must say of itself, mostly nothing,
stands in `examples.py`.
"""

import re

import pytest

from headstart.engine.stack import Stack
from headstart.errors import MethodError
from headstart.methods import registry
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.check_answers import SITUATIONS, run_situation
from tests.conformance.checks import CONTRACTS, cases_of
from tests.conformance.examples import EXAMPLES, assert_complete, example_of
from tests.conformance.lab import TOLERANCE, assert_same, make_engine, plain_answers

CARDS = {card.key: card for card in registry.catalogue(status="implemented") if card.kind == "inference"}
CASES = [case for card in CARDS.values() for case in cases_of(card, example_of(card))]


@pytest.mark.parametrize(("contract", "case"), CASES, ids=str)
def test_conformance(contract: str, case: Case) -> None:
    """One contract, one method at one setting, one model. A method may refuse a family of models, but not `PLAIN`."""
    try:
        CONTRACTS[contract].check(case)
    except MethodError as refusal:
        if case.model == models.PLAIN:
            raise
        pytest.skip(str(refusal))


@pytest.mark.parametrize("key", CARDS)
def test_a_method_says_what_only_it_can(key: str) -> None:
    """A lossy method has a setting that keeps everything or a reason; required options are given."""
    assert_complete(CARDS[key], example_of(CARDS[key]))


def test_examples_are_of_registered_methods() -> None:
    """An entry whose method is gone is gone too."""
    assert set(EXAMPLES) <= set(CARDS)


def test_planned_methods_are_refused() -> None:
    """A key without code gets a sentence that says so."""
    for card in registry.catalogue(status="planned"):
        with pytest.raises(MethodError, match=f"^{re.escape(card.key)} is planned and has no code yet"):
            Stack([card.key])


@pytest.mark.parametrize("model", models.EVERY)
def test_situations_are_what_they_say(model: str) -> None:
    """On the plain engine preemption, eviction and hits really come up, and no answer hangs on a tie."""
    prompts, stats = models.prompts(model), {}
    for situation in SITUATIONS:
        engine = make_engine(model, **situation.settings)
        assert_same(run_situation(engine, situation, prompts), plain_answers(model, situation.kind), situation.name)
        stats[situation.name] = engine.stats()
    assert stats["preempted"].preemptions > 0
    assert stats["cached"].cached_tokens > stats["cached"].queried_tokens / 3
    assert stats["cached"].pages_cached > stats["cached and evicted"].pages_total, "nothing had to be evicted"
    leads = sorted(lead for answer in plain_answers(model, "greedy") for lead in answer.lead)
    assert leads[len(leads) // 10] > 100 * TOLERANCE, "many answers hang on a tie"
