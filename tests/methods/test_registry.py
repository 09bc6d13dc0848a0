"""The registry: cards, options, and sentences for what cannot be used."""

import pytest

from headstart.engine.planner import StepPlanner
from headstart.engine.scheduler import StallFree
from headstart.engine.seams import EveryKey, LogitRule, PagedAttention, Scheduler, Selector
from headstart.engine.stack import Stack
from headstart.errors import MethodError
from headstart.methods import registry
from headstart.methods.schedule.sarathi_serve import SarathiServe


def test_every_implemented_method_documents_its_options():
    """A documented type and default for each option, an attribute of that name, and a description that is read back."""
    cards = registry.catalogue(status="implemented")
    assert {"sarathi", "sarathi-serve", "prefill-first"} <= {card.key for card in cards}
    for card in cards:
        assert card.implementation is not None
        if any(option.required for option in card.options):
            continue
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
        ("zzz", "no method 'zzz'; `headstart methods` lists all"),
        ("Sarathi", "did you mean 'sarathi'"),
        ("piggybacking", "did you mean 'sarathi'"),
        ("lottery", "did you mean 'lottery-ticket' or 'reprogram-lt'"),
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


@pytest.fixture
def known(monkeypatch):
    """What is registered in a test is forgotten after it."""
    registry.catalogue()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def a_planned(key, summary="Does nothing."):
    return registry.MethodCard(key, "decode", registry.Paper("A paper on nothing"), summary=summary)


def test_a_planned_method_cannot_be_used(known):
    """Neither by the engine nor anywhere else; the sentence says why and where to look."""
    registry.planned(a_planned("nothing-yet"))
    for use in (
        lambda: registry.build("nothing-yet"),
        lambda: registry.usable("nothing-yet"),
        lambda: Stack(["nothing-yet:x=3"]),
    ):
        with pytest.raises(MethodError, match="nothing-yet is planned and has no code yet") as error:
            use()
        assert "\n" not in str(error.value)


def test_a_key_is_planned_or_implemented_but_never_both(known):
    """Whichever comes second is refused, and the sentence says what to delete."""
    registry.planned(a_planned("both"))
    with pytest.raises(ValueError, match="both has code now: delete its entry under headstart/methods/planned"):
        registry.method("both", stage="decode", paper=None)(type("Both", (), {"__doc__": "Both."}))
    with pytest.raises(ValueError, match="sarathi has code now"):
        registry.planned(a_planned("sarathi"))
    with pytest.raises(ValueError, match="two methods are registered as 'both'"):
        registry.planned(a_planned("both", "Does something else."))
    registry.planned(a_planned("both"))


class Rate:
    """Moves weights slowly.

    Args:
        factor: how slowly.
    """

    slots = ("optimizer",)
    kind = "training"

    def __init__(self, factor: float = 0.5) -> None:
        self.factor = factor


def test_a_method_says_its_kind_itself_or_through_its_seam(known):
    """Traits of inference stand on the cards of inference alone."""
    registry.method("slow", stage="pretrain", paper=None)(Rate)
    registry.method("slow-edit", stage="edit", paper=None, kind="training")(type("Edit", (), {"slots": ("editor",)}))
    for key, slot in (("slow", "optimizer"), ("slow-edit", "editor")):
        card = registry.card(key)
        assert (card.kind, card.slots, card.exact, card.chunking) == ("training", (slot,), None, None)
    assert registry.card("sarathi").kind == "inference"


def test_each_kind_of_work_refuses_the_methods_of_the_other(known):
    """One sentence that says where the method belongs."""
    registry.method("slow", stage="pretrain", paper=None)(Rate)
    registry.method("ruler", stage="analysis", paper=None, kind="analysis")(type("Ruler", (), {}))
    assert registry.build("slow:factor=0.1", "training").factor == 0.1
    assert registry.build("slow").factor == 0.5
    refused: list[tuple[str, registry.Kind, str]] = [
        ("slow", "inference", "slow works on a model, its data or its training, not in the engine"),
        ("sarathi:chunk=3", "training", "sarathi works while a model answers, not in training"),
        ("ruler", "inference", "ruler only measures"),
        ("ruler", "training", "ruler only measures"),
    ]
    for use, kind, sentence in refused:
        with pytest.raises(MethodError, match=sentence):
            registry.build(use, kind)
    with pytest.raises(MethodError):
        Stack(["slow"])


def test_the_list_can_be_narrowed():
    """By stage and by status, and an unknown word names the nearest."""
    assert {card.stage for card in registry.catalogue(stage="schedule")} == {"schedule"}
    both = registry.catalogue(status="planned"), registry.catalogue(status="implemented")
    assert sorted(card.key for cards in both for card in cards) == sorted(c.key for c in registry.catalogue())
    with pytest.raises(MethodError, match="no stage 'prefil'; did you mean 'prefill'"):
        registry.catalogue(stage="prefil")


def test_a_scheduler_is_all_that_it_takes():
    """A new scheduler works without the engine knowing it."""

    class Nothing(Scheduler):
        """Schedules nothing."""

        card = registry.card("prefill-first")

        def schedule(self, step: StepPlanner) -> None:
            step.begin()

    assert isinstance(Stack([Nothing()]).scheduler, Nothing)
