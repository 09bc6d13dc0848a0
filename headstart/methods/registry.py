"""The registry: methods by key, their cards, and the parsing of `--use key:option=value`.

A method registers itself with `@method(...)`. Its options are its constructor's arguments, typed and documented
there and nowhere else; each is kept as an attribute of the same name. A method without code stands in
`headstart.methods.planned`; its entry goes when the code comes, since the card then hangs on the decorator.
"""

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

import headstart.methods
from headstart.errors import MethodError, did_you_mean

Chunking = Literal["any", "per_chunk", "whole"]
Kind = Literal["inference", "training", "analysis"]
Status = Literal["implemented", "planned"]

STAGES = {
    "data": "what a model reads, and in what order",
    "pretrain": "training from scratch, and training on",
    "grow": "a larger model from a smaller one",
    "sparsify": "fewer weights",
    "distil": "a smaller or faster model from a larger one",
    "adapt": "fitting a trained model to a task or a setting",
    "edit": "changing single facts",
    "safety": "refusals, measured and deepened",
    "quantize": "fewer bits",
    "prefill": "reading the prompt",
    "cache": "keeping and reusing keys and values",
    "decode": "writing the answer",
    "schedule": "which tokens run when",
    "beyond-text": "images, video, tables and time series",
    "analysis": "measuring and planning",
}
"""The stages of a model's life, in their order."""


@dataclass(frozen=True)
class Paper:
    """Where a method was published; `venue` says the year too."""

    title: str
    arxiv: str | None = None
    venue: str = ""


@dataclass(frozen=True)
class Claim:
    """The headline of a paper.

    Attributes:
        text: what is claimed, in a line.
        setting: model, hardware, lengths and baseline that it was shown with, as far as they are known.
        source: where it stands: the abstract, a table, a repository.
    """

    text: str
    setting: str
    source: str


@dataclass(frozen=True)
class Option:
    """One constructor argument of a method; `default` means nothing where it is `required`."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def type_name(self) -> str:
        """The type as one writes it."""
        return self.type.__name__ if isinstance(self.type, type) else str(self.type).replace("typing.", "")


@dataclass(frozen=True)
class MethodCard:
    """What the catalogue knows of a method, with code or without.

    Attributes:
        key: its name on the command line.
        stage: the stage of a model's life it belongs to.
        paper: None for a baseline that no paper proposes.
        exact: whether the model's output distribution is unchanged; None where that is no question (not inference).
        chunking: whether any split of a prompt gives the same result, the result depends on the chunks, or the
            prompt must stay whole; None as above.
        needs: what it cannot work without (a trained file, a calibration), in words.
        min_context: below this many tokens of context the default runs instead.
        summary: what it does: the first paragraph of the class's docstring.
        implementation: the class; None while it is planned.
        slots: the places in the engine or in training that it fills.
        kind: whether it acts while a model answers, on a model, its data or its training, or only measures.
        claim: the paper's headline.
        when_not: where it does not pay.
        conflicts: what it cannot be combined with.
        composes: what it goes well with.
    """

    key: str
    stage: str
    paper: Paper | None
    exact: bool | None = True
    chunking: Chunking | None = "any"
    needs: tuple[str, ...] = ()
    min_context: int = 0
    summary: str = ""
    implementation: type | None = None
    slots: tuple[str, ...] = ()
    kind: Kind = "inference"
    claim: Claim | None = None
    when_not: str = ""
    conflicts: str = ""
    composes: str = ""

    @property
    def status(self) -> Status:
        """Whether there is code."""
        return "planned" if self.implementation is None else "implemented"

    @property
    def options(self) -> list[Option]:
        """The constructor's arguments with the sentence that its docstring gives each; none while planned."""
        if self.implementation is None:
            return []
        hints = typing.get_type_hints(self.implementation.__init__)
        helps = _argument_docs(inspect.getdoc(self.implementation) or "")
        parameters = list(inspect.signature(self.implementation.__init__).parameters.values())[1:]
        return [
            Option(p.name, hints.get(p.name, str), p.default, helps.get(p.name, ""))
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]


