"""The suite can fail: for each contract there is a broken method that it catches, and it accuses no sound one."""

from collections.abc import Iterator

import pytest

from headstart.engine.stack import Stack
from tests.conformance import check_use
from tests.conformance.bad_toys import BAD
from tests.conformance.case import Case
from tests.conformance.checks import CONTRACTS, cases_of
from tests.conformance.examples import Example, assert_complete
from tests.conformance.good_toys import GOOD
from tests.conformance.toys import registered

OF_THE_ENGINE = {"rivals", "min_context"}
"""Contracts that the engine keeps for a method: a broken engine, not a broken method, shows that they can fail."""


@pytest.mark.parametrize("key", BAD)
def test_a_broken_method_is_caught(key: str) -> None:
    """The contract that it breaks says so."""
    broken = BAD[key]
    with registered(key, broken):
        case = Case(key, broken.options, CONTRACTS[broken.contract].on[0], broken.example)
        assert CONTRACTS[broken.contract].concerns(case)
        with pytest.raises(AssertionError, match=broken.complaint):
            CONTRACTS[broken.contract].check(case)


def test_every_contract_catches_somebody() -> None:
    """No contract was never seen to fail."""
    assert {broken.contract for broken in BAD.values()} | OF_THE_ENGINE == set(CONTRACTS)


def sound_cases() -> Iterator[tuple[str, Case]]:
    """Every contract that concerns a sound toy."""
    for key, good in GOOD.items():
        with registered(key, good) as card:
            for contract, case in cases_of(card, good.example):
                if case.model == CONTRACTS[contract].on[0]:
                    yield contract, case


@pytest.mark.parametrize(("contract", "case"), list(sound_cases()), ids=str)
def test_a_sound_method_passes(contract: str, case: Case) -> None:
    """A method that keeps every contract is not accused of anything."""
    with registered(case.key, GOOD[case.key]) as card:
        assert_complete(card, case.example)
        CONTRACTS[contract].check(case)


def test_two_methods_on_one_slot_that_nobody_refuses_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rivals` can fail."""
    monkeypatch.setattr(check_use, "Stack", list)
    with (
        registered("toy-halves", GOOD["toy-halves"]),
        pytest.raises(AssertionError, match="two methods share the slot"),
    ):
        CONTRACTS["rivals"].check(Case("toy-halves"))


def test_a_min_context_that_nobody_heeds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """`min_context` can fail."""
    monkeypatch.setattr(Stack, "min_context", lambda stack, slot: 0)
    with registered("toy-halves", GOOD["toy-halves"]), pytest.raises(AssertionError, match=r"is asked .* below 24"):
        CONTRACTS["min_context"].check(Case("toy-halves"))


def test_a_lossy_method_without_its_words_is_caught() -> None:
    """A lossy method needs an entry."""
    with registered("toy-late", GOOD["toy-late"]) as card, pytest.raises(AssertionError, match=r"toy-late.*no_dense"):
        assert_complete(card, Example())
