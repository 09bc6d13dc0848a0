"""The registry: methods by key, their cards, and the parsing of `--use key:option=value`.

A method registers itself with `@method(...)`. Its options are its constructor's arguments, typed and documented
there and nowhere else; each is kept as an attribute of the same name.
"""

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

import headstart.methods
from headstart.errors import MethodError, did_you_mean

Chunking = Literal["any", "per_chunk", "whole"]


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    arxiv: str | None = None


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
    """What the catalogue knows of a method.

    Attributes:
        key: its name on the command line.
        stage: the stage of a model's life it belongs to.
        paper: None for a baseline that no paper proposes.
        exact: whether the model's output distribution is unchanged.
        chunking: whether any split of a prompt gives the same result, the result depends on the chunks, or the
            prompt must stay whole.
        needs: what it cannot work without (a trained file, a calibration), in words.
        min_context: below this many tokens of context the default runs instead.
        summary: the first paragraph of the class's docstring.
    """

    key: str
    stage: str
    paper: Paper | None
    exact: bool
    chunking: Chunking
    needs: tuple[str, ...]
    min_context: int
    summary: str
    implementation: type
    slots: tuple[str, ...] = field(default=())

    @property
    def options(self) -> list[Option]:
        """The constructor's arguments with the sentence that its docstring gives each."""
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
    exact: bool = True,
    chunking: Chunking = "any",
    needs: Sequence[str] = (),
    min_context: int = 0,
) -> Callable[[T], T]:
    """Register a class under `key` and hang its card on it as `card`."""

    def register(cls: T) -> T:
        known = _METHODS.get(key)
        if known is not None and known.implementation.__qualname__ != cls.__qualname__:
            raise ValueError(f"two methods are registered as {key!r}: {known.implementation} and {cls}")
        paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
        card = MethodCard(
            key=key,
            stage=stage,
            paper=paper,
            exact=exact,
            chunking=chunking,
            needs=tuple(needs),
            min_context=min_context,
            summary=" ".join(paragraph.split()),
            implementation=cls,
            slots=getattr(cls, "slots", ()),
        )
        _METHODS[key] = card
        cls.card = card  # type: ignore[attr-defined]
        return cls

    return register


def catalogue() -> list[MethodCard]:
    """Every registered method's card, by stage and key."""
    _load()
    return sorted(_METHODS.values(), key=lambda card: (card.stage, card.key))


def card(key: str) -> MethodCard:
    """The card of one method.

    Raises:
        MethodError: no such key; the nearest is named.
    """
    _load()
    if key not in _METHODS:
        known = ", ".join(sorted(_METHODS))
        raise MethodError(f"there is no method {key!r}{did_you_mean(key, _METHODS) or f'; there are: {known}'}")
    return _METHODS[key]


def build(use: str) -> Any:
    """The method that `key:option=value,option=value` describes.

    Raises:
        MethodError: an unknown key or option (the nearest is named), a value of the wrong type, an option that is
            given twice, or a required one that is missing.
    """
    key, _, tail = use.partition(":")
    found = card(key.strip())
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
    try:
        return found.implementation(**arguments)
    except TypeError as error:
        raise MethodError(f"{key} cannot be built from {use!r}: {error}") from None


def describe(instance: Any) -> str:
    """A method with its options as `key:option=value,...`: the form that `build` reads."""
    options = ",".join(f"{o.name}={getattr(instance, o.name)}" for o in instance.card.options)
    return f"{instance.card.key}:{options}" if options else instance.card.key


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