_METHODS: dict[str, MethodCard] = {}
T = TypeVar("T", bound=type)


def method(
    key: str,
    *,
    stage: str,
    paper: Paper | None,
    kind: Kind | None = None,
    exact: bool = True,
    chunking: Chunking = "any",
    needs: Sequence[str] = (),
    min_context: int = 0,
    claim: Claim | None = None,
    when_not: str = "",
    conflicts: str = "",
    composes: str = "",
) -> Callable[[T], T]:
    """Register a class under `key` and hang its card on it as `card`.

    The class says in `slots` which places it fills, and in the first paragraph of its docstring what it does. Its
    kind is the one given here, else the `kind` that the class (or its seam) says, else inference. `exact`, `chunking`
    and `min_context` are traits of inference; methods of another kind leave them alone.

    Raises:
        ValueError: another class, or an entry of the planned methods, has this key.
    """

    def register(cls: T) -> T:
        card = MethodCard(
            key=key,
            stage=stage,
            paper=paper,
            exact=exact,
            chunking=chunking,
            needs=tuple(needs),
            min_context=min_context,
            summary=(inspect.getdoc(cls) or "").split("\n\n")[0],
            implementation=cls,
            slots=getattr(cls, "slots", ()),
            kind=kind or getattr(cls, "kind", "inference"),
            claim=claim,
            when_not=when_not,
            conflicts=conflicts,
            composes=composes,
        )
        cls.card = _register(card)  # type: ignore[attr-defined]
        return cls

    return register


def planned(*cards: MethodCard) -> None:
    """List methods that have no code yet, with the card that the decorator will carry when they have.

    Raises:
        ValueError: a class, or another entry, has the key.
    """
    for card in cards:
        _register(card)


def _register(card: MethodCard) -> MethodCard:
    """Keep a card with its texts on one line, and without the traits of inference where it is of another kind."""
    texts = {name: _line(getattr(card, name)) for name in ("summary", "when_not", "conflicts", "composes")}
    claim = card.claim and replace(card.claim, setting=_line(card.claim.setting))
    traits = {} if card.kind == "inference" else {"exact": None, "chunking": None}
    card = replace(card, claim=claim, **texts, **traits)
    known = _METHODS.get(card.key)
    if known is not None and known.status != card.status:
        raise ValueError(f"{card.key} has code now: delete its entry under headstart/methods/planned")
    if known is not None and _name(known) != _name(card):
        raise ValueError(f"two methods are registered as {card.key!r}: {_name(known)} and {_name(card)}")
    _METHODS[card.key] = card
    return card


def _line(text: str) -> str:
    return " ".join(text.split())


def _name(card: MethodCard) -> str:
    """What tells two registrations of one key apart, however often a module is loaded."""
    return card.implementation.__qualname__ if card.implementation else card.summary


def catalogue(*, stage: str | None = None, status: Status | None = None) -> list[MethodCard]:
    """The cards of all methods, or of one stage or status, in the order of a model's life and then by key.

    Raises:
        MethodError: no such stage or status; the nearest is named.
    """
    _load()
    places = {name: place for place, name in enumerate(STAGES)}
    cards = sorted(_METHODS.values(), key=lambda card: (places.get(card.stage, len(places)), card.stage, card.key))
    stages = dict.fromkeys([*STAGES, *(card.stage for card in cards)])
    for what, value, known in (("stage", stage, stages), ("status", status, typing.get_args(Status))):
        if value is not None and value not in known:
            hint = did_you_mean(value, known) or f"; there are: {', '.join(known)}"
            raise MethodError(f"there is no {what} {value!r}{hint}")
    return [card for card in cards if stage in (None, card.stage) and status in (None, card.status)]


