"""What is demanded of every inference method that is registered: one line per contract, whom it concerns, and on which
models it is examined. What it demands stands in the docstring of its function.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headstart.engine.stack import why_for_all
from headstart.methods.registry import MethodCard
from tests.conformance import check_answers, check_cache, check_own, check_pages, check_schedule, check_use
from tests.conformance.case import Case
from tests.conformance.examples import Example
from tests.conformance.models import EVERY, PLAIN

ONE = (PLAIN,)
SEVERAL = (PLAIN, "window", "moe")


def everyone(case: Case) -> bool:
    """Every method, at each setting of its example."""
    return not case.dense


def whoever_loses_nothing(case: Case) -> bool:
    """Exact methods, and lossy ones set to keep everything."""
    return bool(case.card.exact) or case.dense


def whoever_draws_otherwise(case: Case) -> bool:
    """Those among them whose seeds draw other tokens: they verify guesses, say."""
    return whoever_loses_nothing(case) and not case.example.same_draws


def whoever_steps_aside(case: Case) -> bool:
    """Methods whose every slot has a default that runs below `min_context`."""
    return not case.dense and all(slot.startswith(("attention.", "selector.")) for slot in case.slots)


def whoever_saves(case: Case) -> bool:
    """Methods that say which share of the cache they hold."""
    return not case.dense and case.example.kv_share is not None


def whoever_may_be_a_requests_own(case: Case) -> bool:
    """Methods that fill nothing that all requests share."""
    return not case.dense and not why_for_all(case.card.implementation)


def schedulers(case: Case) -> bool:
    """Methods that decide what runs in a step."""
    return not case.dense and case.schedules


@dataclass(frozen=True)
class Contract:
    """A check, whom it concerns, and the models on which it is made.

    `lossy_on` are the models for lossy methods; the exact ones are compared with the plain engine on all by `text`. On
    the models of `once_on`, which take long, the first setting of an exact method speaks for the others.
    """

    check: Callable[[Case], None]
    concerns: Callable[[Case], bool] = everyone
    on: tuple[str, ...] = ONE
    lossy_on: tuple[str, ...] = ONE
    once_on: tuple[str, ...] = ()


CONTRACTS: dict[str, Contract] = {
    # what is answered
    "text": Contract(check_answers.check_text, whoever_loses_nothing, EVERY, EVERY, once_on=("default",)),
    "draws": Contract(check_answers.check_draws, whoever_draws_otherwise),
    "repeat": Contract(check_answers.check_repeat),
    "company": Contract(check_answers.check_company, lossy_on=SEVERAL),
    "cuts": Contract(check_answers.check_cuts, lossy_on=SEVERAL),
    # what is reused
    "hit": Contract(check_cache.check_hit, on=SEVERAL, lossy_on=SEVERAL),
    "conversation": Contract(check_cache.check_conversation, on=SEVERAL, lossy_on=SEVERAL),
    "strangers": Contract(check_cache.check_strangers),
    "tenants": Contract(check_cache.check_tenants),
    "identity": Contract(check_cache.check_identity),
    # what is held
    "aborts": Contract(check_pages.check_aborts),
    "errors": Contract(check_pages.check_errors),
    "traffic": Contract(check_pages.check_traffic),
    "forgets": Contract(check_pages.check_forgets),
    "savings": Contract(check_pages.check_savings, whoever_saves),
    # how it is used
    "acts": Contract(check_use.check_acts, on=("default",), lossy_on=("default",)),
    "description": Contract(check_use.check_description),
    "options": Contract(check_use.check_options),
    "rivals": Contract(check_use.check_rivals),
    "own": Contract(check_own.check_own, whoever_may_be_a_requests_own),
    "min_context": Contract(check_use.check_min_context, whoever_steps_aside),
    "threshold": Contract(check_use.check_threshold, whoever_steps_aside),
    # what runs when
    "budget": Contract(check_schedule.check_budget, schedulers),
    "starvation": Contract(check_schedule.check_starvation, schedulers),
    "decisions": Contract(check_schedule.check_decisions, schedulers),
}


def cases_of(card: MethodCard, example: Example) -> Iterator[tuple[str, Case]]:
    """Every contract that concerns a method, with each case in which it is examined."""
    settings = [*example.settings, *([] if card.exact or example.dense is None else [example.dense])]
    for name, contract in CONTRACTS.items():
        for options in settings:
            for model in contract.on if card.exact else contract.lossy_on:
                case = Case(card.key, options, model, example)
                if model in contract.once_on and card.exact and options != settings[0]:
                    continue
                if contract.concerns(case):
                    yield name, case
