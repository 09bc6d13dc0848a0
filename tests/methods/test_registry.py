"""The registry: cards, options, and sentences for what cannot be used."""

import pytest

from headstart.engine.planner import StepPlanner
from headstart.engine.scheduler import StallFree
from headstart.engine.seams import EveryKey, LogitRule, PagedAttention, Scheduler, Selector
from headstart.engine.stack import Stack
from headstart.errors import MethodError
from headstart.methods import registry
from headstart.methods.schedule.sarathi_serve import SarathiServe


def test_every_method_has_a_whole_card():
    """Key, stage, summary, a documented type and default for each option, and an attribute of that name."""
    cards = registry.catalogue()
    assert {"sarathi", "sarathi-serve", "prefill-first"} <= {card.key for card in cards}
    for card in cards:
        assert card.summary and card.stage and card.slots, card.key
        instance = card.implementation()
        for option in card.options:
            assert option.help and option.type, f"{card.key}: {option.name} is not documented"
            assert getattr(instance, option.name) == option.default
        again = registry.build(registry.describe(instance))
        assert registry.describe(again) == registry.describe(instance)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("sarathi-srve", "no method 'sarathi-srve'; did you mean 'sarathi-serve'"),
        ("zzz", "there are: .*sarathi-serve"),
        ("sarathi-serve:chnk=3", "no option 'chnk'; did you mean 'chunk'"),
        ("sarathi-serve:chunk=many", "option chunk cannot be 'many'"),
        ("sarathi-serve:chunk", "name=value"),
        ("sarathi-serve:chunk=0", "at least 1, not 0"),
        ("sarathi:batch=0", "at least 1"),
        ("sarathi-serve:chunk=3,chunk=4", "option chunk is given twice"),
        ("sarathi-serve:chunk=3, chunk=3", "option chunk is given twice"),
    ],
)
def test_bad_uses_get_one_sentence(use, sentence):
    """Unknown keys and options name the nearest; bad values say what was given."""
    with pytest.raises(MethodError, match=sentence) as error:
        registry.build(use)
    assert "\n" not in str(error.value)


def test_two_methods_on_one_slot_are_refused_by_name():
    """The sentence names both and the slot."""
    with pytest.raises(MethodError, match="sarathi-serve and sarathi both fill the scheduler slot"):
        Stack(["sarathi-serve", "sarathi"])
    with pytest.raises(MethodError, match="no method"):
        Stack([3])


def test_options_reach_the_method():
    """`key:option=value` is the constructor call."""
    method = registry.build("sarathi-serve:chunk=77")
    assert isinstance(method, SarathiServe) and method.chunk == 77
    assert Stack([method]).scheduler is method


def test_stack_defaults_and_exactness():
    """Without methods the defaults stand; a lossy method makes the stack lossy and gives it a fingerprint."""
    plain = Stack()
    assert isinstance(plain.scheduler, StallFree) and plain.exact and plain.fingerprint == ""
    assert isinstance(plain.get("attention.decode", PagedAttention), PagedAttention)
    assert isinstance(plain.get("selector.prefill", Selector), EveryKey)
    assert Stack(["sarathi-serve:chunk=9"]).fingerprint == "", "exact methods leave cached keys as they are"

    class Lossy(LogitRule):
        """Halves every logit."""

        card = registry.MethodCard("lossy", "test", None, False, "any", (), 0, "x", object, ("logit_rule",))

        def apply(self, logits, sequences):
            return logits / 2

    stack = Stack([Lossy(), "sarathi-serve"])
    assert not stack.exact and stack.fingerprint


def test_a_scheduler_is_all_that_it_takes():
    """A new scheduler works without the engine knowing it."""

    class Nothing(Scheduler):
        """Schedules nothing."""

        card = registry.card("prefill-first")

        def schedule(self, step: StepPlanner) -> None:
            step.begin()

    assert isinstance(Stack([Nothing()]).scheduler, Nothing)
