"""Contracts on how a method is named, set and combined, and on where it steps aside."""

import typing
from typing import Any

from headstart.engine.engine import Engine
from headstart.engine.intake import Prompt
from headstart.engine.seams import SLOTS, Seam
from headstart.engine.stack import Stack
from headstart.errors import HeadstartError, MethodError
from headstart.methods import registry
from tests.conformance import models
from tests.conformance.case import Case, acting
from tests.conformance.check_answers import cut_at
from tests.conformance.lab import ANSWER, as_method, assert_same, make_engine, plain_answers, serve


def check_acts(case: Case) -> None:
    """What is examined does something: an exact method is asked, and what a lossy one answers is not the plain text."""
    engine = case.engine(enable_prefix_caching=False)
    asked = count_questions(case, engine)
    answers = serve(engine, case.prompts)
    if case.card.exact:
        assert asked[0] or not case.questions(), "the engine never asks the method"
        return
    try:
        assert_same(answers, plain_answers(case.model, "greedy"), "")
    except AssertionError:
        return
    raise AssertionError(f"{case.use} answers as the plain engine: give settings at which it acts on short prompts")


def count_questions(case: Case, engine: Engine) -> list[int]:
    """A list of one number: how often the engine has asked the method something."""
    method: Any = engine.stack.methods[0]
    asked = [0]
    for question in case.questions():
        setattr(method, question, _counted(getattr(method, question), asked))
    return asked


def _counted(answer: Any, calls: list[int]) -> Any:
    def counted(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        return answer(*args, **named)

    return counted


def check_description(case: Case) -> None:
    """What describes a method builds the same one, and tells apart what was built with other options."""
    method = case.method()
    text = registry.describe(method)
    assert registry.describe(acting(text)) == text, f"{text} builds {registry.describe(acting(text))}"
    for option in case.card.options:
        for value in _other_values(getattr(method, option.name), option.type):
            use = _with(case, option.name, value)
            try:
                changed = acting(use)
            except MethodError:
                continue
            kept = getattr(changed, option.name)
            assert kept == value, (
                f"{use} keeps {option.name} as {kept!r}: an option is an attribute of its name and value"
            )
            assert registry.describe(changed) != text, f"{use} is described as {text}"


def _other_values(value: Any, kind: Any) -> tuple[Any, ...]:
    """Values of an option's kind that are not the given one."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value + 16)
    if isinstance(value, float):
        return (value * 0.75, value * 1.25)
    return tuple(other for other in typing.get_args(kind) if isinstance(other, str) and other != value)


def _with(case: Case, name: str, value: Any) -> str:
    """The case's `--use` with one option at another value."""
    given = dict(item.split("=", 1) for item in filter(None, case.use.partition(":")[2].split(",")))
    return f"{case.key}:" + ",".join(f"{key}={text}" for key, text in (given | {name: value}).items())


JUNK = ("-1", "0", "1", "nan", "inf", "1e9", "99999999999999999999", "0.5", "none", "", "yes", "☃")


def check_options(case: Case) -> None:
    """Any value of an option works, or is refused in one sentence: at once, or when the engine starts."""
    for option in case.card.options:
        for junk in JUNK:
            use = _with(case, option.name, junk)
            try:
                serve(make_engine(case.model, acting(use)), [models.ids(9)])
            except HeadstartError as refusal:
                sentence = str(refusal)
                assert sentence and "\n" not in sentence, (
                    f"{use} is refused in more or less than a sentence: {sentence!r}"
                )
            except Exception as error:
                raise AssertionError(f"{use} is neither used nor refused: {type(error).__name__}: {error}") from error


def check_rivals(case: Case) -> None:
    """Another method in one of its slots is refused in a sentence that names both and the slot."""
    for slot in case.slots:
        rival = as_method(_stub(slot), "the-rival")
        for both in ([case.method(), rival], [rival, case.method()]):
            try:
                Stack(both)
            except MethodError as refusal:
                named = [name for name in (case.key, "the-rival", slot) if name not in str(refusal)]
                assert not named, f"the refusal of two methods in the slot {slot} does not name {named[0]}"
            else:
                raise AssertionError(f"two methods share the slot {slot}")


def _stub(slot: str) -> Seam:
    """Something that fills one slot and does nothing."""
    seam: Any = SLOTS[slot]
    body: dict[str, Any] = dict.fromkeys(seam.__abstractmethods__, None)
    return type("Stub", (seam,), {**body, "slots": (slot,)})()


def check_min_context(case: Case) -> None:
    """Below `min_context` tokens of context the default answers, and the method is not even asked; above, it is."""
    least = 24
    engine = make_engine(case.model, case.method(min_context=least), enable_prefix_caching=False)
    asked = count_questions(case, engine)
    short = models.ids(least - ANSWER)
    answers = serve(engine, [short])
    assert asked[0] == 0, f"the method is asked {asked[0]} times within contexts below {least} tokens"
    assert_same(answers, serve(make_engine(case.model), [short]), "below min_context")
    serve(engine, [models.ids(least + 10)])
    assert asked[0] > 0, "the method is never asked, not even with a long context"


def check_threshold(case: Case) -> None:
    """Where `min_context` lies among the tokens of a prompt, neither its cuts nor the keys that a shorter prompt left
    in the cache change the answer."""
    settings: dict[str, Any] = {"min_context": 24, "page_size": 4, "num_pages": 100}
    long: list[Prompt] = [models.ids(26), models.ids(40)]
    if case.card.chunking == "any":
        whole = serve(cut_at(case, (), **settings), long)
        for cuts in ([10], [23], range(4, 96, 4)):
            assert_same(serve(cut_at(case, cuts, **settings), long), whole, f"cut at {list(cuts)} and not at all")
    warm = cut_at(case, range(4, 96, 4), **settings)
    want = serve(cut_at(case, range(4, 96, 4), enable_prefix_caching=False, **settings), long)
    serve(warm, [models.ids(20)])
    assert_same(serve(warm, long), want, "after a prompt below min_context")