def card(key: str) -> MethodCard:
    """The card of one method, planned ones included.

    Raises:
        MethodError: no such key; the nearest is named, by key or by the words of the title.
    """
    _load()
    if key not in _METHODS:
        near = _by_title(key) or get_close_matches(key.lower(), _METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`headstart methods` lists all"
        raise MethodError(f"there is no method {key!r}; {hint}")
    return _METHODS[key]


def usable(key: str, kind: Kind | None = None) -> MethodCard:
    """The card of a method that has code, and that is of this kind if one is given.

    Raises:
        MethodError: an unknown key, a method that is planned, or one of another kind.
    """
    found = card(key)
    if found.implementation is None:
        raise MethodError(
            f"{key} is planned and has no code yet: `headstart methods {key}` shows its card, and "
            "`headstart methods --status implemented` lists what can be used"
        )
    if kind not in (None, found.kind):
        raise MethodError(f"{key} {_ELSEWHERE[found.kind]}")
    return found


_ELSEWHERE: dict[Kind, str] = {
    "inference": "works while a model answers, not in training: give it to --use of generate, chat, serve or bench",
    "training": "works on a model, its data or its training, not in the engine: give it to `headstart train --use`",
    "analysis": "only measures, so there is nothing to --use",
}


def build(use: str, kind: Kind | None = None) -> Any:
    """The method that `key:option=value,option=value` describes; one of another kind than is asked for is refused.

    Raises:
        MethodError: an unknown key or option (the nearest is named), a method that is planned or of another kind, a
            value of the wrong type, an option that is given twice, or a required one that is missing.
    """
    key, _, tail = use.partition(":")
    found = usable(key.strip(), kind)
    options = {option.name: option for option in found.options}
    arguments: dict[str, Any] = {}
    for item in filter(None, tail.split(",")):
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise MethodError(f"{use!r}: write options as name=value, not {item!r}")
        if name not in options:
            known = ", ".join(options) or "none"
            raise MethodError(f"{key} has no option {name!r}{did_you_mean(name, options) or f'; it has: {known}'}")
        if name in arguments:
            raise MethodError(f"{use!r}: option {name} is given twice; keep one of the values")
        arguments[name] = _value(key, options[name], text.strip())
    missing = [name for name, option in options.items() if option.required and name not in arguments]
    if missing:
        raise MethodError(f"{found.key} needs option {missing[0]}: write {found.key}:{missing[0]}=VALUE")
    assert found.implementation is not None
    try:
        return found.implementation(**arguments)
    except TypeError as error:
        raise MethodError(f"{key} cannot be built from {use!r}: {error}") from None


def describe(instance: Any) -> str:
    """A method with its options as `key:option=value,...`: the form that `build` reads."""
    options = ",".join(f"{o.name}={getattr(instance, o.name)}" for o in instance.card.options)
    return f"{instance.card.key}:{options}" if options else instance.card.key


def _by_title(text: str) -> list[str]:
    """The keys of the papers, if they are few, whose title has words that begin with every word of `text`."""
    words = re.findall(r"[a-z0-9]{3,}", text.lower())
    found = []
    for known in _METHODS.values():
        title = re.findall(r"[a-z0-9]+", known.paper.title.lower()) if known.paper else []
        if words and all(any(part.startswith(word) for part in title) for word in words):
            found.append(known.key)
    return sorted(found) if len(found) <= 3 else []


def _value(key: str, option: Option, text: str) -> Any:
    try:
        return TypeAdapter(option.type).validate_python(None if text.lower() == "none" else text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise MethodError(f"{key}: option {option.name} cannot be {text!r}: {reason}") from None


def _argument_docs(docstring: str) -> dict[str, str]:
    """The sentences of a docstring's `Args:` section by argument."""
    section = re.search(r"Args:\n((?:[ \t]+.*\n?|\n)+)", docstring)
    found: dict[str, str] = {}
    name = None
    for line in section.group(1).splitlines() if section else []:
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start.group(1)
            found[name] = start.group(2).strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _load() -> None:
    """Import every module under `headstart.methods`, so that each registers itself."""
    for module in pkgutil.walk_packages(headstart.methods.__path__, "headstart.methods."):
        importlib.import_module(module.name)
